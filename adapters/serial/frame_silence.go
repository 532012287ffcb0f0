package serial

// silenceFramer takes what comes between two silences for a frame.
type silenceFramer struct {
	max   int
	count frameCounts
	buf   []byte
	skip  bool // out of step: everything goes, up to the next silence
}

func newSilenceFramer(maxLength int) *silenceFramer {
	return &silenceFramer{max: maxLength, skip: true}
}

func (f *silenceFramer) counts() frameCounts { return f.count }
func (f *silenceFramer) pending() bool       { return len(f.buf) > 0 || f.skip }

func (f *silenceFramer) lost() {
	f.drop()
	f.skip = true
}

func (f *silenceFramer) drop() {
	f.count.garbage += uint64(len(f.buf))
	f.buf = f.buf[:0]
}

func (f *silenceFramer) push(p []byte, _ func(frame) bool) {
	if f.skip {
		f.count.garbage += uint64(len(p))
		return
	}
	if len(f.buf)+len(p) > f.max {
		f.count.oversized++
		f.count.resyncs++
		f.count.garbage += uint64(len(p))
		f.lost()
		return
	}
	f.buf = append(f.buf, p...)
}

func (f *silenceFramer) quiet(take func(frame) bool) {
	if len(f.buf) > 0 {
		if take(plain(f.buf)) {
			f.count.frames++
			f.buf = f.buf[:0]
		} else {
			f.count.broken++
		}
	}
	f.drop()
	f.skip = false
}
