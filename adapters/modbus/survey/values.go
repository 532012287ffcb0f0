package survey

import (
	"encoding/binary"
	"fmt"
	"strings"

	"holdfast/adapters/modbus"
)

// Value is one way to understand registers.
type Value struct {
	Register string `json:"register"`
	Type     string `json:"type"`
	Order    string `json:"order,omitempty"`
	// Value is null where the registers hold no such thing.
	Value any `json:"value"`
}

// orders are those of as many registers.
var orders = map[int][]string{
	1: {"AB", "BA"},
	2: {"ABCD", "CDAB", "BADC", "DCBA"},
	4: {"ABCDEFGH", "GHEFCDAB", "BADCFEHG", "HGFEDCBA"},
}

// Orders are the byte orders that Values tries for values of n registers.
func Orders(n int) []string { return orders[n] }

// Types are the types of values of 1, 2 and 4 registers, as Values has them.
var Types = map[int][]string{
	1: {"uint16", "int16", "bcd16"},
	2: {"float32", "uint32", "int32", "bcd32"},
	4: {"float64", "uint64", "int64"},
}

// At returns what the registers at the start of data, from at on, are as typ in an
// order; nil when they are too few or no such value.
func At(at modbus.Register, data []byte, typ, order string, n int) any {
	if len(data) < 2*n {
		return nil
	}
	v, _, err := modbus.Decode(modbus.Point{Name: "value", Register: at.String(), Type: typ, Order: order}, "", data[:2*n])
	if err != nil {
		return nil
	}
	return v
}

// Values understands registers in every way: each of data, which are those from
// at on, alone and with those behind it.
func Values(at modbus.Register, data []byte) []Value {
	var all []Value
	for ; len(data) >= 2; at.Addr, data = at.Addr+1, data[2:] {
		word := binary.BigEndian.Uint16(data)
		all = append(all,
			Value{at.String(), "hex", "", fmt.Sprintf("%04x", word)},
			Value{at.String(), "binary", "", fmt.Sprintf("%016b", word)},
			Value{at.String(), "ascii", "", ASCII(data[:2])})
		for _, n := range []int{1, 2, 4} {
			if len(data) < 2*n {
				break
			}
			for _, typ := range Types[n] {
				for _, o := range orders[n] {
					all = append(all, Value{at.String(), typ, o, At(at, data, typ, o, n)})
				}
			}
		}
	}
	return all
}

// ASCII shows bytes as text, a dot for what is none.
func ASCII(b []byte) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '.'
		}
		return r
	}, string(latin1(b)))
}

func latin1(b []byte) []rune {
	r := make([]rune, len(b))
	for i, x := range b {
		r[i] = rune(x)
	}
	return r
}
