package serial

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// frames pushes the chunks into a framer and returns what it emits.
func frames(f framer, chunks ...string) []string {
	var got []string
	for _, c := range chunks {
		f.push([]byte(c), func(b frame) bool { got = append(got, string(b.body)); return true })
	}
	return got
}

func TestDelimiterFramer(t *testing.T) {
	type step struct {
		quiet, lost bool
		push        string
	}
	tests := map[string]struct {
		delim string
		max   int
		steps []step
		want  []string
		count frameCounts
	}{
		"the first bytes may be the rest of a frame": {
			"\n", 8,
			[]step{{push: "50\nW=1\n"}},
			[]string{"W=1"},
			frameCounts{frames: 1, garbage: 3},
		},
		"after silence the first byte begins a frame": {
			"\n", 8,
			[]step{{quiet: true}, {push: "W=1\nW=2\n"}},
			[]string{"W=1", "W=2"},
			frameCounts{frames: 2},
		},
		"silence ends a partial frame": {
			"\n", 8,
			[]step{{quiet: true, push: "W="}, {quiet: true, push: "W=2\n"}},
			[]string{"W=2"},
			frameCounts{frames: 1, partial: 1, garbage: 2},
		},
		"silence without a frame is nothing": {
			"\n", 8,
			[]step{{quiet: true}, {quiet: true, push: "a\n"}, {quiet: true}},
			[]string{"a"},
			frameCounts{frames: 1},
		},
		"lost bytes end a frame and the next": {
			"\n", 8,
			[]step{{quiet: true, push: "W=1"}, {lost: true, push: "2\nW=3\n"}},
			[]string{"W=3"},
			frameCounts{frames: 1, garbage: 5},
		},
		"empty frames are left out": {
			"\n", 8,
			[]step{{quiet: true, push: "\n\na\n\n"}},
			[]string{"a"},
			frameCounts{frames: 1},
		},
		"the longest frame allowed": {
			"\r\n", 4,
			[]step{{quiet: true, push: "abcd\r\n"}},
			[]string{"abcd"},
			frameCounts{frames: 1},
		},
		"one byte too many": {
			"\r\n", 4,
			[]step{{quiet: true, push: "abcde\r\nok\r\n"}},
			[]string{"ok"},
			frameCounts{frames: 1, oversized: 1, resyncs: 1, garbage: 7},
		},
		"oversized, its delimiter split over the bound": {
			"\r\n", 4,
			[]step{{quiet: true, push: "abcde\r"}, {push: "\nok\r\n"}},
			[]string{"ok"},
			frameCounts{frames: 1, oversized: 1, resyncs: 1, garbage: 7},
		},
		"half a delimiter inside a frame": {
			"\r\n", 8,
			[]step{{quiet: true, push: "a\rb\nc\r\n"}},
			[]string{"a\rb\nc"},
			frameCounts{frames: 1},
		},
		"half a delimiter before the delimiter": {
			"\r\r\n", 8,
			[]step{{quiet: true, push: "a\r\r\r\n"}},
			[]string{"a\r"},
			frameCounts{frames: 1},
		},
		"oversized counts once however long": {
			"\n", 2,
			[]step{{quiet: true, push: strings.Repeat("x", 1000) + "\nok\n"}},
			[]string{"ok"},
			frameCounts{frames: 1, oversized: 1, resyncs: 1, garbage: 1001},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			f := newDelimiterFramer([]byte(tt.delim), tt.max)
			var got []string
			for _, s := range tt.steps {
				if s.quiet {
					f.quiet(nil)
				}
				if s.lost {
					f.lost()
				}
				got = append(got, frames(f, s.push)...)
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("frames %q, want %q", got, tt.want)
			}
			if f.count != tt.count {
				t.Errorf("counts %+v, want %+v", f.count, tt.count)
			}
		})
	}
}

// chunk cuts b at random places.
func chunk(t *rapid.T, b []byte) []string {
	var cs []string
	for len(b) > 0 {
		n := rapid.IntRange(1, len(b)).Draw(t, "chunk")
		cs = append(cs, string(b[:n]))
		b = b[n:]
	}
	return cs
}

// noisy draws bytes that have delimiters, and parts of them, in it.
func noisy(t *rapid.T, label string) []byte {
	return bytes.Join(rapid.SliceOfN(rapid.OneOf(
		rapid.SliceOfN(rapid.Byte(), 0, 20),
		rapid.SampledFrom([][]byte{{'\r'}, {'\n'}, {'\r', '\n'}, {'\r', '\r', '\n'}}),
	), 0, 20).Draw(t, label), nil)
}

var delims = rapid.SampledFrom([]string{"\n", "\r\n", "\r\r\n", "\x00", "ab"})

func TestFramerDoesNotDependOnChunks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		delim := []byte(delims.Draw(t, "delim"))
		limit := rapid.IntRange(1, 30).Draw(t, "max")
		stream := noisy(t, "stream")
		whole, cut := newDelimiterFramer(delim, limit), newDelimiterFramer(delim, limit)
		want, got := frames(whole, string(stream)), frames(cut, chunk(t, stream)...)
		if !slices.Equal(got, want) || whole.count != cut.count {
			t.Fatalf("in chunks %q %+v, at once %q %+v", got, cut.count, want, whole.count)
		}
	})
}

// The bound of doc.go: at most the frame that touches the noise is lost.
func TestFramerIsInStepAfterNoise(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		delim := delims.Draw(t, "delim")
		const limit = 12
		f := newDelimiterFramer([]byte(delim), limit)
		frames(f, chunk(t, noisy(t, "noise"))...)
		good := rapid.SliceOfN(rapid.StringMatching(`[0-9=.W]{1,12}`), 2, 6).Draw(t, "good")
		got := frames(f, chunk(t, []byte(strings.Join(good, delim)+delim))...)
		if !slices.Equal(lastN(got, len(good)-1), good[1:]) {
			t.Fatalf("after noise %q of %q came through", got, good)
		}
	})
}

// After noise and a silence nothing is lost at all.
func TestFramerIsInStepAfterSilence(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		delim := delims.Draw(t, "delim")
		f := newDelimiterFramer([]byte(delim), 12)
		frames(f, string(noisy(t, "noise")))
		f.quiet(nil)
		good := rapid.SliceOfN(rapid.StringMatching(`[0-9=.W]{1,12}`), 1, 6).Draw(t, "good")
		if got := frames(f, strings.Join(good, delim)+delim); !slices.Equal(got, good) {
			t.Fatalf("after a silence %q of %q came through", got, good)
		}
	})
}

func lastN(s []string, n int) []string { return s[max(0, len(s)-n):] }

// No byte is unaccounted for.
func TestFramerAccountsForEveryByte(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		delim := []byte(delims.Draw(t, "delim"))
		f := newDelimiterFramer(delim, rapid.IntRange(1, 20).Draw(t, "max"))
		f.quiet(nil)
		stream := noisy(t, "stream")
		n := 0
		f.push(stream, func(b frame) bool { n += len(b.body) + len(delim); return true })
		f.lost()
		empties := len(stream) - n - int(f.count.garbage)
		if empties < 0 || empties%len(delim) != 0 {
			t.Fatalf("of %d bytes %d are in frames and %d dropped; the rest is not empty frames", len(stream), n, f.count.garbage)
		}
	})
}

func FuzzDelimiterFramer(f *testing.F) {
	f.Add([]byte("W=1\r\nW=2\r\n"), []byte("\r\n"), uint16(8), uint16(3))
	f.Add([]byte("\n\n\n"), []byte("\n"), uint16(1), uint16(1))
	f.Add([]byte("aaaaaaaaa"), []byte("aa"), uint16(2), uint16(2))
	f.Fuzz(func(t *testing.T, stream, delim []byte, limit, cut uint16) {
		if len(delim) < 1 || len(delim) > 8 || limit == 0 {
			return
		}
		fr := newDelimiterFramer(delim, int(limit))
		var got []string
		emit := func(b frame) bool {
			if len(b.body) == 0 || len(b.body) > int(limit) {
				t.Fatalf("frame of %d bytes, max %d", len(b.body), limit)
			}
			got = append(got, string(b.body))
			return true
		}
		at := min(int(cut), len(stream))
		fr.push(stream[:at], emit)
		fr.push(stream[at:], emit)
		if cap(fr.buf) > 2*(int(limit)+len(delim))+64 {
			t.Errorf("buffer of %d bytes for frames of %d", cap(fr.buf), limit)
		}
		whole := newDelimiterFramer(delim, int(limit))
		if want := frames(whole, string(stream)); !slices.Equal(got, want) {
			t.Errorf("cut at %d: %q, whole: %q", at, got, want)
		}
	})
}
