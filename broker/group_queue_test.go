package broker_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"holdfast/broker/brokertest"
	"holdfast/broker/packet"
)

// groupName is how the group of $share/g/a is called in the store.
const groupName = "\xff$share/g/a"

func joinGroup(t testing.TB, b *brokertest.Broker, p *packet.Connect, manual bool) *brokertest.Client {
	t.Helper()
	c := brokertest.Raw(t, b.Pipe(), p.Version)
	c.SetManual(manual)
	if ack := c.Try(p); ack.Reason != packet.ReasonSuccess {
		t.Fatalf("CONNACK to %s: %v", p.ClientID, ack.Reason)
	}
	if !c.Connack.SessionPresent {
		c.Subscribe(2, "$share/g/a")
	}
	return c
}

func leaveGroup(c *brokertest.Client) {
	c.Kill()
	synctest.Wait()
}

// A message goes to one member, and each member gets its share, whatever kinds
// of sessions there are.
func TestGroupIsEven(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		persistent := rapid.SliceOfN(rapid.Bool(), 1, 6).Draw(rt, "persistent")
		messages := rapid.IntRange(0, 40).Draw(rt, "messages")
		qos := rapid.SampledFrom([]byte{0, 1, 2}).Draw(rt, "qos")
		synctest.Test(t, func(t *testing.T) {
			b := brokertest.New(t, nil)
			var members []*brokertest.Client
			for i, keep := range persistent {
				p := brokertest.V5(fmt.Sprint("m", i))
				if keep {
					brokertest.Keep(p, 600)
				}
				members = append(members, joinGroup(t, b, p, false))
			}
			synctest.Wait()
			p := brokertest.Connect(t, b.Pipe(), brokertest.V5("p"))
			for range messages {
				p.Publish(qos, false, "a", "x")
				synctest.Wait()
			}
			sum, n := 0, len(members)
			for _, m := range members {
				got := len(m.Rest())
				if sum += got; got < messages/n || got > (messages+n-1)/n {
					rt.Errorf("one of %d members got %d of %d", n, got, messages)
				}
			}
			if sum != messages {
				rt.Errorf("%d of %d came", sum, messages)
			}
		})
	})
}

// Members die and return at any point, and acknowledge as they like: in the end
// every message has come, and QoS 2 once.
func TestGroupLosesNothing(t *testing.T) {
	for seed := range uint64(60) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { playGroup(t, rand.New(rand.NewPCG(seed, 3))) })
		})
	}
}

// groupPlay is a group of which only the sessions that persist are certain.
type groupPlay struct {
	t        *testing.T
	rnd      *rand.Rand
	store    *brokertest.MemoryStore
	b        *brokertest.Broker
	p        *brokertest.Client
	members  [4]*brokertest.Client // nil while away; the last two end with their connections
	begun    [4]map[uint16]string  // QoS 2 without a PUBREL yet, by packet id
	received map[string]int
}

func playGroup(t *testing.T, rnd *rand.Rand) {
	t.Helper()
	store := brokertest.NewMemoryStore()
	t.Cleanup(store.Close)
	g := &groupPlay{t: t, rnd: rnd, store: store, b: brokertest.New(t, store), received: make(map[string]int)}
	g.p = brokertest.Connect(t, g.b.Pipe(), brokertest.V5("p"))
	for i := range g.members {
		g.join(i)
	}
	published := 0
	for range 150 {
		switch i := rnd.IntN(len(g.members)); rnd.IntN(6) {
		case 0, 1:
			qos := byte(1)
			if g.members[2] == nil && g.members[3] == nil && rnd.IntN(2) == 0 {
				qos = 2 // or its member might end, and it with it
			}
			published++
			if got := g.p.Publish(qos, false, "a", fmt.Sprint(qos, "-", published)); got.Failed() {
				t.Fatalf("publish: %v", got)
			}
		case 2:
			if g.members[i] != nil {
				leaveGroup(g.members[i])
				g.members[i] = nil
			}
		case 3:
			if g.members[i] == nil {
				g.join(i)
			}
		default:
			if g.members[i] != nil {
				g.answer(i, rnd.IntN(4))
			}
		}
	}
	for i := range g.members {
		if g.members[i] == nil && i < 2 {
			g.join(i)
		}
	}
	for range 10 {
		for i := range g.members {
			if g.members[i] != nil {
				g.answer(i, 1000)
			}
		}
		synctest.Wait()
	}
	qos2 := 0
	for payload, n := range g.received {
		if strings.HasPrefix(payload, "2") {
			qos2++
			if n != 1 {
				t.Errorf("%s came %d times", payload, n)
			}
		}
	}
	if len(g.received) != published {
		t.Errorf("%d of %d messages came", len(g.received), published)
	}
	for _, name := range []string{groupName, "m0", "m1"} {
		if n := store.Backlog(name); n != 0 {
			t.Errorf("%d deliveries of %q are left", n, name)
		}
	}
	t.Logf("%d messages, %d of them QoS 2", published, qos2)
}

func (g *groupPlay) join(i int) {
	p := brokertest.V5(fmt.Sprint("m", i))
	if i < 2 {
		brokertest.Keep(p, 600)
	} else {
		g.begun[i] = nil
	}
	p.Properties.ReceiveMaximum = uint16(1 + g.rnd.IntN(5))
	g.members[i] = joinGroup(g.t, g.b, p, true)
	if g.begun[i] == nil {
		g.begun[i] = make(map[uint16]string)
	}
	synctest.Wait()
}

// answer acknowledges up to n packets.
func (g *groupPlay) answer(i, n int) {
	synctest.Wait()
	c := g.members[i]
	for range n {
		if c.Received() == 0 {
			return
		}
		switch p := c.Next().(type) {
		case *packet.Publish:
			payload := string(p.Payload)
			if p.QoS == 1 {
				g.received[payload]++
				c.Send(&packet.Puback{PacketID: p.PacketID})
				break
			}
			if g.begun[i][p.PacketID] != payload {
				g.begun[i][p.PacketID] = payload
				g.received[payload]++
			}
			c.Send(&packet.Pubrec{PacketID: p.PacketID})
		case *packet.Pubrel:
			delete(g.begun[i], p.PacketID)
			c.Send(&packet.Pubcomp{PacketID: p.PacketID})
		}
		synctest.Wait()
	}
}

// A message that a member had and did not acknowledge goes to another at once,
// though the member's session lives on.
func TestGroupTakesBackFromTheAbsent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t, nil)
		absent := joinGroup(t, b, brokertest.Keep(brokertest.V5("absent"), 600), true)
		p := brokertest.Connect(t, b.Pipe(), brokertest.V5("p"))
		for i := range 3 {
			p.Publish(1, false, "a", fmt.Sprint(i))
		}
		absent.Send(&packet.Puback{PacketID: absent.Message().PacketID})
		synctest.Wait()
		other := joinGroup(t, b, brokertest.V5("other"), false)
		leaveGroup(absent)
		for _, want := range []string{"1", "2"} {
			if got := other.Message(); string(got.Payload) != want || got.Dup {
				t.Errorf("got %q, DUP %v, want %q as new", got.Payload, got.Dup, want)
			}
		}
		// Back again, it finds nothing, and its packet ids are free.
		absent = joinGroup(t, b, brokertest.Keep(brokertest.V5("absent"), 600), true)
		if got := absent.Silent(); len(got) > 0 {
			t.Errorf("got %v", got)
		}
		leaveGroup(other)
		p.Publish(1, false, "a", "3")
		if got := absent.Message(); string(got.Payload) != "3" || got.Dup {
			t.Errorf("got %q, DUP %v", got.Payload, got.Dup)
		}
	})
}

// Where there is no other, the same member gets it again, under the same packet
// id and with DUP (MQTT 5.0 §4.4 [MQTT-4.4.0-1]).
func TestGroupSendsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t, nil)
		m := joinGroup(t, b, brokertest.Keep(brokertest.V5("m"), 600), true)
		p := brokertest.Connect(t, b.Pipe(), brokertest.V5("p"))
		var ids []uint16
		for i := range 3 {
			p.Publish(1, false, "a", fmt.Sprint(i))
			ids = append(ids, m.Message().PacketID)
		}
		leaveGroup(m)
		p.Publish(1, false, "a", "3")
		m = joinGroup(t, b, brokertest.Keep(brokertest.V5("m"), 600), true)
		for i := range 4 {
			got := m.Message()
			if string(got.Payload) != fmt.Sprint(i) || got.Dup != (i < 3) || i < 3 && got.PacketID != ids[i] {
				t.Errorf("got %q, DUP %v, id %d", got.Payload, got.Dup, got.PacketID)
			}
			m.Send(&packet.Puback{PacketID: got.PacketID})
		}
		if got := m.Silent(); len(got) > 0 {
			t.Errorf("got %v", got)
		}
	})
}

// Messages that came while all members were away outlast a restart of the
// broker and the session of any single member.
func TestGroupQueueStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := brokertest.NewMemoryStore()
		t.Cleanup(store.Close)
		b := brokertest.New(t, store)
		for id, seconds := range map[string]uint32{"short": 20, "long": 600} {
			joinGroup(t, b, brokertest.Keep(brokertest.V5(id), seconds), false).Kill()
		}
		p := brokertest.Connect(t, b.Pipe(), brokertest.V5("p"))
		for i := range 100 {
			p.Publish(1, false, "a", fmt.Sprint(i))
		}
		b.Stop(t)
		store.Restart()
		b = brokertest.New(t, store)
		pass(time.Minute) // "short" is over
		if n := store.Backlog(groupName); n != 100 {
			t.Errorf("%d messages are kept, want 100", n)
		}
		long := joinGroup(t, b, brokertest.Keep(brokertest.V5("long"), 600), false)
		for i, got := range long.Messages(100) {
			if got != fmt.Sprint(i) {
				t.Fatalf("message %d is %q", i, got)
			}
		}
		synctest.Wait()
		if n := store.Backlog(groupName); n != 0 {
			t.Errorf("%d messages are left", n)
		}
	})
}

// The queue ends with the last member that could be given what is in it, also
// if that ended while the broker was down.
func TestGroupQueueEnds(t *testing.T) {
	queues := func(t *testing.T, store *brokertest.MemoryStore) (n int) {
		t.Helper()
		all, err := store.Sessions(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range all {
			if strings.HasPrefix(s.ClientID, "\xff") {
				n++
			}
		}
		return n
	}
	ways := map[string]func(t *testing.T, b *brokertest.Broker, m *brokertest.Client){
		"unsubscribed": func(_ *testing.T, _ *brokertest.Broker, m *brokertest.Client) {
			m.Send(&packet.Unsubscribe{PacketID: m.ID(), Filters: []string{"$share/g/a"}})
			m.Take(packet.TypeUnsuback)
		},
		"QoS 0 only": func(_ *testing.T, _ *brokertest.Broker, m *brokertest.Client) { m.Subscribe(0, "$share/g/a") },
		"expired":    func(_ *testing.T, _ *brokertest.Broker, m *brokertest.Client) { m.Kill(); pass(time.Hour) },
		"a clean start": func(t *testing.T, b *brokertest.Broker, m *brokertest.Client) {
			t.Helper()
			m.Kill()
			brokertest.Connect(t, b.Pipe(), brokertest.V5("m"))
		},
	}
	for name, end := range ways {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := brokertest.NewMemoryStore()
				t.Cleanup(store.Close)
				b := brokertest.New(t, store)
				m := joinGroup(t, b, brokertest.Keep(brokertest.V5("m"), 600), true)
				brokertest.Connect(t, b.Pipe(), brokertest.V5("p")).Publish(1, false, "a", "x")
				m.Take(packet.TypePublish)
				if n := queues(t, store); n != 1 {
					t.Fatalf("%d queues of groups, want 1", n)
				}
				end(t, b, m)
				synctest.Wait()
				if n := queues(t, store); n != 0 {
					t.Errorf("%d queues of groups are left", n)
				}
			})
		})
	}
	t.Run("while the broker was down", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			store := brokertest.NewMemoryStore()
			t.Cleanup(store.Close)
			store.CreateSession(groupName, 0xFFFFFFFF, nil)
			brokertest.New(t, store)
			synctest.Wait()
			if n := queues(t, store); n != 0 {
				t.Errorf("%d queues of groups are left", n)
			}
		})
	})
}

// What nobody can be sent any more does not stand in the way of the rest.
func TestGroupDrops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t, nil)
		p := brokertest.Keep(brokertest.V5("m"), 600)
		p.Properties.MaximumPacketSize = 100
		leaveGroup(joinGroup(t, b, p, false))
		pub := brokertest.Connect(t, b.Pipe(), brokertest.V5("p"))
		pub.Publish(1, false, "a", strings.Repeat("x", 100))
		pub.PublishWith(&packet.Publish{QoS: 1, Topic: []byte("a"), Payload: []byte("late"), HasExpiry: true, MessageExpiry: 5})
		pub.Publish(1, false, "a", "good")
		pass(10 * time.Second)
		m := joinGroup(t, b, p, false)
		if got := m.Messages(1)[0]; got != "good" {
			t.Errorf("got %q", got)
		}
		pub.Publish(1, false, "a", strings.Repeat("y", 100))
		pub.Publish(1, false, "a", "good too")
		if got := m.Messages(1)[0]; got != "good too" {
			t.Errorf("got %q", got)
		}
		synctest.Wait()
		if n := b.Store.Backlog(groupName); n != 0 {
			t.Errorf("%d deliveries are left", n)
		}
		if st := b.Status(); st.DroppedTooLarge != 2 || st.DroppedExpired != 1 {
			t.Errorf("too large %d, expired %d", st.DroppedTooLarge, st.DroppedExpired)
		}
	})
}

// The store cannot make a queue, or read from it.
func TestGroupAndStoreInTrouble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t, nil)
		m := joinGroup(t, b, brokertest.Keep(brokertest.V5("m"), 600), false)
		leaveGroup(m)
		p := brokertest.Connect(t, b.Pipe(), brokertest.V5("p"))
		p.Publish(1, false, "a", "x")
		b.Store.SetReadFailing(fmt.Errorf("no disk"))
		m = joinGroup(t, b, brokertest.Keep(brokertest.V5("m"), 600), false)
		pass(5 * time.Second)
		if m.Received() != 0 {
			t.Error("a message came from nowhere")
		}
		b.Store.SetReadFailing(nil)
		pass(2 * time.Second)
		m.Messages(1)
	})
}
