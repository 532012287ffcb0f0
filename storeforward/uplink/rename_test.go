package uplink

import (
	"strings"
	"testing"

	"pgregory.net/rapid"

	"holdfast/broker/topic"
)

func TestRename(t *testing.T) {
	tests := map[string]struct {
		route      Route
		here, away string
	}{
		"a level moved":      {Route{Filter: "sensors/+/+", Rename: "{2}/of/{1}"}, "sensors/boiler/flow", "flow/of/boiler"},
		"the rest":           {Route{Filter: "a/+/#", Rename: "x/{1}/y/{2}"}, "a/1/b/c/d", "x/1/y/b/c/d"},
		"no rest":            {Route{Filter: "a/+/#", Rename: "x/{1}/y/{2}"}, "a/1", "x/1/y"},
		"an empty rest":      {Route{Filter: "a/#", Rename: "x/{1}"}, "a/", "x/"},
		"empty levels":       {Route{Filter: "a/+/+", Rename: "{1}/{2}/x"}, "a//b", "/b/x"},
		"no wildcards":       {Route{Filter: "alarm", Rename: "plants/7/alarm"}, "alarm", "plants/7/alarm"},
		"with both prefixes": {Route{Filter: "+/t", LocalPrefix: "here/", Rename: "temp/{1}", Prefix: "site/7/"}, "here/oven/t", "site/7/temp/oven"},
		"everything":         {Route{Filter: "#", Rename: "site/{1}"}, "a/b", "site/a/b"},
		"another topic":      {Route{Filter: "a/+", Rename: "{1}/a"}, "b/c", ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			tt.route.Direction = DirectionBoth
			if err := tt.route.validate("gw"); err != nil {
				t.Fatal(err)
			}
			out, in := compile([]Route{tt.route}, "gw")
			if _, got := out.find(tt.here); got != tt.away {
				t.Errorf("%q became %q at the cloud, want %q", tt.here, got, tt.away)
			}
			if tt.away == "" {
				return
			}
			if _, got := in.inbound(tt.away); got != tt.here {
				t.Errorf("%q became %q here, want %q", tt.away, got, tt.here)
			}
		})
	}
}

// Whatever the filter and its template, what goes there and comes back is the
// same topic.
func TestRenameThereAndBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		level := rapid.SampledFrom([]string{"a", "b", "", "+"})
		filter := strings.Join(append(rapid.SliceOfN(level, 1, 4).Draw(t, "filter"), rapid.SampledFrom([]string{"x", "#"}).Draw(t, "last")), "/")
		var parts []string
		rest := ""
		for _, l := range filterLevels(filter) {
			switch {
			case l.rest:
				rest = "{" + string(rune('0'+l.capture)) + "}"
			case l.capture > 0:
				parts = append(parts, "{"+string(rune('0'+l.capture))+"}")
			}
		}
		parts = append(parts, "t")
		parts = rapid.Permutation(parts).Draw(t, "template")
		if rest != "" {
			parts = append(parts, rest)
		}
		r := Route{Direction: DirectionBoth, Filter: filter, Rename: strings.Join(parts, "/")}
		if err := r.validate("gw"); err != nil {
			t.Fatalf("%+v: %v", r, err)
		}
		name := strings.Join(rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "", "x", "long"}), 1, 7).Draw(t, "name"), "/")
		out, in := compile([]Route{r}, "gw")
		w, away := out.find(name)
		if w == nil {
			if topic.Match(filter, name) {
				t.Fatalf("%q is not carried by %q", name, filter)
			}
			return
		}
		if _, back := in.find(away); back != name {
			t.Fatalf("%+v: %q became %q and that %q", r, name, away, back)
		}
	})
}
