package storeforward

import (
	"cmp"
	"database/sql/driver"
	"encoding/binary"
	"slices"
	"strconv"
	"strings"

	"holdfast/broker/durable"
)

// claimset is a set of claims that many messages share: a row names its set
// instead of repeating who must get it.
type claimset struct {
	id     int64
	key    string
	claims []durable.Claim // by queue
	stored bool            // its rows are on disk or in the commit under way
	// rows counts the messages on disk with this set; those up to from have
	// been deleted.
	rows       int64
	from, last durable.Seq // last is the last row there was
	used       durable.Seq // the commit that last needed it
}

// claimKey is equal for equal sets of claims, which are in order of queues.
func claimKey(b []byte, claims []durable.Claim) []byte {
	for i := range claims {
		c := &claims[i]
		b = binary.AppendUvarint(b, uint64(c.Queue))
		b = append(b, c.QoS, byte(flag(c.Retain)))
		b = binary.AppendUvarint(b, uint64(len(c.SubscriptionIDs)))
		for _, id := range c.SubscriptionIDs {
			b = binary.AppendUvarint(b, uint64(id))
		}
	}
	return b
}

// internLocked returns the set of the claims, made new when it is not known.
func (s *Store) internLocked(claims []durable.Claim) *claimset {
	s.keyBuf = claimKey(s.keyBuf[:0], claims)
	if set := s.sets[string(s.keyBuf)]; set != nil {
		return set
	}
	s.lastSet++
	set := &claimset{id: s.lastSet, key: string(s.keyBuf), claims: slices.Clone(claims), from: s.committed}
	s.addSetLocked(set)
	return set
}

func (s *Store) addSetLocked(set *claimset) {
	s.sets[set.key] = set
	s.setsByID[set.id] = set
}

// finishedTo returns up to where nobody needs the rows of the set any more.
// A queue that has ended needs none.
func (s *Store) finishedToLocked(set *claimset) durable.Seq {
	low := s.committed
	for _, c := range set.claims {
		if q := s.queues[c.Queue]; q != nil {
			low = min(low, q.stream(c.QoS).cursor)
		}
	}
	return low
}

// claimOf returns the claim of the queue in the set.
func (set *claimset) claimOf(q durable.QueueID, qos byte) (durable.Claim, bool) {
	i, ok := slices.BinarySearchFunc(set.claims, q, func(c durable.Claim, q durable.QueueID) int { return cmp.Compare(c.Queue, q) })
	if !ok || set.claims[i].QoS != qos {
		return durable.Claim{}, false
	}
	return set.claims[i], true
}

func (set *claimset) insert(d *db) error {
	for _, c := range set.claims {
		err := d.exec("INSERT OR REPLACE INTO claim (claimset, queue, qos, retain, subscription_ids) VALUES (?, ?, ?, ?, ?)",
			set.id, int64(c.Queue), int64(c.QoS), flag(c.Retain), joinIDs(c.SubscriptionIDs))
		if err != nil {
			return err
		}
	}
	return nil
}

func joinIDs(ids []uint32) string {
	var b []byte
	for i, id := range ids {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendUint(b, uint64(id), 10)
	}
	return string(b)
}

func splitIDs(s string) []uint32 {
	if s == "" {
		return nil
	}
	var ids []uint32
	for f := range strings.SplitSeq(s, ",") {
		if id, err := strconv.ParseUint(f, 10, 32); err == nil && 0 < id && id <= maxSubscriptionID {
			ids = append(ids, uint32(id))
		}
	}
	return ids
}

// maxSubscriptionID is the largest there is (MQTT 5.0 §3.8.2.1.2).
const maxSubscriptionID = 268_435_455

// claimFromRow reads the columns queue, qos, retain, subscription_ids.
func claimFromRow(row []driver.Value) durable.Claim {
	return durable.Claim{
		Queue:           durable.QueueID(integer(row[0])),
		QoS:             byte(integer(row[1])),
		Retain:          integer(row[2]) != 0,
		SubscriptionIDs: splitIDs(text(row[3])),
	}
}
