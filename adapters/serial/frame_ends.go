package serial

import "bytes"

// endsOptions are how a frame between a start and an end looks.
type endsOptions struct {
	// start and end: each 1 to 8 bytes without an escape; with one, 1 byte, or
	// 2 of which the first is the escape.
	start, end []byte
	escaped    bool // escape has a meaning
	escape     byte
	// xor changes the byte after an escape; 0 leaves it.
	xor byte
	// slip gives the byte after an escape the meaning of RFC 1055.
	slip bool
	// trailer is how many bytes after the end belong to the frame.
	trailer int
	max     int
}

// The bytes of RFC 1055, without the END and ESC inside of a frame.
const (
	slipEnd, slipEscape           = 0xc0, 0xdb
	slipEscapedEnd, slipEscapedEs = 0xdc, 0xdd
)

func slipOptions(maxLength int) endsOptions {
	return endsOptions{
		start: []byte{slipEnd}, end: []byte{slipEnd}, escaped: true, escape: slipEscape, slip: true, max: maxLength,
	}
}

// endsFramer cuts out what stands between a start and an end.
//
//	outside --start--> inside --end--> [trailer] --> frame
//	   ^                 |  \--start: another frame has begun--> inside
//	   \---- too long, an impossible escape
//
// With start and end alike one such mark may end a frame and start the next.
// It is in step after each start that is none of the data, which an escape
// makes sure of.
type endsFramer struct {
	o     endsOptions
	count frameCounts

	state   endsState
	escape  bool   // the last byte was an escape
	trailer int    // bytes still to come
	body    int    // where the body ends, with a trailer
	buf     []byte // start, body, end, trailer; outside: what may be the beginning of a start
}

type endsState uint8

const (
	endsOutside endsState = iota
	endsInside
	endsTrailer
)

func newEndsFramer(o endsOptions) *endsFramer { return &endsFramer{o: o} }

func (f *endsFramer) counts() frameCounts { return f.count }

// flags says that start and end are alike.
func (f *endsFramer) flags() bool { return bytes.Equal(f.o.start, f.o.end) }

// paired says that start and end are two bytes, the first of them the escape.
func (f *endsFramer) paired() bool { return f.o.escaped && len(f.o.start) == 2 }

// weight is how many bytes are dropped with the buffer. A mark that may be the
// end of the frame before has been accounted for.
func (f *endsFramer) weight() uint64 {
	if f.state != endsOutside && f.flags() {
		return uint64(len(f.buf) - len(f.o.start))
	}
	return uint64(len(f.buf))
}

func (f *endsFramer) drop() {
	f.count.garbage += f.weight()
	f.buf, f.escape, f.state = f.buf[:0], false, endsOutside
}

func (f *endsFramer) lost() { f.drop() }

func (f *endsFramer) quiet(func(frame) bool) {
	if f.begun() {
		f.count.partial++
	}
	f.drop()
	if f.flags() {
		f.begin() // the first mark may be left out
	}
}

// begun says that there is some of a frame.
func (f *endsFramer) begun() bool {
	return f.state == endsTrailer || f.state == endsInside && (len(f.buf) > len(f.o.start) || !f.flags() || f.escape)
}

func (f *endsFramer) pending() bool { return f.begun() || f.state == endsOutside && len(f.buf) > 0 }

// begin starts a frame. What is in the buffer has been accounted for.
func (f *endsFramer) begin() {
	f.buf, f.escape, f.state = append(f.buf[:0], f.o.start...), false, endsInside
}

// restart drops a frame in which another begins.
func (f *endsFramer) restart() {
	f.count.partial++
	f.count.garbage += uint64(len(f.buf))
	f.begin()
}

// fail drops a frame that is none; its end must be found first.
func (f *endsFramer) fail(counter *uint64) {
	*counter++
	f.count.resyncs++
	f.drop()
}

func (f *endsFramer) push(p []byte, take func(frame) bool) {
	for _, c := range p {
		switch {
		case f.state == endsTrailer:
			f.buf = append(f.buf, c)
			if f.trailer--; f.trailer == 0 {
				f.finish(frame{body: f.buf[len(f.o.start):f.body], raw: f.buf}, take)
			}
		case f.state == endsOutside:
			f.look(c)
		case f.paired():
			f.pair(c, take)
		case f.o.escaped:
			f.stuffed(c, take)
		default:
			f.literal(c, take)
		}
	}
}

// look waits for a start.
func (f *endsFramer) look(c byte) {
	start := f.o.start
	if f.o.escaped && !f.o.slip && f.o.xor == 0 && !f.paired() {
		if f.escape || c == f.o.escape { // neither it nor what follows is a start
			f.escape = !f.escape
			f.count.garbage++
			return
		}
	}
	f.buf = append(f.buf, c)
	if bytes.HasSuffix(f.buf, start) {
		f.count.garbage += uint64(len(f.buf) - len(start))
		f.begin()
		return
	}
	if f.paired() && len(f.buf) == 2 && f.buf[0] == f.o.escape && c == f.o.escape {
		f.drop() // an escaped escape: what follows is data
		return
	}
	if tail := len(start) - 1; len(f.buf) > tail {
		f.count.garbage += uint64(len(f.buf) - tail)
		f.buf = append(f.buf[:0], f.buf[len(f.buf)-tail:]...)
	}
}

// literal takes a byte of a frame without escapes.
func (f *endsFramer) literal(c byte, take func(frame) bool) {
	f.buf = append(f.buf, c)
	start, end := f.o.start, f.o.end
	body := f.buf[len(start):]
	switch {
	case bytes.HasSuffix(body, end):
		f.ended(len(f.buf)-len(end), take)
	case !f.flags() && bytes.HasSuffix(body, start):
		f.buf = f.buf[:len(f.buf)-len(start)]
		f.restart()
	case len(body) >= f.o.max+len(end):
		f.fail(&f.count.oversized)
	}
}

// pair takes a byte of a frame whose start and end are an escape and one more.
func (f *endsFramer) pair(c byte, take func(frame) bool) {
	if !f.escape {
		if c == f.o.escape {
			f.escape = true
			return
		}
		f.data(c)
		return
	}
	f.escape = false
	switch c {
	case f.o.escape:
		f.data(c)
	case f.o.end[1]:
		n := len(f.buf)
		f.buf = append(f.buf, f.o.end...)
		f.ended(n, take)
	case f.o.start[1]:
		f.restart()
	default:
		f.buf = append(f.buf, f.o.escape, c)
		f.fail(&f.count.broken)
	}
}

// stuffed takes a byte of a frame whose start and end are one byte each.
func (f *endsFramer) stuffed(c byte, take func(frame) bool) {
	if f.escape {
		f.escape = false
		mark := c == f.o.start[0] || c == f.o.end[0]
		switch {
		case f.o.slip && c == slipEscapedEnd:
			f.data(slipEnd)
			return
		case f.o.slip && c == slipEscapedEs:
			f.data(slipEscape)
			return
		case !f.o.slip && (!mark || f.o.xor == 0):
			f.data(c ^ f.o.xor)
			return
		}
		// No escape looks like that. A mark is one all the same: that is how
		// a sender gives a frame up (RFC 1662 §4.3).
		f.buf = append(f.buf, f.o.escape)
		if !mark {
			f.buf = append(f.buf, c)
		}
		f.fail(&f.count.broken)
		if mark && (f.flags() || c == f.o.start[0]) {
			f.begin()
		}
		return
	}
	switch c {
	case f.o.escape:
		f.escape = true
	case f.o.end[0]:
		n := len(f.buf)
		f.buf = append(f.buf, c)
		f.ended(n, take)
	case f.o.start[0]:
		f.restart()
	default:
		f.data(c)
	}
}

// data takes one byte of the body.
func (f *endsFramer) data(c byte) {
	f.buf = append(f.buf, c)
	if len(f.buf)-len(f.o.start) > f.o.max {
		f.fail(&f.count.oversized)
	}
}

// ended says that the body ends at n, and the end follows it.
func (f *endsFramer) ended(n int, take func(frame) bool) {
	if f.o.trailer > 0 {
		f.state, f.trailer, f.body = endsTrailer, f.o.trailer, n
		return
	}
	f.finish(plain(f.buf[len(f.o.start):n]), take)
}

func (f *endsFramer) finish(fr frame, take func(frame) bool) {
	switch {
	case len(fr.body) == 0:
	case take(fr):
		f.count.frames++
	default:
		f.count.broken++
		f.count.garbage += f.weight()
	}
	f.buf, f.state = f.buf[:0], endsOutside
	if f.flags() && f.o.trailer == 0 {
		f.begin() // this mark may be the start of the next as well
	}
}
