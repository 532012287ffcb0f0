package serial

import "bytes"

// frame is one message of a device, as the framing sees it.
type frame struct {
	// body is what the device says, without what begins and ends a frame.
	body []byte
	// raw is what a checksum is computed over: the body, or more of the frame.
	raw []byte
}

// plain is a frame that is all body.
func plain(b []byte) frame { return frame{body: b, raw: b} }

// framer cuts a stream into frames. What it makes of a stream does not depend
// on how the stream is cut into pushes. It holds no more than a frame of the
// longest length allowed, plus what ends it. It belongs to one goroutine.
type framer interface {
	// push takes the next bytes and calls take for each frame they complete,
	// which is valid during the call and not empty. take returns false if its
	// checksum says that it is none; a framer that looks for the beginning of
	// frames then looks again inside of it.
	push(p []byte, take func(frame) bool)
	// quiet says that the line has been silent for so long that the next byte
	// begins a frame. It may end one.
	quiet(take func(frame) bool)
	// lost says that bytes may be missing before the next push.
	lost()
	// pending says that a frame, or something to skip, has begun.
	pending() bool
	// counts returns what has happened so far.
	counts() frameCounts
}

// frameCounts count what happened to the bytes of a line.
type frameCounts struct {
	// frames were complete, not empty, and whole as far as a checksum tells.
	frames uint64
	// broken frames had a wrong checksum, or an escape that there is not.
	broken uint64
	// resyncs count how often the framer fell out of step, and had to look for
	// the beginning of a frame.
	resyncs uint64
	// oversized frames were longer than allowed.
	oversized uint64
	// partial frames ended in silence, or where another began.
	partial uint64
	// garbage counts all bytes that were dropped.
	garbage uint64
}

// delimiterFramer cuts a stream at a delimiter. What it makes of a stream does
// not depend on how the stream is cut into pushes.
//
// It starts out of step: the first bytes may be the rest of a frame, and what
// is left of "W=1250" might be taken for a weight of 50. It is in step after a
// delimiter or a silence.
type delimiterFramer struct {
	delim []byte
	max   int
	count frameCounts

	buf  []byte // the frame so far; while skipping, what may be the start of a delimiter
	skip bool   // out of step: everything goes, up to the next delimiter
}

func newDelimiterFramer(delim []byte, maxLength int) *delimiterFramer {
	return &delimiterFramer{delim: delim, max: maxLength, skip: true}
}

func (f *delimiterFramer) counts() frameCounts { return f.count }

func (f *delimiterFramer) lost() {
	f.drop()
	f.skip = true
}

func (f *delimiterFramer) quiet(func(frame) bool) {
	if len(f.buf) > 0 && !f.skip {
		f.count.partial++
	}
	f.drop()
	f.skip = false
}

func (f *delimiterFramer) drop() {
	f.count.garbage += uint64(len(f.buf))
	f.buf = f.buf[:0]
}

func (f *delimiterFramer) pending() bool { return len(f.buf) > 0 || f.skip }

// Empty frames are left out: devices put empty lines between their data.
func (f *delimiterFramer) push(p []byte, take func(frame) bool) {
	for _, c := range p {
		f.buf = append(f.buf, c)
		switch {
		case c == f.delim[len(f.delim)-1] && bytes.HasSuffix(f.buf, f.delim):
			f.end(take)
		case f.skip && len(f.buf) >= len(f.delim):
			f.keepTail()
		case len(f.buf) >= f.max+len(f.delim):
			// Even if the last bytes become a delimiter, the frame is too long.
			f.count.oversized++
			f.count.resyncs++
			f.skip = true
			f.keepTail()
		}
	}
}

func (f *delimiterFramer) end(take func(frame) bool) {
	if f.skip {
		f.drop()
		f.skip = false
		return
	}
	if b := f.buf[:len(f.buf)-len(f.delim)]; len(b) > 0 {
		if !take(plain(b)) {
			f.count.broken++
			f.drop()
			return
		}
		f.count.frames++
	}
	f.buf = f.buf[:0]
}

// keepTail drops all but what may be the beginning of a delimiter.
func (f *delimiterFramer) keepTail() {
	tail := len(f.delim) - 1
	f.count.garbage += uint64(len(f.buf) - tail)
	f.buf = append(f.buf[:0], f.buf[len(f.buf)-tail:]...)
}

// cobsFramer undoes Consistent Overhead Byte Stuffing: frames end with a zero,
// and have none inside (Cheshire and Baker, IEEE/ACM Transactions on Networking
// 7(2), 1999).
type cobsFramer struct {
	delimiterFramer
	limit int // of the decoded frame
	out   []byte
}

func newCOBSFramer(maxLength int) *cobsFramer {
	// Each run of up to 254 bytes costs one more.
	return &cobsFramer{delimiterFramer: *newDelimiterFramer([]byte{0}, maxLength+maxLength/254+1), limit: maxLength}
}

func (f *cobsFramer) push(p []byte, take func(frame) bool) {
	f.delimiterFramer.push(p, func(coded frame) bool {
		var ok bool
		if f.out, ok = appendCOBS(f.out[:0], coded.body); !ok || len(f.out) > f.limit {
			return false
		}
		return len(f.out) == 0 || take(plain(f.out))
	})
}

// appendCOBS appends the decoded form of b, which holds no zero, and says
// whether there is one.
func appendCOBS(dst, b []byte) ([]byte, bool) {
	for len(b) > 0 {
		n := int(b[0])
		if n == 0 || n > len(b) {
			return dst, false
		}
		dst = append(dst, b[1:n]...)
		// A full run stands for no zero, and neither does the last one.
		if b = b[n:]; n < 0xff && len(b) > 0 {
			dst = append(dst, 0)
		}
	}
	return dst, true
}
