package access

import (
	"strings"
	"testing"

	"pgregory.net/rapid"

	"holdfast/broker"
	"holdfast/broker/topic"
)

func mustPattern(tb testing.TB, s string) *pattern {
	tb.Helper()
	p, err := newPattern(s, true)
	if err != nil {
		tb.Fatal(err)
	}
	return &p
}

func TestPatternsThatMeanNothingAreRefused(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"":              "empty",
		"a/#/b":         "'#' is not alone",
		"a+/b":          "'+' is not alone",
		"x%u/b":         "levels of their own",
		"%u%c":          "levels of their own",
		"a/%c-up":       "levels of their own",
		"$share/g/a":    "$share",
		"a\x00b":        "null character",
		"a/\xff":        "UTF-8",
		"$share":        "$share",
		"$share/g/%u/#": "$share",
	} {
		if _, err := newPattern(in, true); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("newPattern(%q) = %v, want %q in it", in, err, want)
		}
	}
	if _, err := newPattern("x%u/%c", false); err != nil {
		t.Errorf("without substitution %%u is text: %v", err)
	}
}

func TestNamesDoNotWidenAPattern(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		pattern, user, client, topic string
		want                         bool
	}{
		"the own topic":               {"s/%u/x", "ann", "c", "s/ann/x", true},
		"another's":                   {"s/%u/x", "ann", "c", "s/bob/x", false},
		"the literal":                 {"s/%u/x", "ann", "c", "s/%u/x", false},
		"client id":                   {"s/%c/x", "ann", "c", "s/c/x", true},
		"both":                        {"%u/%c/#", "ann", "c", "ann/c/1/2", true},
		"plus as user":                {"s/%u/x", "+", "c", "s/bob/x", false},
		"hash as user":                {"s/%u", "#", "c", "s/bob", false},
		"hash as client id":           {"s/%c", "ann", "#", "s/bob/x", false},
		"slash as client id":          {"s/%c/x", "ann", "a/b", "s/a/b/x", false},
		"slash and hash":              {"s/%c", "ann", "a/#", "s/a/b", false},
		"no user":                     {"s/%u/x", "", "c", "s//x", false},
		"no user, parent":             {"s/%u/#", "", "c", "s/", false},
		"user of $SYS":                {"%u/#", "$SYS", "c", "$SYS/broker/uptime", false},
		"user called $x, not first":   {"a/%u", "$x", "c", "a/$x", true},
		"hash does not show $SYS":     {"#", "ann", "c", "$SYS/broker/uptime", false},
		"plus does not show $SYS":     {"+/broker/uptime", "ann", "c", "$SYS/broker/uptime", false},
		"$SYS by name":                {"$SYS/#", "ann", "c", "$SYS/broker/uptime", true},
		"hash and its parent":         {"a/#", "ann", "c", "a", true},
		"a user called like a topic":  {"s/%u", "x y", "c", "s/x y", true},
		"user name is case sensitive": {"s/%u", "Ann", "c", "s/ann", false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			id := &broker.Identity{Name: tt.user, ClientID: tt.client}
			p := mustPattern(t, tt.pattern)
			if got := p.matches(tt.topic, id); got != tt.want {
				t.Errorf("%q for %+v matches %q: %t, want %t", tt.pattern, id, tt.topic, got, tt.want)
			}
			if tt.want && (!p.covers(tt.topic, id) || !p.overlaps(tt.topic, id) || !p.fends(tt.topic, id)) {
				t.Errorf("%q: a filter of one name is judged otherwise", tt.pattern)
			}
		})
	}
}

func TestADenialIsNotGotAroundByAName(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		pattern, user, client, topic string
		want                         bool
	}{
		"slash in the client id":  {"s/%c/secret", "ann", "a/b", "s/a/b/secret", true},
		"and all below":           {"s/%c/secret", "ann", "a/b", "s/x", true},
		"not what lies elsewhere": {"s/%c/secret", "ann", "a/b", "t/x", false},
		"not the parent":          {"s/%c", "ann", "a/b", "s", false},
		"at the beginning":        {"%c/secret", "ann", "a/b", "t/x", true},
		"anonymous clients":       {"s/%u", "", "c", "s/x", false},
		"a usable name":           {"s/%c", "ann", "c", "s/x", false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			id := &broker.Identity{Name: tt.user, ClientID: tt.client}
			if got := mustPattern(t, tt.pattern).fends(tt.topic, id); got != tt.want {
				t.Errorf("denial %q for %+v concerns %q: %t, want %t", tt.pattern, id, tt.topic, got, tt.want)
			}
		})
	}
}

func TestFiltersAgainstPatterns(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		pattern, filter  string
		covers, overlaps bool
	}{
		"the same":               {"a/#", "a/#", true, true},
		"narrower":               {"a/#", "a/b/+", true, true},
		"parent":                 {"a/#", "a", true, true},
		"wider":                  {"a/#", "#", false, true},
		"plus over name":         {"a/+", "a/b", true, true},
		"name under plus":        {"a/b", "a/+", false, true},
		"crossing":               {"a/+", "+/b", false, true},
		"apart":                  {"a/#", "b/#", false, false},
		"different depth":        {"a/b", "a/+/c", false, false},
		"hash needs no level":    {"a", "a/#", false, true},
		"hash below":             {"a/b/c", "a/b/#", false, true},
		"$ is out of #":          {"#", "$SYS/#", false, false},
		"$ is out of +":          {"+/broker", "$SYS/broker", false, false},
		"# brings no $":          {"$SYS/#", "#", false, false},
		"+ brings no $":          {"$SYS/a", "+/a", false, false},
		"$ and $":                {"$SYS/#", "$SYS/broker/+", true, true},
		"user's":                 {"u/%u/#", "u/ann/x", true, true},
		"user's by wildcard":     {"u/%u/#", "u/+/x", false, true},
		"another's":              {"u/%u/#", "u/bob/#", false, false},
		"no empty topic":         {"+", "/#", false, false},
		"nor that way":           {"/#", "+", false, false},
		"below the slash":        {"/+", "/#", false, true},
		"unusable name":          {"u/%c/#", "u/#", false, false},
		"unusable name, literal": {"u/%c/#", "u/+/#", false, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			id := &broker.Identity{Name: "ann", ClientID: "+"}
			p := mustPattern(t, tt.pattern)
			if got := p.covers(tt.filter, id); got != tt.covers {
				t.Errorf("%q covers %q: %t, want %t", tt.pattern, tt.filter, got, tt.covers)
			}
			if got := p.overlaps(tt.filter, id); got != tt.overlaps {
				t.Errorf("%q overlaps %q: %t, want %t", tt.pattern, tt.filter, got, tt.overlaps)
			}
		})
	}
}

// naive says what a pattern means, by the text of it alone: the names stand
// where they may, and topic.Match does the rest.
func naive(pattern string, id broker.Identity, name string) bool {
	levels := strings.Split(pattern, "/")
	for i, l := range levels {
		var sub string
		switch l {
		case "%u":
			sub = id.Name
		case "%c":
			sub = id.ClientID
		default:
			continue
		}
		if sub == "" || strings.ContainsAny(sub, "+#/") || i == 0 && strings.HasPrefix(sub, "$") {
			return false
		}
		levels[i] = sub
	}
	return topic.Match(strings.Join(levels, "/"), name)
}

var (
	genPatternLevel = rapid.SampledFrom([]string{"a", "b", "", "$a", "+", "%u", "%c"})
	genNameLevel    = rapid.SampledFrom([]string{"a", "b", "c", "", "$a"})
	genFilterLevel  = rapid.SampledFrom([]string{"a", "b", "", "$a", "+"})
	genWho          = rapid.SampledFrom([]string{"a", "b", "+", "#", "a/b", "$a", "c", ""})
)

func joined(t *rapid.T, levels *rapid.Generator[string], hash bool, label string) string {
	s := strings.Join(rapid.SliceOfN(levels, 1, 4).Draw(t, label), "/")
	if hash && rapid.Bool().Draw(t, "hash") {
		if rapid.IntRange(0, 4).Draw(t, "only") == 0 {
			return "#"
		}
		return s + "/#"
	}
	if s == "" {
		return "a"
	}
	return s
}

// names are all topics of up to four levels, enough to tell patterns of four
// apart.
var names = func() []string {
	levels := []string{"a", "b", "c", "", "$a", "zz"}
	all := []string{}
	level := []string{}
	for range 4 {
		var longer []string
		for _, l := range levels {
			if len(level) == 0 {
				longer = append(longer, l)
			}
			for _, s := range level {
				longer = append(longer, s+"/"+l)
			}
		}
		level = longer
		all = append(all, level...)
	}
	return all
}()

func TestPatternsGrantWhatTheirTextSays(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		text := joined(t, genPatternLevel, true, "pattern")
		id := broker.Identity{Name: genWho.Draw(t, "user"), ClientID: genWho.Draw(t, "client")}
		p, err := newPattern(text, true)
		if err != nil {
			t.Fatalf("newPattern(%q): %v", text, err)
		}
		name := joined(t, genNameLevel, false, "name")
		want := naive(text, id, name)
		if got := p.matches(name, &id); got != want {
			t.Fatalf("%q for %+v matches %q: %t, want %t", text, id, name, got, want)
		}
		if want && !p.fends(name, &id) {
			t.Fatalf("as a denial %q for %+v leaves %q out", text, id, name)
		}
	})
}

// A filter that is covered brings no name that is not granted; one that does
// not overlap brings none that is.
func TestFiltersBringNoMoreThanIsGranted(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		text := joined(t, genPatternLevel, true, "pattern")
		filter := joined(t, genFilterLevel, true, "filter")
		id := broker.Identity{Name: genWho.Draw(t, "user"), ClientID: genWho.Draw(t, "client")}
		p, err := newPattern(text, true)
		if err != nil {
			t.Fatalf("newPattern(%q): %v", text, err)
		}
		covers, overlaps := p.covers(filter, &id), p.overlaps(filter, &id)
		common := false
		for _, name := range names {
			if !topic.Match(filter, name) {
				continue
			}
			granted := naive(text, id, name)
			common = common || granted
			if covers && !granted {
				t.Fatalf("%q for %+v covers %q, which brings %q", text, id, filter, name)
			}
		}
		if common != overlaps {
			t.Fatalf("%q for %+v overlaps %q: %t, want %t", text, id, filter, overlaps, common)
		}
	})
}

func FuzzPattern(f *testing.F) {
	f.Add("s/%u/#", "ann", "c1", "s/ann/x")
	f.Add("%c/+", "a", "+", "+/x")
	f.Add("$SYS/#", "", "x", "$SYS/a")
	f.Add("%u", "$SYS", "x", "$SYS")
	f.Fuzz(func(t *testing.T, text, user, client, name string) {
		p, err := newPattern(text, true)
		if err != nil || topic.ValidFilter(name) != nil {
			return
		}
		id := broker.Identity{Name: user, ClientID: client}
		covers := p.covers(name, &id)
		if covers && !p.overlaps(name, &id) {
			t.Errorf("%q for %+v covers %q and has nothing in common with it", text, id, name)
		}
		if topic.ValidName(name) != nil {
			return
		}
		want := naive(text, id, name)
		if strings.Contains(user+client, "\x00") {
			want = want && p.matches(name, &id) // never in a name, see usable
		}
		if got := p.matches(name, &id); got != want || covers != want {
			t.Errorf("%q for %+v and %q: matches %t, covers %t, want %t", text, id, name, got, covers, want)
		}
	})
}
