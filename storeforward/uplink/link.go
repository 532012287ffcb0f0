package uplink

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"holdfast/broker/client"
	"holdfast/broker/durable"
	"holdfast/broker/message"
	"holdfast/broker/packet"
	"holdfast/broker/topic"
	"holdfast/storeforward"
)

// Why a connection is given up from our side.
var (
	errStuck    = errors.New("the cloud acknowledges nothing more")
	errStore    = errors.New("the store failed")
	errTwice    = errors.New("a packet id is in use twice")
	errSlow     = errors.New("it takes too long")
	errAskAgain = errors.New("messages refused here are to be sent again")
)

// link is one connection with what lasts as long as it: queues to the writer,
// lines of acknowledgements, topic aliases. All fields but those set by
// newLink are guarded by Uplink.mu.
type link struct {
	u      *Uplink
	sess   *session
	conn   *client.Conn
	v      packet.Version
	limits client.Limits
	quota  int // most PUBLISHes with QoS not acknowledged

	err     error // why the connection is to be given up; first one counts
	begun   bool  // offers are taken
	closed  bool  // no more offers
	leaving bool  // nothing new goes out but the last status message

	used     int                // of quota
	own      []*flight          // status messages to be sent
	states   []*message.Message // of the snapshot, to be sent
	releases []*flight          // PUBRELs to be sent
	resend   []*flight          // PUBLISHes to be sent again, in the order of their first send
	lanes    []*lane            // what is to be sent for the first time, the highest lane first
	sched    scheduler          // of lanes
	name     []byte             // a topic name, for one packet
	qos0     []*message.Message
	adopted  []*flight // sent before this process began, while load reads
	aliases  topic.Aliases
	window   window
	acked    flow           // what the cloud acknowledges
	pace     pace           // of what has waited
	held     time.Duration  // how long that must wait for its pace
	now      time.Time      // of the writer's round
	batches  []*batch       // of the routes that have them
	pub      packet.Publish // encoded and forgotten
	full     bool           // the connection takes no PUBLISH until it has drained
	stray    bool           // what is next has no route, and waits for the end of a trial
	content  bool           // nothing waits for room or an answer: the writer need not know of a PUBACK

	lines     [3][]*receipt      // by QoS: the cloud's messages in order of arrival
	completes []packet.Pubcomp   // to be sent
	subs      map[uint16]subCall // SUBSCRIBE and UNSUBSCRIBE without an answer
	memory    memory             // as the store has it
	stale     []string           // filters of an earlier configuration
	unheard   bool               // a SUBSCRIBE was refused
	unsent    []packet.Packet    // SUBSCRIBE and UNSUBSCRIBE to be sent
	refusing  bool               // 3.1.1: nothing with QoS is taken until the next connection
	askAgain  time.Time          // when that is to be
	lineRoom  *sync.Cond         // 3.1.1: reading waits for room in the lines

	awaiting [3]unanswered // by what is awaited: PUBACK, PUBREC, PUBCOMP
	progress time.Time     // when the cloud last acknowledged something
	last     *flight       // the "offline" of a clean stop
	said     bool          // it is acknowledged

	calls []func() // of the store, to be made without the lock
}

// Indexes of link.awaiting.
const (
	awaitPuback = iota
	awaitPubrec
	awaitPubcomp
)

type subCall struct {
	filters []string
	sentAt  time.Time
	gone    bool // UNSUBSCRIBE
}

func (u *Uplink) newLink(conn *client.Conn) *link {
	l := &link{
		u: u, conn: conn, v: conn.Version(), limits: conn.Limits(),
		subs: make(map[uint16]subCall),
	}
	l.lanes = u.newLanes(l)
	l.sched = newScheduler(len(l.lanes))
	l.quota = min(u.opts.Window, int(l.limits.ReceiveMaximum))
	l.aliases = topic.NewAliases(min(u.opts.TopicAliases, int(l.limits.TopicAliasMaximum)))
	l.lineRoom = sync.NewCond(&u.mu)
	return l
}

// serve uses one connection until it breaks, is given up, or ctx ends. It
// returns why; nil after a clean stop.
func (u *Uplink) serve(ctx context.Context, conn *client.Conn) error {
	l := u.newLink(conn)
	defer conn.Abort()
	if l.limits.MaximumQoS == 0 {
		return errors.New("the cloud takes QoS 0 only: nothing could be made safe there")
	}
	if err := u.openSession(ctx, l); err != nil {
		return err
	}
	if err := u.settled(ctx); err != nil {
		return err
	}
	if err := l.attach(); err != nil {
		return err
	}
	defer l.end()
	if err := l.load(ctx); err != nil {
		return err
	}
	if err := l.snapshot(ctx); err != nil {
		return err
	}
	l.begin()

	// The reader outlives ctx: a clean stop wants an acknowledgement.
	reading, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var wg sync.WaitGroup
	conn.Handled(l.tellAcked)
	wg.Go(func() { l.fail(conn.Run(reading, l.receive)) })
	err := l.write(ctx)
	if ctx.Err() != nil && err == nil {
		l.stop(ctx)
	}
	if errors.Is(err, errAskAgain) || errors.Is(err, errReturn) {
		closing, cancel := context.WithTimeout(reading, closePatience)
		_ = conn.Close(closing, packet.ReasonSuccess) // our own wish: no reason for the will
		cancel()
	}
	conn.Abort()
	l.fail(client.ErrClosed)
	wg.Wait()
	return err
}

// settlePatience is how long each step of taking a session up may wait for the
// store to make something durable; with a disk that fails we try again later.
const settlePatience = 5 * time.Second

// settled waits until the store is done with what the last connection asked of
// it for QoS 2. Otherwise this one might resend what was finished.
func (u *Uplink) settled(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, settlePatience, errSlow)
	defer cancel()
	for {
		u.mu.Lock()
		busy := u.sess.busy()
		u.mu.Unlock()
		if !busy {
			return nil
		}
		select {
		case <-u.wake:
		case <-ctx.Done():
			return fmt.Errorf("%w: finish QoS 2 of the last connection: %w", errStore, context.Cause(ctx))
		}
	}
}

// load reads the streams of all lanes up to what is in flight. The store takes an
// acknowledgement only for what it has handed to this recipient, so this comes
// before anything is sent again. With QoS 2 it goes on until there are no more
// packet ids from before, so that none in use is given out again; the PUBRELs
// that are due come with them. What is not in flight stays in the buffers.
func (l *link) load(ctx context.Context) error {
	for _, ln := range l.lanes {
		for qos := byte(1); qos <= 2; qos++ {
			if err := l.loadStream(ctx, ln, qos); err != nil {
				return err
			}
		}
	}
	l.u.mu.Lock()
	defer l.u.mu.Unlock()
	l.orderAdoptedLocked()
	return nil
}

// orderAdoptedLocked orders what was sent before this process began as the store
// numbers it: of a topic that was the order of the first sends, in whatever lanes.
func (l *link) orderAdoptedLocked() {
	slices.SortFunc(l.adopted, func(a, b *flight) int { return cmp.Compare(a.seq, b.seq) })
	for _, f := range l.adopted {
		l.sess.order++
		f.order = l.sess.order
	}
	l.adopted = nil
}

func (l *link) loadStream(ctx context.Context, ln *lane, qos byte) error {
	u, st := l.u, &ln.streams[qos]
	ctx, cancel := context.WithTimeoutCause(ctx, settlePatience, errSlow)
	defer cancel()
	for {
		u.mu.Lock()
		st.behind = false
		u.mu.Unlock()
		ds, live, err := u.store.Read(ctx, ln.queue, qos, u.opts.Batch, u.opts.WindowBytes)
		if err != nil {
			return fmt.Errorf("%w: read QoS %d: %w", errStore, qos, err)
		}
		u.mu.Lock()
		for i := range ds {
			d := &ds[i]
			st.last = d.Seq
			switch {
			case l.sess.bySeq[d.Seq] != nil: // in flight all along
			case d.PacketID == 0:
				st.buf = append(st.buf, *d)
			default:
				_, aerr := l.adoptLocked(ln, d)
				err = errors.Join(err, aerr)
			}
		}
		done := live || st.last >= l.newestLocked(ln.index, qos) && (qos == 1 || len(st.buf) > 0)
		wait := !done && len(ds) == 0 && !st.behind
		if done {
			st.behind = true
		}
		u.mu.Unlock()
		if err != nil || done {
			return err
		}
		if !wait {
			continue
		}
		select {
		case <-l.u.wake:
		case <-ctx.Done():
			return fmt.Errorf("%w: read QoS %d: %w", errStore, qos, context.Cause(ctx))
		}
	}
}

// newestLocked returns the newest message of that lane and QoS in flight.
func (l *link) newestLocked(lane int, qos byte) (newest durable.Seq) {
	for seq, f := range l.sess.bySeq {
		if f.lane == lane && f.qos == qos && f.state != flightEnding {
			newest = max(newest, seq)
		}
	}
	return newest
}

// adoptLocked puts a QoS 2 delivery with a durable packet id in flight.
func (l *link) adoptLocked(ln *lane, d *durable.Delivery) (*flight, error) {
	s := l.sess
	if s.reserved[d.PacketID] {
		delete(s.reserved, d.PacketID)
	} else if !s.ids.Reserve(d.PacketID) {
		return nil, fmt.Errorf("%w: %d of message %d", errTwice, d.PacketID, d.Seq)
	}
	f := ln.flight(d)
	if d.Released || d.Resend {
		f.sent = true
		l.adopted = append(l.adopted, f)
	}
	if d.Released {
		f.state = flightReceived
	}
	s.add(f)
	return f, nil
}

// begin sorts what is in flight from earlier connections into the queues of
// this one, and opens it to offers.
func (l *link) begin() {
	u := l.u
	u.mu.Lock()
	defer l.unlock()
	clear(l.sess.holds)
	l.sess.held = 0
	l.window = newWindow(u.opts.WindowBytes, u.carried)
	l.pace.rate = float64(u.opts.DrainRate)
	for _, f := range l.sess.inOrder() {
		f.counted, f.passed, f.probe, f.awaited, f.sample = false, false, false, false, sample{}
		switch f.state {
		case flightSent, flightHeld, flightReady:
			switch {
			case f.seq == 0: // a status message; a newer one is on its way
				l.sess.remove(f)
				continue
			case f.order != 0:
				l.resend = append(l.resend, f)
			default:
				l.readyLocked(f)
			}
			f.state = flightReady
		case flightSaving:
			l.readyLocked(f)
		case flightReceived, flightReleased:
			if f.state == flightReleased {
				u.status.ResentReleases++
			}
			f.state = flightReceived
			l.releases = append(l.releases, f)
		case flightReceiving, flightEnding: // the store is at it
		}
	}
	// Receipts not yet settled belong to a connection that is gone; the
	// cloud sends the messages again and finds them here.
	l.progress = time.Now()
	u.link, l.begun = l, true
	u.upLocked(l)
	l.subscribeLocked(l.progress)
}

// end closes the link to offers and settles its accounts.
func (l *link) end() {
	u := l.u
	u.mu.Lock()
	l.closed = true
	if u.link == l {
		u.countLocked()
		u.budget.counted = 0
		u.link = nil
		u.status.BytesIn += l.conn.BytesIn()
		u.status.BytesOut += l.conn.BytesOut()
		u.carried = l.window.holds()
	}
	for range l.qos0 {
		u.dropLocked(dropQoS0Down)
	}
	for id := range l.subs {
		l.sess.ids.Free(id) // SUBSCRIBE is not sent again, but anew
	}
	l.qos0 = nil
	u.mu.Unlock()
	l.detach()
}

// readyLocked puts f behind what its lane is to send for the first time.
func (l *link) readyLocked(f *flight) {
	ready := &l.lanes[f.lane].ready[f.qos]
	*ready = append(*ready, f)
}

// fail gives the connection up; the first reason counts.
func (l *link) fail(err error) {
	l.u.mu.Lock()
	defer l.u.mu.Unlock()
	l.failLocked(err)
}

func (l *link) failLocked(err error) {
	if l.err == nil {
		l.err = err
	}
	l.lineRoom.Broadcast()
	l.u.wakeLocked()
}

// storeFailedLocked gives the current connection up because the store could
// not keep something: the next one starts from what it has kept.
func (u *Uplink) storeFailedLocked(err error) {
	u.wakeLocked()
	if u.link != nil {
		u.link.failLocked(fmt.Errorf("%w: %w", errStore, err))
	}
}

func (u *Uplink) wakeLocked() {
	if u.link != nil {
		u.link.content = false
	}
	select {
	case u.wake <- struct{}{}:
	default: // it will look anyway
	}
}

// later has fn called once the lock is free; for calls of the store.
func (l *link) later(fn func()) { l.calls = append(l.calls, fn) }

// unlock gives the lock up and makes the calls that have gathered.
func (l *link) unlock() {
	calls := l.calls
	l.calls = nil
	l.u.mu.Unlock()
	for _, call := range calls {
		call()
	}
}

// warn logs once the lock is free: whoever holds the store waits for the lock,
// and nobody waits for a log. A reason with a name comes once in a while.
func (l *link) warn(limit, msg string, args ...any) {
	if limit == "" || l.u.drops.allow(limit, time.Now()) {
		l.later(func() { l.u.log.Warn(msg, args...) }) //nolint:sloglint // every caller passes a constant
	}
}

// Offer0 takes a QoS 0 message from the broker: it is sent if the link is up
// and there is room, and dropped and counted otherwise, unless its route keeps
// QoS 0: then it goes by the store as QoS 1 does. It never waits.
func (u *Uplink) Offer0(m *message.Message) {
	if u.keeps0(m) {
		u.keep0(m)
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	switch l := u.link; {
	case u.loops(m):
		u.dropLocked(dropLoop)
	case u.budget.stage == budgetAlarms && int(storeforward.LaneOf(u.lanes.Routes, m.Topic).Number) < u.opts.BudgetLane:
		u.dropLocked(dropBudget)
	case l == nil || l.leaving:
		u.dropLocked(dropQoS0Down)
	case len(l.qos0) >= u.opts.QoS0Queue:
		u.dropLocked(dropQoS0Full)
	default:
		l.qos0 = append(l.qos0, m)
		l.u.wakeLocked()
	}
}

func (u *Uplink) keeps0(m *message.Message) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	way, _ := u.carries(m.Topic)
	return way != nil && way.keep0 && m.QoS == 0 && !u.loops(m)
}

// keep0 puts a QoS 0 message in the store's queue. The broker has it retained
// already where it has to.
func (u *Uplink) keep0(m *message.Message) {
	kept := *m
	kept.Retain = false
	claims := []durable.Claim{{Queue: u.queue, QoS: 1, Retain: m.Retain}}
	if err := u.store.Append(&kept, claims, durable.Origin{}, nil); err != nil {
		if u.drop(dropQoS0Full) {
			u.log.Warn("message not kept", "topic", m.Topic, "qos", 0, "err", err)
		}
	}
}
