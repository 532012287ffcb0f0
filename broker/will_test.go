package broker_test

import (
	"testing"
	"testing/synctest"
	"time"

	"holdfast/broker/brokertest"
	"holdfast/broker/durable"
	"holdfast/broker/packet"
)

// dying is a client with a will.
type dying struct {
	client  *brokertest.Client
	connect *packet.Connect
	again   func(clean bool) // connects again, without a will
}

func TestWill(t *testing.T) {
	second := time.Second
	tests := map[string]struct {
		expiry, delay uint32
		end           func(d dying)
		after         time.Duration // when it comes; -1: never
	}{
		"connection dies": {end: func(d dying) { d.client.Kill() }},
		"DISCONNECT": {after: -1, end: func(d dying) {
			d.client.Disconnect(0)
		}},
		"DISCONNECT with will": {end: func(d dying) {
			d.client.Disconnect(packet.ReasonDisconnectWithWill)
		}},
		"DISCONNECT with an error": {end: func(d dying) {
			d.client.Disconnect(packet.ReasonQuotaExceeded)
		}},
		"protocol error": {end: func(d dying) {
			d.client.Send(d.connect) // a second CONNECT
			d.client.Ended()
		}},
		"malformed packet": {end: func(d dying) {
			d.client.SendBytes([]byte{0x36, 0x02, 0, 0}) // QoS 3
			d.client.Ended()
		}},
		"keep alive": {after: 15 * second, end: func(d dying) {
			d.client.EndedWithin(20 * time.Second)
		}},
		"takeover": {end: func(d dying) {
			d.again(true)
		}},
		"delay shorter than the session": {expiry: 100, delay: 30, after: 30 * second, end: func(d dying) {
			d.client.Kill()
		}},
		"session shorter than the delay": {expiry: 10, delay: 30, after: 10 * second, end: func(d dying) {
			d.client.Kill()
		}},
		"delay without a session": {delay: 30, end: func(d dying) {
			d.client.Kill()
		}},
		"returns within the delay": {expiry: 100, delay: 30, after: -1, end: func(d dying) {
			d.client.Kill()
			synctest.Wait()
			pass(29 * second)
			d.again(false)
		}},
		"returns within the delay with a clean start": {expiry: 100, delay: 30, after: 10 * second, end: func(d dying) {
			d.client.Kill()
			synctest.Wait()
			pass(10 * second)
			d.again(true)
		}},
		"takeover within the delay": {expiry: 100, delay: 30, after: -1, end: func(d dying) {
			d.again(false)
		}},
		"takeover with a clean start ends the delay": {expiry: 100, delay: 30, end: func(d dying) {
			d.again(true)
		}},
	}
	for name, tt := range tests {
		for kind, w := range map[string]packet.Will{
			"QoS 0": {Topic: "will", Payload: []byte("dead")}, "retained QoS 1": {Topic: "will", Payload: []byte("dead"), QoS: 1, Retain: true},
		} {
			t.Run(name+", "+kind, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					b := brokertest.New(t, nil)
					watch := brokertest.Connect(t, b.Pipe(), brokertest.V5("watch"))
					watch.Subscribe(2, "will")
					p := brokertest.V5("c")
					p.KeepAlive = 10
					p.Properties.SessionExpiry = &tt.expiry
					will := w
					will.Properties.WillDelay = tt.delay
					p.Will = &will
					c := brokertest.Connect(t, b.Pipe(), p)
					if _, kept := b.Store.WillOf("c"); kept != (w.QoS > 0) {
						t.Errorf("kept in the store: %v", kept)
					}
					start := time.Now()
					tt.end(dying{client: c, connect: p, again: func(clean bool) {
						again := *p
						again.Will, again.CleanStart = nil, clean
						brokertest.Connect(t, b.Pipe(), &again)
					}})
					synctest.Wait()
					if tt.after < 0 {
						pass(time.Hour)
						if got := watch.Silent(); len(got) > 0 {
							t.Errorf("a will came: %v", got)
						}
					} else {
						m := waitLong(watch, tt.after)
						if d := time.Since(start); d != tt.after {
							t.Errorf("came after %v, want %v", d, tt.after)
						}
						if string(m.Payload) != "dead" || m.QoS != w.QoS {
							t.Errorf("got %q QoS %d", m.Payload, m.QoS)
						}
						if st := b.Status(); st.Wills != 1 {
							t.Errorf("%d wills counted", st.Wills)
						}
					}
					synctest.Wait()
					if _, kept := b.Store.WillOf("c"); kept {
						t.Error("the will is still in the store")
					}
				})
			})
		}
	}
}

// waitLong waits for a message that comes after up to d.
func waitLong(c *brokertest.Client, d time.Duration) *packet.Publish {
	start := time.Now()
	for c.Received() == 0 && time.Since(start) < d {
		pass(time.Second)
		synctest.Wait()
	}
	return c.Message()
}

func TestWillComesAfterTheLastMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t, nil)
		keeper := brokertest.Connect(t, b.Pipe(), brokertest.Keep(brokertest.V5("keeper"), 60))
		keeper.Subscribe(2, "a")
		p := brokertest.V5("c")
		p.Will = &packet.Will{Topic: "a", Payload: []byte("will"), QoS: 1}
		c := brokertest.Connect(t, b.Pipe(), p)
		c.Send(&packet.Publish{Topic: []byte("a"), QoS: 1, PacketID: 1, Payload: []byte("last")}, &packet.Disconnect{Reason: packet.ReasonDisconnectWithWill})
		c.Ended()
		if got := keeper.Messages(2); got[0] != "last" || got[1] != "will" {
			t.Errorf("got %q", got)
		}
	})
}

func TestWillAfterRestart(t *testing.T) {
	tests := map[string]struct {
		delay   uint32
		returns time.Duration // 0: never
		after   time.Duration // -1: never
	}{
		"client stays away":             {after: 30 * time.Second},
		"delay longer than the grace":   {delay: 90, after: 90 * time.Second},
		"client returns":                {returns: 29 * time.Second, after: -1},
		"client returns within a delay": {delay: 90, returns: 80 * time.Second, after: -1},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := brokertest.NewMemoryStore()
				defer store.Close()
				b := brokertest.New(t, store)
				p := brokertest.Keep(brokertest.V5("c"), 3600)
				p.Will = &packet.Will{Topic: "will", Payload: []byte("dead"), QoS: 1, Properties: packet.Properties{WillDelay: tt.delay}}
				brokertest.Connect(t, b.Pipe(), p)
				b.Stop(t) // the client is connected: as a power cut would find it
				store.Restart()
				if _, kept := store.WillOf("c"); !kept {
					t.Fatal("stopping took the will")
				}

				b = brokertest.New(t, store)
				watch := brokertest.Connect(t, b.Pipe(), brokertest.V5("watch"))
				watch.Subscribe(1, "will")
				start := time.Now()
				if tt.returns > 0 {
					pass(tt.returns)
					p.Will = nil
					brokertest.Connect(t, b.Pipe(), p)
				}
				if tt.after < 0 {
					pass(time.Hour)
					if got := watch.Silent(); len(got) > 0 {
						t.Errorf("a will came: %v", got)
					}
				} else {
					waitLong(watch, tt.after)
					if d := time.Since(start); d != tt.after {
						t.Errorf("came after %v, want %v", d, tt.after)
					}
				}
				synctest.Wait()
				if _, kept := store.WillOf("c"); kept {
					t.Error("the will is still in the store")
				}
			})
		})
	}
}

// TestWillIsTriedAgain: a will the store refuses stays due.
func TestWillIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t, nil)
		watch := brokertest.Connect(t, b.Pipe(), brokertest.V5("watch"))
		watch.Subscribe(1, "will")
		p := brokertest.V5("c")
		p.Will = &packet.Will{Topic: "will", Payload: []byte("dead"), Retain: true}
		c := brokertest.Connect(t, b.Pipe(), p)
		b.Store.SetFull(durable.ErrFull)
		c.Kill()
		synctest.Wait()
		// The client is back, with another will that must survive.
		p.Will = &packet.Will{Topic: "other", Payload: []byte("dead"), QoS: 1}
		brokertest.Connect(t, b.Pipe(), p)
		pass(7 * time.Second)
		b.Store.SetFull(nil)
		if m := watch.Message(); string(m.Payload) != "dead" {
			t.Errorf("got %q", m.Payload)
		}
		synctest.Wait()
		if w, kept := b.Store.WillOf("c"); !kept || w.Message.Topic != "other" {
			t.Errorf("the new will is %+v, %v", w, kept)
		}
	})
}

func TestWillProperties(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t, nil)
		watch := brokertest.Connect(t, b.Pipe(), brokertest.V5("watch"))
		watch.Subscribe(1, "will")
		p := brokertest.Keep(brokertest.V5("c"), 60)
		p.Will = &packet.Will{Topic: "will", Properties: packet.Properties{
			WillDelay: 5, MessageExpiry: new(uint32(30)), ContentType: "text/plain", User: []packet.UserProperty{{Key: "k", Value: "v"}},
		}}
		brokertest.Connect(t, b.Pipe(), p).Kill()
		m := waitLong(watch, 5*time.Second)
		got, err := packet.ParsePublishProperties(m.Properties)
		if err != nil || got.ContentType != "text/plain" || len(got.User) != 1 || m.MessageExpiry != 30 {
			t.Errorf("properties %+v, expiry %d, %v", got, m.MessageExpiry, err)
		}
	})
}
