package storeforward

import (
	"context"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"holdfast/broker/durable"
)

// Store is the durable store. Its methods may be called from any goroutine.
type Store struct {
	opts Options
	log  *slog.Logger
	disk Disk
	path string

	lock    atomic.Pointer[os.File] // held while the store is open
	w       *db                     // the committer's connection
	readers chan *db
	// spare is what is read in the place of a database that cannot be written;
	// nil once it can. Changed by the committer while the keeper is paused.
	spare *spare
	// intruder is why nothing may be committed any more; see keepLock.
	intruder atomic.Pointer[error]
	// single: there is one connection for everything, guarded by connMu
	// (a disk of package storetest has no shared memory).
	single bool
	connMu sync.Mutex

	// crippled: the disk took nothing when the store opened. heapIndex: nor
	// was there room for the index of the log, which is kept in memory then.
	crippled, heapIndex bool
	// logLost: the log was set aside when the store opened.
	logLost bool

	opened atomic.Pointer[[len(fileSuffixes)]os.FileInfo] // files of the committer's connection
	// keeperMu is held while the keeper has its connection open.
	keeperMu sync.Mutex

	id       int64 // identity of the database
	clock    storeClock
	setAside string
	salvaged string
	// nameless is the queue of an uplink whose name was lost with a damaged
	// database; guarded by mu once the store is open.
	nameless durable.QueueID

	probation   probation
	quarantined uint64 // rows, by this start; written by Open

	wake     chan struct{} // to the committer; capacity 1: a wake-up is not a count
	tend     chan struct{} // to the keeper; capacity 1, likewise
	thinner  chan struct{} // to the thinner; capacity 1, likewise
	stop     chan struct{} // closed by Close
	stopped  chan struct{} // closed by Close when all is over
	cancel   context.CancelFunc
	wg       sync.WaitGroup
	closeErr error // written by the committer, read after it has ended

	// The committer's own.
	lastCommit   time.Time // when the last commit began
	repaired     time.Time // when the database was last set aside
	salvaging    bool      // and what is open is only part of a copy
	reserveTried time.Time // when the reserve was given up or last tried for
	touched      time.Time // when the run row was last written
	looked       time.Time // when it was last found unnecessary
	attempt      int       // failed commits in a row
	lastTries    int       // attempts since Close
	deleted      time.Time // when rows were last deleted
	vacuum       bool      // rows were deleted since the file was last trimmed
	trimmed      bool      // pages were given back since the last checkpoint
	// reserveFailed counts the tries for a reserve that was halved so often.
	reserveFailed, reserveHalved int

	mu sync.Mutex // the append lock; guards everything below
	// closing: nothing is taken any more. finished: the committer is done.
	closing, finished bool
	// failing: the last commit failed and the disk has not healed yet.
	failing bool
	// damage is what a reader found wrong with the database. files counts the
	// databases of this run.
	damage error
	files  int
	// keeperPaused: the keeper keeps its connection closed; keeperCancel makes
	// it close it.
	keeperPaused bool
	keeperCancel context.CancelFunc
	// low: the disk is full and the reserve given up.
	low bool
	// reserve is how much is set aside now, in bytes.
	reserve int64

	seq       durable.Seq // last given
	mark      durable.Seq // reserved on disk
	committed durable.Seq // everything up to here has left the tail
	tail      tail
	sets      map[string]*claimset
	setsByID  map[int64]*claimset
	lastSet   int64
	keyBuf    []byte

	queues      map[durable.QueueID]*queue
	bySession   map[string]*queue
	byUplink    map[string]*queue
	nextQueue   durable.QueueID
	pendingEnds int
	retained    map[string]struct{}
	numbers     map[string]int64 // by name; see KeepNumbers
	aheadBytes  int64            // of all streams

	// unparked are acknowledgements withheld for queues that have ended.
	unparked  []func(error)
	toThin    []*queue
	nextAging time.Time

	// late are streams of recipients that are to read the tail, and since when.
	late map[*stream]time.Time

	ops []*op
	// impatient wait for a commit only while the disk works: their channels are
	// closed by the first failure.
	impatient []chan struct{}
	// commitNow: something waits that no acknowledgement will make safe.
	commitNow bool
	// unsaved counts stored deliveries that were finished since cursors were
	// written, the first of them at unsavedSince.
	unsaved      int
	unsavedSince time.Time
	// lazySince is when the oldest change came that nobody waits for.
	lazySince time.Time
	spent     spentRows

	counts counters
}

// counters are totals since the start.
type counters struct {
	load                              // of all queues
	sessions                     load // of those of sessions
	appended, safeByAck, written uint64
	refused, withdrawn           uint64
	commits, commitErrors        uint64
	readErrors, checkpointErrors uint64
	damaged                      uint64 // rows with columns that cannot be
	lastErr                      string
	lastErrAt                    time.Time
	integrity                    string
}

// op is one durable change besides messages. It takes effect between the
// messages appended before and after it.
type op struct {
	after durable.Seq
	run   func(d *db) error
	apply func() // under the append lock, when durable; may be nil
	done  func(error)
	taken bool // by the commit under way
}

// opLocked queues a change for the next commit.
func (s *Store) opLocked(run func(d *db) error, apply func(), done func(error)) {
	s.ops = append(s.ops, &op{after: s.seq, run: run, apply: apply, done: done})
	s.hurryLocked()
}

// hurryLocked asks for a commit as soon as possible.
func (s *Store) hurryLocked() {
	s.commitNow = true
	s.wakeCommitter()
}

func (s *Store) wakeCommitter() {
	select {
	case s.wake <- struct{}{}:
	default: // it has been woken and has not looked yet
	}
}

// refuseLocked returns why a change that may be refused is.
func (s *Store) refuseLocked() error {
	const maxOps = 100_000 // about 20 MB of changes waiting for a commit
	switch {
	case s.closing:
		return durable.ErrClosed
	case s.failing, s.low, len(s.ops) >= maxOps:
		return durable.ErrFull
	default:
		return nil
	}
}

func call(done func(error), err error) {
	if done != nil {
		done(err)
	}
}
