package sparkplug

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"holdfast/broker/client"
	"holdfast/broker/packet"
)

var (
	errHostOffline  = errors.New("the primary host is offline")
	errNotSubscribe = errors.New("the server refuses our subscriptions")
	errNoCommands   = errors.New("commands = false")
	errNoMetric     = errors.New("there is no such metric")
)

// Run keeps the node connected until ctx ends. It returns nil after that, and is
// called once.
func (n *Node) Run(ctx context.Context) error {
	pause := n.opts.ReconnectMin
	for ctx.Err() == nil {
		n.setState(StateConnecting, "")
		began := time.Now()
		if err := n.connect(ctx); ctx.Err() == nil {
			n.turn++
			// Decorrelated jitter, so that gateways that lost one host do not come
			// back together.
			if time.Since(began) > n.opts.ReconnectMax {
				pause = n.opts.ReconnectMin
			}
			pause = min(n.opts.ReconnectMax, n.opts.ReconnectMin+rand.N(3*pause-n.opts.ReconnectMin+1)) //nolint:gosec // no secret
			n.backOff(ctx, err, pause)
		}
	}
	n.setState(StateStopped, "")
	return nil
}

// backOff waits before the next attempt.
func (n *Node) backOff(ctx context.Context, reason error, pause time.Duration) {
	n.log.Warn("edge node down", "reason", reason, "delay", pause)
	n.setState(StateBackingOff, reason.Error())
	n.mu.Lock()
	n.status.NextAttempt = time.Now().Add(pause)
	n.mu.Unlock()
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// keepTimeout is how long a connection waits for its number to be durable: a
// disk that fails is no reason to be silent.
const keepTimeout = 2 * time.Second

// nextNumber is the bdSeq of the next CONNECT: 0 at first, one more for each, kept
// over restarts, so that a death is known to be that of its own birth (§6.4.25).
// What is kept is the one after it; an attempt that did not come to a CONNECT
// leaves its number to the next, and writes no flash.
func (n *Node) nextNumber(ctx context.Context) {
	if n.number >= 0 {
		return
	}
	key := "sparkplug/" + n.name + "/next_bdSeq"
	n.number = n.store.Number(key) % 256
	kept := make(chan struct{})
	n.store.KeepNumbers(map[string]int64{key: (n.number + 1) % 256}, func(err error) {
		if err != nil {
			n.log.Warn("number of the birth not kept", "err", err)
		}
		close(kept)
	})
	ctx, cancel := context.WithTimeout(ctx, keepTimeout)
	defer cancel()
	select {
	case <-kept:
	case <-ctx.Done():
	}
}

// connect is one connection, from dialling to its end.
func (n *Node) connect(ctx context.Context) error {
	paths := n.dialer.Paths()
	path := paths[n.turn%len(paths)]
	n.nextNumber(ctx)
	number := uint64(n.number)
	n.mu.Lock()
	n.status.URL, n.status.BirthNumber = path.Target.String(), number
	n.mu.Unlock()
	conn, err := client.Dial(ctx, client.Options{
		URL: "mqtt://" + path.Address(), ClientID: n.opts.clientID(), Username: n.opts.Username, Password: n.opts.Password,
		Version: n.opts.version(), KeepAlive: n.opts.KeepAlive, ConnectTimeout: n.opts.ConnectTimeout,
		CleanStart: true, // §5.1
		// Births come one after another and must all have room.
		OutputLimit: 4 << 20,
		Will:        &packet.Will{Topic: n.topic("NDEATH"), QoS: 1, Payload: n.death(number)},
		Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			c, err := n.dialer.Dial(ctx, path)
			if err != nil {
				return nil, err // not a nil *dial.Conn
			}
			n.number = -1 // used from here on
			return c, nil
		},
		Drained: func() {
			n.mu.Lock()
			defer n.mu.Unlock()
			if n.sess != nil {
				n.sess.full = false
			}
			n.wakeUp()
		},
	})
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	return n.serve(ctx, conn, number)
}

// death is the payload of NDEATH: no sequence number, and the number that says
// whose death it is (§6.4.25).
func (n *Node) death(number uint64) []byte {
	now := time.Now()
	return (&Payload{Timestamp: now, Metrics: []Metric{{Name: metricBirthNumber, Timestamp: now, Type: Int64, Value: number}}}).Append(nil)
}

// serve uses a connection until it ends.
func (n *Node) serve(ctx context.Context, conn *client.Conn, number uint64) (err error) {
	s := &session{n: n, conn: conn, number: number, host: n.opts.PrimaryHost == ""}
	n.mu.Lock()
	n.sess = s
	n.status.Connects++
	n.mu.Unlock()
	n.setState(StateWaiting, "")
	var wg sync.WaitGroup
	// The connection is ended by hand, with what a stop has to say.
	reading, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	ended := make(chan error, 1)
	wg.Go(func() { ended <- conn.Run(reading, s.handle) })
	defer func() {
		wg.Wait()
		n.store.Detach(n.queue, s)
		n.mu.Lock()
		n.sess = nil
		n.model.endSession()
		n.status.BytesIn += conn.BytesIn()
		n.status.BytesOut += conn.BytesOut()
		n.mu.Unlock()
	}()
	if err := n.store.Attach(n.queue, s); err != nil {
		conn.Abort()
		return fmt.Errorf("queue: %w", err)
	}
	if err := s.subscribe(); err != nil {
		conn.Abort()
		return err
	}
	patience := time.NewTimer(n.opts.ConnectTimeout)
	defer patience.Stop()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			n.leave(s)
			return ctx.Err()
		case err := <-ended:
			return err
		case <-patience.C:
			n.mu.Lock()
			waiting, elsewhere := !s.born, len(n.dialer.Paths()) > 1
			n.mu.Unlock()
			if waiting && elsewhere {
				n.leave(s) // the host may be at another server (§5.6)
				return errHostOffline
			}
		case <-n.wake:
		case <-timer.C:
		}
		next, err := s.step(ctx)
		if err != nil {
			n.leave(s)
			return err
		}
		timer.Reset(time.Until(next))
	}
}

// step does what there is to do and returns when there is more.
func (s *session) step(ctx context.Context) (next time.Time, err error) {
	n := s.n
	for {
		n.mu.Lock()
		wasBorn := s.born
		if s.born && n.opts.PrimaryHost != "" && !s.host {
			n.mu.Unlock()
			return time.Time{}, errHostOffline
		}
		next, err = s.workLocked(time.Now())
		confirmed := s.confirmed
		s.confirmed = nil
		room := min(maxHeld-s.held, maxHeld/4)
		read := s.born && !s.live && room > 0 && s.heldBytes < maxHeldBytes && !s.full && len(s.out) == 0
		if err == nil && !read {
			err = s.buryLocked(time.Now())
		}
		n.mu.Unlock()
		if !wasBorn && s.born {
			n.setState(StateUp, "")
			n.log.Info("edge node born", "bd_seq", s.number, "remote", s.conn.RemoteAddr())
		}
		s.conn.Flush()
		if len(confirmed) > 0 {
			n.store.AckedAll(n.queue, confirmed)
		}
		if err != nil || !read {
			return next, err
		}
		// From here to the answer the stream may change under us: Wake says so.
		n.mu.Lock()
		s.live = true
		n.mu.Unlock()
		ds, live, err := n.store.Read(ctx, n.queue, 1, room, readBytes)
		if err != nil {
			return next, fmt.Errorf("read the queue: %w", err)
		}
		n.mu.Lock()
		for _, d := range ds {
			s.holdLocked(d)
			s.takeLocked(d, true)
		}
		if len(ds) > 0 && !live {
			s.live = false
		}
		n.mu.Unlock()
		if len(ds) == 0 {
			return next, nil
		}
	}
}

// leave ends the connection with the node's death: by the will where the server
// knows how (5.0 §3.14.2.1), else by a message of the same (§5.13).
func (n *Node) leave(s *session) {
	ctx, cancel := context.WithTimeout(context.Background(), keepTimeout)
	defer cancel()
	reason := packet.ReasonDisconnectWithWill
	if s.conn.Version() != packet.V5 {
		reason = packet.ReasonSuccess
		n.mu.Lock()
		err := s.conn.Queue(&packet.Publish{Topic: []byte(n.topic("NDEATH")), QoS: 1, PacketID: 1, Payload: n.death(s.number)})
		n.mu.Unlock()
		if err != nil {
			s.conn.Abort() // the server sends the will
			return
		}
	}
	if err := s.conn.Close(ctx, reason); err != nil && !errors.Is(err, client.ErrClosed) {
		n.log.Warn("connection not ended in time", "err", err)
		s.conn.Abort()
	}
}
