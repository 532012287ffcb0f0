package storeforward

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"holdfast/broker/durable"
)

// A reader, a publisher and a committer at full speed: no gap, no swap, nothing
// twice while the stream turns between live and catching up.
func TestCatchingUpKeepsOrder(t *testing.T) {
	for qos := byte(1); qos <= 2; qos++ {
		t.Run(fmt.Sprint("QoS ", qos), func(t *testing.T) {
			o := onFile(t)
			o.CommitWindow = time.Millisecond
			s := open(t, o)
			defer closeStore(t, s)
			q := uplink(t, s)
			const n = 3000
			var wg sync.WaitGroup
			defer wg.Wait()
			wg.Go(func() {
				for i := 0; i < n; {
					done := newOutcome()
					if err := s.Append(msg("a", fmt.Sprint(i)), claimFor(q, qos), durable.Origin{}, done.done); err != nil {
						t.Errorf("append: %v", err)
						return
					}
					if i++; i%50 == 0 {
						<-done.ch
					}
				}
			})
			c := &consumer{t: t, s: s, q: q, qos: qos, work: make(chan struct{}, 1), ids: map[uint16]bool{}}
			if err := s.Attach(q, c); err != nil {
				t.Fatal(err)
			}
			c.catch = true
			for c.next < n && !t.Failed() {
				c.round()
			}
			if left, _ := s.Backlog(q); left != 0 && qos == 1 {
				t.Errorf("backlog %d, want 0", left)
			}
		})
	}
}

// consumer takes a few deliveries at a time and acknowledges them at once.
type consumer struct {
	t    *testing.T
	s    *Store
	q    durable.QueueID
	qos  byte
	work chan struct{}
	next int

	mu    sync.Mutex
	buf   []durable.Delivery
	catch bool
	ids   map[uint16]bool
}

func (c *consumer) poke() {
	select {
	case c.work <- struct{}{}:
	default:
	}
}

func (c *consumer) Offer(d durable.Delivery) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.poke()
	if len(c.buf) >= 7 && c.qos == 1 {
		c.catch = true
		return false
	}
	c.buf = append(c.buf, d)
	return true
}

func (c *consumer) Reserve() (uint16, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.ids) >= 7 {
		c.catch = true
		c.poke()
		return 0, false
	}
	return c.idLocked(), true
}

func (c *consumer) idLocked() uint16 {
	id := uint16(1)
	for c.ids[id] {
		id++
	}
	c.ids[id] = true
	return id
}

func (c *consumer) Unreserve(id uint16) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.ids, id)
}

func (c *consumer) Wake(byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.catch = true
	c.poke()
}

func (c *consumer) round() {
	c.mu.Lock()
	buf, catch := c.buf, c.catch
	c.buf = nil
	c.mu.Unlock()
	for _, d := range buf {
		c.consume(d)
	}
	if !catch {
		if len(buf) == 0 {
			<-c.work
		}
		return
	}
	c.mu.Lock()
	c.catch = false // a Wake from now on counts
	c.mu.Unlock()
	ds, live, err := c.s.Read(context.Background(), c.q, c.qos, 5, 1<<20)
	if err != nil {
		c.t.Errorf("read: %v", err)
	}
	if len(ds) > 0 && !live {
		c.mu.Lock()
		c.catch = true
		c.mu.Unlock()
	}
	for _, d := range ds {
		c.consume(d)
	}
}

func (c *consumer) consume(d durable.Delivery) {
	if got := string(d.Message.Payload); got != fmt.Sprint(c.next) {
		c.t.Errorf("got %s, want %d", got, c.next)
	}
	c.next++
	if c.qos == 1 {
		c.s.Acked(c.q, d.Seq)
		return
	}
	if d.PacketID == 0 {
		c.mu.Lock()
		d.PacketID = c.idLocked()
		c.mu.Unlock()
		sent := newOutcome()
		c.s.Sent(c.q, []durable.Sent{{Seq: d.Seq, PacketID: d.PacketID}}, sent.done)
		<-sent.ch
	}
	c.s.Received(c.q, d.Seq, nil)
	c.s.Completed(c.q, d.Seq, func(error) { c.Unreserve(d.PacketID) })
}
