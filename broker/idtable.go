package broker

import "iter"

// idTable holds what is under way by packet id. It is a hash table in one piece,
// open addressing with the ids themselves for the hash: ids are given in a
// circle, and so what a client has under way lies side by side. The zero value is
// empty.
type idTable[T any] struct {
	slots []idSlot[T] // a power of two, at least a quarter of them free
	n     int
	away  int // how many of them are not where their id says
}

type idSlot[T any] struct {
	id uint16 // 0 for a free slot: no packet has it (MQTT 5.0 §2.2.1)
	v  T
}

const (
	// minSlots is what the first id takes.
	minSlots = 8
	// keptSlots is how many an empty table keeps, for the default windows. A
	// client that has had a larger burst is not to pin the room for it.
	keptSlots = 512
)

func (t *idTable[T]) len() int { return t.n }

// at is where the id is, or the free slot where it would be. There is always
// one, if there are slots.
func (t *idTable[T]) at(id uint16) int {
	mask := len(t.slots) - 1
	i := int(id) & mask
	for t.slots[i].id != id && t.slots[i].id != 0 {
		i = (i + 1) & mask
	}
	return i
}

func (t *idTable[T]) has(id uint16) bool { return t.get(id) != nil }

// get returns what there is under the id, nil for nothing. It is good until the
// next put or remove.
func (t *idTable[T]) get(id uint16) *T {
	if t.n == 0 {
		return nil
	}
	if s := &t.slots[t.at(id)]; s.id == id && id != 0 {
		return &s.v
	}
	return nil
}

// put returns what there is under the id, the zero value if that is new. It is
// good until the next put or remove.
func (t *idTable[T]) put(id uint16) *T {
	if 4*(t.n+1) > 3*len(t.slots) {
		t.grow()
	}
	i := t.at(id)
	s := &t.slots[i]
	if s.id == 0 {
		s.id = id
		t.n++
		t.placed(i, 1)
	}
	return &s.v
}

// placed counts what came to slot i, or left it, if its place is another.
func (t *idTable[T]) placed(i, by int) {
	if int(t.slots[i].id)&(len(t.slots)-1) != i {
		t.away += by
	}
}

func (t *idTable[T]) grow() {
	old := t.slots
	t.slots = make([]idSlot[T], max(2*len(old), minSlots))
	t.away = 0
	for _, s := range old {
		if s.id != 0 {
			i := t.at(s.id)
			t.slots[i] = s
			t.placed(i, 1)
		}
	}
}

// remove takes the id out. What lies behind it and belongs before it moves up,
// so that nothing is looked for beyond a free slot in vain.
func (t *idTable[T]) remove(id uint16) {
	if t.n == 0 || id == 0 {
		return
	}
	i := t.at(id)
	if t.slots[i].id == 0 {
		return
	}
	if t.n--; t.n == 0 && len(t.slots) > keptSlots {
		*t = idTable[T]{}
		return
	}
	t.placed(i, -1)
	mask := len(t.slots) - 1
	for j := (i + 1) & mask; t.away > 0 && t.slots[j].id != 0; j = (j + 1) & mask {
		if home := int(t.slots[j].id) & mask; (j-home)&mask >= (j-i)&mask {
			t.placed(j, -1)
			t.slots[i] = t.slots[j]
			t.placed(i, 1)
			i = j
		}
	}
	t.slots[i] = idSlot[T]{}
}

// all goes through the table in no order; it may not be changed meanwhile.
func (t *idTable[T]) all() iter.Seq2[uint16, *T] {
	return func(yield func(uint16, *T) bool) {
		for i := range t.slots {
			if s := &t.slots[i]; s.id != 0 && !yield(s.id, &s.v) {
				return
			}
		}
	}
}
