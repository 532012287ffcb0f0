package access

import (
	"errors"
	"fmt"
	"strings"

	"holdfast/broker"
	"holdfast/broker/topic"
)

// pattern is a topic filter of which whole levels may stand for the client's
// user name (%u) or client id (%c).
type pattern struct {
	text   string // as written
	levels []level
	// subst says that some level is %u or %c.
	subst bool
}

type level struct {
	kind levelKind
	text string
}

type levelKind byte

const (
	levelText   levelKind = iota
	levelOne              // +
	levelAll              // #
	levelUser             // %u
	levelClient           // %c
)

// newPattern compiles a topic filter; subst says whether %u and %c mean
// anything in it.
func newPattern(s string, subst bool) (pattern, error) {
	if err := topic.ValidFilter(s); err != nil {
		return pattern{}, err
	}
	if _, _, shared, _ := topic.ParseShared(s); shared || s == "$share" || strings.HasPrefix(s, "$share/") {
		return pattern{}, errors.New("$share is no part of a topic; name what is subscribed to behind it")
	}
	p := pattern{text: s}
	for text := range strings.SplitSeq(s, "/") {
		l := level{text: text}
		switch {
		case text == "+":
			l.kind = levelOne
		case text == "#":
			l.kind = levelAll
		case !subst:
		case text == "%u":
			l.kind = levelUser
		case text == "%c":
			l.kind = levelClient
		case strings.Contains(text, "%u") || strings.Contains(text, "%c"):
			// Joined to other text, two clients could come to the same level:
			// x%u%c is xab for a with b and for ab with an empty one.
			return pattern{}, fmt.Errorf("%q: %%u and %%c are levels of their own, with nothing beside them", text)
		}
		p.subst = p.subst || l.kind >= levelUser
		p.levels = append(p.levels, l)
	}
	return p, nil
}

// meaning is what a level stands for, for one client.
type meaning byte

const (
	meansText meaning = iota
	meansOne
	meansAll
	meansNothing // %u of a client without a usable name: matches no topic
)

// resolve says what level i of the pattern stands for.
func (p *pattern) resolve(i int, id *broker.Identity) (meaning, string) {
	l := &p.levels[i]
	name := ""
	switch l.kind {
	case levelText:
		return meansText, l.text
	case levelOne:
		return meansOne, ""
	case levelAll:
		return meansAll, ""
	case levelUser:
		name = id.Name
	case levelClient:
		name = id.ClientID
	}
	if !usable(name, i == 0) {
		return meansNothing, ""
	}
	return meansText, name
}

// usable says whether a name can stand for one topic level and no more. One
// with wildcards or slashes in it would widen the pattern; at the beginning,
// "$SYS" or "$share" would lead to what no user owns.
func usable(name string, first bool) bool {
	return name != "" && !strings.ContainsAny(name, "+#/\x00") && (!first || name[0] != '$')
}

// next cuts the first level off a topic.
func next(rest string) (head, tail string, more bool) { return strings.Cut(rest, "/") }

// matches says whether a topic name is one of the pattern's. Wildcards in the
// first level do not match names that begin with $ (MQTT 5.0 §4.7.2
// [MQTT-4.7.2-1]). Nothing is allocated.
func (p *pattern) matches(name string, id *broker.Identity) bool { return p.match(name, id, false) }

// fends is matches for a denial: where %u or %c cannot stand for the client's
// name it stands for everything, so that a client does not get around a denial
// by its choice of a name.
func (p *pattern) fends(name string, id *broker.Identity) bool { return p.match(name, id, true) }

func (p *pattern) match(name string, id *broker.Identity, denial bool) bool {
	dollar := strings.HasPrefix(name, "$")
	more := true
	for i := range p.levels {
		m, text := p.resolve(i, id)
		if m == meansAll {
			// Also without more: a/# matches a (MQTT 5.0 §4.7.1.2).
			return i > 0 || !dollar
		}
		if !more {
			return false
		}
		var head string
		head, name, more = next(name)
		switch {
		case m == meansNothing:
			// Without a user name there is nobody's topic to deny.
			return denial && (p.levels[i].kind == levelClient || id.Name != "")
		case m == meansText && head != text, m == meansOne && i == 0 && dollar:
			return false
		}
	}
	return !more
}

// covers says whether all names that the filter matches are the pattern's. It
// may say no where a cleverer comparison says yes (+/# covers #), never the
// other way round.
func (p *pattern) covers(filter string, id *broker.Identity) bool {
	dollar := strings.HasPrefix(filter, "$")
	more := true
	for i := range p.levels {
		m, text := p.resolve(i, id)
		if m == meansAll {
			return i > 0 || !dollar
		}
		if !more {
			return false
		}
		var head string
		head, filter, more = next(filter)
		switch {
		case head == "#" || m == meansNothing:
			return false
		case m == meansOne:
			if i == 0 && dollar {
				return false
			}
		case head != text: // text has no wildcards
			return false
		}
	}
	return !more
}

// overlaps says whether some name that the filter matches is the pattern's.
func (p *pattern) overlaps(filter string, id *broker.Identity) bool {
	dollar, root := strings.HasPrefix(filter, "$"), strings.HasPrefix(filter, "/")
	more := true
	for i := range p.levels {
		m, text := p.resolve(i, id)
		if m == meansNothing {
			return false
		}
		if !more {
			return m == meansAll && !p.rooted(i)
		}
		var head string
		head, filter, more = next(filter)
		// Wildcards in the first level leave names with $ out, on both sides.
		if i == 0 {
			wild := m != meansText
			switch {
			case wild && dollar:
				return false
			case !wild && strings.HasPrefix(text, "$") && (head == "+" || head == "#"):
				return false
			}
		}
		switch {
		case head == "#":
			return p.possible(i, id)
		case m == meansAll:
			return true
		case m == meansOne || head == "+" || head == text:
		default:
			return false
		}
	}
	return !more || filter == "#" && !(len(p.levels) == 1 && root)
}

// rooted says whether level i is the one behind a leading slash: the parent of
// /# would be the empty topic, which there is not (MQTT 5.0 §4.7.3
// [MQTT-4.7.3-1]).
func (p *pattern) rooted(i int) bool {
	return i == 1 && p.levels[0].kind == levelText && p.levels[0].text == ""
}

// possible says whether the levels from i on can match anything at all.
func (p *pattern) possible(i int, id *broker.Identity) bool {
	for ; i < len(p.levels); i++ {
		if m, _ := p.resolve(i, id); m == meansNothing {
			return false
		}
	}
	return true
}
