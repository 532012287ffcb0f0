package modbus

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func requests(bs []*block) []string {
	var out []string
	for _, b := range bs {
		out = append(out, fmt.Sprintf("%d:%d+%d", b.req.Function, b.req.Addr, b.req.Count))
	}
	return out
}

func planOf(tb testing.TB, d Device) []*block {
	tb.Helper()
	for i := range d.Points {
		d.Points[i].Name = fmt.Sprint("p", i)
	}
	d.Name, d.Unit = "d", 1
	c, err := compile(&d)
	if err != nil {
		tb.Fatal(err)
	}
	return plan(&device{compiled: c}, nil)
}

func TestPlanJoinsPoints(t *testing.T) {
	at := func(regs ...string) (ps []Point) {
		for _, r := range regs {
			ps = append(ps, Point{Register: r})
		}
		return ps
	}
	long := func(reg, typ string) Point { return Point{Register: reg, Type: typ} }
	tests := map[string]struct {
		change func(*Device)
		want   []string
	}{
		"touching, in any order":  {func(d *Device) { d.Points = at("holding:2", "holding:0", "holding:1") }, []string{"3:0+3"}},
		"a gap of eight":          {func(d *Device) { d.Points = at("holding:0", "holding:9") }, []string{"3:0+10"}},
		"a gap of nine":           {func(d *Device) { d.Points = at("holding:0", "holding:10") }, []string{"3:0+1", "3:10+1"}},
		"no gap allowed":          {func(d *Device) { d.MaxGap = new(0); d.Points = at("holding:0", "holding:1", "holding:3") }, []string{"3:0+2", "3:3+1"}},
		"tables apart":            {func(d *Device) { d.Points = at("holding:0", "input:1", "coil:2", "discrete:3") }, []string{"1:2+1", "2:3+1", "3:0+1", "4:1+1"}},
		"overlapping":             {func(d *Device) { d.Points = []Point{long("input:0", "float64"), long("input:1", "uint16")} }, []string{"4:0+4"}},
		"same register, two bits": {func(d *Device) { d.Points = at("holding:7.0", "holding:7.1") }, []string{"3:7+1"}},
		"across a hole":           {func(d *Device) { d.Holes = []string{"holding:2"}; d.Points = at("holding:0", "holding:4") }, []string{"3:0+1", "3:4+1"}},
		"beside a hole": {func(d *Device) {
			d.Holes = []string{"holding:5-9", "input:2"}
			d.Points = at("holding:0", "holding:4", "holding:10")
		}, []string{"3:0+5", "3:10+1"}},
		"a value is never cut": {func(d *Device) {
			d.MaxRegisters = 4
			d.Points = []Point{long("input:0", "uint16"), long("input:1", "float64")}
		}, []string{"4:0+1", "4:1+4"}},
		"last address": {func(d *Device) { d.Points = at("holding:65535", "holding:65534") }, []string{"3:65534+2"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			d := DefaultDevice()
			tt.change(&d)
			if diff := cmp.Diff(tt.want, requests(planOf(t, d))); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestPlanKeepsTheLimits(t *testing.T) {
	d := DefaultDevice()
	for i := range 200 {
		d.Points = append(d.Points, Point{Register: fmt.Sprint("holding:", i)})
	}
	for i := range 2500 {
		d.Points = append(d.Points, Point{Register: fmt.Sprint("coil:", i)})
	}
	want := []string{"1:0+2000", "1:2000+500", "3:0+125", "3:125+75"}
	if diff := cmp.Diff(want, requests(planOf(t, d))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Whatever the points: each is in exactly one request, whole; no request is too
// long or touches a hole; and halves of a block are such a plan again.
func TestPlanHoldsEveryPointOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := DefaultDevice()
		d.MaxGap = new(rapid.IntRange(0, 20).Draw(t, "max_gap"))
		d.MaxRegisters = rapid.IntRange(4, 125).Draw(t, "max_registers")
		d.Holes = []string{"holding:30-35", "coil:10"}
		n := rapid.IntRange(1, 40).Draw(t, "points")
		for i := range n {
			p := Point{Name: fmt.Sprint("p", i)}
			if rapid.Bool().Draw(t, "bit") {
				p.Register = fmt.Sprint("coil:", rapid.SampledFrom([]int{0, 1, 5, 9, 11, 60}).Draw(t, "addr"))
			} else {
				p.Register = fmt.Sprint("holding:", rapid.SampledFrom([]int{0, 1, 4, 20, 26, 36, 37, 80, 90}).Draw(t, "addr"))
				p.Type = rapid.SampledFrom([]string{"uint16", "float32", "int64"}).Draw(t, "type")
			}
			d.Points = append(d.Points, p)
		}
		d.Name, d.Unit = "d", 1
		c, err := compile(&d)
		if err != nil {
			t.Fatal(err)
		}
		todo := plan(&device{compiled: c}, nil)
		for len(todo) > 0 {
			seen := map[*point]int{}
			var next []*block
			for _, b := range todo {
				if _, err := b.req.AppendPDU(nil); err != nil {
					t.Fatal(err)
				}
				first, last := int(b.req.Addr), int(b.req.Addr)+int(b.req.Count)-1
				if b.req.Function == ReadCoils && first <= 10 && last >= 10 || b.req.Function != ReadCoils && first <= 35 && last >= 30 {
					t.Fatalf("%v touches a hole", b.req)
				}
				if b.req.Function != ReadCoils && int(b.req.Count) > d.MaxRegisters {
					t.Fatalf("%v is longer than %d", b.req, d.MaxRegisters)
				}
				for _, p := range b.points {
					seen[p]++
					if p.reg.Table.Read() != b.req.Function || int(p.reg.Addr) < first || p.end()-1 > last {
						t.Fatalf("%v does not hold %v", b.req, p.reg)
					}
				}
				if len(b.points) > 1 {
					low, high := b.split()
					next = append(next, low, high)
				} else {
					next = append(next, b)
				}
			}
			if len(seen) != n {
				t.Fatalf("%d points in requests, want %d", len(seen), n)
			}
			for p, times := range seen {
				if times != 1 {
					t.Fatalf("%s is in %d requests", p.name, times)
				}
			}
			if len(next) == len(todo) {
				return
			}
			todo = next
		}
	})
}
