package reading

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"holdfast/broker/cbor"
)

// ErrSenML means that bytes are no SenML pack, or not a whole one.
var ErrSenML = errors.New("not a SenML pack")

// Unpacked is one record of a pack as the message that it was.
type Unpacked struct {
	Topic string
	// Time is when it was measured; zero when the record does not know.
	Time time.Time
	// Payload is a reading as [Reading.AppendJSON] writes it, or the message
	// that was none.
	Payload []byte
}

// LooksLikeSenML says that b begins as a pack does, and not as a batch of package
// pack, which begins with a tag or with objects that have a topic first.
func LooksLikeSenML(b []byte) bool {
	switch {
	case len(b) < 2:
		return false
	case b[0]>>5 == cbor.Array:
		return true
	case b[0] == '[':
		rest := bytes.TrimLeft(b[1:], " \t\r\n")
		return !bytes.HasPrefix(rest, []byte(`{"topic"`)) && !bytes.HasPrefix(rest, []byte("]"))
	default:
		return false
	}
}

// senmlFields are a record as read.
type senmlFields struct {
	BN      *string         `json:"bn"`
	BT      *float64        `json:"bt"`
	BU      *string         `json:"bu"`
	BV      *float64        `json:"bv"`
	N       string          `json:"n"`
	U       *string         `json:"u"`
	V       any             `json:"-"`
	RawV    json.RawMessage `json:"v"`
	VS      *string         `json:"vs"`
	VB      *bool           `json:"vb"`
	VD      *string         `json:"vd"` // base64url
	T       float64         `json:"t"`
	Topic   string          `json:"topic"`
	Quality string          `json:"quality"`
	Reason  string          `json:"reason"`
	Clock   string          `json:"clock"`
	Session *uint64         `json:"session"`
	Seq     *uint64         `json:"seq"`
	Message bool            `json:"message"`
}

// UnpackSenML calls fn with each record of a pack, JSON or CBOR. What others
// write it reads where it can: sums and links are left out.
func UnpackSenML(b []byte, fn func(Unpacked) error) error {
	var state senmlState
	if len(b) > 0 && b[0] == '[' {
		dec := json.NewDecoder(bytes.NewReader(b))
		if _, err := dec.Token(); err != nil {
			return fmt.Errorf("%w: %w", ErrSenML, err)
		}
		for dec.More() {
			var f senmlFields
			if err := dec.Decode(&f); err != nil {
				return fmt.Errorf("%w: %w", ErrSenML, err)
			}
			if len(f.RawV) > 0 {
				f.V, _ = parseValue(f.RawV)
			}
			if err := state.record(&f, fn); err != nil {
				return err
			}
		}
		if _, err := dec.Token(); err != nil {
			return fmt.Errorf("%w: it is cut off", ErrSenML)
		}
		return nil
	}
	major, n, _, b, err := cbor.Head(b)
	if err != nil || major != cbor.Array {
		return fmt.Errorf("%w: it begins as no pack does", ErrSenML)
	}
	for range n {
		var f senmlFields
		if b, err = f.readCBOR(b); err != nil {
			return fmt.Errorf("%w: %w", ErrSenML, err)
		}
		if err := state.record(&f, fn); err != nil {
			return err
		}
	}
	if len(b) > 0 {
		return fmt.Errorf("%w: %d bytes behind the end", ErrSenML, len(b))
	}
	return nil
}

// senmlState is what holds from one record to the next.
type senmlState struct {
	bn, bu       string
	bt, bv       float64
	name         string
	session, seq uint64
}

func (s *senmlState) record(f *senmlFields, fn func(Unpacked) error) error {
	if f.BN != nil {
		s.bn = *f.BN
	}
	if f.BT != nil {
		s.bt = *f.BT
	}
	if f.BU != nil {
		s.bu = *f.BU
	}
	if f.BV != nil {
		s.bv = *f.BV
	}
	if f.Session != nil {
		s.session = *f.Session
	}
	name := s.bn + f.N
	switch {
	case f.Seq != nil:
		s.seq = *f.Seq
	case name == s.name && s.seq != 0 && !f.Message:
		s.seq++
	default:
		s.seq = 0
	}
	s.name = name
	at := senmlTime(s.bt, f.T)
	out := Unpacked{Topic: name, Time: at}
	if f.Topic != "" {
		out.Topic = f.Topic
	}
	if f.Message {
		switch {
		case f.VS != nil:
			out.Payload = []byte(*f.VS)
		case f.VD != nil:
			p, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(*f.VD, "="))
			if err != nil {
				return fmt.Errorf("%w: vd: %w", ErrSenML, err)
			}
			out.Payload = p
		}
		return fn(out)
	}
	r := Reading{Unit: s.bu, Session: s.session, Seq: s.seq, Reason: f.Reason}
	if f.U != nil {
		r.Unit = *f.U
	}
	r.Time = Stamp{Wall: at, Synchronised: f.Clock == "" || f.Clock == clockSynchronised}
	if f.Clock == clockDevice {
		r.Time.Device = at
	}
	switch f.Quality {
	case "bad":
		r.Quality = Bad
		if f.VS != nil {
			r.Reason = *f.VS
		}
	case "uncertain":
		r.Quality = Uncertain
	}
	switch {
	case r.Quality == Bad:
	case f.V != nil:
		r.Value = addBase(f.V, s.bv)
	case f.VS != nil:
		r.Value = *f.VS
	case f.VB != nil:
		r.Value = *f.VB
	case f.VD != nil:
		r.Value = *f.VD
	}
	out.Payload = r.AppendJSON(nil)
	return fn(out)
}

func addBase(v any, base float64) any {
	if f, ok := Number(v); ok && base != 0 {
		return f + base
	}
	return v
}

// errOdd is what a value of another type than expected makes.
var errOdd = errors.New("a label has a value of the wrong type")

// cborValue is an item that a record can hold: number, text, bytes, bool, null.
func cborValue(b []byte) (v any, rest []byte, err error) {
	major, n, size, b, err := cbor.Head(b)
	if err != nil {
		return nil, nil, err
	}
	switch major {
	case cbor.Uint:
		if n <= math.MaxInt64 {
			return int64(n), b, nil
		}
		return n, b, nil
	case cbor.Nint:
		if n > math.MaxInt64 {
			return -1 - float64(n), b, nil
		}
		return -1 - int64(n), b, nil
	case cbor.Text, cbor.Bytes:
		if n > uint64(len(b)) {
			return nil, nil, fmt.Errorf("%w: it is cut off", cbor.ErrMalformed)
		}
		if major == cbor.Text {
			return string(b[:n]), b[n:], nil
		}
		return b[:n:n], b[n:], nil
	case cbor.Simple:
		v, err := simpleValue(n, size)
		return v, b, err
	case cbor.Tag:
		if n != 4 {
			return nil, nil, fmt.Errorf("%w: tag %d", cbor.ErrMalformed, n)
		}
		return decimalFraction(b)
	default:
		return nil, nil, fmt.Errorf("%w: type %d in a record", cbor.ErrMalformed, major)
	}
}

func simpleValue(n uint64, size int) (any, error) {
	switch {
	case size == 2:
		return Float16(uint16(n)), nil
	case size == 4:
		return float64(math.Float32frombits(uint32(n))), nil
	case size == 8:
		return math.Float64frombits(n), nil
	case n == 20, n == 21:
		return n == 21, nil
	case n == 22:
		return nil, nil //nolint:nilnil // CBOR's null
	default:
		return nil, fmt.Errorf("%w: simple value %d", cbor.ErrMalformed, n)
	}
}

func decimalFraction(b []byte) (any, []byte, error) {
	major, n, _, b, err := cbor.Head(b)
	if err != nil {
		return nil, nil, err
	}
	if major != cbor.Array || n != 2 {
		return nil, nil, errOdd
	}
	var parts [2]int64
	for i := range parts {
		major, n, _, rest, err := cbor.Head(b)
		if err != nil {
			return nil, nil, err
		}
		if major > cbor.Nint || n > math.MaxInt64 {
			return nil, nil, errOdd
		}
		if parts[i] = int64(n); major == cbor.Nint {
			parts[i] = -1 - int64(n)
		}
		b = rest
	}
	// By way of text: the nearest float64, as it was written.
	v, ok := parseNumber(fmt.Sprintf("%de%d", parts[1], parts[0]))
	if !ok {
		return nil, nil, errOdd
	}
	return v, b, nil
}

// readCBOR fills f from a map.
func (f *senmlFields) readCBOR(b []byte) ([]byte, error) {
	major, n, _, b, err := cbor.Head(b)
	if err != nil {
		return nil, err
	}
	if major != cbor.Map {
		return nil, errOdd
	}
	for range n {
		var key, v any
		if key, b, err = cborValue(b); err != nil {
			return nil, err
		}
		if v, b, err = cborValue(b); err != nil {
			return nil, err
		}
		if err := f.set(key, v); err != nil {
			return nil, err
		}
	}
	return b, nil
}

func (f *senmlFields) set(key, v any) error {
	name, _ := key.(string)
	if n, ok := key.(int64); ok {
		for label, number := range senmlLabels {
			if number == n {
				name = label
			}
		}
		if n == -5 {
			name = "bv"
		}
	}
	text, isText := v.(string)
	number, isNumber := Number(v)
	whole, isWhole := v.(int64)
	flag, isBool := v.(bool)
	ok := true
	switch name {
	case "bn":
		f.BN, ok = &text, isText
	case "bu":
		f.BU, ok = &text, isText
	case "n":
		f.N, ok = text, isText
	case "u":
		f.U, ok = &text, isText
	case "vs":
		f.VS, ok = &text, isText
	case "topic":
		f.Topic, ok = text, isText
	case "quality":
		f.Quality, ok = text, isText
	case "reason":
		f.Reason, ok = text, isText
	case "clock":
		f.Clock, ok = text, isText
	case "bt":
		f.BT, ok = &number, isNumber
	case "bv":
		f.BV, ok = &number, isNumber
	case "t":
		f.T, ok = number, isNumber
	case "v":
		f.V, ok = v, isNumber
	case "vb":
		f.VB, ok = &flag, isBool
	case "message":
		f.Message, ok = flag, isBool
	case "session", "seq":
		n := uint64(whole)
		if big, isBig := v.(uint64); isBig {
			n, isWhole = big, true
		}
		if ok = isWhole; name == "seq" {
			f.Seq = &n
		} else {
			f.Session = &n
		}
	case "vd":
		p, isBytes := v.([]byte)
		f.VD, ok = new(base64.RawURLEncoding.EncodeToString(p)), isBytes
	}
	if !ok {
		return fmt.Errorf("%w: %s", errOdd, name)
	}
	return nil
}
