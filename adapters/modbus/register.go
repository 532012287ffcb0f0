package modbus

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Table is one of the four address spaces of a unit (MODBUS Application
// Protocol V1.1b3 §4.3).
type Table uint8

// The tables, in the order of their function codes.
const (
	Coils Table = iota
	DiscreteInputs
	HoldingRegisters
	InputRegisters
)

// String returns the table's name as register references spell it.
func (t Table) String() string {
	switch t {
	case Coils:
		return "coil"
	case DiscreteInputs:
		return "discrete"
	case HoldingRegisters:
		return "holding"
	case InputRegisters:
		return "input"
	default:
		return fmt.Sprintf("table %d", uint8(t))
	}
}

// Bits says whether the table holds single bits, not registers.
func (t Table) Bits() bool { return t == Coils || t == DiscreteInputs }

// Read returns the function that reads the table.
func (t Table) Read() Function {
	switch t {
	case Coils:
		return ReadCoils
	case DiscreteInputs:
		return ReadDiscreteInputs
	case HoldingRegisters:
		return ReadHoldingRegisters
	default:
		return ReadInputRegisters
	}
}

// noBit is Register.Bit of a reference without one.
const noBit = -1

// Register is a reference to a place in a unit.
type Register struct {
	Table Table
	// Addr is the protocol address as it goes over the wire, zero-based. A
	// manual that calls the first holding register 40001 means address 0.
	Addr uint16
	// Bit is the bit within the register, 0 the least significant; -1 for
	// the whole.
	Bit int
}

// String returns the reference as [ParseRegister] reads it.
func (r Register) String() string {
	if r.Bit == noBit {
		return fmt.Sprintf("%v:%d", r.Table, r.Addr)
	}
	return fmt.Sprintf("%v:%d.%d", r.Table, r.Addr, r.Bit)
}

var errRegister = errors.New(`want TABLE:ADDRESS such as "holding:100", "input:0x1e", "coil:1", "discrete:2" or, for one bit, "holding:100.3"; addresses are zero-based`)

// ParseRegister reads "holding:100", "input:30", "coil:1", "discrete:2", and
// "holding:100.3" for bit 3 of a register. The number is the zero-based
// protocol address, 0 to 65535, decimal or 0x hexadecimal.
func ParseRegister(s string) (Register, error) {
	name, rest, ok := strings.Cut(s, ":")
	if !ok {
		return Register{}, fmt.Errorf("%q: %w", s, errRegister)
	}
	r := Register{Bit: noBit}
	switch name {
	case "coil":
		r.Table = Coils
	case "discrete":
		r.Table = DiscreteInputs
	case "holding":
		r.Table = HoldingRegisters
	case "input":
		r.Table = InputRegisters
	default:
		return Register{}, fmt.Errorf("%q: there is no table %q: %w", s, name, errRegister)
	}
	addr, bit, hasBit := strings.Cut(rest, ".")
	n, err := parseAddr(addr)
	if err != nil {
		return Register{}, fmt.Errorf("%q: %q is not an address within 0..65535: %w", s, addr, errRegister)
	}
	r.Addr = n
	if hasBit {
		b, err := strconv.ParseUint(bit, 10, 8)
		if err != nil || b > 15 || r.Table.Bits() {
			return Register{}, fmt.Errorf("%q: %q is not a bit within 0..15 of a register: %w", s, bit, errRegister)
		}
		r.Bit = int(b)
	}
	return r, nil
}

func parseAddr(s string) (uint16, error) {
	base := 10
	if hex, ok := strings.CutPrefix(s, "0x"); ok {
		s, base = hex, 16
	}
	n, err := strconv.ParseUint(s, base, 16)
	return uint16(n), err
}

// span is a run of addresses in a table, as in "holding:100-110".
type span struct {
	table       Table
	first, last uint16
}

func parseSpan(s string) (span, error) {
	head, last, ok := strings.Cut(s, "-")
	r, err := ParseRegister(head)
	if err != nil {
		return span{}, err
	}
	sp := span{table: r.Table, first: r.Addr, last: r.Addr}
	if ok {
		if sp.last, err = parseAddr(last); err != nil || sp.last < sp.first {
			return span{}, fmt.Errorf("%q: %q is not an address within %d..65535", s, last, sp.first)
		}
	}
	if r.Bit != noBit {
		return span{}, fmt.Errorf("%q: a hole is whole registers", s)
	}
	return sp, nil
}
