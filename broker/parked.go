package broker

import (
	"sync"
	"sync/atomic"

	"holdfast/broker/message"
)

// parked is a message that waits in RAM for clients with a full window, one for
// all of them, and is used again when the last has been sent it: a broker at the
// limit of its subscribers leaves no garbage. Nobody may keep the message beyond
// its hold.
type parked struct {
	m     message.Message
	piece []byte // payload and properties
	holds atomic.Int32
}

// maxParked is the largest piece that is used again, in bytes; what waits for
// slow clients is bounded elsewhere, this bounds what is left of it.
const maxParked = 4 << 10

var parking = sync.Pool{New: func() any { return new(parked) }}

// park copies a message that is lent. The caller has the first hold.
func park(lent *message.Message) *parked {
	p, _ := parking.Get().(*parked)
	p.m = *lent
	p.piece = append(append(p.piece[:0], lent.Payload...), lent.Properties...)
	n := len(lent.Payload)
	p.m.Payload = p.piece[:n:n]
	if len(lent.Properties) > 0 {
		p.m.Properties = p.piece[n:]
	}
	p.holds.Store(1)
	return p
}

// hold and letGo do nothing for nil. What is never let go of is the garbage
// collector's.
func (p *parked) hold() {
	if p != nil {
		p.holds.Add(1)
	}
}

func (p *parked) letGo() {
	if p == nil || p.holds.Add(-1) > 0 {
		return
	}
	if cap(p.piece) > maxParked {
		p.piece = nil
	}
	parking.Put(p)
}
