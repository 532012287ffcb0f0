package storeforward

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"holdfast/broker/durable"
)

// ErrNewerVersion means that the database was written by a newer release; it
// has not been changed.
var ErrNewerVersion = errors.New("database is from a newer version")

// Values of [Options.Sync].
const (
	SyncFull   = "full"
	SyncNormal = "normal"
)

// Options of the store.
type Options struct {
	// Path is the database file; its folder must exist.
	Path string `toml:"path"`
	// CommitWindow is how long a QoS 1 message that has been sent to all its
	// recipients waits for their acknowledgements before it is written.
	// Longer saves flash on a healthy link and delays acknowledgements when
	// a recipient is slow. 0 commits at once.
	CommitWindow time.Duration `toml:"commit_window"`
	// MinCommitInterval is the least time between two commits. Each of them
	// costs the flash some pages and a flush; whoever waits for one waits
	// that much longer. 0 commits as fast as the disk does.
	MinCommitInterval time.Duration `toml:"min_commit_interval"`
	// Sync is "full" (every commit is flushed to the medium) or "normal" (only
	// checkpoints are: a power cut or a crash of the kernel then loses what
	// was acknowledged since the last one, up to WALBytes, and the database
	// counts as another one, see [Store.ID]; a crash of the process loses
	// nothing).
	Sync string `toml:"sync"`
	// ReserveBytes are set aside on the disk, and given up when it is full, so
	// that what was acknowledged can leave and space comes back. Until then
	// nothing new is kept. 0 sets none aside.
	ReserveBytes int64 `toml:"reserve_bytes"`
	// MaxUnsafeBytes waiting for a commit make it happen at once.
	MaxUnsafeBytes int64 `toml:"max_unsafe_bytes"`
	// MaxMemoryBytes is the most that may wait for a commit at all, for
	// example while the disk is full; more is refused.
	MaxMemoryBytes int64 `toml:"max_memory_bytes"`
	// MaxUnsavedAcks is how many acknowledgements of stored messages may be
	// in memory only: so many messages may come twice after a power cut.
	MaxUnsavedAcks int `toml:"max_unsaved_acks"`
	// MaxQueueMessages and MaxQueueBytes bound the queue of each uplink.
	MaxQueueMessages int64 `toml:"max_queue_messages"`
	MaxQueueBytes    int64 `toml:"max_queue_bytes"`
	// MaxSessionMessages and MaxSessionBytes bound the queue of each session,
	// and of each shared group.
	MaxSessionMessages int64 `toml:"max_session_messages"`
	MaxSessionBytes    int64 `toml:"max_session_bytes"`
	// SessionShare is how much of MaxMessages and MaxBytes all sessions together
	// may take, in percent: clients that are away leave the uplinks their room.
	SessionShare int `toml:"session_share"`
	// MaxAge is the oldest message that a queue keeps; what is older is
	// dropped and counted unless it has been sent. 0 keeps everything.
	MaxAge time.Duration `toml:"max_age"`
	// SessionPolicy is what happens when the queue of a session is full:
	// refuse, wait, drop_oldest, drop_newest or thin. Routes of uplinks say
	// so themselves.
	SessionPolicy durable.Policy `toml:"session_policy"`
	// MaxMessages and MaxBytes bound all queues together; a message counts
	// once for each queue it is in.
	MaxMessages int64 `toml:"max_messages"`
	MaxBytes    int64 `toml:"max_bytes"`
	// MaxRetained bounds the retained messages.
	MaxRetained int `toml:"max_retained"`
	// MaxDeadLetters is how many refused messages each queue keeps; the
	// oldest goes first.
	MaxDeadLetters int `toml:"max_dead_letters"`
	// MaxUnfinished is how many deliveries of one stream may be handed out
	// beyond its oldest one that is not finished.
	MaxUnfinished int `toml:"max_unfinished"`
	// WALBytes is the size of the write-ahead log at which it is copied into
	// the database; at four times this the committer itself does it.
	WALBytes int64 `toml:"wal_bytes"`
	// RetryMin and RetryMax bound the back-off after a commit has failed.
	RetryMin time.Duration `toml:"retry_min"`
	RetryMax time.Duration `toml:"retry_max"`

	// OnRepair is called with the report when a database was set aside, by
	// Open or from the committer's goroutine. It must not call the store, nor
	// block.
	OnRepair func(Repair) `toml:"-"`
	// Crashed is why the process before this one ended, when it has crashed; ""
	// when it was stopped, was killed or lost power.
	Crashed string `toml:"-"`
	// ClockSynchronised says whether the wall clock can be trusted; nil is
	// never.
	ClockSynchronised func() bool `toml:"-"`
	// Disk replaces the file system, for tests; nil is the real one.
	Disk Disk `toml:"-"`

	faults faults
}

// faults are for tests that prove the teeth of the crash test.
type faults struct {
	syncOff  bool // commits without fsync
	doneSoon bool // done is called before the commit
}

// Disk is where the database lives when it is not the file system: package
// storetest has one that loses what was not synced.
type Disk interface {
	// VFS is the name of a registered SQLite VFS without shared memory; the
	// store then uses a single connection.
	VFS() string
	// Size of a file; an error wrapping fs.ErrNotExist when there is none.
	Size(name string) (int64, error)
	// ReadFile reads a small file; an error wrapping fs.ErrNotExist when there is
	// none.
	ReadFile(name string) ([]byte, error)
	// WriteFile makes a small file, synced; SyncDir makes its name durable.
	WriteFile(name string, b []byte) error
	// Rename a file; SyncDir makes it durable.
	Rename(from, to string) error
	// SyncDir makes creation and removal in a folder durable.
	SyncDir(dir string) error
	// Allocate makes a file of that many bytes which has them for sure.
	Allocate(name string, bytes int64) error
	// Free returns the bytes left for files in a folder.
	Free(dir string) (int64, error)
	// Remove a file; an error wrapping fs.ErrNotExist when there is none.
	Remove(name string) error
}

// DefaultOptions are the defaults of the sample configuration.
func DefaultOptions() Options {
	return Options{
		Path:               "/var/lib/holdfast/holdfast.db",
		CommitWindow:       500 * time.Millisecond,
		Sync:               SyncFull,
		ReserveBytes:       16 << 20,
		MaxUnsafeBytes:     4 << 20,
		MaxMemoryBytes:     32 << 20,
		MaxUnsavedAcks:     1000,
		MaxQueueMessages:   10_000_000,
		MaxQueueBytes:      1 << 30,
		MaxSessionMessages: 100_000, // a panel that is off for the night, at three a second
		MaxSessionBytes:    64 << 20,
		SessionShare:       50,
		SessionPolicy:      durable.PolicyRefuse,
		MaxMessages:        20_000_000,
		MaxBytes:           2 << 30,
		MaxRetained:        100_000,
		MaxDeadLetters:     1000,
		MaxUnfinished:      100_000,
		WALBytes:           4 << 20,
		RetryMin:           250 * time.Millisecond,
		RetryMax:           30 * time.Second,
	}
}

// Validate names the first key that is out of range.
func (o Options) Validate() error {
	if o.Path == "" {
		return errors.New("store.path: missing")
	}
	if o.Sync != SyncFull && o.Sync != SyncNormal {
		return fmt.Errorf("store.sync: %q is not one of \"full\", \"normal\"", o.Sync)
	}
	if !slices.Contains(durable.Policies, o.SessionPolicy) {
		return fmt.Errorf("store.session_policy: %q is not one of %q", o.SessionPolicy, durable.Policies)
	}
	between := func(key string, v, low, high int64) error {
		if v < low || v > high {
			return fmt.Errorf("store.%s: %d is outside %d..%d", key, v, low, high)
		}
		return nil
	}
	durations := func(key string, v, low, high time.Duration) error {
		if v < low || v > high {
			return fmt.Errorf("store.%s: %v is outside %v..%v", key, v, low, high)
		}
		return nil
	}
	const most = 1 << 50
	for _, err := range []error{
		durations("commit_window", o.CommitWindow, 0, time.Minute),
		durations("min_commit_interval", o.MinCommitInterval, 0, time.Minute),
		between("reserve_bytes", o.ReserveBytes, 0, 1<<40),
		between("max_unsafe_bytes", o.MaxUnsafeBytes, 1<<10, 1<<30),
		between("max_memory_bytes", o.MaxMemoryBytes, o.MaxUnsafeBytes, 1<<32),
		between("max_unsaved_acks", int64(o.MaxUnsavedAcks), 1, 1_000_000),
		between("max_queue_messages", o.MaxQueueMessages, 1, most),
		between("max_queue_bytes", o.MaxQueueBytes, 1, most),
		between("max_session_messages", o.MaxSessionMessages, 1, most),
		between("max_session_bytes", o.MaxSessionBytes, 1, most),
		between("session_share", int64(o.SessionShare), 1, 100),
		durations("max_age", o.MaxAge, 0, 100*365*24*time.Hour),
		between("max_messages", o.MaxMessages, 1, most),
		between("max_bytes", o.MaxBytes, 1, most),
		between("max_retained", int64(o.MaxRetained), 0, 100_000_000),
		between("max_dead_letters", int64(o.MaxDeadLetters), 0, 1_000_000),
		between("max_unfinished", int64(o.MaxUnfinished), 65_535, 10_000_000),
		between("wal_bytes", o.WALBytes, 64<<10, 1<<30),
		durations("retry_min", o.RetryMin, time.Millisecond, time.Hour),
		durations("retry_max", o.RetryMax, o.RetryMin, time.Hour),
	} {
		if err != nil {
			return err
		}
	}
	return nil
}
