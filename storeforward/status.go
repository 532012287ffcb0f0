package storeforward

import (
	"time"

	"holdfast/broker/durable"
)

// Status is a snapshot of the store.
type Status struct {
	Path string `json:"path"`
	// State is "ok" or "failing" (the disk refuses; see LastError).
	State string `json:"state"`
	// SetAside is where a database that could not be used was put by this
	// run, and Salvaged what was saved from it.
	SetAside string `json:"set_aside,omitempty"`
	Salvaged string `json:"salvaged,omitempty"`

	Queues []QueueStatus `json:"queues"`

	Messages         int64     `json:"messages"`      // in all queues together
	Bytes            int64     `json:"bytes"`         // in all queues together
	Retained         int       `json:"retained"`      // retained messages
	UnsafeMessages   int       `json:"unsafe"`        // appended, not yet safe
	UnsafeBytes      int64     `json:"unsafe_bytes"`  // of these, with overhead
	FileBytes        int64     `json:"file_bytes"`    // database file
	WALBytes         int64     `json:"wal_bytes"`     // write-ahead log
	Appended         uint64    `json:"appended"`      // messages taken
	SafeByAck        uint64    `json:"safe_by_ack"`   // messages never written
	Written          uint64    `json:"written"`       // message rows written
	Refused          uint64    `json:"refused"`       // messages not taken: no room
	Withdrawn        uint64    `json:"withdrawn"`     // QoS 2 messages given back after a failed commit
	Commits          uint64    `json:"commits"`       // transactions
	CommitErrors     uint64    `json:"commit_errors"` // failed ones
	ReadErrors       uint64    `json:"read_errors"`
	CheckpointErrors uint64    `json:"checkpoint_errors"`
	LastError        string    `json:"last_error,omitempty"`
	LastErrorAt      time.Time `json:"last_error_at,omitzero"`
}

// QueueStatus is the snapshot of one queue.
type QueueStatus struct {
	ID   durable.QueueID `json:"id"`
	Kind string          `json:"kind"` // "session" or "uplink"
	Name string          `json:"name"` // client id or uplink name
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
