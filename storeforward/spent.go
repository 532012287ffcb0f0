package storeforward

import (
	"cmp"
	"slices"
	"time"

	"holdfast/broker/durable"
)

// Rows that nobody needs any more are not deleted one commit after the other: a
// page that loses a row is written twice, to the log and to the database, and 25
// rows of a page at once cost as much as one. They stay until they are much, or old,
// or all there is: a table that is emptied as a whole gives its pages back without
// being written at all.
const (
	// keepSpent bounds what they take on disk, in bytes, and is about what an
	// hour of the link being down leaves at 20 msg/s. Emptying the table reads
	// all of its pages while commits wait: twice as much takes a second on a slow
	// card.
	keepSpent   = 16 << 20
	keepFor     = time.Minute
	rowOverhead = 64 // columns besides topic, payload and properties
)

// spentRows is what is known of rows on disk. Guarded by the append lock.
type spentRows struct {
	// look: rows may have become deletable. now: they are deleted with the next
	// commit, because it was begun or for want of space.
	look, now bool
	bytes     int64     // about; finished since rows were last deleted
	since     time.Time // when the first of them was
	// stored and storedBytes are what is on disk, needed or not; bytes about.
	stored, storedBytes int64
	stray               bool // rows without a claim set: a damaged file
}

// rowSize is about what a row takes on disk.
func rowSize(size int64) int64 { return size + rowOverhead }

// add notes that rows of about so many bytes may be deletable.
func (f *spentRows) add(bytes int64) {
	f.look = true
	f.bytes += bytes
	if f.since.IsZero() {
		f.since = time.Now()
	}
}

// gone notes that so many rows are no longer on disk.
func (f *spentRows) gone(rows int64) {
	if f.stored > 0 {
		f.storedBytes -= f.storedBytes / f.stored * min(rows, f.stored)
	}
	if f.stored = max(f.stored-rows, 0); f.stored == 0 {
		f.storedBytes = 0
	}
}

// deleteDueLocked is how long deletable rows may stay.
func (s *Store) deleteDueLocked(now time.Time) time.Duration {
	f := &s.spent
	switch {
	case !f.look:
		return time.Hour
	case f.now, s.low, f.bytes >= keepSpent:
		return 0
	default:
		return f.since.Add(keepFor).Sub(now)
	}
}

// takeDeletesLocked adds rows that nobody needs to the batch, if it is time, and
// claim sets without rows.
func (s *Store) takeDeletesLocked(b *batch) {
	f := &s.spent
	if !f.look {
		return
	}
	b.deleteAll = b.rows == 0 && len(b.ops) == 0 && s.allFinishedLocked()
	if !b.deleteAll && s.deleteDueLocked(time.Now()) > 0 {
		return
	}
	*f = spentRows{stored: f.stored, storedBytes: f.storedBytes, stray: f.stray}
	for _, set := range s.sets {
		to := s.finishedToLocked(set)
		if set.rows > 0 && to > set.from && !b.deleteAll {
			b.deletes = append(b.deletes, deletion{set: set, from: set.from, to: to})
		}
		if set.rows == 0 && set.stored && set.used < b.last && s.uselessLocked(set) {
			b.dropSets = append(b.dropSets, set)
		}
	}
	slices.SortFunc(b.deletes, func(x, y deletion) int { return cmp.Compare(x.from, y.from) })
}

// allFinishedLocked says whether no row is needed any more, and they are few enough
// to be looked at in one transaction.
func (s *Store) allFinishedLocked() bool {
	f := &s.spent
	if f.stray || f.stored == 0 || f.storedBytes > 2*keepSpent || f.stored > 2*keepSpent/rowOverhead {
		return false
	}
	for _, set := range s.sets {
		if set.rows > 0 && s.finishedToLocked(set) < set.last {
			return false
		}
	}
	return true
}

// settleDeletesLocked follows when the rows are gone.
func (s *Store) settleDeletesLocked(b *batch) {
	f := &s.spent
	if b.deleteAll {
		for _, set := range s.sets {
			set.rows, set.from = 0, max(set.from, set.last)
		}
		f.gone(f.stored)
		f.add(0) // for the sets
		return
	}
	for i := range b.deletes {
		d := &b.deletes[i]
		d.set.rows -= d.deleted
		d.set.from = max(d.set.from, d.reached)
		f.gone(d.deleted)
		b.more = b.more || d.reached < d.to
	}
	if b.more && !s.closing {
		f.look, f.now = true, true
		s.hurryLocked()
	}
}

// noteRow counts a row found on disk.
func (f *spentRows) noteRow(set *claimset, seq durable.Seq, size int64) {
	f.stored++
	f.storedBytes += rowSize(size)
	if set == nil {
		f.stray = true
		return
	}
	if set.rows == 0 {
		set.from = seq - 1
	}
	set.rows++
	set.last = seq
}
