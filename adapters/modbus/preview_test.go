package modbus

import (
	"testing"
	"time"
)

func TestPreviewOfAPoint(t *testing.T) {
	o := Point{Name: "p", Register: "input:3", Type: "uint32", Scale: 0.1}
	r, n, err := Extent(o, "CDAB")
	if err != nil || n != 2 || r.String() != "input:3" {
		t.Errorf("Extent = %v, %d, %v", r, n, err)
	}
	if v, _, err := Decode(o, "CDAB", []byte{0x00, 0xf4, 0, 0}); err != nil || v != 24.4 {
		t.Errorf("Decode = %v, %v, want 24.4", v, err)
	}
	if _, _, err := Decode(o, "", []byte{1}); err == nil {
		t.Error("Decode of one byte = nil error")
	}
	if _, _, err := Decode(Point{Name: "b", Register: "coil:1"}, "", []byte{1, 0}); err == nil {
		t.Error("Decode of a coil = nil error")
	}
	if _, _, err := Extent(Point{Name: "p", Register: "x"}, ""); err == nil {
		t.Error("Extent of no register = nil error")
	}
}

func TestPlanOfADevice(t *testing.T) {
	d := DefaultDevice()
	d.Name, d.Unit = "d", 17
	d.Points = []Point{{Name: "a", Register: "input:0", Type: "float32"}, {Name: "b", Register: "input:8"}, {Name: "c", Register: "holding:3"}}
	rs, err := Plan(&d)
	if err != nil || len(rs) != 2 {
		t.Fatalf("Plan = %v, %v, want two requests", rs, err)
	}
	if got := rs[1].String(); got != "unit 17 read input registers 0..8" {
		t.Errorf("Plan()[1] = %s", got)
	}
	// 8 characters of request, 23 of answer, and two silences of 3.5.
	if got, want := rs[1].TimeOnLine(time.Millisecond), 38*time.Millisecond; got != want {
		t.Errorf("TimeOnLine = %v, want %v", got, want)
	}
}
