package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"holdfast/adapters/modbus"
)

// GatewayOptions say who may do what on a line. Nothing is written unless
// WriteUnits says so.
type GatewayOptions struct {
	Options
	// Units are those of the line that can be reached, 1 to 247, to 255 behind a
	// peer on the network; others have exception 10. Empty means 1 to 247.
	Units []int `toml:"units"`
	// UnitMap gives units of the line other numbers outside: "101" = 1. What it
	// does not name keeps its own.
	UnitMap map[string]int `toml:"unit_map"`
	// WriteUnits are the units of the line that may be written; 0 lets broadcasts
	// through, which have no answer. Others have exception 1.
	WriteUnits []int `toml:"write_units"`
	// Functions are the codes that are let through, of those that write only to
	// WriteUnits. Others have exception 1.
	Functions []int `toml:"functions"`
	// MaxWait is how long a request waits for the line at most, 10ms to 1m: then
	// it has exception 6, and is not sent.
	MaxWait time.Duration `toml:"max_wait"`
}

// DefaultGatewayOptions let everything be read and nothing written.
func DefaultGatewayOptions() GatewayOptions {
	return GatewayOptions{Options: defaultOptions(), Functions: []int{1, 2, 3, 4, 5, 6, 15, 16, 22, 23, 43}, MaxWait: 2 * time.Second}
}

// Validate reports the first value out of range, naming its key.
func (o GatewayOptions) Validate() error {
	if err := o.validate(); err != nil {
		return err
	}
	for i, u := range o.Units {
		if u < 1 || u > 255 {
			return fmt.Errorf("units[%d]: %d is outside 1..255", i, u)
		}
	}
	for outside, u := range o.UnitMap {
		if n, err := strconv.ParseUint(outside, 10, 8); err != nil || strconv.FormatUint(n, 10) != outside {
			return fmt.Errorf("unit_map: %q is not a unit within 0..255", outside)
		}
		if u < 1 || u > 255 {
			return fmt.Errorf("unit_map.%s: %d is outside 1..255", outside, u)
		}
	}
	for i, u := range o.WriteUnits {
		if u < 0 || u > 255 {
			return fmt.Errorf("write_units[%d]: %d is outside 0..255", i, u)
		}
	}
	for i, f := range o.Functions {
		if f < 1 || f > 127 || !modbus.Function(f).Known() {
			return fmt.Errorf("functions[%d]: %d is not one of 1 to 6, 15, 16, 22, 23, 43", i, f)
		}
	}
	if o.MaxWait < 10*time.Millisecond || o.MaxWait > time.Minute {
		return fmt.Errorf("max_wait: %v is outside 10ms..1m", o.MaxWait)
	}
	return nil
}

// Gateway passes requests on to the units of a line.
type Gateway struct {
	opts GatewayOptions
	do   func(context.Context, modbus.Request) ([]byte, error)
	to   [256]byte // the unit of the line, by that of the request
}

// NewGateway returns a gateway to the line on which do makes requests, as
// [modbus.Bus.Do].
func NewGateway(o GatewayOptions, do func(context.Context, modbus.Request) ([]byte, error)) (*Gateway, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	g := &Gateway{opts: o, do: do}
	for u := range g.to {
		g.to[u] = byte(u)
	}
	for outside, u := range o.UnitMap {
		n, err := strconv.Atoi(outside)
		if err != nil {
			return nil, err
		}
		g.to[n] = byte(u)
	}
	return g, nil
}

// reachable says whether requests to a unit of the line are let through.
func (g *Gateway) reachable(u byte, writes bool) bool {
	switch {
	case u == 0: // nobody would answer but to a write, and nobody does to that
		return writes
	case len(g.opts.Units) == 0:
		return u <= 247 || slices.Contains(g.values(), int(u))
	default:
		return slices.Contains(g.opts.Units, int(u))
	}
}

// values are the units that the map names.
func (g *Gateway) values() []int {
	var us []int
	for _, u := range g.opts.UnitMap {
		us = append(us, u)
	}
	return us
}

// Handle is part of Handler.
func (g *Gateway) Handle(ctx context.Context, unit byte, pdu, answer []byte) []byte {
	q, e := parse(g.to[unit], pdu)
	switch writes := modbus.Function(pdu[0]).Writes(); {
	case !g.reachable(g.to[unit], writes):
		return refuse(answer, pdu[0], modbus.GatewayPathUnavail)
	case !slices.Contains(g.opts.Functions, int(pdu[0])), writes && !slices.Contains(g.opts.WriteUnits, int(g.to[unit])):
		return refuse(answer, pdu[0], modbus.IllegalFunction)
	case e != 0:
		return refuse(answer, pdu[0], e)
	}
	// It bounds the time until the request is on the line.
	ctx, cancel := context.WithTimeout(ctx, g.opts.MaxWait)
	defer cancel()
	data, err := g.do(ctx, q)
	if err != nil {
		return refuse(answer, pdu[0], exception(err))
	}
	if q.Unit == 0 {
		return answer[:0] // nobody answers a broadcast
	}
	out, err := q.AppendAnswer(answer, data)
	if err != nil {
		return refuse(answer, pdu[0], modbus.GatewayTargetNoAnswer) // cannot be
	}
	return out
}

// exception is what a master is told of a request that brought nothing.
func exception(err error) modbus.Exception {
	if refusal, ok := errors.AsType[*modbus.ExceptionError](err); ok {
		return refusal.Code
	}
	switch {
	case errors.Is(err, modbus.ErrBusy), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return modbus.ServerDeviceBusy
	case errors.Is(err, modbus.ErrNotOpen):
		return modbus.GatewayPathUnavail
	default: // down, silent, garbled, or lost on the way
		return modbus.GatewayTargetNoAnswer
	}
}
