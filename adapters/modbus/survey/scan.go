package survey

import (
	"context"
	"errors"
	"slices"
	"time"

	"holdfast/adapters/modbus"
)

// ScanOptions say how a line is scanned.
type ScanOptions struct {
	// Units are asked in this order.
	Units []byte
	// Timeout is how long each has at first. Those that something was heard
	// after get Patience.
	Timeout, Patience time.Duration
	// Progress is told after each request; may be nil.
	Progress func(done, of, found int)
	// Heard counts what came besides answers: a change says that somebody
	// answered too late, or damaged.
	Heard func() uint64
}

// Sign is what showed that a unit is there.
type Sign struct {
	Unit byte
	// Err is nil when it answered, else its exception.
	Err error
	// Late says that it answered only with more patience.
	Late bool
}

// lateness is how long after its request an answer is still looked for.
const lateness = time.Second

// question is what a unit is asked to see if it is there: most have a holding
// register 0, and those that have not say so.
func question(unit byte) modbus.Request {
	return modbus.Request{Unit: unit, Function: modbus.ReadHoldingRegisters, Count: 1}
}

// Scan asks each unit and returns those that are there, in order. An answer that
// is late is not taken for that of the next unit, since it says whose it is;
// but it, or a damaged one, makes those asked just before to be asked again, with
// patience. The error is that of the line or of ctx; what was found until then
// is returned with it.
func Scan(ctx context.Context, do modbus.Do, o ScanOptions) (found []Sign, err error) {
	type asked struct {
		unit byte
		at   time.Time
	}
	var recent []asked // without an answer yet, within lateness
	var again []byte
	suspect := func() {
		for _, a := range recent {
			if !slices.Contains(again, a.unit) {
				again = append(again, a.unit)
			}
		}
		recent = recent[:0]
	}
	heard := o.Heard()
	done := 0
	progress := func() {
		done++
		if o.Progress != nil {
			o.Progress(done, len(o.Units)+len(again), len(found))
		}
	}
	for _, u := range o.Units {
		start := time.Now()
		_, err := do(ctx, question(u), o.Timeout)
		recent = slices.DeleteFunc(recent, func(a asked) bool { return start.Sub(a.at) > lateness })
		switch {
		case modbus.Alive(err):
			found = append(found, Sign{Unit: u, Err: err})
		case errors.Is(err, modbus.ErrGarbled), errors.Is(err, modbus.ErrMismatch), errors.Is(err, modbus.ErrMalformed):
			again = append(again, u)
		case given(err):
			return found, err
		default:
			recent = append(recent, asked{u, start})
		}
		if now := o.Heard(); now != heard {
			heard = now
			suspect()
		}
		progress()
	}
	for _, u := range again {
		_, err := do(ctx, question(u), o.Patience)
		switch {
		case modbus.Alive(err):
			found = append(found, Sign{Unit: u, Err: err, Late: true})
		case given(err):
			return found, err
		}
		progress()
	}
	slices.SortFunc(found, func(a, b Sign) int { return int(a.Unit) - int(b.Unit) })
	return found, nil
}

// given says that there is no point in asking on: the line or the caller's time
// has ended.
func given(err error) bool {
	return errors.Is(err, modbus.ErrNotOpen) || errors.Is(err, modbus.ErrLost) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}
