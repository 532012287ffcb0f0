package topic

// aliasCost is what the alias takes in a packet, in bytes (MQTT 5.0
// §3.3.2.3.4): a topic that is not longer than twice this gains nothing by being
// sent with its alias once and replaced by it once.
const aliasCost = 3

// Aliases gives topics numbers that stand for them on one connection, in one
// direction (MQTT 5.0 §3.3.2.3.4); whoever sends asks it, the broker and the uplink. While there
// are numbers left every topic gets one when it is first sent; then the one that
// was not sent for longest gives its number to a topic that was sent more often
// of late. So topics that come once, or more topics in turn than there are
// numbers, do not push out each other.
type Aliases struct {
	most   int
	topics map[string]uint16
	// given are the topics by alias-1, in a ring through given[first-1] by when
	// they were last sent.
	given []aliased
	first uint16 // sent last; 0 when none is given
	// sought counts topics without an alias; nil until there are none left.
	sought map[string]uint32
	sent   int // since the counts were halved
}

type aliased struct {
	topic        string
	sent         uint32
	newer, older uint16 // aliases
}

// NewAliases gives aliases 1 to most, up to 65535. It takes no memory before one is
// used, and remembers five times as many topics at most.
func NewAliases(most int) Aliases { return Aliases{most: most} }

// None says that there are no aliases to give.
func (a *Aliases) None() bool { return a.most == 0 }

// Choose returns the alias of a topic, and whether the peer knows it; 0 when the
// topic gets none. Nothing changes before [Aliases.Used].
func (a *Aliases) Choose(topic string) (id uint16, known bool) {
	if id := a.topics[topic]; id != 0 {
		return id, true
	}
	switch {
	case len(topic) <= 2*aliasCost || a.most == 0:
		return 0, false
	case len(a.given) < a.most:
		return uint16(len(a.given) + 1), false
	}
	if id = a.at(a.first).newer; a.sought[topic] > a.at(id).sent {
		return id, false
	}
	return 0, false
}

func (a *Aliases) at(id uint16) *aliased { return &a.given[id-1] }

// Used says that a packet of the topic went out with the alias that Choose
// returned for it; 0 when it went without one that the peer does not know yet.
func (a *Aliases) Used(topic string, id uint16) {
	if a.most == 0 || len(topic) <= 2*aliasCost {
		return
	}
	if a.sent++; a.sent > 8*a.most+1024 {
		a.age()
	}
	switch {
	case id != 0 && int(id) <= len(a.given) && a.at(id).topic == topic:
		a.at(id).sent++
	case id == 0:
		if a.sought == nil || len(a.sought) >= 4*a.most {
			a.sought = make(map[string]uint32)
		}
		a.sought[topic]++
		return
	case int(id) > len(a.given):
		if a.topics == nil {
			a.topics = make(map[string]uint16)
		}
		a.given = append(a.given, aliased{topic, 1, id, id})
		a.topics[topic] = id
	default:
		old := a.at(id)
		delete(a.topics, old.topic)
		a.topics[topic] = id
		old.topic, old.sent = topic, a.sought[topic]
		delete(a.sought, topic)
	}
	if a.first != 0 && a.first != id {
		e := a.at(id)
		a.at(e.newer).older, a.at(e.older).newer = e.older, e.newer
		a.link(id)
	}
	a.first = id
}

// link puts an alias in front of the first: in a ring that is behind the last.
func (a *Aliases) link(id uint16) {
	first := a.at(a.first)
	last := first.newer
	*a.at(id) = aliased{a.at(id).topic, a.at(id).sent, last, a.first}
	first.newer, a.at(last).older = id, id
}

// age halves all counts, so that what was sent often long ago does not stay.
func (a *Aliases) age() {
	a.sent = 0
	for i := range a.given {
		a.given[i].sent /= 2
	}
	for topic, n := range a.sought {
		if n /= 2; n == 0 {
			delete(a.sought, topic)
		} else {
			a.sought[topic] = n
		}
	}
}
