package modbus

import (
	"math"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"holdfast/adapters/modbus/modbustest"
	"holdfast/adapters/reading"
)

// known are the points of the expressions below.
var known = map[string]any{"a": 3.0, "b": 4.0, "zero": 0.0, "on": true, "mode": "heating", "phase-1": 230.1, "größe": 2.0}

func knownKind(name string) (kind, bool) {
	switch known[name].(type) {
	case float64:
		return aNumber, true
	case bool:
		return aBool, true
	case string:
		return aText, true
	default:
		return "", false
	}
}

func TestExpressions(t *testing.T) {
	tests := map[string]struct {
		want any
		err  string
	}{
		"a + b*2":                            {want: 11.0},
		"(a + b) * 2":                        {want: 14.0},
		"-a + +b":                            {want: 1.0},
		"b / a * 3":                          {want: 4.0},
		"0.1 + 0.2":                          {want: 0.3},
		"0x10 + 1e1 + .5":                    {want: 26.5},
		"0x1e+5 + 1e+1 + 0b11 + 010 + 1_000": {want: 1056.0},
		"0x1p-2 + 1.5e-1":                    {want: 0.4},
		"99999999999999999999 > a":           {want: true},
		"a - b - 1":                          {want: -2.0},
		"a - -b":                             {want: 7.0},
		"24 / b / a * 2":                     {want: 4.0},
		"on || on && a > b":                  {want: true},
		"!(on) == (a > b)":                   {want: true},
		"max(a, b,)":                         {want: 4.0},
		"  a\t+\r\n b":                       {want: 7.0},
		`mode != "heat\u0069ng\""`:           {want: true},
		"a % 2":                              {want: 1.0},
		"-7 % 3":                             {want: -1.0},
		`point("phase-1") * 0.5`:             {want: 115.05},
		"größe * 2":                          {want: 4.0},
		"a < b && !(a >= b) || false":        {want: true},
		"a == 3 && a != b && on":             {want: true},
		`mode == "heating"`:                  {want: true},
		"choose(on, mode, `off`)":            {want: "heating"},
		"choose(zero != 0, a / zero, -1)":    {want: -1.0},
		"abs(-2) + floor(1.7) + ceil(1.2)":   {want: 5.0},
		"sqrt(pow(a, 2) + pow(b, 2))":        {want: 5.0},
		"min(a, b, 1) + max(a, b, 1)":        {want: 5.0},
		"round(2.345, 1) + round(2.5)":       {want: 5.3},
		"round(ln(exp(2)) + log10(1000), 3)": {want: 5.0},
		"a / zero":                           {err: "division by zero"},
		"a % zero":                           {err: "division by zero"},
		"a / (b - 4)":                        {err: "division by zero"},
		"sqrt(-1)":                           {err: "not a number"},
		"exp(10000)":                         {err: "not a number"},
		"abs(a/zero) > 1":                    {err: "division by zero"},
		"choose(sqrt(-1) > 1, 1, 0)":         {err: "not a number"},
		"a / exp(10000)":                     {err: "not a number"},
		"sqrt(-1) != 2":                      {err: "not a number"},
		"min(exp(10000), 1)":                 {err: "not a number"},
	}
	for s, tt := range tests {
		e, err := parseExpression(s, knownKind)
		if err != nil {
			t.Errorf("%s: %v", s, err)
			continue
		}
		got, err := e.value(envOf(e))
		if text := errText(err); got != tt.want || text != tt.err {
			t.Errorf("%s = %v (%s), want %v (%s)", s, got, text, tt.want, tt.err)
		}
	}
}

func envOf(e *expression) (env []any) {
	for _, name := range e.inputs {
		env = append(env, known[name])
	}
	return env
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestExpressionsRefused(t *testing.T) {
	tests := map[string]string{
		"":                    "expected operand",
		"a +":                 "expected operand",
		"a b":                 "1:3: expected an operator, found b",
		"a +\n* b":            "2:1: expected operand, found *",
		"größe + @":           "1:11: illegal character \"@\"",
		"a + \xff":            "illegal character",
		"a = b":               "1:3: expected ==, found =",
		"(a":                  "1:3: expected ), found the end",
		"a)":                  "1:2: expected an operator, found )",
		"max(a b)":            "1:7: expected , or ), found b",
		"max(,)":              "1:5: expected operand, found ,",
		"max(a...)":           "expected a name, found .",
		`mode == "heating`:    "1:9: text not terminated",
		"mode == \"a\nb\"":    "text not terminated",
		`mode == "\q"`:        `"\q" is not a text`,
		"(abs)(a)(b)":         "only functions can be called",
		"1a":                  "1a is not a number",
		"08":                  "08 is not a number",
		"1.2.3":               "1.2.3 is not a number",
		"a ^ b":               "^ has no meaning between",
		"a &^ b":              "&^ has no meaning between",
		"a // b":              "expected operand, found /",
		"volts * a":           `there is no point "volts"`,
		"on + 1":              "+ has no meaning between a bool and a number",
		"a && on":             "&& has no meaning between a number and a bool",
		"a == on":             "== has no meaning between a number and a bool",
		"mode < 2":            "< has no meaning between a text and a number",
		"-mode":               "- has no meaning for a text",
		"!a":                  "! has no meaning for a number",
		"a & b":               "& has no meaning between a number and a number",
		"a << b":              "<< has no meaning",
		"&a":                  "& has no meaning for a number",
		"sin(a)":              "there is no function sin",
		"abs()":               "abs takes 1 to 1 numbers",
		"abs(on)":             "abs takes 1 to 1 numbers",
		"choose(a, 1, 2)":     "choose takes a bool and two values of one kind",
		"choose(on, 1, mode)": "choose takes a bool",
		"point(a)":            "point takes a name in quotes",
		`point("nobody")`:     `there is no point "nobody"`,
		"a.b":                 "only points, numbers, texts",
		"a[0]":                "only points, numbers, texts",
		"func() {}":           "only points, numbers, texts",
		"a.b()":               "only functions can be called",
		"'x'":                 "'x' is neither a number nor a text",
		"2i":                  "2i is neither a number nor a text",
		"1e999":               "1e999 is not a number",
		"a" + strings.Repeat("+a", maxExpression): "2001 characters, at most 1000",
		strings.Repeat("(", 400) + "a":            "expected",
		strings.Repeat("!", 900) + "on && a":      "&& has no meaning",
		"struct{}{}":                              "only points, numbers, texts",
	}
	for s, want := range tests {
		if _, err := parseExpression(s, knownKind); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v, want %s", s, err, want)
		}
	}
}

// Whatever the text: no panic, and a value of the kind promised, or none.
func FuzzExpression(f *testing.F) {
	for _, s := range []string{"a / b", "choose(on, a, -b)", `mode == "x" || a < 2`, "round(a, b)", `point("phase-1") % zero`, "min(a)", "func(){}()", "[]int{a}[b]"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		e, err := parseExpression(s, knownKind)
		if err != nil {
			return
		}
		v, err := e.value(envOf(e))
		switch v := v.(type) {
		case nil:
			if err == nil {
				t.Errorf("%q has no value and no reason", s)
			}
		case float64:
			if e.kind != aNumber || math.IsNaN(v) || math.IsInf(v, 0) {
				t.Errorf("%q, a %s, = %v", s, e.kind, v)
			}
		case bool:
			if e.kind != aBool {
				t.Errorf("%q, a %s, = %v", s, e.kind, v)
			}
		case string:
			if e.kind != aText {
				t.Errorf("%q, a %s, = %q", s, e.kind, v)
			}
		}
	})
}

func TestComputedPointsAreCheckedBeforehand(t *testing.T) {
	tests := map[string]struct {
		points []Point
		want   string
	}{
		"itself":          {[]Point{{Name: "x", Expression: "x + 1"}}, "point[1].expression: x is computed from itself (x <- x)"},
		"a circle":        {[]Point{{Name: "x", Expression: "y"}, {Name: "y", Expression: "p0 + z"}, {Name: "z", Expression: "x"}}, "point[3].expression: x is computed from itself (x <- y <- z <- x)"},
		"nobody":          {[]Point{{Name: "x", Expression: "p0 + volts"}}, `point[1].expression: "p0 + volts": there is no point "volts"`},
		"nothing":         {[]Point{{Name: "x", Expression: "1 + 1"}}, `point[1].expression: "1 + 1" names no point`},
		"with a register": {[]Point{{Name: "x", Expression: "p0", Register: "holding:1"}}, "point[1].expression: a point that is computed has no register"},
		"with a scale":    {[]Point{{Name: "x", Expression: "p0", Scale: 2}}, "point[1].expression: a point that is computed has no register"},
		"taken name":      {[]Point{{Name: "p0", Expression: "p0"}}, `point[1].name: "p0" is taken`},
		"decimals":        {[]Point{{Name: "x", Expression: "p0 > 1", Decimals: new(1)}}, "point[1].decimals: 1 is outside"},
		"deadband":        {[]Point{{Name: "x", Expression: "p0 > 1", Report: reading.Report{Deadband: 1}}}, "point[1].deadband: only a number has one"},
		"every":           {[]Point{{Name: "x", Expression: "p0", Every: 1}}, "point[1].every: 1ns is outside"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			d := meter("m", 1, time.Second, 0)
			d.Points = append(d.Points, tt.points...)
			if err := d.Validate(); err == nil || !strings.HasPrefix(err.Error(), "device.m."+tt.want) {
				t.Errorf("Validate() = %v, want device.m.%s...", err, tt.want)
			}
		})
	}
	d := DefaultDevice()
	d.Name, d.Unit, d.Points = "m", 1, []Point{{Name: "x", Expression: "y"}, {Name: "y", Expression: "x"}}
	if err := d.Validate(); err == nil || err.Error() != "device.m.point: there is no point to read" {
		t.Errorf("Validate() = %v of a device with computed points only", err)
	}
}

// computing is a device with computed points in any order: power of two inputs in
// different requests, what is made of it, and one with an input that is read
// less often.
func computing() Device {
	d := meter("m", 1, time.Second)
	d.Points = []Point{
		{Name: "high", Expression: "power > 500", Report: reading.Report{Report: reading.ReportChange}},
		{Name: "power", Expression: "voltage * current", Unit: "W", Decimals: new(1)},
		{Name: "voltage", Register: "holding:0", Scale: 0.1},
		{Name: "current", Register: "holding:100", Scale: 0.01},
		{Name: "tariff", Register: "holding:200", Every: 10 * time.Second},
		{Name: "cost", Expression: "power * tariff"},
		{Name: "ratio", Expression: "power / tariff"},
	}
	return d
}

func TestComputedPoints(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, options(computing()))
		u := r.slave.Unit(1)
		u.SetHolding(0, 2301)
		u.SetHolding(100, 100)
		u.SetHolding(200, 2)
		r.start()
		r.after(4500 * time.Millisecond)
		u.SetHolding(100, 300)
		r.after(5 * time.Second)
		u.SetHolding(200, 0)
		r.after(3 * time.Second)
		u.Deny(modbustest.Holding, 100, modbustest.DeviceFailure)
		r.after(3 * time.Second)
		u.Deny(modbustest.Holding, 100, 0)
		r.after(2 * time.Second)
		r.stop()
		five := func(v string, n int) []string { return slices.Repeat([]string{v}, n) }
		want := map[string][]string{
			// Once a cycle, though both inputs come in requests of their own.
			"power": slices.Concat(five("230.1 good", 5), five("690.3 good", 8), []string{"<nil> bad"}, five("690.3 good", 2)),
			"high":  {"false good", "true good", "<nil> bad", "true good"},
			// The tariff is read every 10 s, after what is more urgent, and holds
			// meanwhile.
			"cost":  slices.Concat(five("460.2 good", 5), five("1380.6 good", 6), five("0 good", 2), []string{"<nil> bad"}, five("0 good", 2)),
			"ratio": slices.Concat(five("115.05 good", 5), five("345.15 good", 6), five("<nil> bad", 2), []string{"<nil> bad"}, five("<nil> bad", 2)),
		}
		for point, w := range want {
			if diff := cmp.Diff(w, r.of(point)); diff != "" {
				t.Errorf("%s (-want +got):\n%s", point, diff)
			}
		}
		reasons := map[string]bool{}
		for _, g := range r.readings() {
			if g.Reason != "" {
				reasons[g.Point+": "+g.Reason] = true
			}
		}
		for _, want := range []string{
			"power: current: exception 4 (server device failure)",
			"cost: power: current: exception 4 (server device failure)", "ratio: division by zero",
		} {
			if !reasons[want] {
				t.Errorf("no reading says %q: %v", want, reasons)
			}
		}
		points := r.bus.Devices()[0].Points
		if len(points) != 7 || points[3].Name != "power" || points[3].DeviceClass != "power" {
			t.Errorf("Devices() lists %+v, want the computed ones too, with their classes", points)
		}
	})
}

// A computed point is good only if all it is made of is; it is lost with the
// unit, said once, and comes back with it.
func TestComputedPointsFollowTheirInputs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := meter("m", 1, time.Second, 0, 1)
		d.Points[0].Invalid = []int64{0xffff}
		d.Points[1].Enum = map[string]string{"0": "off", "1": "on"}
		d.Points = append(d.Points, Point{Name: "sum", Expression: `choose(p1 == "on", p0, 0)`})
		r := newRig(t, options(d))
		u := r.slave.Unit(1)
		u.SetHolding(0, 5, 1)
		r.start()
		r.after(1500 * time.Millisecond)
		u.SetHolding(0, 0xffff)
		r.after(time.Second)
		u.SetHolding(0, 5, 7)
		r.after(time.Second)
		u.Fault(modbustest.Fault{Silent: true}, -1)
		r.after(30 * time.Second)
		u.Fault(modbustest.Fault{}, 0)
		u.SetHolding(0, 6, 1)
		r.after(time.Minute)
		r.stop()
		got := r.of("sum")
		want := []string{"5 good", "5 good", "<nil> bad", "0 uncertain", "<nil> bad", "6 good"}
		if len(got) < len(want) || !slices.Equal(got[:len(want)], want) || slices.Contains(got[5:], "<nil> bad") {
			t.Errorf("sum = %v, want %v and on", got, want)
		}
	})
}
