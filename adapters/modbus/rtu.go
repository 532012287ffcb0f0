package modbus

import "bytes"

// maxADU is the longest RTU frame (MODBUS Serial Line V1.02 §2.5.1).
const maxADU = 256

// AppendRTU appends the frame that carries pdu: unit, PDU, CRC low byte first
// (MODBUS Serial Line V1.02 §2.5.1).
func AppendRTU(b []byte, unit byte, pdu []byte) []byte {
	start := len(b)
	b = append(b, unit)
	b = append(b, pdu...)
	c := CRC(b[start:])
	return append(b, byte(c), byte(c>>8))
}

// echoMode is what a line is known to do with what we send.
type echoMode int

const (
	echoUnknown echoMode = iota
	echoNone             // an answer came that nothing of ours preceded
	echoBack             // what we send comes back to us
)

// scan is what the bytes received since a request amount to.
type scan struct {
	pdu      []byte // the answer, pointing into the bytes scanned; nil: not there
	end      int    // where the answer ends; what follows belongs to nobody
	echo     bool   // our request came back in front
	plain    bool   // the answer came, and had there been an echo we would know
	mismatch bool   // a whole frame of our unit that answers something else
	garbled  bool   // the bytes end with an answer to us by its header and length, but for a wrong checksum
	hurt     bool   // something like that, less certain
	partial  bool   // the bytes may be the start of the answer
	foreign  int    // whole frames of other units
	skipped  int    // bytes that belong to no frame
}

// scanAnswer looks for the answer to r, whose frame as sent is adu, in all the
// bytes received since. It slides over what makes no sense: a noise byte in
// front must not cost the answer. final says that the line has been
// silent since: then nothing is waited for, and an answer is also found behind
// something that looked like the start of one.
//
// It is a function of its arguments alone: each read scans anew, which costs
// nothing beside the time bytes take on a wire.
func scanAnswer(buf []byte, r Request, adu []byte, echo echoMode, final bool) (s scan) {
	ours := r.answerLen() + 3 // unit and CRC around it
	ambiguous := echoLooksLikeAnswer(r, adu)
	for i := 0; i < len(buf); {
		rest := buf[i:]
		// The echo is looked for before the answer, since it can be a
		// perfect answer too: 24 coils asked for at 0x0300 and above, or
		// a single write. Only on a line known to have no echo is such a
		// frame an answer.
		if !s.echo && bytes.HasPrefix(rest, adu) && (!ambiguous || echo != echoNone) {
			s.echo = true
			i += len(adu)
			continue
		}
		n, mine := frameLen(rest, r, ours)
		whole := n > 0 && n <= len(rest) && CRC(rest[:n]) == 0
		switch {
		case whole && mine:
			s.pdu, s.end = rest[1:n-2], i+n
			s.plain = !s.echo && !ambiguous
			return s
		case whole && rest[0] == r.Unit:
			s.mismatch = true
			i += n
		case whole:
			s.foreign++
			i += n
		case mine && n > len(rest) && !final:
			s.partial = true
			return s
		default:
			s.partial = s.partial || mine && n > len(rest)
			// Two bytes of noise look like the start of a refusal too
			// often: the answer may still be to come.
			refusal := mine && n == 5 && rest[1]&exceptionBit != 0
			s.garbled = s.garbled || mine && n == len(rest) && !refusal
			s.hurt = s.hurt || mine && n < len(rest) || refusal || final && len(rest) >= ours && likely(rest, r)
			s.skipped++
			i++
		}
	}
	return s
}

// frameLen returns how long the answer at the start of b is by its own account,
// 0 if it cannot be one, and whether it has the form of an answer to r. What is
// cut off counts as fitting.
func frameLen(b []byte, r Request, ours int) (n int, mine bool) {
	unit := b[0]
	if unit == 0 || unit > 247 {
		return 0, false
	}
	mine = unit == r.Unit
	if len(b) < 2 {
		return ours, mine
	}
	f := Function(b[1])
	mine = mine && f&^exceptionBit == r.Function
	if f.limit() == 0 && (f&^exceptionBit).limit() == 0 {
		return 0, false
	}
	switch {
	case f&exceptionBit != 0:
		return 5, mine
	case f == ReadDeviceID:
		if n = deviceIDLen(b[1:]); n == 0 {
			return 0, false
		}
		return n + 3, mine
	case f == MaskWriteRegister:
		return 10, mine
	case !f.reads():
		return 8, mine
	case len(b) < 3:
		return ours, mine
	}
	n = 5 + int(b[2])
	return n, mine && n == ours
}

// echoLooksLikeAnswer says whether the echo of a request has the form of its
// answer.
func echoLooksLikeAnswer(r Request, adu []byte) bool {
	n, mine := frameLen(adu, r, r.answerLen()+3)
	return mine && n == len(adu)
}

// likely says whether two of the three bytes that an answer to r starts with
// are right: enough to take it for one of which a byte was hurt.
func likely(b []byte, r Request) bool {
	right := 0
	if b[0] == r.Unit {
		right++
	}
	if b[1] == byte(r.Function) {
		right++
	}
	if third := byte(r.dataLen()); r.Function.reads() && b[2] == third || !r.Function.reads() && b[2] == byte(r.Addr>>8) {
		right++
	}
	return right >= 2
}
