package client

import (
	"testing"

	"pgregory.net/rapid"
)

// The ids behave as a set does.
func TestPacketIDsAreASet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var p PacketIDs
		set := map[uint16]bool{}
		near := rapid.Uint16Range(0, 130) // so that they meet
		t.Repeat(map[string]func(*rapid.T){
			"take": func(t *rapid.T) {
				id, ok := p.Take()
				if !ok || id == 0 || set[id] {
					t.Fatalf("Take = %d, %v, with %d in use", id, ok, len(set))
				}
				set[id] = true
			},
			"reserve": func(t *rapid.T) {
				id := near.Draw(t, "id")
				if got, want := p.Reserve(id), id != 0 && !set[id]; got != want {
					t.Fatalf("Reserve(%d) = %v, want %v", id, got, want)
				}
				if id != 0 {
					set[id] = true
				}
			},
			"free": func(t *rapid.T) {
				id := near.Draw(t, "id")
				p.Free(id)
				delete(set, id)
			},
			"": func(t *rapid.T) {
				if p.InUse() != len(set) {
					t.Fatalf("InUse = %d, want %d", p.InUse(), len(set))
				}
			},
		})
	})
}

func TestPacketIDsAllTaken(t *testing.T) {
	var p PacketIDs
	for range 65535 {
		if _, ok := p.Take(); !ok {
			t.Fatal("none left too early")
		}
	}
	if id, ok := p.Take(); ok {
		t.Fatalf("Take = %d with all in use", id)
	}
	p.Free(40_000)
	if id, ok := p.Take(); !ok || id != 40_000 {
		t.Errorf("Take = %d, %v, want the one that is free", id, ok)
	}
	for id := range 65536 {
		p.Free(uint16(id))
	}
	pages := 0
	for _, page := range p.pages {
		if page != nil {
			pages++
		}
	}
	if p.InUse() != 0 || pages > 1 {
		t.Errorf("%d in use, %d pages kept", p.InUse(), pages)
	}
	if n := testing.AllocsPerRun(100, func() {
		id, _ := p.Take()
		p.Free(id)
	}); n > 0 {
		t.Errorf("one in flight at a time allocates %v", n)
	}
}
