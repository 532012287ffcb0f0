package storeforward

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"holdfast/broker/durable"
	"holdfast/broker/message"
)

// BenchmarkAppend keeps a number of messages of 100 bytes in flight to a queue
// that is offline: each is synced before it counts.
func BenchmarkAppend(b *testing.B) {
	for _, inFlight := range []int{1, 10, 100, 1000} {
		b.Run(fmt.Sprintf("%d_in_flight_100B", inFlight), func(b *testing.B) {
			o := onFile(b)
			o.MaxQueueMessages, o.MaxMessages = 1<<40, 1<<40
			s := open(b, o)
			q := uplink(b, s)
			m := &message.Message{Topic: "sensors/boiler/flow", Payload: []byte(strings.Repeat("x", 100)), QoS: 1}
			claims := claimFor(q, 1)
			window := make(chan struct{}, inFlight)
			done := func(err error) {
				if err != nil {
					b.Errorf("done(%v)", err)
				}
				<-window
			}
			b.ReportAllocs()
			b.SetBytes(int64(m.Size()))
			for b.Loop() {
				window <- struct{}{}
				if err := s.Append(m, claims, durable.Origin{}, done); err != nil {
					b.Fatal(err)
				}
			}
			for range inFlight {
				window <- struct{}{}
			}
			st := s.Status()
			b.ReportMetric(float64(st.Appended)/float64(st.Commits), "msg/commit")
			closeStore(b, s)
		})
	}
}

// BenchmarkSafeByAck is the healthy link: offered, acknowledged, never written.
func BenchmarkSafeByAck(b *testing.B) {
	s := open(b, onFile(b))
	defer closeStore(b, s)
	q := uplink(b, s)
	r := attachLive(b, s, q, 1)
	m := &message.Message{Topic: "sensors/boiler/flow", Payload: []byte(strings.Repeat("x", 100)), QoS: 1}
	claims := claimFor(q, 1)
	b.ReportAllocs()
	for b.Loop() {
		if err := s.Append(m, claims, durable.Origin{}, nil); err != nil {
			b.Fatal(err)
		}
		r.mu.Lock()
		seq := r.got[0].Seq
		r.got = r.got[:0]
		r.mu.Unlock()
		s.Acked(q, seq)
	}
}

// BenchmarkDrain reads a backlog of 100-byte messages and acknowledges it,
// cursors and deletes included.
func BenchmarkDrain(b *testing.B) {
	const backlog = 100_000
	b.ReportAllocs()
	total := 0
	for b.Loop() {
		b.StopTimer()
		s := open(b, onFile(b))
		q := uplink(b, s)
		m := &message.Message{Topic: "sensors/boiler/flow", Payload: []byte(strings.Repeat("x", 100)), QoS: 1}
		var last *outcome
		for i := range backlog {
			o := newOutcome()
			if err := s.Append(m, claimFor(q, 1), durable.Origin{}, o.done); err != nil {
				b.Fatal(err)
			}
			if i%5000 == 0 {
				_ = o.wait(b)
			}
			last = o
		}
		_ = last.wait(b)
		if err := s.Attach(q, &taker{}); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		for live := false; !live; {
			ds, l, err := s.Read(context.Background(), q, 1, 100, 1<<20)
			if err != nil {
				b.Fatal(err)
			}
			for _, d := range ds {
				s.Acked(q, d.Seq)
			}
			total += len(ds)
			live = l
		}
		b.StopTimer()
		closeStore(b, s)
		b.StartTimer()
	}
	b.ReportMetric(float64(total)/b.Elapsed().Seconds(), "msg/s")
}

// BenchmarkOpen opens a store that has a backlog of a session and of an uplink.
func BenchmarkOpen(b *testing.B) {
	for _, backlog := range []int{1, 1_000_000} {
		b.Run(fmt.Sprintf("%d_messages_100B", backlog), func(b *testing.B) {
			o := onFile(b)
			backlogOf(b, o, backlog)
			b.ReportAllocs()
			for b.Loop() {
				s := open(b, o)
				if n := s.Status().Messages; n != int64(backlog) {
					b.Fatalf("%d messages", n)
				}
				b.StopTimer()
				closeStore(b, s)
				b.StartTimer()
			}
		})
	}
}
