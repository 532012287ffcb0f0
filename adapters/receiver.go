package adapters

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"log/slog"
	"sync"
	"time"

	"holdfast/broker/message"
)

// Outcome is what became of a command.
type Outcome string

// The outcomes.
const (
	// OutcomeOK: done, and seen to be done where that is asked for.
	OutcomeOK Outcome = "ok"
	// OutcomeRefused: not sent to the device; Reason says what is wrong with it.
	OutcomeRefused Outcome = "refused"
	// OutcomeFailed: not sent, for the device is not there, or refused by it.
	OutcomeFailed Outcome = "failed"
	// OutcomeNoAnswer: sent, and nobody knows whether it was done.
	OutcomeNoAnswer Outcome = "no_answer"
	// OutcomeMismatch: the device took it, and has something else now.
	OutcomeMismatch Outcome = "mismatch"
)

// Result tells whoever gave a command what became of it.
type Result struct {
	Outcome Outcome `json:"result"`
	// Reason says why in a few words; empty with OutcomeOK.
	Reason string `json:"reason,omitempty"`
	Device string `json:"device"`
	Point  string `json:"point,omitempty"`
	// Value is what was to be written, Read what the device has now. Each is a
	// float64, int64, uint64, bool or string, or nil for none.
	Value any `json:"value,omitempty"`
	Read  any `json:"read,omitempty"`
	// Answer is the answer of a device that speaks in words.
	Answer string `json:"answer,omitempty"`
	// ID is the command's own, empty for none.
	ID string `json:"id,omitempty"`
	// Repeated says that the command came again and was not executed again.
	Repeated bool      `json:"repeated,omitempty"`
	Time     time.Time `json:"time"`
}

// maxCommandID is the longest id of a command, in bytes; correlation data may be
// longer.
const maxCommandID = 128

const (
	// remembered is for how long a command is known by its id: longer than any
	// publisher waits before it sends a QoS 1 message again.
	remembered = 10 * time.Minute
	// maxRemembered is how many are; each takes about half a kilobyte.
	maxRemembered = 1024
	// tell is how often a line of one kind is logged; all are counted.
	tell = 10 * time.Second
)

// CommandStatus counts the commands of one adapter. Received = OK + Refused +
// Failed + NoAnswer + Mismatch + Repeated + those under way.
type CommandStatus struct {
	Received uint64 `json:"received"`
	OK       uint64 `json:"ok"`
	Refused  uint64 `json:"refused"`
	Failed   uint64 `json:"failed"`
	NoAnswer uint64 `json:"no_answer"`
	Mismatch uint64 `json:"mismatch"`
	// Repeated came with an id that is known, and were answered again.
	Repeated uint64 `json:"repeated"`
	// Stale are those of Refused that came too late, or with the RETAIN flag.
	Stale uint64 `json:"stale"`
	// Redirected answers went to the result topic, for their publishers may not
	// be answered where they wanted.
	Redirected uint64 `json:"redirected"`
}

// Receiver is the part of taking commands that all adapters have in common: what
// is stale is refused, what came before is answered and not done again, each
// outcome is counted, logged and told. Its methods may be called from any
// goroutine.
type Receiver struct {
	put func(device string, m *message.Message)
	log *slog.Logger

	mu    sync.Mutex
	known map[commandKey]*remember // guarded by mu; at most maxRemembered
	order []commandKey             // guarded by mu; of known, oldest first
	n     CommandStatus            // guarded by mu
	told  map[Outcome]time.Time    // guarded by mu
	held  map[Outcome]uint64       // guarded by mu; lines not logged since
}

// commandKey is the digest of what makes a command the same as another.
type commandKey [sha256.Size]byte

type remember struct {
	payload [sha256.Size]byte
	at      time.Time
	result  *Result // nil while it is under way
}

// NewReceiver returns a receiver that hands answers to put, as [Outbox.Put].
func NewReceiver(put func(device string, m *message.Message), log *slog.Logger) *Receiver {
	return &Receiver{
		put: put, log: log,
		known: make(map[commandKey]*remember), told: make(map[Outcome]time.Time), held: make(map[Outcome]uint64),
	}
}

// Order is one command on its way through an adapter.
type Order struct {
	Command

	r      *Receiver
	id     string
	device string
	point  string
	key    commandKey
	keyed  bool // it can be known again, by its key
}

// Take begins with a command for a device and point. Id is what the command calls
// itself, empty without a name; it is known by its correlation data then. Without
// either, each delivery is a command of its own. Nil means that it is over: it
// was stale, or has been here before.
func (r *Receiver) Take(c Command, device, point, id string, maxAge time.Duration) *Order {
	o := &Order{Command: c, r: r, id: id, device: device, point: point}
	now := time.Now()
	r.mu.Lock()
	r.n.Received++
	if c.AnswerRefused {
		r.n.Redirected++
	}
	if reason := c.Stale(now, maxAge); reason != "" {
		r.n.Stale++
		r.mu.Unlock()
		o.Refuse(reason)
		return nil
	}
	if len(id) > maxCommandID {
		o.id = ""
		r.mu.Unlock()
		o.Refuse("the id is too long")
		return nil
	}
	mark := id
	if mark == "" {
		mark = string(c.Correlation)
	}
	if mark == "" {
		r.mu.Unlock()
		return o
	}
	// The parts have no NUL in them, but for the last.
	o.key, o.keyed = sha256.Sum256([]byte(c.From+"\x00"+c.Topic+"\x00"+mark)), true
	r.forgetLocked(now)
	payload := sha256.Sum256(c.Payload)
	old := r.known[o.key]
	if old == nil {
		r.known[o.key] = &remember{payload: payload, at: now}
		r.order = append(r.order, o.key)
		r.mu.Unlock()
		return o
	}
	if old.payload != payload {
		o.keyed = false
		r.mu.Unlock()
		o.Refuse("the id was that of another command")
		return nil
	}
	r.n.Repeated++
	result := old.result
	r.mu.Unlock()
	if result != nil {
		again := *result
		again.Repeated = true
		o.answer(&again)
	} // else the answer is to come, and goes to the same place
	return nil
}

// forgetLocked lets go of what is old, or too much.
func (r *Receiver) forgetLocked(now time.Time) {
	n := 0
	for n < len(r.order) && (len(r.order)-n >= maxRemembered || now.Sub(r.known[r.order[n]].at) > remembered) {
		delete(r.known, r.order[n])
		n++
	}
	r.order = r.order[n:]
}

// Refuse ends the command without its having been sent.
func (o *Order) Refuse(reason string) { o.Finish(Result{Outcome: OutcomeRefused, Reason: reason}) }

// Finish ends the command, once: its result is counted, logged and published.
// Device, point, id and time are filled in.
func (o *Order) Finish(res Result) {
	res.Device, res.Point, res.ID, res.Time = o.device, o.point, o.id, time.Now().UTC()
	r := o.r
	r.mu.Lock()
	switch res.Outcome {
	case OutcomeOK:
		r.n.OK++
	case OutcomeRefused:
		r.n.Refused++
	case OutcomeFailed:
		r.n.Failed++
	case OutcomeNoAnswer:
		r.n.NoAnswer++
	case OutcomeMismatch:
		r.n.Mismatch++
	}
	if known := r.known[o.key]; o.keyed && known != nil {
		known.result = &res
	}
	log, held := r.dueLocked(res.Outcome, res.Time)
	r.mu.Unlock()
	if log {
		level := slog.LevelInfo
		if res.Outcome != OutcomeOK {
			level = slog.LevelWarn
		}
		r.log.Log(context.Background(), level, "command ended", "device", o.device, "point", o.point, "result", string(res.Outcome),
			"client_id", o.From, "user", o.User, "reason", res.Reason, "not_logged_before", held)
	}
	o.answer(&res)
}

// dueLocked says whether to log this, and how many of its kind were not.
func (r *Receiver) dueLocked(kind Outcome, now time.Time) (log bool, held uint64) {
	if told, ok := r.told[kind]; ok && now.Sub(told) < tell {
		r.held[kind]++
		return false, 0
	}
	held = r.held[kind]
	r.told[kind], r.held[kind] = now, 0
	return true, held
}

func (o *Order) answer(res *Result) {
	payload, err := json.Marshal(res)
	if err != nil { // a value that has no place in JSON
		res.Value, res.Read = nil, nil
		payload, _ = json.Marshal(res)
	}
	o.r.put(o.device, o.Answer(payload))
}

// Status returns a snapshot.
func (r *Receiver) Status() CommandStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.n
}
