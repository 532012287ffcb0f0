package uplink

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// level is one level of a topic filter or of a template for topics: a text, or
// what the n-th wildcard of the filter stands for.
type level struct {
	text    string
	capture int  // from 1; 0 for a text
	rest    bool // of "#": this level and all behind it, or none at all
}

// filterLevels takes a topic filter apart.
func filterLevels(filter string) []level {
	var ls []level
	n := 0
	for text := range strings.SplitSeq(filter, "/") {
		switch text {
		case "+", "#":
			n++
			ls = append(ls, level{capture: n, rest: text == "#"})
		default:
			ls = append(ls, level{text: text})
		}
	}
	return ls
}

// templateLevels takes a template apart in which {1}, {2} ... as a whole level
// stand for the wildcards of a filter, each exactly once, so that it can be read
// backwards too.
func templateLevels(template string, filter []level) ([]level, error) {
	var ls []level
	missing := map[int]level{}
	for _, l := range filter {
		if l.capture > 0 {
			missing[l.capture] = l
		}
	}
	all := strings.Split(template, "/")
	for i, text := range all {
		if !strings.ContainsAny(text, "{}") {
			ls = append(ls, level{text: text})
			continue
		}
		n, err := strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(text, "{"), "}"))
		l, ok := missing[n]
		switch {
		case err != nil || text != "{"+strconv.Itoa(n)+"}":
			return nil, fmt.Errorf("level %q: only {1}, {2} ... stand for something, as a whole level", text)
		case !ok:
			return nil, fmt.Errorf("{%d}: the filter has no such wildcard, or it stands there twice", n)
		case l.rest && i != len(all)-1:
			return nil, fmt.Errorf("{%d} stands for \"#\" and must be last", n)
		}
		delete(missing, n)
		ls = append(ls, l)
	}
	for n := range missing {
		return nil, fmt.Errorf("{%d} is missing", n)
	}
	if len(ls) == 0 || template == "" {
		return nil, errors.New("is empty")
	}
	return ls, nil
}

// filterOf is the topic filter that matches what levels stand for.
func filterOf(ls []level) string {
	parts := make([]string, len(ls))
	for i, l := range ls {
		switch {
		case l.rest:
			parts[i] = "#"
		case l.capture > 0:
			parts[i] = "+"
		default:
			parts[i] = l.text
		}
	}
	return strings.Join(parts, "/")
}

// rename turns a topic that matches from into that of to, with the same in place
// of the wildcards.
func rename(name string, from, to []level) string {
	captured := make([]string, len(from)+1)
	none := 0 // the capture that stands for nothing
	rest, more := name, true
	for _, l := range from {
		if l.rest {
			if captured[l.capture] = rest; !more {
				none = l.capture
			}
			break
		}
		var text string
		text, rest, more = strings.Cut(rest, "/")
		captured[l.capture] = text // 0 is for texts
	}
	var b strings.Builder
	for i, l := range to {
		if l.capture > 0 && l.capture == none {
			break // "a/#" matches "a" too (MQTT 5.0 §4.7.1.2)
		}
		if i > 0 {
			b.WriteByte('/')
		}
		if l.capture == 0 {
			b.WriteString(l.text)
		} else {
			b.WriteString(captured[l.capture])
		}
	}
	return b.String()
}
