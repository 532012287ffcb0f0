package storeforward

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"holdfast/broker/durable"
)

func setLanes(t testing.TB, s *Store, q durable.QueueID, routes []durable.LaneRoute) (Lanes, map[string]durable.QueueID) {
	t.Helper()
	lanes, err := s.SetLanes(q, routes)
	if err != nil {
		t.Fatalf("SetLanes: %v", err)
	}
	ids := make(map[string]durable.QueueID)
	for _, l := range lanes.Queues {
		ids[l.String()] = l.Queue
	}
	return lanes, ids
}

// waiting attaches a recipient and returns what the QoS 1 stream has for it.
func waiting(t testing.TB, s *Store, q durable.QueueID) string {
	t.Helper()
	if err := s.Attach(q, &taker{}); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, d := range readAll(t, s, q, 1) {
		got = append(got, string(d.Message.Payload))
	}
	return strings.Join(got, " ")
}

func TestTopicsTakeTheirLanes(t *testing.T) {
	o := onFile(t)
	s := open(t, o)
	q := uplink(t, s)
	_, ids := setLanes(t, s, q, alarmLanes)
	for i, topic := range []string{"data/a", "alarm/a", "data/b", "alarm/b"} {
		if err := put(t, s, msg(topic, fmt.Sprint(i)), claimFor(q, 1), durable.Origin{}).wait(t); err != nil {
			t.Fatal(err)
		}
	}
	if n, _ := s.Backlog(q); n != 4 {
		t.Errorf("backlog of all lanes is %d, want 4", n)
	}
	if n, _ := s.Backlog(ids["7"]); n != 2 {
		t.Errorf("backlog of lane 7 is %d, want 2", n)
	}
	closeStore(t, s)
	s = open(t, o)
	defer closeStore(t, s)
	lanes, again := setLanes(t, s, q, alarmLanes)
	if diff := cmp.Diff(ids, again); diff != "" || len(lanes.Changes) != 0 {
		t.Errorf("lanes after the restart:\n%s, changes %+v", diff, lanes.Changes)
	}
	if got := waiting(t, s, q) + " | " + waiting(t, s, ids["7"]); got != "0 2 | 1 3" {
		t.Errorf("lanes hold %q", got)
	}
	list, err := ListQueues(t.Context(), o.Path)
	if err != nil || len(list) != 1 || list[0].Messages != 4 || len(list[0].Lanes) != 3 || list[0].Lanes[1].Lane != "7" || list[0].Lanes[1].Messages != 2 {
		t.Errorf("list %+v, %v", list, err)
	}
}

// What waits in a lane stays there when the routes change, and whoever reads knows
// what must go before.
func TestChangeOfLanesKeepsWhatWaits(t *testing.T) {
	o := onFile(t)
	s := open(t, o)
	q := uplink(t, s)
	if err := put(t, s, msg("alarm/a", "old"), claimFor(q, 1), durable.Origin{}).wait(t); err != nil {
		t.Fatal(err)
	}
	lanes, ids := setLanes(t, s, q, alarmLanes)
	if len(lanes.Changes) != 1 || lanes.Changes[0].Upto != 1 || lanes.Changes[0].Routes != nil {
		t.Fatalf("changes %+v, want one that holds for message 1", lanes.Changes)
	}
	if err := put(t, s, msg("alarm/a", "new"), claimFor(q, 1), durable.Origin{}).wait(t); err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	s = open(t, o)
	if lanes, _ = setLanes(t, s, q, alarmLanes); len(lanes.Changes) != 1 {
		t.Fatalf("changes after a restart %+v, want the one", lanes.Changes)
	}
	upto := lanes.Changes[0].Upto
	if s.Passed(q, upto) {
		t.Error("passed before anything was read")
	}
	if got := waiting(t, s, q) + " | " + waiting(t, s, ids["7"]); got != "old | new" {
		t.Errorf("lanes hold %q", got)
	}
	if s.Passed(q, upto) {
		t.Error("passed before it was acknowledged")
	}
	s.Acked(q, upto)
	if !s.Passed(q, upto) {
		t.Error("not passed though nothing is left")
	}
	s.EndLaneChange(q, upto)
	closeStore(t, s)
	s = open(t, o)
	defer closeStore(t, s)
	if lanes, _ = setLanes(t, s, q, alarmLanes); len(lanes.Changes) != 0 {
		t.Errorf("changes after their end %+v", lanes.Changes)
	}
	// With nothing waiting there is nothing to go before.
	if got := waiting(t, s, ids["7"]); got != "new" {
		t.Fatalf("lane 7 holds %q", got)
	}
	s.Acked(ids["7"], 2)
	if lanes, _ = setLanes(t, s, q, nil); len(lanes.Changes) != 0 || len(lanes.Queues) != 3 {
		t.Errorf("lanes of an empty uplink %+v", lanes)
	}
}

func TestLostSessionConcernsAllLanes(t *testing.T) {
	s := open(t, onFile(t))
	defer closeStore(t, s)
	q := uplink(t, s)
	_, ids := setLanes(t, s, q, alarmLanes)
	for i, lane := range []durable.QueueID{q, ids["7"]} {
		topic := []string{"data", "alarm/a"}[i]
		if err := put(t, s, msg(topic, "x"), claimFor(q, 2), durable.Origin{Queue: q, PacketID: uint16(5 + i)}).wait(t); err != nil {
			t.Fatal(err)
		}
		if err := s.Attach(lane, &taker{}); err != nil {
			t.Fatal(err)
		}
		d := readAll(t, s, lane, 2)[0]
		after(t, func(done func(error)) { s.Sent(lane, []durable.Sent{{Seq: d.Seq, PacketID: uint16(11 + i)}}, done) })
	}
	after(t, func(done func(error)) { s.ResetUplink(q, done) })
	for _, lane := range []durable.QueueID{q, ids["7"]} {
		if err := s.Attach(lane, &taker{}); err != nil {
			t.Fatal(err)
		}
		if ds := describe(readAll(t, s, lane, 2)); len(ds) != 1 || !strings.HasSuffix(ds[0], "as 0") {
			t.Errorf("queue %d hands out %v, want one new message", lane, ds)
		}
	}
	if _, received, err := s.OpenUplink("cloud"); err != nil || len(received) != 0 {
		t.Errorf("inbound ids %v, %v, want none", received, err)
	}
	after(t, func(done func(error)) { s.End(q, done) })
	if st := s.Status(); len(st.Queues) != 0 || st.Messages != 0 {
		t.Errorf("after the end %+v", st)
	}
	for _, table := range []string{"lane", "lane_routes", "stream", "uplink"} {
		if n := one(t, s, "SELECT count(*) FROM "+table); n != 0 {
			t.Errorf("%d rows left in %s", n, table)
		}
	}
}

// A lane that is full leaves the others their share.
func TestLanesShareTheBounds(t *testing.T) {
	s := open(t, onFile(t))
	defer closeStore(t, s)
	q := uplink(t, s)
	_, ids := setLanes(t, s, q, alarmLanes)
	if err := s.SetPolicy(q, durable.QueuePolicy{MaxMessages: 160}); err != nil {
		t.Fatal(err)
	}
	fill := func(topic string) (n int) {
		for {
			switch err := s.Append(msg(topic, "x"), claimFor(q, 1), durable.Origin{}, nil); {
			case errors.Is(err, durable.ErrFull):
				return n
			case err != nil:
				t.Fatal(err)
			}
			n++
		}
	}
	if n := fill("data"); n != 140 {
		t.Errorf("data got %d places, want 160 without two shares of 10", n)
	}
	if n := fill("alarm/a"); n != 10 {
		t.Errorf("alarms got %d places, want their share of 10", n)
	}
	waiting(t, s, q)
	for seq := durable.Seq(1); seq <= 100; seq++ {
		s.Acked(q, seq)
	}
	if n := fill("alarm/a"); n != 100 {
		t.Errorf("alarms got %d places more, want the 100 that data gave back", n)
	}
	if n, _ := s.Backlog(ids["7"]); n != 110 {
		t.Errorf("lane 7 holds %d, want 110", n)
	}
}
