package storeforward

import (
	"sort"
	"time"

	"holdfast/broker/durable"
	"holdfast/broker/message"
)

// entryOverhead is what an entry weighs in memory besides its message, so that
// the memory bound holds for tiny messages too.
const entryOverhead = 256

// claimState is how far one claim of an entry in the tail has come.
type claimState byte

const (
	claimUnsafe   claimState = iota
	claimFinished            // acknowledged with success, or dropped: safe
	claimRefused             // ended in another way, such as by a failure: safe with the next commit
	claimKept                // ended, and safe with the next commit, which writes it all the same; see latestSet.comesBack
)

// claim is one recipient's share of an entry.
type claim struct {
	durable.Claim
	q     *queue
	state claimState
	// inRow says that a row with this claim is on disk or being written.
	inRow bool
	// reserved is the packet id that goes into the commit under way, from the
	// recipient attached in that round.
	reserved uint16
	round    uint64
}

// entry is an appended message that is not yet safe for all.
type entry struct {
	seq      durable.Seq
	m        *message.Message
	at       time.Time // appended, monotonic
	received int64     // wall time in µs on the scale of this run
	claims   []claim
	one      [1]claim // room for the usual single claim
	// unsafe counts claims that are not safe yet, and one more when
	// something else of the entry must be committed (see mustCommit).
	unsafe int
	// mustCommit: the retained message, the inbound packet id, the stored
	// will, or a recipient whose end is not durable yet. No acknowledgement
	// makes these safe.
	mustCommit bool
	from       durable.Origin
	set        *claimset // of the row being written; nil when none is
	size       int64
	done       func(error)
	relief     []reliefFor // what its admission asks for; nil after Append
	omitted    []*queue    // that do not get it; nil after Append
}

type reliefFor struct {
	q   *queue
	how admission
}

func (e *entry) weight() int64 { return e.size + entryOverhead }

// tail holds the entries that are not safe, in sequence. Entries that have
// become safe by acknowledgement stay as holes (nil) until they are at the
// front or are the majority.
type tail struct {
	entries []*entry
	seqs    []durable.Seq // of entries, holes too
	holes   int
	bytes   int64
}

func (t *tail) len() int { return len(t.entries) - t.holes }

func (t *tail) push(e *entry) {
	t.entries = append(t.entries, e)
	t.seqs = append(t.seqs, e.seq)
	t.bytes += e.weight()
}

// index returns where the first entry with at least that seq is.
func (t *tail) index(seq durable.Seq) int {
	if len(t.seqs) == 0 || seq <= t.seqs[0] {
		return 0
	}
	// Sequence numbers are mostly without gaps: look there first.
	if i := seq - t.seqs[0]; i < durable.Seq(len(t.seqs)) && t.seqs[i] == seq {
		return int(i)
	}
	return sort.Search(len(t.seqs), func(i int) bool { return t.seqs[i] >= seq })
}

func (t *tail) get(seq durable.Seq) *entry {
	i := t.index(seq)
	if i < len(t.seqs) && t.seqs[i] == seq {
		return t.entries[i]
	}
	return nil
}

// after calls fn with the entries after seq, in order, until it returns false.
func (t *tail) after(seq durable.Seq, fn func(*entry) bool) {
	for i := t.index(seq + 1); i < len(t.entries); i++ {
		if e := t.entries[i]; e != nil && !fn(e) {
			return
		}
	}
}

// remove takes out an entry that has become safe.
func (t *tail) remove(e *entry) {
	i := t.index(e.seq)
	if i >= len(t.entries) || t.entries[i] != e {
		return
	}
	t.entries[i] = nil
	t.holes++
	t.bytes -= e.weight()
	n := 0
	for n < len(t.entries) && t.entries[n] == nil {
		n++
	}
	t.cut(n)
	if t.holes > 64 && t.holes > len(t.entries)/2 {
		t.compact()
	}
}

// cut drops the first n slots, which are holes.
func (t *tail) cut(n int) {
	if n == 0 {
		return
	}
	t.holes -= n
	if n == len(t.entries) {
		t.entries, t.seqs = t.entries[:0], t.seqs[:0]
		if cap(t.entries) > 1<<16 { // a burst is over: give its memory back
			t.entries, t.seqs = nil, nil
		}
		return
	}
	t.entries, t.seqs = t.entries[n:], t.seqs[n:]
}

func (t *tail) compact() {
	entries := make([]*entry, 0, t.len()+64)
	seqs := make([]durable.Seq, 0, t.len()+64)
	for i, e := range t.entries {
		if e != nil {
			entries, seqs = append(entries, e), append(seqs, t.seqs[i])
		}
	}
	t.entries, t.seqs, t.holes = entries, seqs, 0
}

// first returns the oldest entry, nil when there is none.
func (t *tail) first() *entry {
	for _, e := range t.entries {
		if e != nil {
			return e
		}
	}
	return nil
}
