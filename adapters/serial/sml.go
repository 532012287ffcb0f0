package serial

import (
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"strings"

	"holdfast/adapters/reading"
)

// smlFramer cuts the transport of SML out of a stream, version 1 (BSI TR-03109-1,
// SML 1.04 §8): an escape and 01010101, messages in which an escape is doubled, an
// escape and 1A, the number of bytes filled up, and a CRC-16/X.25. The CRC-16/KERMIT
// is taken too: there are meters that send it (Holley DTZ541). A start inside of a
// frame begins another.
type smlFramer struct {
	max       int
	count     frameCounts
	x25, kerm func([]byte) uint32

	in  bool   // in a frame
	raw []byte // the frame from its start on; else what may be a start
	buf []byte // the messages, without escapes
	esc []byte // an escape and what comes behind it, so far
}

const (
	smlEscape = "\x1b\x1b\x1b\x1b"
	smlStart  = smlEscape + "\x01\x01\x01\x01"
)

func newSMLFramer(maxLength int) *smlFramer {
	return &smlFramer{
		max: maxLength,
		x25: crc{16, 0x1021, 0xffff, 0xffff, true}.sum(), kerm: crc{16, 0x1021, 0, 0, true}.sum(),
	}
}

func (f *smlFramer) counts() frameCounts { return f.count }
func (f *smlFramer) pending() bool       { return f.in || len(f.raw) > 0 }
func (f *smlFramer) lost()               { f.drop() }

func (f *smlFramer) quiet(func(frame) bool) {
	if f.in {
		f.count.partial++
	}
	f.drop()
}

// drop forgets what has come.
func (f *smlFramer) drop() {
	f.count.garbage += uint64(len(f.raw))
	f.in, f.raw, f.buf, f.esc = false, f.raw[:0], f.buf[:0], f.esc[:0]
}

func (f *smlFramer) push(p []byte, take func(frame) bool) {
	for _, c := range p {
		f.raw = append(f.raw, c)
		if !f.in {
			f.seek()
			continue
		}
		f.esc = append(f.esc, c)
		switch {
		case len(f.esc) <= 4:
			if c != 0x1b {
				f.buf, f.esc = append(f.buf, f.esc...), f.esc[:0]
			}
		case len(f.esc) == 8:
			f.escaped(take)
		}
		if len(f.buf) > f.max {
			f.count.oversized++
			f.count.resyncs++
			f.drop()
		}
	}
}

// seek looks for a start at the end of raw, and drops what cannot be a part of one.
func (f *smlFramer) seek() {
	for len(f.raw) > 0 && !strings.HasPrefix(smlStart, string(f.raw)) {
		f.count.garbage++
		f.raw = append(f.raw[:0], f.raw[1:]...)
	}
	f.in = len(f.raw) == len(smlStart)
}

// escaped looks at what stands behind an escape.
func (f *smlFramer) escaped(take func(frame) bool) {
	behind := f.esc[4:]
	switch {
	case string(behind) == smlEscape:
		f.buf, f.esc = append(f.buf, smlEscape...), f.esc[:0]
		return
	case string(f.esc) == smlStart:
		f.count.partial++
		f.raw = f.raw[:len(f.raw)-len(smlStart)]
		f.drop()
		f.in, f.raw = true, append(f.raw, smlStart...)
		return
	case behind[0] != 0x1a:
		f.count.broken++
		f.count.resyncs++
		f.drop()
		return
	}
	sum := uint32(behind[2]) | uint32(behind[3])<<8
	covered, fill := f.raw[:len(f.raw)-2], int(behind[1])
	if fill > 3 || fill > len(f.buf) || sum != f.x25(covered) && sum != f.kerm(covered) || len(f.buf) == fill || !take(plain(f.buf[:len(f.buf)-fill])) {
		f.count.broken++
		f.drop()
		return
	}
	f.count.frames++
	f.in, f.raw, f.buf, f.esc = false, f.raw[:0], f.buf[:0], f.esc[:0]
}

// smlFormat finds the values of the lists that a meter sends (GetListResponse, SML
// 1.03 §5.1.14) by their OBIS codes, as [obisFormat] writes them: "1-0:1.8.0". They
// are scaled as the meter says, and have its unit.
//
// A value has the sign that its type says. Some meters are wrong in that: they send
// a power of 32768 W to 65535 W as a signed number of two bytes. " unsigned" behind
// the code reads it without a sign.
//
// Octets that are text are text; others, such as 1-0:0.0.9, hexadecimal digits.
type smlFormat struct {
	wanted   []obisField
	unsigned []bool
	found    []smlEntry // by point
}

type smlEntry struct {
	ok    bool
	value any
	unit  string
}

func newSMLFormat(_ *Options, points []point) (format, error) {
	f := &smlFormat{found: make([]smlEntry, len(points))}
	for i, p := range points {
		code, unsigned := strings.CutSuffix(p.Field, " unsigned")
		w, err := parseOBISField(code)
		if err == nil && w.index >= 0 {
			err = errors.New("an SML object has one value: no brackets")
		}
		if err != nil {
			return nil, fmt.Errorf("point[%d].field: %w", i, err)
		}
		f.wanted, f.unsigned = append(f.wanted, w), append(f.unsigned, unsigned)
	}
	return f, nil
}

// The types of SML elements (SML 1.03 §6.3).
const (
	smlOctets = 0
	smlBool   = 4
	smlInt    = 5
	smlUint   = 6
	smlList   = 7

	// smlListResponse is the tag of the message with values.
	smlListResponse = 0x701
	// smlDepth is how deep lists may be nested: values are five deep.
	smlDepth = 16
)

var errSML = errors.New("frame is no SML")

// smlReader takes elements from the front of b.
type smlReader struct{ b []byte }

// head takes the head of an element: its type, and the bytes of its value or the
// elements of the list.
func (r *smlReader) head() (typ byte, n int, err error) {
	heads := 0
	for {
		if len(r.b) == 0 || heads == 4 {
			return 0, 0, errSML
		}
		c := r.b[0]
		r.b = r.b[1:]
		heads++
		if heads == 1 {
			typ = c >> 4 & 7
		}
		n = n<<4 | int(c&15)
		if c&0x80 == 0 {
			break
		}
	}
	if typ == smlList {
		return typ, n, nil
	}
	if n < heads || n-heads > len(r.b) {
		return 0, 0, errSML
	}
	return typ, n - heads, nil
}

// list takes the head of a list of n elements.
func (r *smlReader) list(n int) error {
	typ, got, err := r.head()
	if err == nil && (typ != smlList || got != n) {
		err = errSML
	}
	return err
}

// skip takes a whole element.
func (r *smlReader) skip(depth int) error {
	typ, n, err := r.head()
	if err != nil || depth == 0 {
		return errSML
	}
	if typ != smlList {
		r.b = r.b[n:]
		return nil
	}
	for range n {
		if err := r.skip(depth - 1); err != nil {
			return err
		}
	}
	return nil
}

func (r *smlReader) skips(n int) error {
	for range n {
		if err := r.skip(smlDepth); err != nil {
			return err
		}
	}
	return nil
}

// scalar takes an element that is no list: int64, uint64, bool, []byte, or nil for
// one that was left out.
func (r *smlReader) scalar(unsigned bool) (any, error) {
	typ, n, err := r.head()
	if err != nil {
		return nil, err
	}
	if typ == smlList {
		return nil, errSML
	}
	p := r.b[:n]
	r.b = r.b[n:]
	switch {
	case typ == smlOctets && n == 0:
		return nil, nil //nolint:nilnil // left out
	case typ == smlOctets:
		return p, nil
	case n == 0 || n > 8:
		return nil, errSML
	}
	var u uint64
	for _, c := range p {
		u = u<<8 | uint64(c)
	}
	switch {
	case typ == smlBool:
		return u != 0, nil
	case typ == smlInt && !unsigned:
		return int64(u<<(64-8*n)) >> (64 - 8*n), nil
	case typ == smlInt || typ == smlUint:
		return u, nil
	}
	return nil, errSML
}

func (f *smlFormat) parse(frame []byte) (fields, error) {
	clear(f.found)
	r, lists := smlReader{frame}, 0
	for len(r.b) > 0 {
		if r.b[0] == 0 { // filled up
			r.b = r.b[1:]
			continue
		}
		n, err := f.message(&r)
		if err != nil {
			return fields{}, err
		}
		lists += n
	}
	if lists == 0 {
		return fields{}, errNothing
	}
	return fields{
		get:  func(i int) (any, bool) { return f.found[i].value, f.found[i].ok },
		unit: func(i int) string { return f.found[i].unit },
	}, nil
}

// message takes a message, and returns how many lists of values were in it.
func (f *smlFormat) message(r *smlReader) (lists int, err error) {
	// Transaction, group and what to do on errors; then tag and body.
	if err := errors.Join(r.list(6), r.skips(3), r.list(2)); err != nil {
		return 0, errSML
	}
	tag, err := r.scalar(true)
	if err != nil {
		return 0, err
	}
	if tag == any(uint64(smlListResponse)) {
		lists = 1
		err = f.response(r)
	} else {
		err = r.skip(smlDepth)
	}
	// The checksum, which the transport has one for, and the end.
	if err == nil {
		err = r.skips(1)
	}
	if err != nil || len(r.b) == 0 || r.b[0] != 0 {
		return 0, errSML
	}
	r.b = r.b[1:]
	return lists, nil
}

// response takes the body of a list of values.
func (f *smlFormat) response(r *smlReader) error {
	// Client, server, name of the list, and time of the meter.
	if err := errors.Join(r.list(7), r.skips(4)); err != nil {
		return errSML
	}
	typ, n, err := r.head()
	if err != nil || typ != smlList {
		return errSML
	}
	for range n {
		if err := f.entry(r); err != nil {
			return err
		}
	}
	return r.skips(2) // signature and time of the gateway
}

// entry takes one value.
func (f *smlFormat) entry(r *smlReader) error {
	if err := r.list(7); err != nil {
		return err
	}
	name, err := r.scalar(false)
	if err != nil {
		return err
	}
	if err := r.skips(2); err != nil { // status and time
		return err
	}
	unit, err := r.scalar(true)
	if err != nil {
		return err
	}
	scaler, err := r.scalar(false)
	if err != nil {
		return err
	}
	rest := r.b
	if typ, _, err := (&smlReader{rest}).head(); err == nil && typ == smlList {
		return r.skips(2) // a value that is a list of its own, and the signature
	}
	code := smlCode(name)
	for i := range f.wanted {
		w := &f.wanted[i]
		if f.found[i].ok || !w.matches(code) {
			continue
		}
		again := smlReader{rest}
		v, err := again.scalar(f.unsigned[i])
		if err != nil {
			return err
		}
		f.found[i] = smlEntry{ok: true, value: smlScaled(v, scaler), unit: smlUnit(unit)}
	}
	return r.skips(2)
}

// smlCode writes the name of an object as an OBIS code (IEC 62056-61).
func smlCode(name any) string {
	b, _ := name.([]byte)
	if len(b) != 6 {
		return ""
	}
	return fmt.Sprintf("%d-%d:%d.%d.%d*%d", b[0], b[1], b[2], b[3], b[4], b[5])
}

// smlScaled is a value times ten to the scaler.
func smlScaled(v, scaler any) any {
	exp, _ := scaler.(int64)
	if text, ok := v.([]byte); ok {
		for _, c := range text {
			if c < ' ' || c > '~' {
				return hex.EncodeToString(text)
			}
		}
		return string(text)
	}
	if f, ok := reading.Number(v); ok && exp != 0 {
		return reading.Scale(f, math.Pow10(int(exp)), 0)
	}
	return v
}

// smlUnit is the unit of a number (IEC 62056-62, table of units).
func smlUnit(v any) string {
	u, _ := v.(uint64)
	switch u {
	case 8:
		return "°"
	case 9:
		return "°C"
	case 13:
		return "m³"
	case 27:
		return "W"
	case 28:
		return "VA"
	case 29:
		return "var"
	case 30:
		return "Wh"
	case 31:
		return "VAh"
	case 32:
		return "varh"
	case 33:
		return "A"
	case 35:
		return "V"
	case 44:
		return "Hz"
	default:
		return ""
	}
}
