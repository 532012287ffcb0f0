package storeforward

import (
	"slices"
	"testing"

	"holdfast/broker/durable"
)

// An uplink that is opened again in the same process, as a reload does, learns
// which of the cloud's QoS 2 messages it has taken: a PUBLISH of theirs that
// comes again must not go onward twice.
func TestOpenUplinkAgainKnowsWhatItReceived(t *testing.T) {
	s := open(t, onFile(t))
	defer closeStore(t, s)
	q := uplink(t, s)
	received := func() []uint16 {
		t.Helper()
		again, ids, err := s.OpenUplink("cloud")
		if err != nil || again != q {
			t.Fatalf("OpenUplink = %d, %v, want %d", again, err, q)
		}
		return ids
	}
	if err := put(t, s, msg("cmd", "x"), nil, durable.Origin{Queue: q, PacketID: 7}).wait(t); err != nil {
		t.Fatal(err)
	}
	if ids := received(); !slices.Equal(ids, []uint16{7}) {
		t.Errorf("received = %v, want 7", ids)
	}
	after(t, func(done func(error)) { s.Release(q, 7, done) })
	if ids := received(); len(ids) != 0 {
		t.Errorf("received after the release = %v, want none", ids)
	}
}
