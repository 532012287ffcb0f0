package modbus

import (
	"context"
	"fmt"
)

// meiDeviceID is the MEI type of function 43 that reads the identification
// (MODBUS Application Protocol V1.1b3 §6.21).
const meiDeviceID = 14

// The codes of a [ReadDeviceID] request: which objects to read.
const (
	IdentifyBasic    byte = 1 // vendor name, product code, revision
	IdentifyRegular  byte = 2 // with vendor URL, product and model name, application
	IdentifyExtended byte = 3 // with what else the vendor thought of
	IdentifyOne      byte = 4 // one object
)

// Object is one part of what a device says of itself.
type Object struct {
	ID    byte
	Value []byte
}

// Name is the name of the object in the specification, or its number.
func (o Object) Name() string {
	names := [...]string{"VendorName", "ProductCode", "MajorMinorRevision", "VendorUrl", "ProductName", "ModelName", "UserApplicationName"}
	if int(o.ID) < len(names) {
		return names[o.ID]
	}
	return fmt.Sprintf("object %d", o.ID)
}

// identification is one answer to [ReadDeviceID].
type identification struct {
	code       byte
	conformity byte
	more       bool
	next       byte
	objects    []Object
}

// moreFollows marks an answer with others behind it.
const moreFollows = 0xff

// parseIdentification takes apart what follows the MEI type; the values point
// into b.
func parseIdentification(b []byte) (identification, error) {
	if len(b) < 5 || len(b) > maxPDU-2 {
		return identification{}, fmt.Errorf("%w: an identification of %d bytes", ErrMalformed, len(b))
	}
	id := identification{code: b[0], conformity: b[1], more: b[2] == moreFollows, next: b[3]}
	if b[2] != 0 && !id.more {
		return identification{}, fmt.Errorf("%w: more-follows is %#x, want 0 or 0xff", ErrMalformed, b[2])
	}
	rest := b[5:]
	for range b[4] {
		if len(rest) < 2 || len(rest) < 2+int(rest[1]) {
			return identification{}, fmt.Errorf("%w: an object goes past the end", ErrMalformed)
		}
		n := 2 + int(rest[1])
		id.objects = append(id.objects, Object{ID: rest[0], Value: rest[2:n:n]})
		rest = rest[n:]
	}
	if len(rest) != 0 {
		return identification{}, fmt.Errorf("%w: %d bytes behind the last object", ErrMalformed, len(rest))
	}
	return id, nil
}

// parseDeviceID checks that pdu answers r, and returns what follows the MEI type.
func (r Request) parseDeviceID(pdu []byte) ([]byte, error) {
	if pdu[1] != meiDeviceID {
		return nil, fmt.Errorf("%w: MEI type %d, want %d", ErrMismatch, pdu[1], meiDeviceID)
	}
	id, err := parseIdentification(pdu[2:])
	if err != nil {
		return nil, err
	}
	if id.code != r.Data[1] {
		return nil, fmt.Errorf("%w: identification %d, want %d", ErrMismatch, id.code, r.Data[1])
	}
	return pdu[2:], nil
}

// deviceIDLen is how long the PDU of an identification is by its own account, as
// far as b, which begins with it, tells: more than len(b) if it is cut off. 0 if
// it is none.
func deviceIDLen(b []byte) int {
	if len(b) > 1 && b[1] != meiDeviceID {
		return 0
	}
	n := 7
	if len(b) < n {
		return n
	}
	for range b[6] {
		if len(b) < n+2 {
			n += 2
			break
		}
		n += 2 + int(b[n+1])
	}
	if n > maxPDU {
		return 0
	}
	return n
}

// Identify reads what a unit says of itself, in as many requests as it takes, by
// do ([Bus.Do] is one). Code is [IdentifyBasic], [IdentifyRegular] or
// [IdentifyExtended]. A unit that knows none of it refuses, with an
// [*ExceptionError], or keeps silent.
func Identify(ctx context.Context, do func(context.Context, Request) ([]byte, error), unit, code byte) ([]Object, error) {
	var all []Object
	next := byte(0)
	for {
		data, err := do(ctx, Request{Unit: unit, Function: ReadDeviceID, Data: []byte{meiDeviceID, code, next}})
		if err != nil {
			return all, err
		}
		id, err := parseIdentification(data)
		if err != nil {
			return all, err
		}
		all = append(all, id.objects...)
		if !id.more {
			return all, nil
		}
		// Each answer goes further than the one before, or it would never end.
		if id.next <= next || len(id.objects) == 0 {
			return all, fmt.Errorf("%w: unit %d has object %d follow object %d", ErrMismatch, unit, id.next, next)
		}
		next = id.next
	}
}
