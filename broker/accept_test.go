package broker_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/broker"
	"holdfast/broker/brokertest"
	"holdfast/broker/packet"
)

// exhausted is a listener of a machine without file descriptors.
type exhausted struct {
	err    error
	closed chan struct{}
	once   func()
}

func newExhausted(err error) *exhausted {
	l := &exhausted{err: err, closed: make(chan struct{})}
	l.once = sync.OnceFunc(func() { close(l.closed) })
	return l
}

func (l *exhausted) Accept() (net.Conn, error) {
	select {
	case <-l.closed:
		return nil, net.ErrClosed
	default:
		return nil, l.err
	}
}

func (l *exhausted) Close() error {
	l.once()
	return nil
}

func (*exhausted) Addr() net.Addr { return &net.TCPAddr{} }

// TestNoFileDescriptorsLeft: a machine without them is asked again, counted each
// time and logged once a minute; what cannot get better ends the listener.
func TestNoFileDescriptorsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		store := brokertest.NewMemoryStore()
		defer store.Close()
		o := broker.DefaultOptions()
		o.SysInterval = 0
		b, err := broker.New(o, store, slog.New(slog.NewTextHandler(&log, nil)))
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		full := &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", syscall.EMFILE)}
		ctx, cancel := context.WithCancel(t.Context())
		served := make(chan error, 1)
		go func() { served <- b.Serve(ctx, newExhausted(full), broker.Listener{}) }()
		pass(10*time.Minute - time.Millisecond)
		if st := b.Status(); st.AcceptErrors != 6000 || !st.AcceptFailing {
			t.Errorf("%d counted, failing: %t; want 6000, and true", st.AcceptErrors, st.AcceptFailing)
		}
		cancel()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
		if n := strings.Count(log.String(), "connection not accepted"); n != 10 {
			t.Errorf("%d lines in the log, want 10", n)
		}
		pass(time.Second)
		if b.Status().AcceptFailing {
			t.Error("a second later it is failing still")
		}
		broken := errors.New("broken")
		if err := b.Serve(t.Context(), newExhausted(broken), broker.Listener{}); !errors.Is(err, broken) {
			t.Errorf("Serve: %v, want %v", err, broken)
		}
		if err := b.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// TestExpiredWhileItWaited: what expires behind a full window of a session in RAM
// is dropped when its turn comes, and counted.
func TestExpiredWhileItWaited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t, nil, func(o *broker.Options) { o.MaxInflight = 1 })
		sub := brokertest.Connect(t, b.Pipe(), brokertest.V5("sub"))
		sub.Subscribe(1, "a")
		sub.SetManual(true)
		pub := brokertest.Connect(t, b.Pipe(), brokertest.V5("pub"))
		pub.Publish(1, false, "a", "in flight")
		for payload, expiry := range map[string]uint32{"late": 5, "late too": 9} {
			pub.PublishWith(&packet.Publish{QoS: 1, Topic: []byte("a"), Payload: []byte(payload), HasExpiry: true, MessageExpiry: expiry})
		}
		pub.PublishWith(&packet.Publish{QoS: 1, Topic: []byte("a"), Payload: []byte("in time"), HasExpiry: true, MessageExpiry: 50})
		first := sub.Message()
		pass(10 * time.Second)
		sub.Send(&packet.Puback{PacketID: first.PacketID})
		if got := sub.Message(); string(got.Payload) != "in time" || got.MessageExpiry != 40 {
			t.Errorf("got %q with %d s left, want the one in time with 40", got.Payload, got.MessageExpiry)
		}
		if n := b.Status().DroppedExpired; n != 2 {
			t.Errorf("%d expired, want 2", n)
		}
	})
}
