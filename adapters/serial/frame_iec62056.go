package serial

import "bytes"

// iecFramer cuts what an electricity meter says by IEC 62056-21 (formerly IEC 1107):
//
//	/LGZ5ZMF100AC.M29 CR LF                  who it is: a frame, from "/" to LF
//	STX data ! CR LF ETX BCC                 what it has: a frame, without the marks
//	CR LF data ! CR LF                       the same in mode D, which has no BCC
//
// The block check character is the exclusive or of what follows STX, ETX included
// (§6.3 with ISO 1745), in seven bits: a line with eight has the parity in the
// highest one.
type iecFramer struct {
	max   int
	count frameCounts

	state iecState
	buf   []byte
	bcc   byte
}

type iecState byte

const (
	iecLost  iecState = iota // up to "/" or STX everything goes
	iecIdent                 // from "/"
	iecText                  // after an identification, until STX or "!"
	iecBlock                 // from STX
	iecCheck                 // after ETX
)

const (
	stx = 0x02
	etx = 0x03
	// maxIdent is the length of the longest identification, without CR LF: "/",
	// three letters of the maker, the baud character and 16 more (§6.3.2); DSMR P1
	// has longer ones.
	maxIdent = 64
)

func newIECFramer(maxLength int) *iecFramer { return &iecFramer{max: maxLength} }

func (f *iecFramer) counts() frameCounts { return f.count }

func (f *iecFramer) lost() { f.drop(iecLost) }

func (f *iecFramer) quiet(func(frame) bool) {
	if f.pending() {
		f.count.partial++
	}
	f.drop(iecLost)
}

// drop gives up what there is.
func (f *iecFramer) drop(next iecState) {
	f.count.garbage += uint64(len(f.buf))
	f.begin(next)
}

func (f *iecFramer) begin(next iecState) {
	f.buf, f.bcc, f.state = f.buf[:0], 0, next
}

func (f *iecFramer) pending() bool {
	return len(f.buf) > 0 || f.state == iecBlock || f.state == iecCheck
}

func (f *iecFramer) push(p []byte, take func(frame) bool) {
	for _, c := range p {
		f.next(c&0x7f, take)
	}
}

func (f *iecFramer) next(c byte, take func(frame) bool) {
	switch {
	case f.state == iecCheck:
		if c == f.bcc && len(f.buf) > 0 && take(plain(f.buf)) {
			f.count.frames++
			f.begin(iecLost)
			return
		}
		f.count.broken++
		f.count.resyncs++
		f.drop(iecLost)
	case c == stx:
		if f.state == iecIdent || f.state == iecBlock {
			f.count.partial++
		}
		f.drop(iecBlock) // what came after the identification was a glitch
	case f.state == iecLost && c != '/':
		f.count.garbage++
	case f.state == iecLost, f.state == iecText && c == '/' && (len(f.buf) == 0 || f.buf[len(f.buf)-1] == '\n'):
		f.drop(iecIdent)
		f.buf = append(f.buf, c)
	case f.state == iecBlock:
		f.bcc ^= c
		if c == etx {
			f.state = iecCheck
			return
		}
		f.add(c, f.max)
	case f.state == iecIdent:
		if f.add(c, min(maxIdent, f.max)) && c == '\n' {
			f.take(bytes.TrimRight(f.buf, "\r\n"), take)
			f.begin(iecText)
		}
	default:
		if f.add(c, f.max) && c == '\n' && f.last() {
			f.take(f.buf, take)
			f.begin(iecLost)
		}
	}
}

// last says that the line that ends here begins with "!".
func (f *iecFramer) last() bool {
	line := f.buf[:len(f.buf)-1]
	line = line[bytes.LastIndexByte(line, '\n')+1:]
	return len(line) > 0 && line[0] == '!'
}

func (f *iecFramer) take(body []byte, take func(frame) bool) {
	if take(plain(body)) {
		f.count.frames++
		return
	}
	f.count.broken++
}

// add keeps a character if there is room.
func (f *iecFramer) add(c byte, most int) bool {
	if len(f.buf) < most {
		f.buf = append(f.buf, c)
		return true
	}
	f.count.oversized++
	f.count.resyncs++
	f.count.garbage++
	f.drop(iecLost)
	return false
}
