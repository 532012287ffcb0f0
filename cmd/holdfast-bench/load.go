package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"holdfast/broker/packet"
)

// window is how many QoS 1 or 2 messages of one publisher may be under way, as
// clients have it that do not wait for each acknowledgement.
const window = 100

// load drives one scenario over plain connections.
//
//	pacer or one sender per publisher --> broker --> one receiver per subscriber
//	                  ^                      |
//	                  +-- acknowledgements --+   (one reader per publisher)
type load struct {
	sc    scenario
	epoch time.Time
	pubs  []*publisher
	subs  []*subscriber
	// flying is what is sent and not yet delivered, at QoS 1 and 2 and as fast as
	// it goes: else the bound of the subscriber's queue is what is measured.
	flying  *credit
	wg      sync.WaitGroup
	failure atomic.Pointer[error]
}

type publisher struct {
	conn   net.Conn
	frame  []byte // a whole PUBLISH
	idAt   int    // where its packet id and time stamp stand
	timeAt int
	nextID uint16
	room   *credit // of the window
	out    []byte
}

type subscriber struct {
	conn      net.Conn
	flying    *credit // nil if another one counts
	delivered atomic.Int64
	mu        sync.Mutex
	latency   []time.Duration // guarded by mu
}

func connectMany(ctx context.Context, addr, name string, n int, v packet.Version) (conns []net.Conn, err error) {
	defer func() {
		if err != nil {
			for _, c := range conns {
				_ = c.Close()
			}
		}
	}()
	for i := range n {
		c, err := connect(ctx, addr, name+strconv.Itoa(i), v)
		if err != nil {
			return conns, err
		}
		conns = append(conns, c)
	}
	return conns, nil
}

func connect(ctx context.Context, addr, id string, v packet.Version) (net.Conn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	p, err := request(c, &packet.Connect{Version: v, CleanStart: true, ClientID: id, KeepAlive: 600}, v)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("connect %s: %w", id, err), c.Close())
	}
	if ack, ok := p.(*packet.Connack); !ok || ack.Reason.Failed() {
		return nil, errors.Join(fmt.Errorf("connect %s: answered with %v", id, p), c.Close())
	}
	return c, nil
}

// request sends one packet and reads the answer, behind which nothing comes by
// itself.
func request(c net.Conn, p packet.Packet, v packet.Version) (packet.Packet, error) {
	return requestOver(c, packet.NewReader(c, 0), p, v)
}

// requestOver is request for when more may come at once: r keeps what does.
func requestOver(c net.Conn, r *packet.Reader, p packet.Packet, v packet.Version) (packet.Packet, error) {
	b, err := p.AppendTo(nil, v)
	if err != nil {
		return nil, err
	}
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return nil, err
	}
	if _, err := c.Write(b); err != nil {
		return nil, err
	}
	r.SetVersion(v)
	answer, err := r.Next()
	return answer, errors.Join(err, c.SetDeadline(time.Time{}))
}

func newLoad(ctx context.Context, addr string, sc scenario) (*load, error) {
	l := &load{sc: sc, epoch: time.Now(), flying: newCredit(flyingFor(sc))}
	for i := range sc.subscribers {
		c, err := connect(ctx, addr, "sub"+strconv.Itoa(i), sc.version)
		if err != nil {
			l.close()
			return nil, err
		}
		s := &subscriber{conn: c}
		if i == 0 || sc.pairs || sc.wild > 0 {
			s.flying = l.flying // the others have the same messages
		}
		l.subs = append(l.subs, s)
		for filters := range slices.Chunk(sc.filters(i), 100) {
			if _, err := request(c, &packet.Subscribe{PacketID: 1, Filters: filters}, sc.version); err != nil {
				l.close()
				return nil, fmt.Errorf("subscribe: %w", err)
			}
		}
		l.wg.Go(func() { l.fail(s.receive(l.epoch, sc.version)) })
	}
	for i := range sc.publishers {
		c, err := connect(ctx, addr, "pub"+strconv.Itoa(i), sc.version)
		if err != nil {
			l.close()
			return nil, err
		}
		p, err := newPublisher(c, sc.topic(i), sc.qos, sc.version)
		if err != nil {
			l.close()
			return nil, err
		}
		l.pubs = append(l.pubs, p)
		l.wg.Go(func() { l.fail(p.acknowledged(sc.version)) })
	}
	return l, nil
}

// fail notes the first error that is not our own closing.
func (l *load) fail(err error) {
	if err != nil && !errors.Is(err, net.ErrClosed) {
		l.failure.CompareAndSwap(nil, &err)
	}
}

func newPublisher(c net.Conn, topic string, qos byte, v packet.Version) (*publisher, error) {
	pub := &packet.Publish{Topic: []byte(topic), QoS: qos, Payload: make([]byte, payloadSize)}
	if qos > 0 {
		pub.PacketID = 1
	}
	frame, err := pub.AppendTo(nil, v)
	if err != nil {
		return nil, err
	}
	p := &publisher{conn: c, frame: frame, timeAt: len(frame) - payloadSize, room: newCredit(window)}
	p.idAt = p.timeAt - 2
	if v == packet.V5 {
		p.idAt-- // behind it stands how long the properties are
	}
	return p, nil
}

// queue appends one message to what is written next.
func (p *publisher) queue(qos byte, epoch time.Time) {
	at := len(p.out)
	p.out = append(p.out, p.frame...)
	if qos > 0 {
		p.nextID = p.nextID%60_000 + 1
		binary.BigEndian.PutUint16(p.out[at+p.idAt:], p.nextID)
	}
	binary.BigEndian.PutUint64(p.out[at+p.timeAt:], uint64(time.Since(epoch)))
}

func (p *publisher) flush() error {
	if len(p.out) == 0 {
		return nil
	}
	n, err := p.conn.Write(p.out)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		// The time is over, but half a packet cannot stay behind.
		if err = p.conn.SetWriteDeadline(time.Now().Add(lastWrite)); err == nil {
			_, err = p.conn.Write(p.out[n:])
		}
	}
	p.out = p.out[:0]
	return err
}

// lastWrite bounds how long the rest of a packet may take to go out.
const lastWrite = 10 * time.Second

// acknowledged reads what the broker answers to a publisher.
func (p *publisher) acknowledged(v packet.Version) error {
	defer p.room.end()
	r := packet.NewReader(p.conn, 16<<10)
	r.SetVersion(v)
	var rels []byte
	done := 0
	for {
		in, err := r.Next()
		if err != nil {
			return err
		}
		switch a := in.(type) {
		case *packet.Puback, *packet.Pubcomp:
			done++
		case *packet.Pubrec:
			rels = append(rels, 0x62, 2, byte(a.PacketID>>8), byte(a.PacketID))
		default:
			return fmt.Errorf("publisher got %T", in)
		}
		if r.More() {
			continue
		}
		p.room.give(done)
		done = 0
		if len(rels) > 0 {
			if _, err := p.conn.Write(rels); err != nil {
				return err
			}
			rels = rels[:0]
		}
	}
}

// receive counts what arrives and acknowledges it, in batches as it comes.
func (s *subscriber) receive(epoch time.Time, v packet.Version) error {
	r := packet.NewReader(s.conn, 64<<10)
	r.SetVersion(v)
	var acks []byte
	arrived := 0
	if s.flying != nil {
		defer s.flying.end()
	}
	for {
		in, err := r.Next()
		if err != nil {
			return err
		}
		switch p := in.(type) {
		case *packet.Publish:
			s.count(p, epoch)
			arrived++
			switch p.QoS {
			case 1:
				acks = append(acks, 0x40, 2, byte(p.PacketID>>8), byte(p.PacketID))
			case 2:
				acks = append(acks, 0x50, 2, byte(p.PacketID>>8), byte(p.PacketID))
			}
		case *packet.Pubrel:
			acks = append(acks, 0x70, 2, byte(p.PacketID>>8), byte(p.PacketID))
		default:
			return fmt.Errorf("subscriber got %T", in)
		}
		if r.More() {
			continue
		}
		if s.flying != nil {
			s.flying.give(arrived)
			arrived = 0
		}
		if len(acks) > 0 {
			if _, err := s.conn.Write(acks); err != nil {
				return err
			}
			acks = acks[:0]
		}
	}
}

// sampleEvery thins the latencies, so that measuring does not cost what it
// measures.
const sampleEvery = 16

func (s *subscriber) count(p *packet.Publish, epoch time.Time) {
	n := s.delivered.Add(1)
	if n%sampleEvery != 0 || len(p.Payload) < 8 {
		return
	}
	d := time.Since(epoch) - time.Duration(binary.BigEndian.Uint64(p.Payload))
	s.mu.Lock()
	s.latency = append(s.latency, d)
	s.mu.Unlock()
}

func (l *load) reset() {
	for _, s := range l.subs {
		s.delivered.Store(0)
		s.mu.Lock()
		s.latency = s.latency[:0]
		s.mu.Unlock()
	}
}

func (l *load) delivered() (n int64) {
	for _, s := range l.subs {
		n += s.delivered.Load()
	}
	return n
}

func (l *load) percentiles() (p50, p99, p999 time.Duration) {
	var all []time.Duration
	for _, s := range l.subs {
		s.mu.Lock()
		all = append(all, s.latency...)
		s.mu.Unlock()
	}
	if len(all) == 0 {
		return 0, 0, 0
	}
	slices.Sort(all)
	return quantile(all, 0.5), quantile(all, 0.99), quantile(all, 0.999)
}

// quantile is the value below which that share of the sorted values lies.
func quantile(sorted []time.Duration, share float64) time.Duration {
	return sorted[int(share*float64(len(sorted)-1))]
}

// run publishes for that long.
func (l *load) run(ctx context.Context, length time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, length)
	defer cancel()
	over := context.AfterFunc(ctx, func() {
		l.flying.wake()
		for _, p := range l.pubs {
			p.room.wake()
		}
	})
	defer over()
	if l.sc.rate > 0 {
		l.fail(l.pace(ctx))
	} else {
		var wg sync.WaitGroup
		for _, p := range l.pubs {
			wg.Go(func() { l.fail(p.flood(ctx, l.sc.qos, l.epoch, l.flying)) })
		}
		wg.Wait()
	}
	if err := l.failure.Load(); err != nil {
		return *err
	}
	return nil
}

// pace sends at the scenario's rate: one message for a publisher at a time,
// each in a write of its own, as sensors do.
func (l *load) pace(ctx context.Context) error {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	began, sent := time.Now(), 0
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		for due := int(time.Since(began).Seconds() * float64(l.sc.rate)); sent < due; sent++ {
			p := l.pubs[sent%len(l.pubs)]
			if l.sc.qos > 0 && p.room.take(ctx, 1) == 0 {
				return nil
			}
			p.queue(l.sc.qos, l.epoch)
			if err := p.flush(); err != nil {
				return err
			}
		}
	}
}

// floodBatch is how many QoS 0 messages go into one write.
const floodBatch = 64

// flood sends as fast as the window and the socket allow.
func (p *publisher) flood(ctx context.Context, qos byte, epoch time.Time, flying *credit) error {
	if qos == 0 { // above it the window ends before the socket's buffer does
		if err := p.conn.SetWriteDeadline(deadline(ctx)); err != nil {
			return err
		}
	}
	for ctx.Err() == nil {
		n := floodBatch
		if qos > 0 {
			n = p.room.take(ctx, floodBatch)
			allowed := flying.take(ctx, n)
			p.room.give(n - allowed)
			n = allowed
		}
		for range n {
			p.queue(qos, epoch)
		}
		if err := p.flush(); err != nil {
			return err
		}
	}
	return p.conn.SetWriteDeadline(time.Time{})
}

// perSubscriber is how many messages may be on their way to one subscriber. It
// is less than brokers queue for one, and more than their windows.
const perSubscriber = 2000

// flyingFor is the bound of what is sent and not yet delivered.
func flyingFor(sc scenario) int {
	if sc.pairs || sc.wild > 0 {
		return perSubscriber * sc.subscribers
	}
	return perSubscriber
}

func deadline(ctx context.Context) time.Time {
	d, _ := ctx.Deadline() // run always sets one
	return d
}

func (l *load) close() {
	for _, p := range l.pubs {
		_ = p.conn.Close()
	}
	for _, s := range l.subs {
		_ = s.conn.Close()
	}
	l.wg.Wait()
}
