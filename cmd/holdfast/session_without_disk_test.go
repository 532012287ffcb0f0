package main

import (
	"testing"
	"time"

	"holdfast/broker/brokertest"
	"holdfast/broker/packet"
	"holdfast/storeforward"
	"holdfast/storeforward/storetest"
)

// While the disk fails a 5.0 client works without a session that outlives its
// connection, one whose session is on the disk has it, and 3.1.1 is refused; when
// it is healed all is as asked for.
func TestSessionsWhileTheDiskFails(t *testing.T) {
	disk := storetest.NewDisk()
	b, stop := startRealStore(t, "", func(o *storeforward.Options) {
		o.Disk, o.Path, o.RetryMin, o.RetryMax = disk, disk.Path("db"), 10*time.Millisecond, 20*time.Millisecond
	})
	defer stop()
	keep := func(id string) *packet.Connect { return brokertest.Keep(brokertest.V5(id), 600) }
	there := brokertest.Connect(t, b.Pipe(), keep("there"))
	there.Subscribe(1, "to/there")
	there.Kill()

	p := brokertest.Connect(t, b.Pipe(), brokertest.V5("p"))
	disk.FailWrites(0, -1)
	p.Send(&packet.Publish{Topic: []byte("to/there"), QoS: 1, PacketID: 1, Payload: []byte("first")}) // answered when it is safe
	waitUntil(t, "the disk to be found out", func() bool { return b.store.Status().State == "failing" })

	c := brokertest.Connect(t, b.Pipe(), keep("new"))
	if x := c.Connack.Properties.SessionExpiry; x == nil || *x != 0 || c.Connack.SessionPresent {
		t.Errorf("CONNACK %+v, want a session expiry interval of 0", c.Connack)
	}
	c.Subscribe(2, "live")
	q := brokertest.Connect(t, b.Pipe(), brokertest.V5("q"))
	q.Publish(1, false, "live", "now")
	if got := c.Messages(1); got[0] != "now" {
		t.Errorf("got %q", got)
	}
	there = brokertest.Connect(t, b.Pipe(), keep("there"))
	if !there.Connack.SessionPresent || there.Connack.Properties.SessionExpiry != nil {
		t.Errorf("CONNACK %+v, want the session that is on the disk", there.Connack)
	}
	if got := there.Messages(1); got[0] != "first" {
		t.Errorf("got %q", got)
	}
	old := brokertest.Raw(t, b.Pipe(), packet.V311)
	if got := old.Try(brokertest.Keep(brokertest.V4("old"), 0)); got.Reason != packet.ReasonServerUnavailable {
		t.Errorf("CONNACK of 3.1.1 %v, want server unavailable", got.Reason)
	}

	if n := b.Status().SessionsUnstored; n != 1 {
		t.Errorf("%d sessions counted, want 1", n)
	}

	disk.Heal()
	waitUntil(t, "the store to be well", func() bool { return b.store.Status().State == "ok" })
	c = brokertest.Connect(t, b.Pipe(), keep("new"))
	if c.Connack.SessionPresent || c.Connack.Properties.SessionExpiry != nil {
		t.Errorf("CONNACK %+v, want a new session as asked for", c.Connack)
	}
}
