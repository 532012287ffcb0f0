package storeforward

import (
	"fmt"
	"slices"

	"holdfast/broker/durable"
	"holdfast/broker/message"
)

// The uplink of the crash model has three lanes, each a peer with a connection of
// its own: what the second publisher sends goes by one of them, states by another,
// which keeps the latest.

// state is a topic of which the newest message must arrive.
type state struct {
	n     int // number of the last message
	acked int // of the last one that is safe
}

// laneModel is what the world knows of the lanes.
type laneModel struct {
	alarms, latest *peer
	states         map[string]*state
	// moved are how often routes of no message have changed.
	moved int
}

func (w *world) addLanes() {
	cloud := w.peers[0]
	w.lanes = laneModel{states: map[string]*state{}}
	for name, p := range map[string]**peer{"cloud/7": &w.lanes.alarms, "cloud/7-latest": &w.lanes.latest} {
		*p = newPeer(name)
		(*p).uplink, (*p).lane, (*p).policy = true, true, cloud.policy
	}
	w.peers = append(w.peers, w.lanes.alarms, w.lanes.latest)
}

func (w *world) laneRoutes() []durable.LaneRoute {
	return []durable.LaneRoute{
		{Filter: "t/pub1/#", Lane: durable.Lane{Number: 7}},
		{Filter: "state/+", Lane: durable.Lane{Number: 7, Latest: true}},
		{Filter: "nobody", Lane: durable.Lane{Number: byte(w.lanes.moved % 3)}},
	}
}

// setLanes says which lanes there are. A lane that has something promised is there.
func (w *world) setLanes() error {
	lanes, err := w.s.SetLanes(w.peers[0].q, w.laneRoutes())
	if err != nil {
		return err
	}
	if !slices.Equal(lanes.Routes, w.laneRoutes()) && len(lanes.Changes) < maxLaneChanges {
		return fmt.Errorf("lanes are by %+v", lanes.Routes)
	}
	for _, l := range lanes.Queues {
		switch l.Lane {
		case durable.Lane{Number: 7}:
			w.lanes.alarms.q = l.Queue
		case durable.Lane{Number: 7, Latest: true}:
			w.lanes.latest.q = l.Queue
		}
	}
	return nil
}

// moveLanes changes routes, or ends the oldest change.
func (w *world) moveLanes() {
	cloud := w.peers[0].q
	if w.c.pick(2, "change of lanes") == 0 {
		w.lanes.moved++
		if err := w.setLanes(); err != nil {
			w.failf("lanes: %v", err)
		}
		return
	}
	lanes, err := w.s.SetLanes(cloud, w.laneRoutes())
	if err == nil && len(lanes.Changes) > 0 {
		w.s.EndLaneChange(cloud, lanes.Changes[0].Upto)
	}
}

// takes returns who gets what a claim on the cloud stands for.
func (w *world) takes(p *publisher, to []*peer) []*peer {
	to = slices.Clone(to)
	for i := range to {
		if to[i] == w.peers[0] && p == w.pubs[1] {
			to[i] = w.lanes.alarms
		}
	}
	return to
}

// publishState changes a state.
func (w *world) publishState() {
	name := fmt.Sprintf("state/%d", w.c.pick(2, "state"))
	st := w.lanes.states[name]
	if st == nil {
		st = &state{}
		w.lanes.states[name] = st
	}
	st.n++
	n := st.n
	claims := []durable.Claim{{Queue: w.peers[0].q, QoS: byte(1 + w.c.pick(2, "qos"))}}
	if w.c.pick(3, "others") == 0 {
		claims = append(claims, durable.Claim{Queue: w.guest.q, QoS: 1})
	}
	if w.guest.q == 0 {
		claims = claims[:1]
	}
	_ = w.s.Append(&message.Message{Topic: name, Payload: fmt.Appendf(nil, "%s/1 %d", name, n), QoS: 1}, claims, durable.Origin{}, w.live(func(err error) {
		if err == nil {
			st.acked = max(st.acked, n)
		}
	}))
	for c := w.lanes.latest.conn; c != nil && w.c.pick(4, "goes on") > 0; {
		c.read(1)
		c.send1()
	}
}

// checkStates: what the cloud has last got of a state is the newest that was
// acknowledged, or a newer one.
func (w *world) checkStates() {
	p := w.lanes.latest
	d := w.dropped(p)
	licence := p.omitted + d[reasonOldest] + d[reasonThin]
	if p.policy.Policy == "" || p.policy.Policy == durable.PolicyRefuse || p.policy.Policy == durable.PolicyWait {
		licence = 0
	}
	licence += d[reasonAge]
	for name, st := range w.lanes.states {
		if final := p.final[name+"/1"]; final < st.acked && licence == 0 {
			w.failf("%s number %d was acknowledged, and in the end the cloud has number %d", name, st.acked, final)
		}
	}
	w.replaced += d[reasonReplaced]
}
