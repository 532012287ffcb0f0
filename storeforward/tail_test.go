package storeforward

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/broker/durable"
	"holdfast/broker/message"
)

// What is not committed yet is read from the tail, in order, and the stream turns
// live without a gap.
func TestReadFromTheTail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, disk := onDisk(t)
		s := open(t, o)
		defer closeStore(t, s)
		q := uplink(t, s)
		for i := range 3 {
			if err := put(t, s, msg("a", fmt.Sprint(i)), claimFor(q, 1), durable.Origin{}).wait(t); err != nil {
				t.Fatal(err)
			}
		}
		wait(time.Second)
		r := &taker{window: 10}
		if err := s.Attach(q, r); err != nil {
			t.Fatal(err)
		}
		ds, _, err := s.Read(context.Background(), q, 1, 3, 1<<20)
		if err != nil || len(ds) != 3 {
			t.Fatalf("read %v, %v; want the three rows", ds, err)
		}
		release := disk.Hold()
		var last *outcome
		for i := 3; i < 9; i++ {
			last = put(t, s, msg("a", fmt.Sprint(i)), claimFor(q, 1), durable.Origin{})
			if i == 5 {
				synctest.Wait() // a commit of some of them is under way
			}
		}
		var list []string
		for _, d := range append(ds, readAll(t, s, q, 1)...) {
			list = append(list, string(d.Message.Payload))
		}
		put(t, s, msg("a", "9"), claimFor(q, 1), durable.Origin{})
		list = append(list, r.payloads()...)
		release()
		if fmt.Sprint(list) != "[0 1 2 3 4 5 6 7 8 9]" {
			t.Errorf("got %v, want 0 to 9", list)
		}
		if err := last.wait(t); err != nil {
			t.Error(err)
		}
	})
}

// While the first commit is under way the queue's rows are none, so the tail is
// all there is to read.
func TestTailIsSafeByAcknowledgement(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, disk := onDisk(t)
		s := open(t, o)
		defer closeStore(t, s)
		q := uplink(t, s)
		release := disk.Hold()
		waiting := []*outcome{put(t, s, msg("a", "0"), claimFor(q, 1), durable.Origin{})}
		synctest.Wait()
		if err := s.Attach(q, &taker{}); err != nil {
			t.Fatal(err)
		}
		for i := 1; i < 5; i++ {
			waiting = append(waiting, put(t, s, msg("a", fmt.Sprint(i)), claimFor(q, 1), durable.Origin{}))
			synctest.Wait()
		}
		ds := readAll(t, s, q, 1)
		if len(ds) != 5 {
			t.Fatalf("read %d of 5 from the tail", len(ds))
		}
		for _, d := range ds {
			s.Acked(q, d.Seq)
		}
		for i, o := range waiting {
			if !o.called() || o.wait(t) != nil {
				t.Errorf("message %d is not safe though it was acknowledged", i)
			}
		}
		release()
		wait(time.Minute)
		if st := s.Status(); st.Written != 1 || st.Messages != 0 || rowsOf(t, s) != 0 {
			t.Errorf("written %d, want only the one of the commit under way; %d messages left", st.Written, st.Messages)
		}
	})
}

// A recipient that comes while a commit with its predecessor's packet id is under
// way is offered nothing of it: it reads it, after what is older.
func TestReattachDuringACommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, disk := onDisk(t)
		s := open(t, o)
		defer closeStore(t, s)
		q := uplink(t, s)
		r := attachLive(t, s, q, 10)
		if err := put(t, s, msg("a", "0"), claimFor(q, 2), durable.Origin{}).wait(t); err != nil {
			t.Fatal(err)
		}
		wait(time.Second)
		release := disk.Hold()
		second := put(t, s, msg("a", "1"), claimFor(q, 2), durable.Origin{})
		synctest.Wait()
		if err := s.Attach(q, r); err != nil { // the same recipient, anew
			t.Fatal(err)
		}
		r.take()
		release()
		if err := second.wait(t); err != nil {
			t.Fatal(err)
		}
		if got := r.take(); len(got) != 0 {
			t.Errorf("offered %v out of turn", describe(got))
		}
		want := []string{"resend 0 as 1", "new 1 as 2"}
		if got := describe(readAll(t, s, q, 2)); !slices.Equal(got, want) {
			t.Errorf("read %v, want %v", got, want)
		}
	})
}

// The tail against a plain list.
func TestTail(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	var tl tail
	var plain []*entry
	seq := durable.Seq(0)
	for range 20_000 {
		if r.IntN(5) < 3 {
			seq += durable.Seq(1 + r.IntN(2)*r.IntN(3))
			e := &entry{seq: seq, m: &message.Message{}, size: int64(r.IntN(100))}
			tl.push(e)
			plain = append(plain, e)
		} else if len(plain) > 0 {
			i := r.IntN(len(plain))
			if r.IntN(2) == 0 {
				i = 0
			}
			e := plain[i]
			plain = slices.Delete(plain, i, i+1)
			if tl.get(e.seq) != e {
				t.Fatalf("entry %d is not found", e.seq)
			}
			tl.remove(e)
			if tl.get(e.seq) != nil {
				t.Fatalf("entry %d is still found", e.seq)
			}
		}
		if tl.len() != len(plain) || len(plain) > 0 && tl.first() != plain[0] {
			t.Fatalf("tail has %d entries, want %d", tl.len(), len(plain))
		}
	}
	i := 0
	tl.after(0, func(e *entry) bool {
		if e != plain[i] {
			t.Fatalf("entry %d is %d, want %d", i, e.seq, plain[i].seq)
		}
		i++
		return true
	})
	bytes := int64(0)
	for _, e := range plain {
		bytes += e.weight()
	}
	if i != len(plain) || tl.bytes != bytes {
		t.Errorf("%d entries with %d bytes, want %d with %d", i, tl.bytes, len(plain), bytes)
	}
}

// Rows written before the link was well must be struck off, and that takes a
// commit. It must not take along the messages that are on their way just then:
// their acknowledgements would ask for the next one, and so on for ever.
func TestHealthyLinkStopsWriting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, _ := onDisk(t)
		s := open(t, o)
		defer closeStore(t, s)
		q := uplink(t, s)
		for i := range 10 {
			if err := put(t, s, msg("a", fmt.Sprint(i)), claimFor(q, 1), durable.Origin{}).wait(t); err != nil {
				t.Fatal(err)
			}
		}
		wait(time.Second)
		before := s.Status().Written
		r := &taker{window: 100}
		if err := s.Attach(q, r); err != nil {
			t.Fatal(err)
		}
		for _, d := range readAll(t, s, q, 1) {
			s.Acked(q, d.Seq)
		}
		const trip = 10 // messages, and 10 ms each
		var flying []durable.Delivery
		for i := range 1000 {
			put(t, s, msg("a", fmt.Sprint(10+i)), claimFor(q, 1), durable.Origin{})
			flying = append(flying, r.take()...)
			for len(flying) > trip {
				s.Acked(q, flying[0].Seq)
				flying = flying[1:]
			}
			wait(10 * time.Millisecond)
		}
		for _, d := range flying {
			s.Acked(q, d.Seq)
		}
		wait(time.Minute)
		if st := s.Status(); st.Written != before || st.Messages != 0 || rowsOf(t, s) != 0 {
			t.Errorf("%d messages written over a link that acknowledges after 100 ms; %d left", st.Written-before, st.Messages)
		}
	})
}
