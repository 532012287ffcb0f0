package serial

import "bytes"

// headerFramer cuts frames whose length is known from their beginning: fixed,
// or written in it. A frame that cannot be one, or fails its checksum, costs one
// byte: what follows that is looked at again, so that with a checksum no frame
// is lost to noise before it. Without one, a sync word that turns up in noise
// costs what it seems to be the beginning of, at most max bytes.
type headerFramer struct {
	sync []byte
	// head is how many bytes size needs; never less than those of sync.
	head int
	// size returns the length of the frame that begins with head, all of it.
	size func(head []byte) int
	max  int
	// checked says that take knows a frame from noise.
	checked bool
	count   frameCounts

	buf  []byte
	skip bool // out of step
}

func (f *headerFramer) counts() frameCounts { return f.count }
func (f *headerFramer) pending() bool       { return len(f.buf) > 0 }

func (f *headerFramer) lost() {
	f.count.garbage += uint64(len(f.buf))
	f.buf, f.skip = f.buf[:0], true
}

func (f *headerFramer) quiet(take func(frame) bool) {
	if len(f.buf) > 0 && !f.skip {
		f.count.partial++
	}
	// Frames may be waiting behind something that only looked like the
	// beginning of a longer one. Without a checksum nobody could tell them
	// from data.
	for f.checked && len(f.buf) > 0 {
		f.slide(1)
		f.scan(take)
	}
	f.count.garbage += uint64(len(f.buf))
	f.buf, f.skip = f.buf[:0], false
}

func (f *headerFramer) push(p []byte, take func(frame) bool) {
	for len(p) > 0 {
		// No more at once than makes one frame, so that the buffer is bounded.
		n := min(len(p), f.max+f.head-len(f.buf))
		f.buf = append(f.buf, p[:n]...)
		p = p[n:]
		f.scan(take)
	}
}

// scan takes all frames that are complete; what is left is less than one.
func (f *headerFramer) scan(take func(frame) bool) {
	from := 0 // what stands before has been dealt with
	defer func() {
		f.buf = append(f.buf[:0], f.buf[from:]...)
	}()
	for {
		b := f.buf[from:]
		if n := f.skipTo(b); n > 0 {
			f.fall()
			f.count.garbage += uint64(n)
			from += n
			continue
		}
		if len(b) < f.head {
			return
		}
		n := f.size(b[:f.head])
		if n < f.head || n > f.max {
			if n > f.max && !f.skip {
				f.count.oversized++
			}
			f.fall()
			f.count.garbage++
			from++
			continue
		}
		if len(b) < n {
			return
		}
		if !take(plain(b[:n])) {
			if !f.skip {
				f.count.broken++
			}
			f.fall()
			f.count.garbage++
			from++
			continue
		}
		f.count.frames++
		f.skip = false
		from += n
	}
}

// fall notes that a frame did not begin where one should.
func (f *headerFramer) fall() {
	if !f.skip {
		f.count.resyncs++
		f.skip = true
	}
}

// skipTo returns how many bytes stand before the next sync word or what may
// become one.
func (f *headerFramer) skipTo(b []byte) int {
	if len(f.sync) == 0 {
		return 0
	}
	if i := bytes.Index(b, f.sync); i >= 0 {
		return i
	}
	for tail := min(len(f.sync)-1, len(b)); tail > 0; tail-- {
		if bytes.HasPrefix(f.sync, b[len(b)-tail:]) {
			return len(b) - tail
		}
	}
	return len(b)
}

// slide drops n bytes.
func (f *headerFramer) slide(n int) {
	f.fall()
	f.count.garbage += uint64(n)
	f.buf = append(f.buf[:0], f.buf[n:]...)
}
