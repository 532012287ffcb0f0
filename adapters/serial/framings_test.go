package serial

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// wire is one framing as a device speaks it.
type wire struct {
	change func(*Options)
	// encode puts a body into a frame; nil for a body that it cannot carry.
	encode func(body []byte) []byte
	// decoded is what a frame's body becomes; nil for the same.
	decoded func(body []byte) []byte
	// bound is how many whole frames after noise may be lost. That is what the
	// documentation promises.
	bound int
	// quietEnds: a frame ends in silence, and in nothing else.
	quietEnds bool
}

// bodyMax is how long the bodies of the tests are at most.
const bodyMax = 12

// withSum appends 32 bits: 16 of them let noise pass for a frame once in 65536
// bytes, which a test that runs long enough meets.
func withSum(b []byte) []byte {
	return binary.LittleEndian.AppendUint32(slices.Clone(b), crc32.ChecksumIEEE(b))
}

func stuff(body []byte, special string, escape, xor byte) []byte {
	var out []byte
	for _, c := range body {
		if strings.IndexByte(special, c) >= 0 {
			out = append(out, escape)
			c ^= xor
		}
		out = append(out, c)
	}
	return out
}

func cobs(body []byte) []byte {
	var out []byte
	for run := range bytes.SplitSeq(body, []byte{0}) {
		for len(run) >= 254 {
			out = append(append(out, 255), run[:254]...)
			run = run[254:]
		}
		out = append(append(out, byte(len(run)+1)), run...)
	}
	return append(out, 0)
}

var wires = map[string]wire{
	"delimiter": {
		change: func(o *Options) { o.Delimiter = "\r\n" },
		encode: func(b []byte) []byte {
			if bytes.ContainsAny(b, "\r\n") {
				return nil
			}
			return append(slices.Clone(b), "\r\n"...)
		},
		bound: 1,
	},
	"iec62056": {
		change: func(o *Options) { o.Framing = FramingIEC62056 },
		encode: func(b []byte) []byte {
			bcc := byte(etx)
			for _, c := range b {
				if c == stx || c == etx || c > 0x7f {
					return nil
				}
				bcc ^= c
			}
			return slices.Concat([]byte{stx}, b, []byte{etx, bcc})
		},
		bound: 1,
	},
	"delimiter and sum": {
		change: func(o *Options) { o.Delimiter, o.Check, o.CheckEncoding = "\n", "crc16-modbus", EncodingHex },
		encode: func(b []byte) []byte {
			if bytes.ContainsAny(b, "\r\n") {
				return nil
			}
			return fmt.Appendf(nil, "%s%04X\n", b, crc{16, 0x8005, 0xffff, 0, true}.sum()(b))
		},
		bound: 1,
	},
	"fixed, sync and sum": {
		change: func(o *Options) {
			o.Framing, o.Sync, o.Length, o.Check = FramingFixed, "0xAA55", 2+bodyMax+4, "crc32"
		},
		encode: func(b []byte) []byte {
			return withSum(append([]byte{0xaa, 0x55}, fill(b)...))
		},
		decoded: func(b []byte) []byte { return append([]byte{0xaa, 0x55}, fill(b)...) },
	},
	"fixed, sum alone": {
		change:  func(o *Options) { o.Framing, o.Length, o.Check = FramingFixed, bodyMax+4, "crc32" },
		encode:  func(b []byte) []byte { return withSum(fill(b)) },
		decoded: fill,
	},
	"fixed, sync alone": {
		change: func(o *Options) { o.Framing, o.Sync, o.Length = FramingFixed, "0xAA55", 2+bodyMax },
		encode: func(b []byte) []byte {
			if bytes.IndexByte(b, 0xaa) >= 0 || bytes.IndexByte(b, 0x55) >= 0 {
				return nil
			}
			return append([]byte{0xaa, 0x55}, fill(b)...)
		},
		decoded: func(b []byte) []byte { return append([]byte{0xaa, 0x55}, fill(b)...) },
		bound:   1,
	},
	"length and sum": {
		change: func(o *Options) {
			o.Framing, o.LengthAdjust, o.Check = FramingLength, 5, "crc32"
		},
		encode:  func(b []byte) []byte { return withSum(append([]byte{byte(len(b))}, b...)) },
		decoded: func(b []byte) []byte { return append([]byte{byte(len(b))}, b...) },
	},
	"length, sync and sum": {
		change: func(o *Options) {
			o.Framing, o.Sync, o.LengthOffset, o.LengthSize, o.LengthOrder = FramingLength, "0x68", 1, 2, OrderLittle
			o.LengthAdjust, o.Check = 7, "crc32"
		},
		encode:  func(b []byte) []byte { return withSum(append([]byte{0x68, byte(len(b)), 0}, b...)) },
		decoded: func(b []byte) []byte { return append([]byte{0x68, byte(len(b)), 0}, b...) },
	},
	"start and end": {
		change: func(o *Options) { o.Framing, o.Start, o.End = FramingStartEnd, "0x02", "0x03" },
		encode: func(b []byte) []byte {
			if bytes.IndexByte(b, 2) >= 0 || bytes.IndexByte(b, 3) >= 0 {
				return nil
			}
			return append(append([]byte{2}, b...), 3)
		},
	},
	"start, end and a trailer": {
		change: func(o *Options) {
			o.Framing, o.Start, o.End, o.Trailer, o.Check, o.CheckFrom = FramingStartEnd, "0x02", "0x03", 1, "xor", 1
		},
		encode: func(b []byte) []byte {
			if bytes.IndexByte(b, 2) >= 0 || bytes.IndexByte(b, 3) >= 0 {
				return nil
			}
			sum := byte(sumXOR()(b)) ^ 3
			return append(append([]byte{2}, b...), 3, sum)
		},
		bound: 1, // a trailer of the noise may be the first start
	},
	"HDLC": {
		change: func(o *Options) {
			o.Framing, o.Start, o.End, o.Escape, o.EscapeXor, o.Check = FramingStartEnd, "0x7E", "0x7E", "0x7D", 0x20, "crc16-x25"
		},
		encode: func(b []byte) []byte {
			c := crc{16, 0x1021, 0xffff, 0xffff, true}.sum()(b)
			return append(append([]byte{0x7e}, stuff(append(slices.Clone(b), byte(c), byte(c>>8)), "\x7e\x7d", 0x7d, 0x20)...), 0x7e)
		},
	},
	"DLE": {
		change: func(o *Options) { o.Framing, o.Start, o.End, o.Escape = FramingStartEnd, "0x1002", "0x1003", "0x10" },
		encode: func(b []byte) []byte {
			return append(append([]byte{0x10, 2}, stuff(b, "\x10", 0x10, 0)...), 0x10, 3)
		},
		bound: 1, // half an escape at the end of the noise makes data of the first start
	},
	"escape of everything special": {
		change: func(o *Options) { o.Framing, o.Start, o.End, o.Escape = FramingStartEnd, "(", ")", `\` },
		encode: func(b []byte) []byte {
			return append(append([]byte{'('}, stuff(b, `()\`, '\\', 0)...), ')')
		},
		bound: 1, // the same
	},
	"SLIP": {
		change: func(o *Options) { o.Framing = FramingSLIP },
		encode: func(b []byte) []byte {
			b = bytes.ReplaceAll(b, []byte{0xdb}, []byte{0xdb, 0xdd})
			return append(bytes.ReplaceAll(b, []byte{0xc0}, []byte{0xdb, 0xdc}), 0xc0)
		},
		bound: 1,
	},
	"COBS": {
		change: func(o *Options) { o.Framing = FramingCOBS },
		encode: cobs,
		bound:  1,
	},
	"regexp": {
		change: func(o *Options) { o.Framing, o.FramePattern = FramingRegexp, `<[^<>]*>` },
		encode: func(b []byte) []byte {
			if bytes.ContainsAny(b, "<>") {
				return nil
			}
			return append(append([]byte{'<'}, b...), '>')
		},
		decoded: func(b []byte) []byte { return append(append([]byte{'<'}, b...), '>') },
		bound:   1, // the first match may be the rest of something longer
	},
	"silence": {
		change:    func(o *Options) { o.Framing = FramingSilence },
		encode:    slices.Clone[[]byte],
		quietEnds: true,
	},
}

// fill makes a body of any length one of bodyMax bytes.
func fill(b []byte) []byte {
	return append(slices.Clone(b), bytes.Repeat([]byte{'.'}, bodyMax-len(b))...)
}

// line is a framer with its check.
type line struct {
	framer
	check *check
	got   []string
}

func (w wire) line(t rapid.TB) *line {
	t.Helper()
	o := DefaultOptions()
	o.MaxLength = bodyMax + 12
	w.change(&o)
	if err := o.useless(); err != nil {
		t.Fatal(err)
	}
	f, err := o.newFramer()
	if err != nil {
		t.Fatal(err)
	}
	c, err := newCheck(&o)
	if err != nil {
		t.Fatal(err)
	}
	return &line{framer: f, check: c}
}

func (l *line) take(f frame) bool {
	body, err := l.check.verify(f)
	if err != nil {
		return false
	}
	l.got = append(l.got, string(body))
	return true
}

func (l *line) feed(chunks ...string) {
	for _, c := range chunks {
		l.push([]byte(c), l.take)
	}
}

// bodies draws bodies that the framing can carry, all different.
func (w wire) bodies(t *rapid.T, least int) (bodies []string, frames [][]byte) {
	for i := range rapid.IntRange(least, least+5).Draw(t, "frames") {
		b := rapid.SliceOfN(rapid.SampledFrom([]byte("\x00\x01\x02\x03\x10\x55\x68\x7d\x7e\xaa\xc0\xdb\xff\r\n<>()\\ab12")), 0, bodyMax-1).Draw(t, "body")
		b = append(b, byte('A'+i))
		f := w.encode(b)
		for f == nil { // plain text goes everywhere
			b = fmt.Appendf(nil, "%d%c", rapid.Uint32().Draw(t, "text"), 'A'+i)
			f = w.encode(b)
		}
		if w.decoded != nil {
			b = w.decoded(b)
		}
		bodies, frames = append(bodies, string(b)), append(frames, f)
	}
	return bodies, frames
}

// After noise and the bound, no frame of the clean rest is lost: whatever the
// noise, however the bytes are cut, and frames that were there before too.
func TestEveryFramingIsInStepAfterNoise(t *testing.T) {
	for _, name := range slices.Sorted(maps.Keys(wires)) {
		w := wires[name]
		if w.quietEnds {
			continue // in step after silence: below
		}
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				l := w.line(t)
				_, before := w.bodies(t, 0)
				noise := rapid.SliceOfN(rapid.OneOf(rapid.Byte(), rapid.SampledFrom([]byte("\x00\x02\x03\x10\x55\x68\x7d\x7e\xaa\xc0\xdb\n<(\\"))), 0, 60).Draw(t, "noise")
				head := append(bytes.Join(before, nil), noise...)
				l.feed(chunk(t, head)...)
				l.got = nil
				bodies, frames := w.bodies(t, w.bound+1)
				l.feed(chunk(t, bytes.Join(frames, nil))...)
				l.quiet(l.take)
				if got, want := lastN(l.got, len(bodies)-w.bound), bodies[w.bound:]; !slices.Equal(got, want) {
					t.Fatalf("after %q came %q of %q", head, l.got, bodies)
				}
			})
		})
	}
}

// After a silence nothing is lost, whatever was before.
func TestEveryFramingIsInStepAfterSilence(t *testing.T) {
	for _, name := range slices.Sorted(maps.Keys(wires)) {
		w := wires[name]
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				l := w.line(t)
				l.feed(chunk(t, rapid.SliceOfN(rapid.Byte(), 0, 60).Draw(t, "noise"))...)
				l.quiet(l.take)
				l.got = nil
				bodies, frames := w.bodies(t, 1)
				for _, f := range frames {
					l.feed(chunk(t, f)...)
					if w.quietEnds {
						l.quiet(l.take)
					}
				}
				if !slices.Equal(l.got, bodies) {
					t.Fatalf("after a silence came %q of %q", l.got, bodies)
				}
			})
		})
	}
}

// What a framer makes of a stream does not depend on how it is cut: here at
// every byte. No byte is counted twice, and the buffer is bounded.
func TestEveryFramingCutAtEveryByte(t *testing.T) {
	for _, name := range slices.Sorted(maps.Keys(wires)) {
		w := wires[name]
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				_, frames := w.bodies(t, 1)
				noise := func() []byte { return rapid.SliceOfN(rapid.Byte(), 0, 20).Draw(t, "noise") }
				inside := slices.Clone(frames[0])
				inside = slices.Insert(inside, rapid.IntRange(0, len(inside)).Draw(t, "at"), noise()...)
				stream := slices.Concat(noise(), frames[0], noise(), inside, bytes.Join(frames, nil), noise())
				whole := w.line(t)
				whole.feed(string(stream))
				for at := range stream {
					cut := w.line(t)
					cut.feed(string(stream[:at]), string(stream[at:]))
					if !slices.Equal(cut.got, whole.got) || cut.counts() != whole.counts() {
						t.Fatalf("%q cut at %d: %q %+v, whole: %q %+v", stream, at, cut.got, cut.counts(), whole.got, whole.counts())
					}
				}
				if n := whole.counts().garbage; n > uint64(len(stream)) {
					t.Fatalf("%d of %d bytes are garbage", n, len(stream))
				}
			})
		})
	}
}

func FuzzFramings(f *testing.F) {
	names := slices.Sorted(maps.Keys(wires))
	for i := range names {
		w := wires[names[i]]
		f.Add(uint8(i), append([]byte("noise"), w.encode([]byte("12A"))...), uint16(7))
	}
	f.Fuzz(func(t *testing.T, which uint8, stream []byte, cut uint16) {
		w := wires[names[int(which)%len(names)]]
		at := min(int(cut), len(stream))
		one, two := w.line(t), w.line(t)
		one.feed(string(stream))
		two.feed(string(stream[:at]), string(stream[at:]))
		if !w.quietEnds && (!slices.Equal(one.got, two.got) || one.counts() != two.counts()) {
			t.Errorf("cut at %d: %q %+v, whole: %q %+v", at, two.got, two.counts(), one.got, one.counts())
		}
		one.quiet(one.take)
		for _, b := range one.got {
			if len(b) > bodyMax+12 {
				t.Errorf("frame of %d bytes, max %d", len(b), bodyMax+12)
			}
		}
	})
}
