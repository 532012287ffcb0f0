package broker_test

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"holdfast/broker"
	"holdfast/broker/brokertest"
	"holdfast/broker/durable"
	"holdfast/broker/message"
)

// uplink is a durable recipient that takes everything and acknowledges nothing.
type uplink struct {
	mu  sync.Mutex
	got []string
}

func (u *uplink) add(s string) {
	u.mu.Lock()
	u.got = append(u.got, s)
	u.mu.Unlock()
}

func (u *uplink) Offer(d durable.Delivery) bool {
	u.add(fmt.Sprintf("%s QoS %d retain %v", d.Message.Topic, d.QoS, d.Retain))
	return true
}
func (*uplink) Reserve() (uint16, bool) { return 7, true }
func (*uplink) Unreserve(uint16)        {}
func (*uplink) Wake(byte)               {}

func TestRecipient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t, nil)
		u := &uplink{}
		q := b.Store.NewQueue()
		if err := b.Store.Attach(q, u); err != nil {
			t.Fatal(err)
		}
		for qos := byte(1); qos <= 2; qos++ {
			if _, live, err := b.Store.Read(t.Context(), q, qos, 1, 1); !live || err != nil {
				t.Fatal(live, err)
			}
		}
		add := func(routes ...broker.Route) {
			t.Helper()
			if err := b.AddRecipient(broker.Recipient{
				Name: "cloud", Queue: q, Routes: routes, Offer0: func(m *message.Message) { u.add(m.Topic + " QoS 0") },
			}); err != nil {
				t.Fatal(err)
			}
		}
		add(broker.Route{Filter: "s/#", QoS: 1}, broker.Route{Filter: "s/two", QoS: 2}, broker.Route{Filter: "zero", QoS: 0})
		c := brokertest.Connect(t, b.Pipe(), brokertest.V5("c"))
		expect := func(want ...string) {
			t.Helper()
			synctest.Wait()
			u.mu.Lock()
			defer u.mu.Unlock()
			if !slices.Equal(u.got, want) {
				t.Errorf("got %q, want %q", u.got, want)
			}
			u.got = nil
		}
		for qos := byte(0); qos <= 2; qos++ {
			c.Publish(qos, qos == 1, "s/one", "x")
		}
		expect("s/one QoS 0", "s/one QoS 1 retain true", "s/one QoS 1 retain false")
		c.Publish(2, false, "s/two", "x") // one claim at the highest QoS
		expect("s/two QoS 2 retain false")
		c.Publish(2, false, "zero", "x")
		c.Publish(2, false, "other", "x")
		expect("zero QoS 0")
		// What comes from there does not go back there.
		for qos := byte(0); qos <= 2; qos++ {
			done := make(chan error, 1)
			m := &message.Message{Topic: "s/one", QoS: qos, Payload: []byte("x")}
			if err := b.Publish(m, durable.Origin{Queue: q}, func(err error) { done <- err }); err != nil {
				t.Fatal(err)
			}
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		expect()
		add(broker.Route{Filter: "new", QoS: 1}) // routes are replaced
		c.Publish(1, false, "s/one", "x")
		c.Publish(1, false, "new", "x")
		expect("new QoS 1 retain false")
		b.RemoveRecipient("cloud")
		b.RemoveRecipient("cloud")
		c.Publish(1, false, "new", "x")
		expect()
	})
}

func TestRecipientWithWrongRoutes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t, nil)
		for name, r := range map[string]broker.Recipient{
			"a filter that is none": {Queue: 1, Routes: []broker.Route{{Filter: "a/#/b"}}},
			"QoS 3":                 {Queue: 1, Routes: []broker.Route{{Filter: "a", QoS: 3}}},
			"QoS 1 without a queue": {Routes: []broker.Route{{Filter: "a", QoS: 1}}},
		} {
			if err := b.AddRecipient(r); err == nil {
				t.Errorf("%s: no error", name)
			}
		}
	})
}

func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t, nil)
		var got []string
		stop := b.Watch([]string{"a/#", "+/b", "wrong/#/x"}, func(m *message.Message) { got = append(got, m.Topic) })
		c := brokertest.Connect(t, b.Pipe(), brokertest.V5("c"))
		for _, topic := range []string{"a/b", "x/b", "x/y"} {
			c.Publish(1, false, topic, "x")
		}
		stop()
		stop()
		c.Publish(1, false, "a/b", "x")
		if want := []string{"a/b", "x/b"}; !slices.Equal(got, want) {
			t.Errorf("saw %q, want %q", got, want)
		}
	})
}
