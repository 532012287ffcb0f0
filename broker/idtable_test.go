package broker

import (
	"maps"
	"testing"

	"pgregory.net/rapid"
)

// TestIDTableIsAMap compares it with a map, with ids that come in a row, ids
// that all have the same place, and ids from the end of the circle.
func TestIDTableIsAMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var table idTable[int]
		model := make(map[uint16]int)
		id := rapid.OneOf(
			rapid.Uint16Range(1, 40),
			rapid.Custom(func(t *rapid.T) uint16 { return rapid.Uint16Range(0, 60).Draw(t, "n")<<10 | 3 }),
			rapid.Uint16Range(65500, 65535),
		)
		for i := range rapid.IntRange(1, 300).Draw(t, "steps") {
			x := id.Draw(t, "id")
			switch rapid.IntRange(0, 2).Draw(t, "step") {
			case 0:
				*table.put(x) = i
				model[x] = i
			case 1:
				table.remove(x)
				delete(model, x)
			default:
				got := table.get(x)
				if want, ok := model[x]; (got != nil) != ok || ok && *got != want {
					t.Fatalf("get(%d) = %v, want %d, %v", x, got, want, ok)
				}
			}
			if table.len() != len(model) {
				t.Fatalf("%d ids, want %d", table.len(), len(model))
			}
		}
		got := make(map[uint16]int)
		for id, v := range table.all() {
			got[id] = *v
		}
		if !maps.Equal(got, model) {
			t.Fatalf("table %v, want %v", got, model)
		}
		for id := range model {
			table.remove(id)
		}
		if table.len() != 0 || table.away != 0 || len(table.slots) > keptSlots {
			t.Fatalf("empty, it has %d ids and %d slots", table.len(), len(table.slots))
		}
	})
}
