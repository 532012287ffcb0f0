//go:build powercut

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"holdfast/broker/packet"
)

// world stands still while a cut is noted: whoever sends or handles a packet
// holds it for reading.
type world struct{ sync.RWMutex }

// memory is what a publisher knows, and would know after a power cut of the
// gateway: which messages are on their way, and how far.
type memory struct {
	name    string
	qos     byte
	next    int
	lastID  uint16
	flights []flight // in the order sent
	acked   int      // acknowledged: PUBACK or PUBREC
}

type flight struct {
	id       uint16
	n        int
	released bool // PUBREC came
}

func (m *memory) clone() memory {
	c := *m
	c.flights = slices.Clone(m.flights)
	return c
}

// dial opens a session that outlives its connection.
func dialed(ctx context.Context, addr, id string) (net.Conn, *packet.Reader, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, nil, err
	}
	b, err := (&packet.Connect{Version: packet.V311, ClientID: id}).AppendTo(nil, packet.V311)
	if err == nil {
		err = c.SetReadDeadline(time.Now().Add(30 * time.Second))
	}
	if err == nil {
		_, err = c.Write(b)
	}
	r := packet.NewReader(c, 64<<10)
	r.SetVersion(packet.V311)
	if err == nil {
		var p packet.Packet
		if p, err = r.Next(); err == nil {
			if ack, ok := p.(*packet.Connack); !ok || ack.Reason.Failed() {
				err = fmt.Errorf("answered with %v", p)
			}
		}
	}
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("connect %s: %w", id, err), c.Close())
	}
	return c, r, nil
}

func (m *memory) topic() string { return "up/" + m.name }

func (m *memory) frame(f flight, dup bool) ([]byte, error) {
	if f.released {
		return []byte{0x62, 2, byte(f.id >> 8), byte(f.id)}, nil
	}
	p := &packet.Publish{Topic: []byte(m.topic()), QoS: m.qos, PacketID: f.id, Dup: dup, Payload: []byte(strconv.Itoa(f.n))}
	return p.AppendTo(nil, packet.V311)
}

// publish resumes the session and sends until the memory has count messages and
// all are through, at most one message each pause and window under way.
func (m *memory) publish(ctx context.Context, w *world, addr string, count, window int, pause time.Duration) error {
	c, r, err := dialed(ctx, addr, m.name)
	if err != nil {
		return err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	room := make(chan struct{}, 1)
	var out []byte
	for _, f := range m.flights {
		b, err := m.frame(f, true)
		if err != nil {
			return err
		}
		out = append(out, b...)
	}
	if _, err := c.Write(out); err != nil {
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	failed := make(chan error, 1)
	wg.Go(func() {
		failed <- m.sendMore(ctx, w, c, count, window, pause, room)
	})
	for {
		if err := c.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
			return err
		}
		w.RLock()
		over := m.next >= count && len(m.flights) == 0
		w.RUnlock()
		if over {
			return <-failed
		}
		in, err := r.Next()
		if err != nil {
			_ = c.Close()
			return fmt.Errorf("%s with %d on their way: %w", m.name, len(m.flights), err)
		}
		if err := m.answer(w, c, in); err != nil {
			_ = c.Close()
			return err
		}
		select {
		case room <- struct{}{}:
		default:
		}
	}
}

func (m *memory) sendMore(ctx context.Context, w *world, c net.Conn, count, window int, pause time.Duration, room <-chan struct{}) error {
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		w.Lock() // of this publisher's memory too: there is no other lock
		if m.next >= count {
			w.Unlock()
			return nil
		}
		if len(m.flights) >= window {
			w.Unlock()
			select {
			case <-room:
				continue
			case <-ctx.Done():
				return nil
			}
		}
		m.lastID = m.lastID%60_000 + 1
		f := flight{id: m.lastID, n: m.next}
		m.next++
		m.flights = append(m.flights, f)
		b, err := m.frame(f, false)
		if err == nil {
			_, err = c.Write(b)
		}
		w.Unlock()
		if err != nil {
			_ = c.Close()
			return err
		}
	}
}

func (m *memory) answer(w *world, c net.Conn, in packet.Packet) error {
	w.Lock()
	defer w.Unlock()
	find := func(id uint16) int { return slices.IndexFunc(m.flights, func(f flight) bool { return f.id == id }) }
	switch p := in.(type) {
	case *packet.Puback:
		if i := find(p.PacketID); i >= 0 {
			m.acked++
			m.flights = slices.Delete(m.flights, i, i+1)
		}
	case *packet.Pubrec:
		if i := find(p.PacketID); i >= 0 && !m.flights[i].released {
			m.acked++
			m.flights[i].released = true
		}
		_, err := c.Write([]byte{0x62, 2, byte(p.PacketID >> 8), byte(p.PacketID)})
		return err
	case *packet.Pubcomp:
		if i := find(p.PacketID); i >= 0 {
			m.flights = slices.Delete(m.flights, i, i+1)
		}
	default:
		return fmt.Errorf("%s got %T", m.name, in)
	}
	return nil
}

// subscribe makes the session and leaves.
func subscribe(ctx context.Context, addr, id, filter string) error {
	c, r, err := dialed(ctx, addr, id)
	if err != nil {
		return err
	}
	defer c.Close()
	b, err := (&packet.Subscribe{PacketID: 1, Filters: []packet.Filter{{Filter: filter, QoS: 2}}}).AppendTo(nil, packet.V311)
	if err != nil {
		return err
	}
	if _, err := c.Write(b); err != nil {
		return err
	}
	p, err := r.Next()
	if err != nil {
		return err
	}
	if _, ok := p.(*packet.Suback); !ok {
		return fmt.Errorf("subscribe answered with %T", p)
	}
	_, err = c.Write([]byte{0xE0, 0})
	return err
}

// arrivals are what a subscriber gets, in order, by topic.
type arrivals struct {
	got        map[string][]int
	duplicates int
	problems   []string
}

// collect resumes the session and takes everything up to the last message of
// every publisher.
func collect(ctx context.Context, addr, id string, want map[string]*memory) (*arrivals, error) {
	c, r, err := dialed(ctx, addr, id)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	a := &arrivals{got: map[string][]int{}}
	open, released := len(want), map[uint16]bool{}
	for open > 0 {
		if err := c.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
			return a, err
		}
		in, err := r.Next()
		if err != nil {
			return a, fmt.Errorf("%s still misses the last message of %d publishers: %w", id, open, err)
		}
		var answer []byte
		switch p := in.(type) {
		case *packet.Publish:
			topic := string(p.Topic)
			m := want[topic]
			n, err := strconv.Atoi(string(p.Payload))
			if m == nil || err != nil {
				return a, fmt.Errorf("%s got %q on %q", id, p.Payload, topic)
			}
			first := p.QoS != 2 || !released[p.PacketID]
			answer = []byte{0x40, 2, byte(p.PacketID >> 8), byte(p.PacketID)}
			if p.QoS == 2 {
				released[p.PacketID] = true
				answer[0] = 0x50
			}
			if first {
				a.arrive(topic, m, n)
				if n == m.next-1 && !slices.Contains(a.got[topic][:len(a.got[topic])-1], n) {
					open--
				}
			}
		case *packet.Pubrel:
			delete(released, p.PacketID)
			answer = []byte{0x70, 2, byte(p.PacketID >> 8), byte(p.PacketID)}
		default:
			return a, fmt.Errorf("%s got %T", id, in)
		}
		if _, err := c.Write(answer); err != nil {
			return a, err
		}
	}
	return a, nil
}

// arrive checks one message against those before: QoS 2 exactly the next one,
// QoS 1 the next one or one that came before.
func (a *arrivals) arrive(topic string, m *memory, n int) {
	list := a.got[topic]
	expected := 0
	if len(list) > 0 {
		expected = list[len(list)-1] + 1
	}
	switch {
	case n > expected:
		a.problems = append(a.problems, fmt.Sprintf("%s: %d after %d: messages lost or out of order (%d were acknowledged)", topic, n, expected-1, m.acked))
	case n < expected && m.qos == 2:
		a.problems = append(a.problems, fmt.Sprintf("%s: %d after %d: QoS 2 twice or out of order", topic, n, expected-1))
	case n < expected:
		a.duplicates++
	}
	a.got[topic] = append(list, n)
}

func (a *arrivals) summary() string { return strings.Join(a.problems, "\n") }
