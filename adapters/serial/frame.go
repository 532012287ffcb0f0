package serial

import "bytes"

// frameCounts count what happened to the bytes of a line.
type frameCounts struct {
	// frames were complete, and not empty.
	frames uint64
	// oversized frames were longer than allowed.
	oversized uint64
	// partial frames ended in silence.
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

// lost says that bytes may be missing before the next push.
func (f *delimiterFramer) lost() {
	f.drop()
	f.skip = true
}

// quiet says that the line has been silent for so long that the next byte
// begins a frame.
func (f *delimiterFramer) quiet() {
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

// pending says that a frame, or something to skip, has begun.
func (f *delimiterFramer) pending() bool { return len(f.buf) > 0 || f.skip }

// push takes the next bytes and calls emit for each frame they complete,
// without its delimiter. The slice is valid during the call. Empty frames are
// left out: devices put empty lines between their data.
func (f *delimiterFramer) push(p []byte, emit func(frame []byte)) {
	for _, c := range p {
		f.buf = append(f.buf, c)
		switch {
		case c == f.delim[len(f.delim)-1] && bytes.HasSuffix(f.buf, f.delim):
			f.end(emit)
		case f.skip && len(f.buf) >= len(f.delim):
			f.keepTail()
		case len(f.buf) >= f.max+len(f.delim):
			// Even if the last bytes become a delimiter, the frame is too long.
			f.count.oversized++
			f.skip = true
			f.keepTail()
		}
	}
}

func (f *delimiterFramer) end(emit func(frame []byte)) {
	if f.skip {
		f.drop()
		f.skip = false
		return
	}
	if frame := f.buf[:len(f.buf)-len(f.delim)]; len(frame) > 0 {
		f.count.frames++
		emit(frame)
	}
	f.buf = f.buf[:0]
}

// keepTail drops all but what may be the beginning of a delimiter.
func (f *delimiterFramer) keepTail() {
	tail := len(f.delim) - 1
	f.count.garbage += uint64(len(f.buf) - tail)
	f.buf = append(f.buf[:0], f.buf[len(f.buf)-tail:]...)
}
