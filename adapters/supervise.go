package adapters

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime/debug"
	"sync"
	"time"
)

// SuperviseOptions set the pace of restarts.
type SuperviseOptions struct {
	// MinDelay is the pause before the first restart. Each further one
	// doubles it, up to MaxDelay. 10ms to 10m.
	MinDelay time.Duration `toml:"min_delay"`
	// MaxDelay is the longest pause, MinDelay to 1h.
	MaxDelay time.Duration `toml:"max_delay"`
	// Settled is how long a run must have lasted for the pause to start at
	// MinDelay again. 0 to 1h.
	Settled time.Duration `toml:"settled"`
}

// DefaultSuperviseOptions pause 1 to 30 s. A run of 30 s counts as settled: a
// shorter one is likely to be the same trouble again.
func DefaultSuperviseOptions() SuperviseOptions {
	return SuperviseOptions{MinDelay: time.Second, MaxDelay: 30 * time.Second, Settled: 30 * time.Second}
}

// Validate reports the first value out of range, naming its key.
func (o SuperviseOptions) Validate() error {
	if o.MinDelay < 10*time.Millisecond || o.MinDelay > 10*time.Minute {
		return fmt.Errorf("min_delay: %v is outside 10ms..10m", o.MinDelay)
	}
	if o.MaxDelay < o.MinDelay || o.MaxDelay > time.Hour {
		return fmt.Errorf("max_delay: %v is outside %v..1h", o.MaxDelay, o.MinDelay)
	}
	if o.Settled < 0 || o.Settled > time.Hour {
		return fmt.Errorf("settled: %v is outside 0..1h", o.Settled)
	}
	return nil
}

// SupervisorStatus is a snapshot of one supervised adapter.
type SupervisorStatus struct {
	Adapter string `json:"adapter"`
	// State is "stopped", "running" or "waiting" (for the next restart).
	State string    `json:"state"`
	Since time.Time `json:"since,omitzero"`
	// Starts counts runs, Failures those that ended in an error or panic,
	// Panics those that panicked.
	Starts   uint64 `json:"starts"`
	Failures uint64 `json:"failures"`
	Panics   uint64 `json:"panics"`
	// LastError is why the last run ended.
	LastError string `json:"last_error,omitempty"`
	// NextStart is when a waiting adapter runs again.
	NextStart time.Time `json:"next_start,omitzero"`
}

// Supervisor runs one adapter and runs it again when it ends: whatever one
// adapter does, panic included, harms only itself.
type Supervisor struct {
	adapter Adapter
	opts    SuperviseOptions
	log     *slog.Logger

	mu     sync.Mutex
	status SupervisorStatus // guarded by mu
}

// NewSupervisor returns a supervisor for a. opts must be valid.
func NewSupervisor(a Adapter, opts SuperviseOptions, log *slog.Logger) *Supervisor {
	return &Supervisor{
		adapter: a, opts: opts,
		log:    log.With("component", "adapters", "adapter", a.Name()),
		status: SupervisorStatus{Adapter: a.Name(), State: "stopped"},
	}
}

// errReturned is the reason of a run that ended without one.
var errReturned = errors.New("ended without an error")

// Run runs the adapter until ctx is done, restarting it after a pause that
// doubles from MinDelay to MaxDelay with a jitter of a quarter either way, so
// that adapters felled by one cause do not come back in step.
func (s *Supervisor) Run(ctx context.Context) {
	delay := s.opts.MinDelay
	for attempt := 1; ctx.Err() == nil; attempt++ {
		started := time.Now()
		s.set(func(st *SupervisorStatus) {
			st.State, st.Since, st.NextStart = "running", started, time.Time{}
			st.Starts++
		})
		err, panicked := s.runOnce(ctx)
		if ctx.Err() != nil && !panicked {
			// Stopped as asked; what it returned on its way out is no failure.
			break
		}
		if err == nil {
			err = errReturned
		}
		if time.Since(started) >= s.opts.Settled {
			delay, attempt = s.opts.MinDelay, 1
		}
		pause := jitter(delay)
		delay = min(2*delay, s.opts.MaxDelay)
		now := time.Now()
		s.set(func(st *SupervisorStatus) {
			st.State, st.Since, st.NextStart = "waiting", now, now.Add(pause)
			st.Failures++
			st.LastError = err.Error()
		})
		s.log.Warn("adapter ended, restarting", "attempt", attempt, "delay", pause, "err", err)
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
	}
	now := time.Now()
	s.set(func(st *SupervisorStatus) {
		st.State, st.Since, st.NextStart = "stopped", now, time.Time{}
	})
}

// runOnce runs the adapter once and turns a panic into an error. Only panics
// of the adapter's own goroutine can be caught; the goroutines an adapter
// starts are few and written with that in mind.
func (s *Supervisor) runOnce(ctx context.Context) (err error, panicked bool) { //nolint:revive // the flag belongs to the error
	defer func() {
		if r := recover(); r != nil {
			err, panicked = fmt.Errorf("panic: %v", r), true
			s.set(func(st *SupervisorStatus) { st.Panics++ })
			s.log.Error("adapter panicked", "err", err, "stack", string(debug.Stack()))
		}
	}()
	return s.adapter.Run(ctx), false
}

func (s *Supervisor) set(change func(*SupervisorStatus)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.status)
}

// Status returns a snapshot.
func (s *Supervisor) Status() SupervisorStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status
}

// jitter spreads d by a quarter either way.
func jitter(d time.Duration) time.Duration {
	quarter := int64(d / 4)
	if quarter <= 0 {
		return d
	}
	return d + time.Duration(rand.Int64N(2*quarter+1)-quarter) //nolint:gosec // spreading restarts needs no secrecy
}
