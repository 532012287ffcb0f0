package storeforward

import (
	"context"
	"database/sql/driver"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"holdfast/broker/durable"
)

// A stored row that crashes the process would do so at every start. After a crash the
// store is on probation: each row is noted in a small file before it is handed out,
// one at a time. What was in hand at the third crash in a row, and at the one before,
// is quarantined by the start that follows: a dead letter of its queues with
// [CodeQuarantined], out of the way and not lost. Only crashes count ([Options].Crashed):
// who is killed, or loses power, has nothing to say about the row in hand.
//
//	crash 1     start: probation        crash 2     start         crash 3     start
//	nothing -------------- rows noted ----------------- rows noted --------------> quarantine
//	known                  (in hand: A, B)              (in hand: A, C)             of A

// CodeQuarantined is the code of dead letters that nobody has refused: they are
// damaged, or were in hand when the gateway crashed, again and again.
const CodeQuarantined byte = 0x01

// crashesToQuarantine is how many crashes in a row a row survives, probationTime how
// long the process must run until they are forgotten.
const (
	crashesToQuarantine = 3
	probationTime       = 10 * time.Minute
)

// suspect is a row that was in hand.
type suspect struct {
	Table string `json:"table"`
	Key   string `json:"key"` // sequence number, topic or client id
}

// starts is what the file says.
type starts struct {
	Crashes int    `json:"crashes"` // in a row
	Last    string `json:"last"`    // why the last one was
	// Before were in hand at all crashes before, since rows are noted; Hand are
	// now, by who has them, the latest last.
	Before []suspect `json:"before,omitempty"`
	Hand   []hand    `json:"hand,omitempty"`
	// Moving is being quarantined: when that crashes, it is deleted.
	Moving *suspect `json:"moving,omitempty"`
}

type hand struct {
	Who string `json:"who"`
	suspect
}

// maxHands bounds those whose rows are noted.
const maxHands = 64

// probation is the state of a store whose process has crashed before.
type probation struct {
	on    atomic.Bool
	since time.Time
	mu    sync.Mutex
	f     *os.File // guarded by mu
	s     starts   // guarded by mu
}

func (s *Store) startsPath() string { return s.path + ".starts" }

// beginProbation looks how the process ended before this one, and notes this start.
// A disk that cannot be written has no file, and nothing is quarantined.
func (s *Store) beginProbation() {
	if s.single {
		return
	}
	p := &s.probation
	if s.opts.Crashed == "" {
		s.forgetCrashes()
		return
	}
	var before starts
	b, err := os.ReadFile(s.startsPath())
	if err == nil {
		err = json.Unmarshal(b, &before)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.log.Warn("notes of earlier starts not read", "path", s.startsPath(), "err", err)
	}
	p.s = starts{Crashes: before.Crashes + 1, Last: s.opts.Crashed, Moving: before.Moving}
	for _, h := range before.Hand {
		if before.Crashes == 1 || slices.Contains(before.Before, h.suspect) {
			p.s.Before = append(p.s.Before, h.suspect)
		}
	}
	p.since = time.Now()
	s.log.Error("the gateway has crashed before this start", "crashes", p.s.Crashes, "err", s.opts.Crashed)
	f, err := os.OpenFile(s.startsPath(), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		s.log.Warn("start not noted", "path", s.startsPath(), "err", err)
		return
	}
	p.f = f
	p.write()
	p.on.Store(true)
}

// write notes the state. It is not synced: a crash of the process loses nothing.
func (p *probation) write() {
	b, err := json.Marshal(p.s)
	if err != nil || p.f == nil {
		return
	}
	if _, err = p.f.WriteAt(b, 0); err == nil {
		_ = p.f.Truncate(int64(len(b))) // a longer note from before cannot be read, and says nothing
	}
}

// inHand notes that a row is about to be used.
func (s *Store) inHand(who, table, key string) {
	p := &s.probation
	if !p.on.Load() {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.s.Hand = slices.DeleteFunc(p.s.Hand, func(h hand) bool { return h.Who == who })
	if len(p.s.Hand) < maxHands {
		p.s.Hand = append(p.s.Hand, hand{who, suspect{table, key}})
	}
	p.write()
}

// outOfHand notes that whoever had rows is done with them.
func (s *Store) outOfHand(who string) {
	p := &s.probation
	if !p.on.Load() {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.s.Hand = slices.DeleteFunc(p.s.Hand, func(h hand) bool { return h.Who == who })
	p.write()
}

// lookAtProbation ends it when the process has run for long enough.
func (s *Store) lookAtProbation() {
	if s.probation.on.Load() && time.Since(s.probation.since) > probationTime {
		s.log.Info("the gateway runs again after its crashes")
		s.forgetCrashes()
	}
}

// forgetCrashes ends the probation.
func (s *Store) forgetCrashes() {
	p := &s.probation
	p.on.Store(false)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.s = starts{}
	if p.f != nil {
		_ = p.f.Close() // nothing in it is needed any more
		p.f = nil
	}
	if err := os.Remove(s.startsPath()); err != nil && !errors.Is(err, fs.ErrNotExist) && !readOnlyDisk(err) {
		s.log.Warn("notes of earlier starts not removed", "path", s.startsPath(), "err", err)
	}
}

// crashes are how many there were in a row, and why the last one was.
func (s *Store) crashes() (n int, last string) {
	p := &s.probation
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.s.Crashes, p.s.Last
}

// quarantine puts the row aside that was in hand at every crash; of several the one
// that was taken last. Should it be the wrong one the next crash leads to the next.
func (s *Store) quarantine(_ context.Context, d *db) error {
	p := &s.probation
	p.mu.Lock()
	defer p.mu.Unlock()
	if s.spare != nil || p.s.Crashes < crashesToQuarantine || len(p.s.Before) == 0 {
		return nil
	}
	x := p.s.Before[len(p.s.Before)-1]
	again := p.s.Moving != nil && *p.s.Moving == x
	p.s.Moving = &x
	p.write()
	err := d.exec("BEGIN IMMEDIATE")
	if err == nil {
		err = moveAway(d, x, again)
	}
	if err == nil {
		err = d.exec("COMMIT")
	}
	if err != nil {
		if d.inTransaction() {
			err = errors.Join(err, d.exec("ROLLBACK"))
		}
		return fmt.Errorf("quarantine of %s %s: %w", x.Table, x.Key, err)
	}
	s.log.Error("row quarantined, since the gateway has crashed with it in hand", "table", x.Table, "key", x.Key, "crashes", p.s.Crashes, "deleted", again)
	s.quarantined++
	p.s.Moving, p.s.Hand = nil, nil
	p.s.Before = p.s.Before[:len(p.s.Before)-1]
	p.write()
	return nil
}

// moveAway makes dead letters of a row; it is only deleted when that has crashed.
// What has no queue is kept with queue 0.
func moveAway(d *db, x suspect, crashed bool) error {
	now := time.Now().UnixMicro()
	const letter = "INSERT OR REPLACE INTO dead_letter (queue, seq, code, refused, topic, payload, properties, qos, received, source) "
	type change struct {
		sql  string
		args []driver.Value
	}
	var copied, deleted []change
	switch x.Table {
	case "message":
		to := "coalesce((SELECT uplink FROM lane WHERE lane.queue = c.queue), c.queue)"
		copied = []change{
			{letter + "SELECT " + to + `, m.seq, ?1, ?2, m.topic, m.payload, m.properties, c.qos, m.received, m.source
				FROM message m JOIN claim c ON c.claimset = m.claimset WHERE m.seq = ?3`, []driver.Value{int64(CodeQuarantined), now, x.Key}},
			{`INSERT INTO dropped (queue, reason, count) SELECT ` + to + `, 'quarantined', 1 FROM message m JOIN claim c ON c.claimset = m.claimset WHERE m.seq = ?1
				ON CONFLICT (queue, reason) DO UPDATE SET count = count + 1`, []driver.Value{x.Key}},
		}
		deleted = []change{
			{"DELETE FROM delivery2 WHERE seq = ?", []driver.Value{x.Key}},
			{"DELETE FROM message WHERE seq = ?", []driver.Value{x.Key}},
		}
	case "retained":
		copied = []change{{letter + "SELECT 0, seq, ?1, ?2, topic, payload, properties, qos, received, source FROM retained WHERE topic = ?3", []driver.Value{int64(CodeQuarantined), now, x.Key}}}
		deleted = []change{{"DELETE FROM retained WHERE topic = ?", []driver.Value{x.Key}}}
	case "will":
		copied = []change{{letter + "SELECT 0, -rowid, ?1, ?2, topic, payload, properties, qos, ?2, client_id FROM will WHERE client_id = ?3", []driver.Value{int64(CodeQuarantined), now, x.Key}}}
		deleted = []change{{"DELETE FROM will WHERE client_id = ?", []driver.Value{x.Key}}}
	default:
		return errors.New("no such table")
	}
	if crashed {
		copied = nil
	}
	for _, c := range slices.Concat(copied, deleted) {
		if err := d.exec(c.sql, c.args...); err != nil {
			return err
		}
	}
	return nil
}

// reader names who has rows of a stream in hand.
func reader(q durable.QueueID, qos byte) string { return fmt.Sprintf("queue %d QoS %d", q, qos) }
