package modbus

import (
	"fmt"
	"log/slog"
	"os"
	"testing"
	"time"

	"holdfast/adapters/health"
	"holdfast/adapters/reading"
	"holdfast/broker/message"
)

// promptWire has a unit at its end that answers each read the moment it is sent.
type promptWire struct {
	answer []byte
	next   []byte
}

func (w *promptWire) Write(p []byte) (int, error) {
	w.next = w.answer
	return len(p), nil
}

func (w *promptWire) Read(p []byte) (int, error) {
	if len(w.next) == 0 {
		return 0, os.ErrDeadlineExceeded
	}
	n := copy(p, w.next)
	w.next = w.next[n:]
	return n, nil
}

func (w *promptWire) SetReadDeadline(time.Time) error { return nil }
func (w *promptWire) Drain() error                    { return nil }
func (w *promptWire) Discard() (int, error)           { return 0, nil }
func (w *promptWire) Done() <-chan struct{}           { return nil }
func (w *promptWire) Close() error                    { return nil }

type noSink struct{}

func (noSink) PutMessage(string, *message.Message) {}

func (noSink) Put(string, byte, ...reading.Reading) {}

// pollOf returns a poll of one device with so many points.
func pollOf(tb testing.TB, points int) func() {
	tb.Helper()
	d := meter("m", 1, time.Second)
	for i := range points {
		d.Points = append(d.Points, Point{Name: fmt.Sprint("p", i), Register: fmt.Sprint("holding:", i), Scale: 0.1})
	}
	o := options(d)
	o.CharTime, o.Silence = 0, 1 // nothing to wait for
	bus, err := New("b", o, nil, noSink{}, health.NewMonitor(func(health.Change) {}), slog.New(slog.DiscardHandler))
	if err != nil {
		tb.Fatal(err)
	}
	pdu := append([]byte{byte(ReadHoldingRegisters), byte(2 * points)}, make([]byte, 2*points)...)
	for i := range points {
		pdu[3+2*i] = byte(1 + i)
	}
	l := newLink(&promptWire{answer: AppendRTU(nil, 1, pdu)}, o, time.Now())
	k := bus.units[0].blocks[0]
	ctx := tb.Context()
	return func() {
		if err := bus.serve(ctx, l, k); err != nil {
			tb.Fatal(err)
		}
		x, err := l.receive(ctx, time.Time{})
		if err == nil {
			err = bus.end(l, x)
		}
		if err != nil {
			tb.Fatal(err)
		}
	}
}

func BenchmarkPoll(b *testing.B) {
	for _, points := range []int{1, 50} {
		b.Run(fmt.Sprint(points, "points"), func(b *testing.B) {
			poll := pollOf(b, points)
			b.ReportAllocs()
			for b.Loop() {
				poll()
			}
		})
	}
}

// A poll allocates its values, their list, and little besides.
func TestAPollAllocatesItsValues(t *testing.T) {
	for _, points := range []int{1, 50} {
		if n := testing.AllocsPerRun(100, pollOf(t, points)); n > float64(points+10) {
			t.Errorf("a poll of %d points allocates %v times, want at most %d", points, n, points+10)
		}
	}
}
