package uplink

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/broker/durable"
	"holdfast/broker/message"
	"holdfast/broker/packet"
	"holdfast/storeforward"
	"holdfast/storeforward/storetest"
)

// cloud is the dialer's other side: each connection waits for the test to
// accept it.
type cloud struct {
	dialled chan net.Conn
	secure  *tls.Config // nil is in the clear
	// refuse, when set, is what dialling ends with.
	mu     sync.Mutex
	refuse error
	dials  []time.Time
}

func newCloud() *cloud { return &cloud{dialled: make(chan net.Conn)} }

func (c *cloud) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	c.mu.Lock()
	err := c.refuse
	c.dials = append(c.dials, time.Now())
	c.mu.Unlock()
	if err != nil {
		return nil, err
	}
	ours, theirs := net.Pipe()
	select {
	case c.dialled <- theirs:
		return ours, nil
	case <-ctx.Done():
		ours.Close()
		theirs.Close()
		return nil, ctx.Err()
	}
}

func (c *cloud) setRefuse(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refuse = err
}

// peer is the cloud's end of one connection, played by the test.
type peer struct {
	t       testing.TB
	nc      net.Conn
	v       packet.Version
	hello   *packet.Connect
	packets chan packet.Packet // closed at the end of the connection
	silent  chan struct{}      // closed: no PINGRESP any more
}

// patience is how long the tests wait for something, in fake time.
const patience = 10 * time.Minute

// accept takes the next connection and reads its CONNECT.
func (c *cloud) accept(tb testing.TB) *peer {
	tb.Helper()
	var nc net.Conn
	select {
	case nc = <-c.dialled:
	case <-time.After(patience):
		tb.Fatal("nobody connects")
	}
	if c.secure != nil {
		nc = tls.Server(nc, c.secure)
	}
	p := &peer{t: tb, nc: nc, packets: make(chan packet.Packet, 100_000), silent: make(chan struct{})}
	tb.Cleanup(func() { nc.Close() })
	first, err := readPacket(nc, packet.V5)
	if err != nil {
		tb.Fatalf("read CONNECT: %v", err)
	}
	p.hello = first.(*packet.Connect)
	p.v = p.hello.Version
	return p
}

// acceptWith takes the next connection and answers its CONNECT.
func (c *cloud) acceptWith(tb testing.TB, ack packet.Connack) *peer {
	tb.Helper()
	p := c.accept(tb)
	p.answer(ack)
	return p
}

// welcome takes the next connection and its birth message.
func (c *cloud) welcome(tb testing.TB, ack packet.Connack) *peer {
	tb.Helper()
	p := c.acceptWith(tb, ack)
	birth := p.publish()
	if string(birth.Topic) != "holdfast/gw/status" {
		tb.Fatalf("first message is on %q, want the birth", birth.Topic)
	}
	p.send(&packet.Puback{PacketID: birth.PacketID})
	return p
}

// answer sends the CONNACK and starts to read.
func (p *peer) answer(ack packet.Connack) {
	p.t.Helper()
	p.send(&ack)
	go p.read()
}

func (p *peer) read() {
	defer close(p.packets)
	for {
		q, err := readPacket(p.nc, p.v)
		if err != nil {
			return
		}
		if q.Type() == packet.TypePingreq {
			select {
			case <-p.silent:
			default:
				p.send(&packet.Pingresp{})
			}
			continue
		}
		p.packets <- q
	}
}

func readPacket(r io.Reader, v packet.Version) (packet.Packet, error) {
	frame := make([]byte, 2)
	if _, err := io.ReadFull(r, frame); err != nil {
		return nil, err
	}
	for {
		n, err := packet.Frame(frame, packet.MaxSize)
		if err != nil {
			return nil, err
		}
		if n == len(frame) {
			return packet.Decode(frame, v, nil)
		}
		if n == 0 {
			n = len(frame) + 1
		}
		longer := make([]byte, n)
		if _, err := io.ReadFull(r, longer[copy(longer, frame):]); err != nil {
			return nil, err
		}
		frame = longer
	}
}

// send writes packets; a connection that is gone is not an error here.
func (p *peer) send(qs ...packet.Packet) {
	p.t.Helper()
	for _, q := range qs {
		b, err := q.AppendTo(nil, p.v)
		if err != nil {
			p.t.Errorf("encode %s: %v", q.Type(), err)
			return
		}
		if _, err := p.nc.Write(b); err != nil && !errors.Is(err, io.ErrClosedPipe) {
			p.t.Errorf("write %s: %v", q.Type(), err)
		}
	}
}

// next returns the next packet; nil at the end of the connection.
func (p *peer) next() packet.Packet {
	p.t.Helper()
	select {
	case q := <-p.packets:
		return q
	case <-time.After(patience):
		p.t.Fatal("no packet comes")
		return nil
	}
}

// expect returns the next packet, which must be of that type.
func expect[P packet.Packet](p *peer) P {
	p.t.Helper()
	q := p.next()
	want, ok := q.(P)
	if !ok {
		p.t.Fatalf("got %s, want %T", show(q), want)
	}
	return want
}

func (p *peer) publish() *packet.Publish {
	p.t.Helper()
	return expect[*packet.Publish](p)
}

// expectPublish checks the payload, DUP and QoS of the next PUBLISH.
func (p *peer) expectPublish(payload string, qos byte, dup bool) *packet.Publish {
	p.t.Helper()
	q := p.publish()
	if string(q.Payload) != payload || q.QoS != qos || q.Dup != dup {
		p.t.Fatalf("got %s, want payload %q qos %d dup %v", show(q), payload, qos, dup)
	}
	return q
}

// quiet checks that nothing comes while nothing else can happen.
func (p *peer) quiet() {
	p.t.Helper()
	synctest.Wait()
	select {
	case q, ok := <-p.packets:
		if !ok {
			p.t.Fatal("the connection ended, want silence")
		}
		p.t.Fatalf("got %s, want nothing", show(q))
	default:
	}
}

// gone waits for the end of the connection and skips what comes before.
func (p *peer) gone() {
	p.t.Helper()
	for p.next() != nil {
	}
}

func (p *peer) cut() { p.nc.Close() }

func show(q packet.Packet) string {
	switch q := q.(type) {
	case nil:
		return "the end of the connection"
	case *packet.Publish:
		return fmt.Sprintf("PUBLISH id %d qos %d dup %v retain %v topic %q payload %q", q.PacketID, q.QoS, q.Dup, q.Retain, q.Topic, q.Payload)
	default:
		return fmt.Sprintf("%s %+v", q.Type(), q)
	}
}

// local is the gateway's broker as the uplink sees it: it stores nothing but
// the QoS 2 packet id, and can be told to wait or to refuse.
type local struct {
	store *storeforward.Store

	mu      sync.Mutex
	got     []*message.Message
	refuse  error
	hold    bool
	waiting []func(error)
}

func (lo *local) Publish(m *message.Message, from durable.Origin, done func(error)) error {
	lo.mu.Lock()
	defer lo.mu.Unlock()
	if lo.refuse != nil {
		return lo.refuse
	}
	if done == nil {
		lo.got = append(lo.got, m)
		return nil
	}
	if lo.hold {
		lo.got = append(lo.got, m)
		lo.waiting = append(lo.waiting, done)
		return nil
	}
	err := lo.store.Append(m, nil, from, done)
	if err == nil {
		lo.got = append(lo.got, m)
	}
	return err
}

func (lo *local) set(refuse error, hold bool) {
	lo.mu.Lock()
	defer lo.mu.Unlock()
	lo.refuse, lo.hold = refuse, hold
}

// release ends the wait of the i-th message held.
func (lo *local) release(i int, err error) {
	lo.mu.Lock()
	done := lo.waiting[i]
	lo.mu.Unlock()
	done(err)
}

func (lo *local) messages() []*message.Message {
	lo.mu.Lock()
	defer lo.mu.Unlock()
	return append([]*message.Message(nil), lo.got...)
}

// rig is an uplink with a real store and a cloud played by the test.
type rig struct {
	t     testing.TB
	path  string
	disk  *storetest.Disk // nil is the real one
	opts  Options
	store *storeforward.Store
	local *local
	up    *Uplink
	cloud *cloud
	log   *slog.Logger // nil: nobody reads it
	stop  context.CancelCauseFunc
	ended chan struct{}
}

// testOptions are defaults but for what every test needs.
func testOptions() Options {
	o := DefaultOptions()
	o.URL = "mqtt://cloud.test"
	o.Gateway, o.Software, o.Epoch = "gw", "1.2.3", "e1"
	o.ReconnectMin, o.ReconnectMax = time.Second, 8*time.Second
	o.Routes = []Route{
		{Direction: DirectionOut, Filter: "s/#", Prefix: "site/"},
		{Direction: DirectionIn, Filter: "cmd/#", Prefix: "site/"},
	}
	return o
}

// newRig opens a store and starts an uplink; both end with the test, inside
// its synctest bubble.
func newRig(tb testing.TB, change func(*Options)) *rig {
	tb.Helper()
	c := newCloud()
	r := newRigWith(tb, func(o *Options) {
		o.Dial = c.dial
		if change != nil {
			change(o)
		}
	})
	r.cloud = c
	return r
}

// newRigWith is newRig with another cloud.
func newRigWith(tb testing.TB, change func(*Options)) *rig {
	tb.Helper()
	r := &rig{t: tb, path: filepath.Join(tb.TempDir(), "store.db"), opts: testOptions()}
	change(&r.opts)
	r.start()
	tb.Cleanup(r.end)
	return r
}

// newRigOn is newRig with a store on a disk that can fail.
func newRigOn(tb testing.TB, disk *storetest.Disk) *rig {
	tb.Helper()
	r := &rig{t: tb, disk: disk, opts: testOptions(), cloud: newCloud()}
	r.opts.Dial = r.cloud.dial
	r.start()
	tb.Cleanup(r.end)
	return r
}

func (r *rig) start() {
	r.t.Helper()
	so := storeforward.DefaultOptions()
	so.Path = r.path
	if r.disk != nil {
		so.Path, so.Disk = r.disk.Path("store.db"), r.disk
	}
	log := r.log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	store, err := storeforward.Open(context.Background(), so, log)
	if err != nil {
		r.t.Fatalf("open store: %v", err)
	}
	r.store, r.local = store, &local{store: store}
	r.up, err = New("cloud", r.opts, store, r.local, log)
	if err != nil {
		r.t.Fatalf("New: %v", err)
	}
	ctx, stop := context.WithCancelCause(context.Background())
	r.stop, r.ended = stop, make(chan struct{})
	go func() {
		defer close(r.ended)
		if err := r.up.Run(ctx); err != nil {
			r.t.Errorf("Run: %v", err)
		}
	}()
}

// end stops everything; safe to call twice.
func (r *rig) end() {
	if r.store == nil {
		return
	}
	r.stop(errors.New("test over"))
	<-r.ended
	if err := r.store.Close(); err != nil {
		r.t.Errorf("close store: %v", err)
	}
	r.store = nil
}

// restart stops the gateway and starts it again on the same database.
func (r *rig) restart(change func(*Options)) {
	r.t.Helper()
	r.end()
	if change != nil {
		change(&r.opts)
	}
	r.start()
}

// put appends a message for the cloud; safe is closed when it is safe.
func (r *rig) put(topic, payload string, qos byte) (safe chan struct{}) {
	r.t.Helper()
	return r.putMessage(&message.Message{Topic: topic, Payload: []byte(payload), QoS: qos, Received: time.Now()})
}

func (r *rig) putMessage(m *message.Message) (safe chan struct{}) {
	r.t.Helper()
	safe = make(chan struct{})
	claims := []durable.Claim{{Queue: r.up.Queue(), QoS: m.QoS, Retain: m.Retain}}
	err := r.store.Append(m, claims, durable.Origin{}, func(err error) {
		if err == nil {
			close(safe)
		}
	})
	if err != nil {
		r.t.Fatalf("append %q: %v", m.Payload, err)
	}
	return safe
}

func (r *rig) backlog() int64 {
	n, _ := r.store.Backlog(r.up.Queue())
	return n
}

// pass lets fake time go by.
func pass(d time.Duration) { <-time.After(d) }

var errDown = errors.New("network is unreachable")

// subscribed answers the SUBSCRIBE of the routes in.
func (p *peer) subscribed() {
	p.t.Helper()
	s := expect[*packet.Subscribe](p)
	ack := &packet.Suback{PacketID: s.PacketID}
	for _, f := range s.Filters {
		ack.Reasons = append(ack.Reasons, packet.ReasonCode(f.QoS))
	}
	p.send(ack)
}

// putAll appends one message for several uplinks, as the broker does.
func (r *rig) putAll(payload string, ups ...*Uplink) (safe chan struct{}) {
	r.t.Helper()
	safe = make(chan struct{})
	var claims []durable.Claim
	for _, u := range ups {
		claims = append(claims, durable.Claim{Queue: u.Queue(), QoS: 1})
	}
	m := &message.Message{Topic: "s/x", Payload: []byte(payload), QoS: 1, Received: time.Now()}
	err := r.store.Append(m, claims, durable.Origin{}, func(err error) {
		if err == nil {
			close(safe)
		}
	})
	if err != nil {
		r.t.Fatalf("append %q: %v", payload, err)
	}
	return safe
}

func newCancel() (context.Context, func(error)) {
	ctx, stop := context.WithCancelCause(context.Background())
	return ctx, stop
}

// subscribedSlowly answers the SUBSCRIBE, and the first PINGREQ after that long.
func (p *peer) subscribedSlowly(tb testing.TB, late time.Duration) {
	tb.Helper()
	for {
		q, err := readPacket(p.nc, p.v)
		if err != nil {
			tb.Fatal(err)
		}
		switch q := q.(type) {
		case *packet.Subscribe:
			p.send(&packet.Suback{PacketID: q.PacketID, Reasons: make([]packet.ReasonCode, len(q.Filters))})
		case *packet.Pingreq:
			pass(late)
			p.send(&packet.Pingresp{})
			synctest.Wait()
			go p.read()
			return
		}
	}
}
