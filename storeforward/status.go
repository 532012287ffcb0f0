package storeforward

import (
	"cmp"
	"context"
	"database/sql/driver"
	"maps"
	"slices"
	"time"

	"holdfast/broker/durable"
)

// Status is a snapshot of the store.
type Status struct {
	Path string `json:"path"`
	// State is "ok", "failing" (the disk refuses; see LastError) or "full" (the
	// reserve was given up; only what leaves at once is taken).
	State string `json:"state"`
	// SetAside is where a database that could not be used was put by this
	// run, and Salvaged what was saved from it.
	SetAside string `json:"set_aside,omitempty"`
	Salvaged string `json:"salvaged,omitempty"`

	// Queues are those of uplinks, then those of sessions and shared groups, the
	// fullest first.
	Queues []QueueStatus `json:"queues"`

	Messages         int64  `json:"messages"`       // in all queues together
	Bytes            int64  `json:"bytes"`          // in all queues together
	ReserveBytes     int64  `json:"reserve_bytes"`  // set aside for a full disk
	ReserveWanted    int64  `json:"reserve_wanted"` // as configured
	Retained         int    `json:"retained"`       // retained messages
	UnsafeMessages   int    `json:"unsafe"`         // appended, not yet safe
	UnsafeBytes      int64  `json:"unsafe_bytes"`   // of these, with overhead
	FileBytes        int64  `json:"file_bytes"`     // database file
	WALBytes         int64  `json:"wal_bytes"`      // write-ahead log
	Appended         uint64 `json:"appended"`       // messages taken
	SafeByAck        uint64 `json:"safe_by_ack"`    // messages never written
	Written          uint64 `json:"written"`        // message rows written
	Refused          uint64 `json:"refused"`        // messages not taken: no room
	Withdrawn        uint64 `json:"withdrawn"`      // QoS 2 messages given back after a failed commit
	Commits          uint64 `json:"commits"`        // transactions
	CommitErrors     uint64 `json:"commit_errors"`  // failed ones
	ReadErrors       uint64 `json:"read_errors"`
	CheckpointErrors uint64 `json:"checkpoint_errors"`
	// Integrity is the result of the check after the start: "" while it runs,
	// "ok", or what is wrong.
	Integrity string `json:"integrity"`
	// Crashes are how often the process has crashed in a row before this run,
	// LastCrash why it did the last time, and Quarantined the rows that this run
	// has put aside for it.
	Crashes     int    `json:"crashes"`
	LastCrash   string `json:"last_crash,omitempty"`
	Quarantined uint64 `json:"quarantined"`
	// Damaged are rows whose columns are not what can have been written, as far as
	// this run has come across them: they are not used, and messages for a cloud are
	// dead letters.
	Damaged     uint64    `json:"damaged"`
	LastError   string    `json:"last_error,omitempty"`
	LastErrorAt time.Time `json:"last_error_at,omitzero"`
}

// QueueStatus is the snapshot of one queue.
type QueueStatus struct {
	ID   durable.QueueID `json:"id" metric:"-"`
	Kind string          `json:"kind" metric:"label"` // "uplink", "session" or "group"
	Name string          `json:"name" metric:"label"` // uplink name, client id or $share/GROUP/FILTER
	// Lane is that of an uplink's queue, such as "3" or "7-latest": 7 goes first.
	Lane string `json:"lane,omitempty" metric:"label"`
	// Online says that a recipient is attached.
	Online   bool  `json:"online"`
	Messages int64 `json:"messages"` // not yet finished
	Bytes    int64 `json:"bytes"`    // of these
	// OldestSeconds is the age of the oldest of them; 0 when there is none.
	OldestSeconds      float64           `json:"oldest_seconds"`
	Appended           uint64            `json:"appended"`
	Committed          uint64            `json:"committed"`   // claims written to disk
	SafeByAck          uint64            `json:"safe_by_ack"` // claims never written
	Refused            uint64            `json:"refused"`     // appends refused since this queue was full
	Dropped            map[string]uint64 `json:"dropped,omitempty"`
	DeadLetters        int               `json:"dead_letters"`
	PossibleDuplicates uint64            `json:"possible_duplicates"`
}

// Status returns a snapshot.
func (s *Store) Status() Status {
	now := time.Now()
	st := Status{Path: s.path, State: "ok", SetAside: s.setAside, Salvaged: s.salvaged}
	st.FileBytes, st.WALBytes = s.size(""), s.size("-wal")
	st.Crashes, st.LastCrash = s.crashes()
	st.Quarantined = s.quarantined
	s.mu.Lock()
	switch {
	case s.failing:
		st.State = "failing"
	case s.low:
		st.State = "full"
	}
	c := &s.counts
	st.ReserveBytes, st.ReserveWanted = s.reserve, s.opts.ReserveBytes
	st.Messages, st.Bytes, st.Retained = c.messages, c.bytes, len(s.retained)
	st.UnsafeMessages, st.UnsafeBytes = s.tail.len(), s.tail.bytes
	st.Appended, st.SafeByAck, st.Written = c.appended, c.safeByAck, c.written
	st.Refused, st.Withdrawn = c.refused, c.withdrawn
	st.Commits, st.CommitErrors, st.ReadErrors, st.CheckpointErrors = c.commits, c.commitErrors, c.readErrors, c.checkpointErrors
	st.Damaged = c.damaged
	st.LastError, st.LastErrorAt, st.Integrity = c.lastErr, c.lastErrAt, c.integrity
	st.Queues = make([]QueueStatus, 0, len(s.queues))
	// Where the oldest message is neither in the recipient's hands nor in
	// the tail it is looked up, after the lock is given back.
	var lookUp []oldest
	for _, q := range s.queues {
		if received, ok := s.oldestLocked(q); ok {
			st.Queues = append(st.Queues, q.status(now.Sub(s.clock.received(s.seq, received))))
			continue
		}
		cursors := [2]durable.Seq{q.streams[0].cursor, q.streams[1].cursor}
		if !q.oldest.IsZero() && q.oldestAfter == cursors {
			st.Queues = append(st.Queues, q.status(now.Sub(q.oldest)))
			continue
		}
		lookUp = append(lookUp, oldest{i: len(st.Queues), q: q, cursors: cursors})
		st.Queues = append(st.Queues, q.status(0))
	}
	s.mu.Unlock()
	for _, o := range lookUp {
		received := s.oldestStored(o.q.id, o.cursors)
		if received.IsZero() {
			continue
		}
		st.Queues[o.i].OldestSeconds = max(now.Sub(received), 0).Seconds()
		s.mu.Lock()
		o.q.oldest, o.q.oldestAfter = received, o.cursors
		s.mu.Unlock()
	}
	slices.SortFunc(st.Queues, func(a, b QueueStatus) int {
		switch up := a.Kind == "uplink"; {
		case up != (b.Kind == "uplink"):
			if up {
				return -1
			}
			return 1
		case up:
			return cmp.Compare(a.ID, b.ID)
		}
		return cmp.Or(cmp.Compare(b.Messages, a.Messages), cmp.Compare(a.ID, b.ID))
	})
	return st
}

type oldest struct {
	i       int // in the list of queues
	q       *queue
	cursors [2]durable.Seq
}

func (q *queue) status(age time.Duration) QueueStatus {
	lane := ""
	if q.uplink {
		lane = q.lane.String()
	}
	return QueueStatus{
		Lane: lane, ID: q.id, Kind: q.kind(), Name: q.label(), Online: q.r != nil, Messages: q.messages, Bytes: q.bytes,
		OldestSeconds: max(age, 0).Seconds(), Appended: q.appended, Committed: q.committed, SafeByAck: q.safeByAck, Refused: q.refused,
		Dropped: maps.Clone(q.dropped), DeadLetters: q.deadLetters, PossibleDuplicates: q.possibleDuplicates,
	}
}

// oldestLocked returns when the oldest unfinished message of the queue was
// received, as a time of this run, when memory knows it.
func (s *Store) oldestLocked(q *queue) (received int64, ok bool) {
	received = s.clock.wall(time.Time{}, time.Now())
	if q.messages == 0 {
		return received, true
	}
	for i := range q.streams {
		for _, h := range q.streams[i].out {
			if !h.finished {
				return min(received, s.clock.rebase(h.seq, h.received)), true
			}
		}
	}
	if q.messages == int64(q.unsafe) { // all of it is in the tail
		s.tail.after(0, func(e *entry) bool {
			for i := range e.claims {
				if e.claims[i].q == q {
					received, ok = e.received, true
				}
			}
			return !ok
		})
	}
	return received, ok
}

// oldestStored looks up when the oldest row behind the cursors arrived; zero
// when there is none. Behind a long backlog of others that is a long search.
func (s *Store) oldestStored(q durable.QueueID, cursors [2]durable.Seq) (received time.Time) {
	ctx := context.Background()
	err := s.read(ctx, func(d *db) error {
		for i, cursor := range cursors {
			err := d.query(ctx, func(row []driver.Value) error {
				at := s.clock.received(durable.Seq(integer(row[0])), integer(row[1]))
				if received.IsZero() || at.Before(received) {
					received = at
				}
				return nil
			}, `SELECT seq, received FROM message WHERE seq > ? AND claimset IN (SELECT claimset FROM claim WHERE queue = ? AND qos = ?)
				ORDER BY seq LIMIT 1`, int64(cursor), int64(q), int64(i+1))
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		s.mu.Lock()
		s.counts.readErrors++
		s.mu.Unlock()
	}
	return received
}
