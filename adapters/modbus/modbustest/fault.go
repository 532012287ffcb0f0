package modbustest

import (
	"slices"
	"time"
)

// Fault is what goes wrong with one answer. The zero value is no fault; several
// fields combine.
type Fault struct {
	// Delay passes between the request and the first byte of the answer. The
	// values are those of the moment of the request; meanwhile the unit
	// queues what else it is asked.
	Delay time.Duration
	// Silent leaves the request without any answer.
	Silent bool
	// Exception answers with this code instead of data.
	Exception byte
	// CorruptCRC flips a bit of the checksum, the LRC with ASCII (TCP has
	// none); CorruptData one of the data, with the checksum of the right data.
	CorruptCRC, CorruptData bool
	// WrongUnit and WrongFunction, if not 0, replace what the answer claims
	// to come from, with a CRC that fits.
	WrongUnit, WrongFunction byte
	// WrongTransaction is added to the transaction id on TCP.
	WrongTransaction uint16
	// Cut is the number of bytes missing at the end.
	Cut int
	// Twice sends the frame two times in a row.
	Twice bool
	// Echo sends the request back in front of the answer.
	Echo bool
	// NoiseBefore and NoiseAfter surround the answer.
	NoiseBefore, NoiseAfter []byte
	// SplitAfter bytes, if not 0, the answer pauses for SplitPause.
	SplitAfter int
	SplitPause time.Duration
	// Hangup ends the connection instead of answering, or after SplitAfter
	// bytes of the answer if that is not 0.
	Hangup bool
	// Rewrite, if not nil, gets the whole answer in its final form and
	// returns what is written instead.
	Rewrite func(frame []byte) []byte
}

// apply frames pdu with the fault in it; tail is what follows after a pause.
func (f *Fault) apply(framing Framing, r request, pdu []byte) (head, tail []byte) {
	id := r.id
	if f.WrongUnit != 0 {
		id = f.WrongUnit
	}
	pdu = slices.Clone(pdu)
	if f.WrongFunction != 0 {
		pdu[0] = f.WrongFunction
	}
	b := frame(framing, id, r.txn+f.WrongTransaction, pdu)
	check := map[Framing]int{RTU: 2, TCP: 0, ASCII: 4}[framing] // characters behind the data
	if f.CorruptData {
		b[len(b)-check-1] ^= 0x01
	}
	if f.CorruptCRC && check > 0 {
		b[len(b)-check+1] ^= 0x01
	}
	if f.Cut > 0 {
		b = b[:max(0, len(b)-f.Cut)]
	}
	if f.Twice {
		b = slices.Concat(b, b)
	}
	if f.Echo {
		b = slices.Concat(frame(framing, r.id, r.txn, r.pdu), b)
	}
	b = slices.Concat(f.NoiseBefore, b, f.NoiseAfter)
	if f.Rewrite != nil {
		b = f.Rewrite(b)
	}
	if f.SplitAfter > 0 && f.SplitAfter < len(b) {
		return b[:f.SplitAfter], b[f.SplitAfter:]
	}
	return b, nil
}

func frame(framing Framing, id byte, txn uint16, pdu []byte) []byte {
	if framing == TCP {
		n := len(pdu) + 1
		return append([]byte{byte(txn >> 8), byte(txn), 0, 0, byte(n >> 8), byte(n), id}, pdu...)
	}
	if framing == ASCII {
		return asciiFrame(append([]byte{id}, pdu...))
	}
	return appendCRC(append([]byte{id}, pdu...))
}
