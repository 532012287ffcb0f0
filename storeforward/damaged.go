package storeforward

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"strconv"

	"holdfast/broker/durable"
	"holdfast/broker/message"
	"holdfast/broker/packet"
	"holdfast/broker/topic"
)

// SQLite notices damage to the structure of a file, not to what is in its rows. A
// message that nobody can have published would end the connection of whoever is sent
// it, again and again, and with it all that waits behind; a sequence number that cannot
// have been given would leave none for what is to come. Such rows are put aside.

// reasonDamaged is the count of messages that were not what can be published.
const reasonDamaged = "damaged"

// maxSeq is more than can ever be given: a million a second for 146,000 years.
const maxSeq = 1 << 62

func soundProperties(b []byte) error {
	_, err := packet.ParsePublishProperties(b)
	return err
}

// sound says whether a stored message can be one that was published.
func sound(m *message.Message) error {
	if err := topic.ValidName(m.Topic); err != nil {
		return err
	}
	if m.QoS > 2 {
		return fmt.Errorf("QoS %d", m.QoS)
	}
	return soundProperties(m.Properties)
}

func soundSubscription(filter string, qos, id int64) error {
	if qos < 0 || qos > 2 || id < 0 || id > maxSubscriptionID {
		return fmt.Errorf("QoS %d, identifier %d", qos, id)
	}
	return topic.ValidFilter(filter)
}

// damagedLocked finishes a delivery of a damaged row, which is a dead letter of an
// uplink then. One that was sent under a packet id is only counted: its exchange is
// brought to an end by a PUBREL, since the other side may have the id.
func (s *Store) damagedLocked(st *stream, r *storedMessage, sent bool) {
	q := st.q
	q.drop(reasonDamaged)
	s.counts.damaged++
	if n := q.dropped[reasonDamaged]; n&(n-1) == 0 { // fewer and fewer lines
		s.log.Error("message is damaged and not delivered", "queue", q.name, "seq", uint64(r.seq), "topic", fmt.Sprintf("%.100q", r.m.Topic), "err", sound(r.m), "damaged", n)
	}
	if sent {
		return
	}
	run := s.deadLetter(q, r.seq, CodeQuarantined, nil)
	if st.qos == 2 {
		s.finish2Locked(q, r.seq, run, nil)
	} else if s.refuse1Locked(q, st, r.seq, nil) {
		s.opLocked(run, nil, nil)
	}
}

// unsoundKept notes a damaged row that stays where it is and is not used.
func (s *Store) unsoundKept(table, key string, err error) {
	s.log.Error("row is damaged and not used", "table", table, "key", fmt.Sprintf("%.100q", key), "err", err)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts.readErrors++
	s.counts.damaged++
	s.counts.lastErr = fmt.Sprintf("%s %.100q: %v", table, key, err)
}

// impossible says that a sequence number was never given.
func impossible(seq durable.Seq) bool { return seq < 1 || seq > maxSeq }

// setAsideImpossible makes dead letters of rows whose numbers were never given: behind
// them there is no number left, and those before the first are never read.
func (s *Store) setAsideImpossible(ctx context.Context, d *db) error {
	if s.spare != nil || s.single {
		return nil
	}
	var seqs []string
	err := d.query(ctx, func(row []driver.Value) error {
		seqs = append(seqs, strconv.FormatInt(integer(row[0]), 10))
		return nil
	}, "SELECT seq FROM message WHERE seq < 1 UNION ALL SELECT seq FROM message WHERE seq > ?", int64(maxSeq))
	if err != nil || len(seqs) == 0 {
		return err
	}
	err = d.exec("BEGIN IMMEDIATE")
	for _, seq := range seqs {
		if err == nil {
			err = moveAway(d, suspect{"message", seq}, false)
		}
	}
	if err == nil {
		err = d.exec("COMMIT")
	}
	if err != nil {
		if d.inTransaction() {
			err = errors.Join(err, d.exec("ROLLBACK"))
		}
		return fmt.Errorf("messages with impossible numbers: %w", err)
	}
	s.log.Error("messages put aside, their numbers were never given", "messages", len(seqs))
	s.counts.damaged += uint64(len(seqs))
	return nil
}
