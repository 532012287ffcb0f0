package server

import (
	"bytes"

	"holdfast/adapters/modbus"
)

const (
	// longest is the longest RTU frame (MODBUS Serial Line V1.02 §2.5.1).
	longest = 256
	// kept is how many bytes are kept that may still become a frame.
	kept = 4 * longest
)

// framer finds requests for some units among all that is said on an RTU line. What
// others ask and answer is passed over as whole frames, so that data in them are not
// taken for a request.
type framer struct {
	units [256]bool
	buf   []byte
	sent  []byte // our last answer, while its echo may come; nil: none can

	skipped bool // the byte before buf belongs to no frame
	tail    int  // bytes since the last frame that belong to none

	foreign, garbled, echoes uint64
}

// request is a frame for us, or for all.
type request struct {
	unit byte
	pdu  []byte
	// aligned says that it began where the line was silent, or another frame ended.
	aligned bool
}

// next takes frames off the front of what came, up to the next request for us. Final
// says that the line has been silent since: nothing more belongs to it.
func (f *framer) next(final bool) (r request, ok bool) {
	final = final || len(f.buf) > kept
	for len(f.buf) > 0 {
		if len(f.sent) > 0 {
			if bytes.HasPrefix(f.buf, f.sent) {
				f.echoes++
				f.drop(len(f.sent))
				continue
			}
			if !final && bytes.HasPrefix(f.sent, f.buf) {
				return request{}, false
			}
		}
		n, asks, wait := f.frame(final)
		if wait {
			return request{}, false
		}
		if n == 0 {
			if !f.skipped {
				f.garbled++
			}
			f.tail++
			f.skipped, f.buf = true, f.buf[1:]
			continue
		}
		b, aligned := f.buf[:n], !f.skipped
		f.drop(n)
		if asks && (b[0] == 0 || f.units[b[0]]) {
			return request{unit: b[0], pdu: bytes.Clone(b[1 : n-2]), aligned: aligned}, true
		}
		f.foreign++
	}
	if final {
		f.skipped = false
	}
	return request{}, false
}

func (f *framer) drop(n int) { f.buf, f.skipped, f.tail, f.sent = f.buf[n:], false, 0, nil }

// frame is the frame at the front: n is its length, 0 if there is none; wait says
// that it may still become one.
func (f *framer) frame(final bool) (n int, asks, wait bool) {
	b := f.buf
	switch {
	case b[0] > 247:
		return 0, false, false
	case len(b) < 2:
		return 0, false, !final
	}
	req, ans := modbus.RequestLen(b), modbus.AnswerLen(b)
	if b[0] == 0 {
		ans = 0 // nobody answers a broadcast
	}
	switch {
	case whole(b, req):
		return req, true, false
	case whole(b, ans):
		return ans, false, false
	case !final:
		// How long those of a function not known are, only silence tells.
		return 0, false, req > len(b) || ans > len(b) || req == 0 && ans == 0
	case req == 0 && ans == 0 && len(b) >= 4 && whole(b, len(b)):
		return len(b), b[1]&0x80 == 0 && b[1] != 0 && !f.skipped, false
	}
	return 0, false, false
}

// whole says that the first n of b are a frame with the right checksum.
func whole(b []byte, n int) bool {
	return n > 0 && n <= min(len(b), longest) && modbus.CRC(b[:n]) == 0
}
