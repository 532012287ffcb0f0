package client

// PacketIDs hands out packet ids, 1 to 65535, each to one use at a time; one
// allocator serves a whole session, SUBSCRIBE and UNSUBSCRIBE included (MQTT
// 5.0 §2.2.1). The zero value is ready. It is not safe for use from several
// goroutines.
type PacketIDs struct {
	pages [1 << 16 / pageIDs]*idPage
	inUse int
	last  uint16
}

// idPage has a bit for each of pageIDs ids in a row; there are pages only for
// what is in use.
type idPage struct {
	bits  [pageIDs / 64]uint64
	inUse int
}

const pageIDs = 1024

// Take returns an id that is not in use, not one that has just become free as
// long as there are others; false when all are in use.
func (p *PacketIDs) Take() (id uint16, ok bool) {
	if p.inUse == 65535 {
		return 0, false
	}
	for {
		p.last++
		if p.Reserve(p.last) {
			return p.last, true
		}
		if page := p.pages[p.last/pageIDs]; page != nil && page.bits[p.last%pageIDs/64]>>(p.last%64) == ^uint64(0)>>(p.last%64) {
			p.last |= 63 // the rest of the word is taken
		}
	}
}

// Reserve takes that id, one that an earlier connection used. It returns false
// when it is in use, and for 0.
func (p *PacketIDs) Reserve(id uint16) bool {
	if id == 0 {
		return false
	}
	page := &p.pages[id/pageIDs]
	if *page == nil {
		*page = new(idPage)
	}
	word, bit := &(*page).bits[id%pageIDs/64], uint64(1)<<(id%64)
	if *word&bit != 0 {
		return false
	}
	*word |= bit
	(*page).inUse++
	p.inUse++
	return true
}

// Free gives an id back; one that is not in use does no harm.
func (p *PacketIDs) Free(id uint16) {
	page := p.pages[id/pageIDs]
	if page == nil || page.bits[id%pageIDs/64]&(1<<(id%64)) == 0 {
		return
	}
	page.bits[id%pageIDs/64] &^= 1 << (id % 64)
	p.inUse--
	if page.inUse--; page.inUse == 0 && id/pageIDs != p.last/pageIDs { // the next is from this one
		p.pages[id/pageIDs] = nil
	}
}

// InUse returns how many ids are taken.
func (p *PacketIDs) InUse() int { return p.inUse }
