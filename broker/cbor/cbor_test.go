package cbor

import (
	"encoding/hex"
	"errors"
	"math"
	"testing"

	"pgregory.net/rapid"
)

// Examples of RFC 8949 appendix A.
func TestIntegersAreThoseOfTheStandard(t *testing.T) {
	for n, want := range map[int64]string{
		0: "00", 1: "01", 10: "0a", 23: "17", 24: "1818", 25: "1819", 100: "1864", 1000: "1903e8", 1000000: "1a000f4240",
		1000000000000: "1b000000e8d4a51000", -1: "20", -10: "29", -100: "3863", -1000: "3903e7",
	} {
		if got := hex.EncodeToString(AppendInt(nil, n)); got != want {
			t.Errorf("AppendInt(%d) = %s, want %s", n, got, want)
		}
	}
	if got := hex.EncodeToString(AppendHead(nil, Uint, math.MaxUint64)); got != "1bffffffffffffffff" {
		t.Errorf("the largest number is %s", got)
	}
	if got := hex.EncodeToString(AppendText(nil, "ü")); got != "62c3bc" {
		t.Errorf("AppendText = %s", got)
	}
}

// Whatever is written is read again, and what follows stays.
func TestHeadReadsWhatAppendHeadWrites(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		major, n := rapid.ByteRange(Uint, Tag).Draw(t, "major"), rapid.Uint64().Draw(t, "n")
		b := append(AppendHead(nil, major, n), 0xaa)
		gotMajor, got, _, rest, err := Head(b)
		if err != nil || gotMajor != major || got != n || len(rest) != 1 || rest[0] != 0xaa {
			t.Fatalf("Head(% x) = %d, %d, rest % x, %v; want %d, %d", b, gotMajor, got, rest, err, major, n)
		}
		for cut := range len(b) - 1 {
			if _, _, _, _, err := Head(b[:cut]); !errors.Is(err, ErrMalformed) {
				t.Fatalf("Head(% x), cut off, says %v", b[:cut], err)
			}
		}
	})
}

// A float is told from a simple value by its size (RFC 8949 §3.3).
func TestHeadOfType7(t *testing.T) {
	for in, want := range map[string]struct {
		n    uint64
		size int
	}{
		"f4": {20, 0}, "f6": {22, 0}, "f820": {32, 1}, "f93e00": {0x3e00, 2}, "fa47c35000": {0x47c35000, 4}, "fb3ff199999999999a": {0x3ff199999999999a, 8},
	} {
		b, _ := hex.DecodeString(in)
		major, n, size, rest, err := Head(b)
		if err != nil || major != Simple || n != want.n || size != want.size || len(rest) != 0 {
			t.Errorf("Head(%s) = %d, %#x, size %d, %v; want %#x, size %d", in, major, n, size, err, want.n, want.size)
		}
	}
}

// Indefinite lengths and reserved values are not used here.
func TestHeadRefusesWhatIsNotUsed(t *testing.T) {
	for _, in := range []byte{0x1c, 0x1e, 0x5f, 0x9f, 0xff} {
		if _, _, _, _, err := Head([]byte{in, 0, 0, 0, 0, 0, 0, 0, 0}); !errors.Is(err, ErrMalformed) {
			t.Errorf("Head(%#x) says %v", in, err)
		}
	}
}
