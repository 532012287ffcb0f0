package serial

import (
	"errors"
	"regexp"
	"regexp/syntax"
	"slices"
	"unicode/utf8"
)

// regexpFramer takes for a frame what a pattern matches. A frame ends at the
// first byte at which there is a match: patterns are tried after each byte that
// can be the last of one.
type regexpFramer struct {
	pattern *regexp.Regexp // anchored at its end
	last    [256]bool      // bytes that a match can end with
	max     int
	count   frameCounts

	buf []byte
	// skip: out of step. A match at the very first byte might be the rest of
	// a frame whose beginning is missing.
	skip bool
}

// newRegexpFramer returns a framer for the pattern, or what is wrong with it.
func newRegexpFramer(pattern string, maxLength int) (*regexpFramer, error) {
	plain, err := syntax.Parse(pattern, syntax.Perl)
	if err != nil {
		return nil, err
	}
	if anchored(plain) {
		return nil, errors.New("^ and $ have no use: the stream has no beginning and no end")
	}
	re, err := regexp.Compile(`(?:` + pattern + `)\z`)
	if err != nil {
		return nil, err
	}
	f := &regexpFramer{pattern: re, max: maxLength, skip: true}
	lastBytes(plain.Simplify(), &f.last)
	return f, nil
}

// anchored says whether re asks for the beginning or the end of the text.
func anchored(re *syntax.Regexp) bool {
	return re.Op == syntax.OpBeginText || re.Op == syntax.OpEndText || slices.ContainsFunc(re.Sub, anchored)
}

// lastBytes notes what bytes a match of re can end with, and says whether it
// can be empty.
func lastBytes(re *syntax.Regexp, set *[256]bool) (empty bool) {
	all := func() {
		for i := range set {
			set[i] = true
		}
	}
	switch re.Op {
	case syntax.OpLiteral:
		// Letters that differ in case only need not have the same last byte.
		if re.Flags&syntax.FoldCase != 0 {
			all()
			return false
		}
		noteRune(re.Rune[len(re.Rune)-1], set) // an empty one is OpEmptyMatch
		return false
	case syntax.OpCharClass:
		for i := 0; i+1 < len(re.Rune); i += 2 {
			if re.Rune[i+1] >= utf8.RuneSelf {
				all()
				return false
			}
			for r := re.Rune[i]; r <= re.Rune[i+1]; r++ {
				set[r] = true
			}
		}
		return false
	case syntax.OpConcat:
		for _, sub := range slices.Backward(re.Sub) {
			if !lastBytes(sub, set) {
				return false
			}
		}
		return true
	case syntax.OpAlternate:
		for _, sub := range re.Sub {
			empty = lastBytes(sub, set) || empty
		}
		return empty
	case syntax.OpCapture, syntax.OpPlus:
		return lastBytes(re.Sub[0], set)
	case syntax.OpStar, syntax.OpQuest:
		lastBytes(re.Sub[0], set)
		return true
	case syntax.OpEmptyMatch, syntax.OpBeginLine, syntax.OpEndLine, syntax.OpBeginText, syntax.OpEndText,
		syntax.OpWordBoundary, syntax.OpNoWordBoundary:
		return true
	default: // any character, and what Simplify leaves none of
		all()
		return false
	}
}

func noteRune(r rune, set *[256]bool) {
	if r == utf8.RuneError { // any byte that is no UTF-8 matches it
		for i := range set {
			set[i] = true
		}
		return
	}
	b := utf8.AppendRune(nil, r)
	set[b[len(b)-1]] = true
}

func (f *regexpFramer) counts() frameCounts { return f.count }
func (f *regexpFramer) pending() bool       { return len(f.buf) > 0 }

func (f *regexpFramer) drop() {
	f.count.garbage += uint64(len(f.buf))
	f.buf = f.buf[:0]
}

func (f *regexpFramer) lost() {
	f.drop()
	f.skip = true
}

func (f *regexpFramer) quiet(func(frame) bool) {
	if len(f.buf) > 0 && !f.skip {
		f.count.partial++
	}
	f.drop()
	f.skip = false
}

func (f *regexpFramer) push(p []byte, take func(frame) bool) {
	for _, c := range p {
		if len(f.buf) == f.max {
			if !f.skip {
				f.count.oversized++
				f.count.resyncs++
			}
			f.skip = true
			f.count.garbage++
			f.buf = append(f.buf[:0], f.buf[1:]...)
		}
		f.buf = append(f.buf, c)
		if !f.last[c] {
			continue
		}
		m := f.pattern.FindIndex(f.buf)
		if m == nil || m[0] == m[1] {
			continue
		}
		f.count.garbage += uint64(m[0])
		switch {
		case f.skip && m[0] == 0:
			f.count.garbage += uint64(len(f.buf))
		case take(plain(f.buf[m[0]:])):
			f.count.frames++
		default:
			f.count.broken++
			f.count.garbage += uint64(len(f.buf) - m[0])
		}
		f.buf, f.skip = f.buf[:0], false
	}
}
