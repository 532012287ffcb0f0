package client

// PacketIDs hands out packet ids, 1 to 65535, each to one use at a time; one
// allocator serves a whole session, SUBSCRIBE and UNSUBSCRIBE included (MQTT
// 5.0 §2.2.1). The zero value is ready. It is not safe for use from several
// goroutines.
type PacketIDs struct {
	used map[uint16]struct{}
	last uint16
}

// Take returns an id that is not in use, not one that has just become free as
// long as there are others; false when all are in use.
func (p *PacketIDs) Take() (id uint16, ok bool) {
	if len(p.used) == 65535 {
		return 0, false
	}
	for {
		p.last++
		if p.Reserve(p.last) {
			return p.last, true
		}
	}
}

// Reserve takes that id, one that an earlier connection used. It returns false
// when it is in use, and for 0.
func (p *PacketIDs) Reserve(id uint16) bool {
	if _, taken := p.used[id]; taken || id == 0 {
		return false
	}
	if p.used == nil {
		p.used = make(map[uint16]struct{})
	}
	p.used[id] = struct{}{}
	return true
}

// Free gives an id back; one that is not in use does no harm.
func (p *PacketIDs) Free(id uint16) { delete(p.used, id) }

// InUse returns how many ids are taken.
func (p *PacketIDs) InUse() int { return len(p.used) }
