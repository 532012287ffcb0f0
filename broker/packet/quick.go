package packet

import "encoding/binary"

// quick takes the packets that come most from the buffer: a PUBLISH without
// properties, and acknowledgements without anything to add. Nil leaves it to
// decode, which knows all of them and says what is wrong; what quick returns is
// what decode would.
func (r *Reader) quick() Packet {
	b := r.buf[r.start:r.end]
	if len(b) < 4 {
		return nil
	}
	if Type(b[0]>>4) == TypePublish {
		return r.quickPublish(b)
	}
	if b[1] != 2 {
		return nil
	}
	id := binary.BigEndian.Uint16(b[2:])
	if id == 0 || r.limit > 0 && r.limit < 4 {
		return nil
	}
	if r.burdened { // by a reason or properties of before
		r.burdened = false
		r.puback, r.pubrec, r.pubrel, r.pubcomp = Puback{}, Pubrec{}, Pubrel{}, Pubcomp{}
	}
	var p Packet
	switch b[0] {
	case byte(TypePuback) << 4:
		r.puback.PacketID = id
		p = &r.puback
	case byte(TypePubrec) << 4:
		r.pubrec.PacketID = id
		p = &r.pubrec
	case byte(TypePubrel)<<4 | 2:
		r.pubrel.PacketID = id
		p = &r.pubrel
	case byte(TypePubcomp) << 4:
		r.pubcomp.PacketID = id
		p = &r.pubcomp
	default:
		return nil
	}
	r.start += 4
	r.need = 0
	return p
}

func (r *Reader) quickPublish(b []byte) Packet {
	rest, at := int(b[1]), 2
	if rest >= 0x80 {
		// Zero would be no minimal form (MQTT 5.0 §1.5.5 [MQTT-1.5.5-1]).
		if b[2] == 0 || b[2] >= 0x80 {
			return nil
		}
		rest, at = rest&0x7f|int(b[2])<<7, 3
	}
	size := at + rest
	flags := b[0] & 0x0f
	qos := flags & publishQoS >> 1
	if size > len(b) || r.limit > 0 && size > r.limit || qos > 2 || flags&publishDup != 0 && qos == 0 || rest < 2 {
		return nil
	}
	body := b[at:size:size]
	n := int(binary.BigEndian.Uint16(body))
	head := 2 + n
	if qos > 0 {
		head += 2
	}
	if r.version >= V5 {
		head++
	}
	if n == 0 || head > len(body) {
		return nil
	}
	topic := body[2 : 2+n : 2+n]
	id := uint16(0)
	if qos > 0 {
		if id = binary.BigEndian.Uint16(body[2+n:]); id == 0 {
			return nil
		}
	}
	if r.version >= V5 && body[head-1] != 0 || !ValidBytes(topic) {
		return nil
	}
	p := &r.publish
	p.Dup, p.QoS, p.Retain = flags&publishDup != 0, qos, flags&publishRetain != 0
	p.PacketID, p.Topic, p.TopicAlias = id, topic, 0
	p.HasExpiry, p.MessageExpiry = false, 0
	p.SubscriptionIDs, p.Properties = keep(p.SubscriptionIDs), nil
	p.scratch = keep(p.scratch)
	p.Payload = body[head:]
	r.start += size
	r.need = 0
	return p
}
