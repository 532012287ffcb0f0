package storeforward

import (
	"context"
	"database/sql/driver"
	"strconv"

	"holdfast/broker/durable"
)

// load reads the state of the store into memory and notes the new run.
func (s *Store) load(ctx context.Context) error {
	for _, step := range []func(context.Context, *db) error{
		s.quarantine, s.setAsideImpossible, s.loadQueues, s.loadLanes, s.loadStreams, s.loadSets, s.loadDeliveries, s.loadRest, s.loadMessages, s.loadLatest, s.loadMarks, s.loadNumbers, s.startRun,
	} {
		if err := step(ctx, s.w); err != nil {
			return err
		}
	}
	return nil
}

// forget empties the memory of what was loaded from a file that is not used.
func (s *Store) forget() {
	clear(s.sets)
	clear(s.setsByID)
	clear(s.queues)
	clear(s.bySession)
	clear(s.byUplink)
	clear(s.retained)
	s.clock, s.counts, s.ops, s.spent = storeClock{}, counters{}, nil, spentRows{}
	s.seq, s.mark, s.committed, s.lastSet, s.nextQueue, s.id = 0, 0, 0, 0, 0, 0
}

func (s *Store) loadQueues(ctx context.Context, d *db) error {
	err := d.query(ctx, func(row []driver.Value) error {
		q := s.newQueue(durable.QueueID(integer(row[0])), false, text(row[1]))
		q.expiry, q.user, q.deadLetters = uint32(integer(row[2])), text(row[3]), int(integer(row[4]))
		s.queues[q.id], s.bySession[q.name] = q, q
		return nil
	}, "SELECT queue, client_id, expiry, user, (SELECT count(*) FROM dead_letter d WHERE d.queue = s.queue) FROM session s")
	if err != nil {
		return err
	}
	return d.query(ctx, func(row []driver.Value) error {
		q := s.newUplink(durable.QueueID(integer(row[0])), text(row[1]))
		q.state = text(row[2])
		q.deadLetters = int(integer(row[3]))
		return nil
	}, "SELECT queue, name, state, (SELECT count(*) FROM dead_letter d WHERE d.queue = u.queue) FROM uplink u")
}

func (s *Store) loadStreams(ctx context.Context, d *db) error {
	return d.query(ctx, func(row []driver.Value) error {
		q := s.queues[durable.QueueID(integer(row[0]))]
		if q == nil {
			return nil
		}
		st := q.stream(byte(integer(row[1])))
		if at := durable.Seq(integer(row[2])); at <= maxSeq { // else what is there comes again
			st.cursor = at
			s.seq = max(s.seq, at)
		}
		return nil
	}, "SELECT queue, qos, cursor FROM stream")
}

func (s *Store) loadSets(ctx context.Context, d *db) error {
	var set *claimset
	err := d.query(ctx, func(row []driver.Value) error {
		id := integer(row[0])
		if set == nil || set.id != id {
			set = &claimset{id: id, stored: true}
			s.setsByID[id] = set
			s.lastSet = max(s.lastSet, id)
		}
		set.claims = append(set.claims, claimFromRow(row[1:]))
		return nil
	}, "SELECT claimset, queue, qos, retain, subscription_ids FROM claim ORDER BY claimset, queue")
	for _, set := range s.setsByID {
		set.key = string(claimKey(nil, set.claims))
		s.sets[set.key] = set
	}
	return err
}

func (s *Store) loadDeliveries(ctx context.Context, d *db) error {
	return d.query(ctx, func(row []driver.Value) error {
		q := s.queues[durable.QueueID(integer(row[0]))]
		if q == nil {
			return nil
		}
		seq, st := durable.Seq(integer(row[1])), q.stream(2)
		d2 := &delivery2{packetID: uint16(integer(row[2])), state: byte(integer(row[3])), size: uint32(integer(row[4]))}
		switch {
		case seq <= st.cursor:
		case d2.state == stateDone:
			st.finished[seq] = struct{}{}
		default:
			st.deliveries[seq] = d2
			st.sentTo = max(st.sentTo, seq)
		}
		return nil
	}, `SELECT d.queue, d.seq, d.packet_id, d.state, length(CAST(m.topic AS BLOB)) + length(m.payload) + coalesce(length(m.properties), 0)
		FROM delivery2 d JOIN message m ON m.seq = d.seq`)
}

func (s *Store) loadRest(ctx context.Context, d *db) error {
	err := d.query(ctx, func(row []driver.Value) error {
		if q := s.queues[durable.QueueID(integer(row[0]))]; q != nil {
			q.inbound[uint16(integer(row[1]))] = struct{}{}
		}
		return nil
	}, "SELECT queue, packet_id FROM inbound")
	if err != nil {
		return err
	}
	err = d.query(ctx, func(row []driver.Value) error {
		if q := s.queues[durable.QueueID(integer(row[0]))]; q != nil {
			q.dropped[text(row[1])] = uint64(integer(row[2]))
		}
		return nil
	}, "SELECT queue, reason, count FROM dropped")
	if err != nil {
		return err
	}
	return d.query(ctx, func(row []driver.Value) error {
		s.retained[text(row[0])] = struct{}{}
		if seq := durable.Seq(integer(row[1])); seq <= maxSeq {
			s.seq = max(s.seq, seq)
		}
		return nil
	}, "SELECT topic, seq FROM retained")
}

// loadMessages counts what each queue holds. It looks at every row once, without
// its payload.
func (s *Store) loadMessages(ctx context.Context, d *db) error {
	onProbation := s.probation.on.Load()
	defer s.outOfHand("load")
	return d.rowSizes(ctx, func(seq durable.Seq, setID, size int64) {
		if impossible(seq) { // and could not be put aside
			return
		}
		if onProbation {
			s.inHand("load", "message", strconv.FormatInt(int64(seq), 10))
		}
		s.seq = max(s.seq, seq)
		set := s.setsByID[setID]
		s.spent.noteRow(set, seq, size)
		if set == nil {
			return
		}
		needed := false
		for _, c := range set.claims {
			q := s.queues[c.Queue]
			if q == nil {
				continue
			}
			st := q.stream(c.QoS)
			if _, done := st.finished[seq]; done || seq <= st.cursor {
				continue
			}
			needed = true
			s.countIn(q, size)
		}
		if !needed {
			s.spent.add(rowSize(size))
		}
	})
}

// loadMarks starts numbering above everything that may have been given before:
// the rows, the cursors and the mark.
func (s *Store) loadMarks(_ context.Context, d *db) error {
	mark, err := d.queryInt("SELECT value FROM meta WHERE key = 'seq_mark'")
	if err != nil {
		return err
	}
	next, err := d.queryInt("SELECT value FROM meta WHERE key = 'next_queue'")
	if err != nil {
		return err
	}
	if mark <= maxSeq {
		s.seq = max(s.seq, durable.Seq(max(mark, 0)))
	}
	s.committed = s.seq
	s.mark = s.seq + seqBlock
	s.nextQueue = max(durable.QueueID(next), 1)
	for id := range s.queues {
		s.nextQueue = max(s.nextQueue, id+1)
	}
	return nil
}
