package modbus

import (
	"bytes"
	"encoding/hex"
)

// maxASCII is the longest ASCII frame, in characters (MODBUS Serial Line V1.02
// §2.5.2.1).
const maxASCII = 513

// LRC returns the checksum of an ASCII frame: the two's complement of the sum of
// the bytes that the characters stand for, so that the sum of all with the LRC
// is 0 (MODBUS Serial Line V1.02 §6.2.1).
func LRC(b []byte) byte {
	var sum byte
	for _, x := range b {
		sum += x
	}
	return -sum
}

// AppendASCII appends the frame that carries pdu: a colon, unit, PDU and LRC in
// hexadecimal, CR LF (MODBUS Serial Line V1.02 §2.5.2.1).
func AppendASCII(b []byte, unit byte, pdu []byte) []byte {
	const digits = "0123456789ABCDEF"
	b = append(b, ':')
	put := func(x byte) { b = append(b, digits[x>>4], digits[x&15]) }
	put(unit)
	for _, x := range pdu {
		put(x)
	}
	put(LRC(pdu) - unit)
	return append(b, '\r', '\n')
}

// ParseASCII reads the one frame that b is, from its colon to its LF. Errors wrap
// [ErrMalformed], or are [ErrGarbled] when the checksum does not fit.
func ParseASCII(b []byte) (unit byte, pdu []byte, err error) {
	raw, ok := unASCII(b)
	switch {
	case !ok || len(raw) < 3:
		return 0, nil, ErrMalformed
	case LRC(raw) != 0:
		return 0, nil, ErrGarbled
	}
	return raw[0], raw[1 : len(raw)-1], nil
}

// unASCII returns the bytes that a frame stands for, LRC included.
func unASCII(b []byte) (raw []byte, ok bool) {
	b, colon := bytes.CutPrefix(b, []byte(":"))
	b, end := bytes.CutSuffix(b, []byte("\r\n"))
	if !colon || !end || len(b) > maxASCII-3 {
		return nil, false
	}
	raw = make([]byte, hex.DecodedLen(len(b)))
	if _, err := hex.Decode(raw, b); err != nil {
		return nil, false
	}
	return raw, true
}

// scanASCII looks for the answer to r like [scanAnswer] does, in ASCII frames,
// which say by themselves where they start and end: a colon in the middle of one
// starts it anew.
func scanASCII(buf []byte, r Request, adu []byte, echo echoMode, final bool) (s scan) {
	asked, _ := unASCII(adu)
	ambiguous := answers(asked[1:len(asked)-1], r)
	for i := 0; i < len(buf); {
		rest := buf[i:]
		if rest[0] != ':' {
			s.skipped++
			i++
			continue
		}
		if !s.echo && bytes.HasPrefix(rest, adu) && (!ambiguous || echo != echoNone) {
			s.echo = true
			i += len(adu)
			continue
		}
		n := bytes.IndexByte(rest, '\n') + 1
		if again := bytes.IndexByte(rest[1:], ':') + 1; again > 0 && (n == 0 || again < n) {
			s.hurt = s.hurt || bytes.HasPrefix(rest, adu[:3])
			s.skipped += again
			i += again
			continue
		}
		if n == 0 {
			mine := bytes.HasPrefix(rest, adu[:min(3, len(rest))])
			s.partial = s.partial || mine
			if mine && !final {
				return s
			}
			s.hurt = s.hurt || mine && len(rest) >= 5
			s.skipped += len(rest)
			return s
		}
		raw, ok := unASCII(rest[:n])
		fits := ok && len(raw) >= 3 && raw[0] == r.Unit && answers(raw[1:len(raw)-1], r)
		whole := ok && len(raw) >= 3 && LRC(raw) == 0
		switch {
		case whole && fits:
			s.pdu, s.end = raw[1:len(raw)-1], i+n
			s.plain = !s.echo && !ambiguous
			return s
		case whole && raw[0] == r.Unit:
			s.mismatch = true
		case whole:
			s.foreign++
		default:
			s.garbled = s.garbled || fits
			s.hurt = s.hurt || fits || len(raw) >= 3 && likely(raw, r) || bytes.HasPrefix(rest, adu[:3])
			s.skipped += n
		}
		i += n
	}
	return s
}

// answers says whether pdu has the form of an answer to r.
func answers(pdu []byte, r Request) bool {
	switch Function(pdu[0]) {
	case r.Function | exceptionBit:
		return len(pdu) == 2
	case ReadDeviceID:
		return r.Function == ReadDeviceID && deviceIDLen(pdu) == len(pdu)
	case r.Function:
		return len(pdu) == r.answerLen() && (!r.Function.reads() || int(pdu[1]) == r.dataLen())
	default:
		return false
	}
}
