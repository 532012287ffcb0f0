package packet

import (
	"encoding/binary"
	"errors"
)

// Shared is a PUBLISH in wire form, made once for many recipients that differ
// only in DUP, RETAIN, packet identifier and, among 1 and 2, QoS. It does not
// change after [Publish.Share] and many goroutines may append from it.
type Shared struct {
	frame []byte
	idAt  int // 0 when it has no packet identifier
}

// errShared is a mistake of the caller.
var errShared = errors.New("packet: shared PUBLISH is for the other kind of QoS")

// Share encodes the packet. Its packet identifier is left out of account.
func (p *Publish) Share(v Version) (Shared, error) {
	q := *p
	q.PacketID = 1
	frame, idAt, err := q.AppendHeaderTo(make([]byte, 0, q.Size(v)), v)
	if err != nil {
		return Shared{}, err
	}
	if v >= V5 {
		frame = append(frame, p.Properties...)
	}
	return Shared{frame: append(frame, p.Payload...), idAt: idAt}, nil
}

// Size returns the size of the whole packet, in bytes.
func (s Shared) Size() int { return len(s.frame) }

// AppendTo appends the packet for one recipient. qos is 0 if and only if it
// was when the packet was shared; id is not 0 if qos is not.
func (s Shared) AppendTo(b []byte, dup bool, qos byte, retain bool, id uint16) ([]byte, error) {
	if (qos == 0) != (s.idAt == 0) || qos > 2 || len(s.frame) == 0 {
		return b, errShared
	}
	if qos > 0 && id == 0 {
		err := errPacketID()
		err.Type = TypePublish
		return b, err
	}
	start := len(b)
	b = append(b, s.frame...)
	b[start] = publishFlags(dup, qos, retain)
	if qos > 0 {
		binary.BigEndian.PutUint16(b[start+s.idAt:], id)
	}
	return b, nil
}
