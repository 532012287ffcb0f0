package storeforward

import (
	"cmp"
	"context"
	"database/sql/driver"
	"encoding/json"
	"fmt"
	"slices"

	"holdfast/broker/durable"
	"holdfast/broker/topic"
)

// Lanes of an uplink. Each lane is a queue of its own, with streams, cursors and a
// share of the uplink's bounds, and the uplink reads from the one it chooses. The
// first queue of an uplink is that of the default lane; it stands for the uplink:
// claims name it, and it has the state of the session, the inbound packet ids and
// the dead letters. Which lane a message takes is decided at Append, under the
// lock that orders it: a change of the routes lies between two messages for good.

// maxLaneChanges bounds the changes of routes that wait for the messages before
// them. With more than these what waits is old enough to be looked after first.
const maxLaneChanges = 100

// laneRoutes are routes that hold, or held for messages up to a sequence number.
type laneRoutes struct {
	upto   durable.Seq // 0: now
	routes []durable.LaneRoute
}

// laneSet is what the first queue of an uplink knows of its lanes.
type laneSet struct {
	queues []*queue // all with the first one, as the uplink looks at them
	// routes in order: those before a change, oldest first, then those of now.
	// None: everything takes the default lane.
	routes []laneRoutes
	// byTopic remembers the queue of a topic.
	byTopic map[string]*queue
}

// maxLaneTopics is how many topics are remembered, as the broker's plans do.
const maxLaneTopics = 8192

// Lanes is what an uplink must know of its lanes.
type Lanes struct {
	// Queues in the order in which they go: lane 7 first, and in each lane the
	// one that keeps the latest messages before the other.
	Queues []durable.LaneQueue
	// Routes are those that hold.
	Routes []durable.LaneRoute
	// Changes that may have messages before them, oldest first.
	Changes []durable.LaneChange
}

// SetLanes says which lanes the topics of an uplink take from the next Append on.
// Queues that are missing are made; they become durable before the first message
// they get. Lanes that no route uses any more keep what they have.
//
// With very many changes behind which messages still wait the routes stay as they
// were: the result tells.
func (s *Store) SetLanes(id durable.QueueID, routes []durable.LaneRoute) (Lanes, error) {
	for _, r := range routes {
		if r.Number >= durable.Lanes {
			return Lanes{}, fmt.Errorf("lanes of queue %d: lane %d is outside 0..%d", id, r.Number, durable.Lanes-1)
		}
		if err := topic.ValidFilter(r.Filter); err != nil {
			return Lanes{}, fmt.Errorf("lanes of queue %d: %w", id, err)
		}
	}
	routes = slices.Clone(routes)
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.queues[id]
	switch {
	case s.closing:
		return Lanes{}, durable.ErrClosed
	case q == nil || !q.uplink || q.base != nil:
		return Lanes{}, s.noQueueLocked()
	}
	if !slices.Equal(q.lanes.now(), routes) && len(q.lanes.routes) <= maxLaneChanges {
		s.changeLanesLocked(q, routes)
	}
	q.lanes.use()
	return q.lanes.describe(), nil
}

// now are the routes that hold.
func (ls *laneSet) now() []durable.LaneRoute {
	if len(ls.routes) == 0 {
		return nil
	}
	return ls.routes[len(ls.routes)-1].routes
}

func (ls *laneSet) describe() (d Lanes) {
	for _, q := range ls.queues {
		d.Queues = append(d.Queues, durable.LaneQueue{Queue: q.id, Lane: q.lane})
	}
	for _, r := range ls.routes {
		if r.upto != 0 {
			d.Changes = append(d.Changes, durable.LaneChange{Upto: r.upto, Routes: slices.Clone(r.routes)})
		}
	}
	d.Routes = slices.Clone(ls.now())
	return d
}

// use notes which lanes routes lead to.
func (ls *laneSet) use() {
	for _, q := range ls.queues {
		q.used = q.base == nil || slices.ContainsFunc(ls.now(), func(r durable.LaneRoute) bool { return r.Lane == q.lane })
	}
	ls.byTopic = nil
}

// changeLanesLocked begins a change of the routes of an uplink.
func (s *Store) changeLanesLocked(q *queue, routes []durable.LaneRoute) {
	ls := &q.lanes
	old := ls.now()
	held := int64(0)
	for _, lq := range ls.queues {
		held += lq.messages
	}
	var before []laneRoutes
	if held > 0 {
		before = slices.Clone(ls.routes[:max(len(ls.routes)-1, 0)])
		if n := len(before); n == 0 || before[n-1].upto != s.seq { // else no message went by old
			before = append(before, laneRoutes{upto: s.seq, routes: old})
		}
	}
	ls.routes = append(before, laneRoutes{routes: routes})
	var added []*queue
	for _, r := range routes {
		if slices.ContainsFunc(ls.queues, func(lq *queue) bool { return lq.lane == r.Lane }) {
			continue
		}
		lq := s.newQueue(s.nextQueue, true, q.name)
		s.nextQueue++
		for i := range lq.streams {
			lq.streams[i].cursor = s.seq
		}
		s.addLaneLocked(q, lq, r.Lane)
		added = append(added, lq)
	}
	cursor, all := int64(s.seq), slices.Clone(ls.routes)
	s.opLocked(func(d *db) error {
		for _, lq := range added {
			if err := insertLane(d, lq); err != nil {
				return err
			}
			if err := insertQueue(d, lq.id, cursor); err != nil {
				return err
			}
		}
		return writeLaneRoutes(d, q.id, all)
	}, nil, nil)
}

// addLaneLocked makes lq the queue of a lane of q.
func (s *Store) addLaneLocked(q, lq *queue, lane durable.Lane) {
	lq.base, lq.lane, lq.limits = q, lane, q.limits
	s.queues[lq.id] = lq
	q.lanes.queues = append(q.lanes.queues, lq)
	slices.SortFunc(q.lanes.queues, func(a, b *queue) int { return cmp.Compare(b.slot(), a.slot()) })
}

// slot orders lanes: what keeps the latest goes before the rest of its lane.
func (q *queue) slot() int {
	n := 2 * int(q.lane.Number)
	if q.lane.Latest {
		n++
	}
	return n
}

func insertLane(d *db, lq *queue) error {
	return d.exec("INSERT OR REPLACE INTO lane (queue, uplink, lane, latest) VALUES (?, ?, ?, ?)",
		int64(lq.id), int64(lq.base.id), int64(lq.lane.Number), flag(lq.lane.Latest))
}

// writeLaneRoutes writes all routes of an uplink anew.
func writeLaneRoutes(d *db, id durable.QueueID, all []laneRoutes) error {
	if err := d.exec("DELETE FROM lane_routes WHERE uplink = ?", int64(id)); err != nil {
		return err
	}
	for _, r := range all {
		b, err := json.Marshal(r.routes)
		if err != nil {
			return err
		}
		if err := d.exec("INSERT INTO lane_routes (uplink, upto, routes) VALUES (?, ?, ?)", int64(id), int64(r.upto), string(b)); err != nil {
			return err
		}
	}
	return nil
}

// LaneOf is the lane that routes give a topic.
func LaneOf(routes []durable.LaneRoute, name string) durable.Lane {
	for i := range routes {
		if topic.Match(routes[i].Filter, name) {
			return routes[i].Lane
		}
	}
	return durable.Lane{Number: durable.DefaultLane}
}

// laneFor returns the queue that a topic takes: q itself, or one of its lanes.
func (q *queue) laneFor(name string) *queue {
	ls := &q.lanes
	if len(ls.queues) < 2 || len(ls.now()) == 0 {
		return q
	}
	if lq := ls.byTopic[name]; lq != nil {
		return lq
	}
	lq, lane := q, LaneOf(ls.now(), name)
	for _, x := range ls.queues {
		if x.lane == lane {
			lq = x
		}
	}
	if ls.byTopic == nil || len(ls.byTopic) >= maxLaneTopics {
		ls.byTopic = make(map[string]*queue)
	}
	ls.byTopic[name] = lq
	return lq
}

// Passed says that of a lane's messages up to a sequence number none is left that
// is not finished. It knows only while a recipient reads the queue.
func (s *Store) Passed(id durable.QueueID, upto durable.Seq) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.queues[id]
	if q == nil || q.messages == 0 {
		return true
	}
	for i := range q.streams {
		st := &q.streams[i]
		if !st.live && st.pos < upto || len(st.out) > 0 && st.out[0].seq <= upto {
			return false
		}
	}
	return true
}

// Appended is how many messages a queue has been given since the start.
func (s *Store) Appended(id durable.QueueID) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if q := s.queues[id]; q != nil {
		return q.appended
	}
	return 0
}

// EndLaneChange says that all messages up to that of a change of lanes are
// finished: nothing needs to wait for them any more.
func (s *Store) EndLaneChange(id durable.QueueID, upto durable.Seq) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.queues[id]
	if q == nil {
		return
	}
	q.lanes.routes = slices.DeleteFunc(slices.Clone(q.lanes.routes), func(r laneRoutes) bool { return r.upto != 0 && r.upto <= upto })
	all := slices.Clone(q.lanes.routes)
	s.opLocked(func(d *db) error { return writeLaneRoutes(d, q.id, all) }, nil, nil)
}

// root is the queue that stands for the whole of a recipient.
func (q *queue) root() *queue {
	if q.base != nil {
		return q.base
	}
	return q
}

// all are the queues of a recipient.
func (q *queue) all() []*queue {
	if ls := q.root().lanes.queues; len(ls) > 0 {
		return ls
	}
	return []*queue{q}
}

// bounds are those of the queue. The lanes of an uplink share its bounds: each
// has a sixteenth for itself, so that an alarm finds room behind whatever backlog.
func (q *queue) bounds() (messages, bytes int64) {
	const shares = 2 * durable.Lanes
	messages, bytes = q.limits.messages, q.limits.bytes
	lanes := q.root().lanes.queues
	if len(lanes) < 2 {
		return messages, bytes
	}
	ownMessages, ownBytes := messages/shares, bytes/shares
	for _, x := range lanes {
		if x == q {
			continue
		}
		var m, b int64
		if x.used {
			m, b = ownMessages, ownBytes
		}
		messages -= max(x.messages, m)
		bytes -= max(x.bytes, b)
	}
	messages, bytes = max(messages, ownMessages, 1), max(bytes, ownBytes, 1)
	if q.lane.Latest {
		messages = min(messages, maxLatestTopics)
	}
	return messages, bytes
}

// loadLanes reads the lanes of all uplinks, after their first queues.
func (s *Store) loadLanes(ctx context.Context, d *db) error {
	err := d.query(ctx, func(row []driver.Value) error {
		q := s.queues[durable.QueueID(integer(row[1]))]
		id := durable.QueueID(integer(row[0]))
		if q == nil || !q.uplink || q.base != nil || s.queues[id] != nil {
			return nil // a damaged file
		}
		lane := durable.Lane{Number: byte(integer(row[2])), Latest: integer(row[3]) != 0}
		s.addLaneLocked(q, s.newQueue(id, true, q.name), lane)
		return nil
	}, "SELECT queue, uplink, lane, latest FROM lane ORDER BY queue")
	if err != nil {
		return err
	}
	return d.query(ctx, func(row []driver.Value) error {
		q := s.queues[durable.QueueID(integer(row[0]))]
		if q == nil || !q.uplink {
			return nil
		}
		r := laneRoutes{upto: durable.Seq(integer(row[1]))}
		if err := json.Unmarshal([]byte(text(row[2])), &r.routes); err != nil {
			s.log.Warn("lanes of an uplink are not readable", "uplink", q.name, "err", err)
			return nil
		}
		q.lanes.routes = append(q.lanes.routes, r)
		q.lanes.use()
		return nil
	}, "SELECT uplink, upto, routes FROM lane_routes ORDER BY uplink, upto = 0, upto")
}

// rebuildLanes writes them again.
func rebuildLanes(d *db, q *queue) error {
	for _, lq := range q.lanes.queues {
		if lq != q {
			if err := insertLane(d, lq); err != nil {
				return err
			}
		}
	}
	return writeLaneRoutes(d, q.id, q.lanes.routes)
}
