package broker

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"holdfast/broker/message"
	"holdfast/broker/packet"
)

// sentAcks are the packet ids that have left a line.
type sentAcks []uint16

func (*sentAcks) hold()                         {}
func (s *sentAcks) acknowledge(a *ack, _ *cork) { *s = append(*s, a.packetID) }
func (*sentAcks) release()                      {}
func (*sentAcks) lineMoved()                    {}

// TestAckLineKeepsOrder: however the store finishes, acknowledgements leave in
// the order of the PUBLISHes, each at once when its turn has come.
func TestAckLineKeepsOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var sent sentAcks
		var onward []uint16
		l := &ackLine{to: &sent}
		n := rapid.IntRange(1, 20).Draw(t, "n")
		acks := make([]*ack, n)
		for i := range acks {
			a := &ack{packetID: uint16(i), qos: byte(1 + i%2), counted: true}
			if a.qos == 2 {
				a.onward = func(*cork) { onward = append(onward, a.packetID) }
			}
			if !l.push(a, n) {
				t.Fatal("refused within the limit")
			}
			acks[i] = a
		}
		if l.push(&ack{counted: true}, n) {
			t.Fatal("taken beyond the limit")
		}
		finished := make([]bool, n)
		for _, i := range rapid.Permutation(slices.Collect(func(yield func(int) bool) {
			for i := range n {
				yield(i)
			}
		})).Draw(t, "order") {
			l.finish(acks[i], packet.ReasonSuccess, nil)
			finished[i] = true
			first := slices.Index(finished, false)
			if first < 0 {
				first = n
			}
			if len(sent) != first {
				t.Fatalf("%d sent, want %d", len(sent), first)
			}
		}
		if !slices.IsSorted(sent) || !slices.IsSorted(onward) || len(onward) != n/2 {
			t.Fatalf("sent %v, onward %v", sent, onward)
		}
	})
}

func TestAckLineDiesWithItsConnection(t *testing.T) {
	var sent sentAcks
	onward := 0
	l := &ackLine{to: &sent}
	safe := &ack{packetID: 1, qos: 2, onward: func(*cork) { onward++ }}
	failed := &ack{packetID: 2, qos: 2, onward: func(*cork) { onward++ }}
	l.push(safe, 10)
	l.push(failed, 10)
	l.kill()
	l.finish(failed, packet.ReasonQuotaExceeded, nil)
	l.finish(safe, packet.ReasonSuccess, nil)
	if len(sent) > 0 || onward != 1 {
		t.Errorf("sent %v, %d went onward, want none and 1", sent, onward)
	}
}

func TestPacketIDsSkipThoseInUse(t *testing.T) {
	ids := packetIDs{last: 65533}
	var used idTable[outbound]
	for _, id := range []uint16{65535, 1, 2, 4} {
		used.put(id)
	}
	var got []uint16
	for range 4 {
		id := ids.next(&used)
		used.put(id)
		got = append(got, id)
	}
	if want := []uint16{65534, 3, 5, 6}; !slices.Equal(got, want) {
		t.Errorf("ids %v, want %v", got, want)
	}
}

func TestFifo(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var f fifo
		var model []string
		for i := range 200 {
			if len(model) > 0 && rapid.Bool().Draw(t, "pop") {
				if got := f.front().m.Topic; got != model[0] {
					t.Fatalf("front %q, want %q", got, model[0])
				}
				f.pop()
				model = model[1:]
			} else {
				name := fmt.Sprint(i)
				f.push(waiting{m: &message.Message{Topic: name}, kept: i%5 == 0})
				model = append(model, name)
			}
			count, bytes := 0, 0
			for _, w := range f.items[f.head:] {
				if !w.kept {
					count++
					bytes += w.m.Size()
				}
			}
			if f.len() != len(model) || f.count != count || f.bytes != bytes {
				t.Fatalf("length %d, counted %d, %d bytes; want %d, %d, %d", f.len(), f.count, f.bytes, len(model), count, bytes)
			}
		}
	})
}
