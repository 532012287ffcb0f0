package modbus

import (
	"bytes"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func rtu(unit byte, pdu ...byte) []byte { return AppendRTU(nil, unit, pdu) }

func aduOf(tb testing.TB, r Request) []byte {
	tb.Helper()
	pdu, err := r.AppendPDU(nil)
	if err != nil {
		tb.Fatal(err)
	}
	return AppendRTU(nil, r.Unit, pdu)
}

func TestScanAnswer(t *testing.T) {
	r := Request{Unit: 5, Function: ReadHoldingRegisters, Addr: 100, Count: 2}
	adu := aduOf(t, r)
	good := rtu(5, 3, 4, 0xde, 0xad, 0xbe, 0xef)
	hurt := func(i int) []byte {
		b := slices.Clone(good)
		b[i] ^= 0x20
		return b
	}
	late := rtu(5, 3, 2, 0, 9)        // of the same unit, shorter: to an earlier request
	other := rtu(6, 3, 4, 1, 2, 3, 4) // of another unit
	refused := rtu(5, 0x83, 2)        // exception
	coils := rtu(5, 1, 1, 0xff)       // another function of the same unit
	cat := func(bs ...[]byte) []byte { return slices.Concat(bs...) }

	tests := map[string]struct {
		in    []byte
		echo  echoMode
		final bool
		want  scan
	}{
		"nothing yet":                    {nil, 0, false, scan{}},
		"the answer":                     {good, 0, false, scan{pdu: good[1:7], end: 9, plain: true}},
		"an exception":                   {refused, 0, false, scan{pdu: refused[1:3], end: 5, plain: true}},
		"first byte":                     {good[:1], 0, false, scan{partial: true}},
		"all but one":                    {good[:8], 0, false, scan{partial: true}},
		"cut, line silent":               {good[:8], 0, true, scan{partial: true, skipped: 8}},
		"noise in front":                 {cat([]byte{0x00, 0xff}, good), 0, false, scan{pdu: good[1:7], end: 11, skipped: 2, plain: true}},
		"noise like a start, not silent": {cat([]byte{5, 3}, good), 0, false, scan{pdu: good[1:7], end: 11, skipped: 2, plain: true}},
		"our own start in front":         {cat(good[:4], good), 0, false, scan{skipped: 4, pdu: good[1:7], end: 13, plain: true, hurt: true}},
		"a long start in front":          {cat([]byte{5, 0x83}, good[:1]), 0, false, scan{partial: true}},
		"noise behind":                   {cat(good, []byte{1, 2, 3}), 0, false, scan{pdu: good[1:7], end: 9, plain: true}},
		"echo":                           {cat(adu, good), 0, false, scan{pdu: good[1:7], end: 17, echo: true}},
		"echo alone":                     {adu, 0, false, scan{echo: true}},
		"noise, echo, noise":             {cat([]byte{9}, adu, []byte{0}, good), 0, false, scan{pdu: good[1:7], end: 19, echo: true, skipped: 2}},
		"another unit in front":          {cat(other, good), 0, false, scan{pdu: good[1:7], end: 18, foreign: 1, plain: true}},
		"another unit alone":             {other, 0, true, scan{foreign: 1}},
		"a late answer alone":            {late, 0, true, scan{mismatch: true}},
		"a late answer in front":         {cat(late, good), 0, false, scan{mismatch: true, pdu: good[1:7], end: 16, plain: true}},
		"another function":               {coils, 0, true, scan{mismatch: true}},
		"data hurt":                      {hurt(4), 0, true, scan{garbled: true, hurt: true, skipped: 9}},
		"checksum hurt":                  {hurt(8), 0, true, scan{garbled: true, hurt: true, skipped: 9}},
		"unit hurt":                      {hurt(0), 0, true, scan{hurt: true, skipped: 9}},
		"function hurt":                  {hurt(1), 0, true, scan{hurt: true, skipped: 9}},
		"count hurt":                     {hurt(2), 0, true, scan{hurt: true, skipped: 9}},
		"noise alone":                    {[]byte{0x80, 0x00, 0x81, 0x00, 0x99, 0, 0, 0, 0, 0, 0, 0}, 0, true, scan{skipped: 12}},
		"hurt, then again whole":         {cat(hurt(4), good), 0, false, scan{pdu: good[1:7], end: 18, hurt: true, skipped: 9, plain: true}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got := scanAnswer(tt.in, r, adu, tt.echo, tt.final)
			if !bytes.Equal(got.pdu, tt.want.pdu) {
				t.Errorf("pdu = % x, want % x", got.pdu, tt.want.pdu)
			}
			got.pdu, tt.want.pdu = nil, nil
			if !equalScan(got, tt.want) {
				t.Errorf("scanAnswer(% x) = %+v, want %+v", tt.in, got, tt.want)
			}
		})
	}
}

func equalScan(a, b scan) bool {
	return a.end == b.end && a.echo == b.echo && a.plain == b.plain && a.mismatch == b.mismatch &&
		a.garbled == b.garbled && a.hurt == b.hurt && a.partial == b.partial && a.foreign == b.foreign && a.skipped == b.skipped
}

// The echo of a read of 24 coils at 0x0300 has the form of its own answer, CRC
// included. Taken for one, it would publish a part of the request as data.
func TestEchoThatIsAPerfectAnswer(t *testing.T) {
	r := Request{Unit: 5, Function: ReadCoils, Addr: 0x0312, Count: 24}
	adu := aduOf(t, r)
	good := rtu(5, 1, 3, 0xaa, 0xbb, 0xcc)
	if !echoLooksLikeAnswer(r, adu) {
		t.Fatal("the request was chosen to look like an answer")
	}
	for _, mode := range []echoMode{echoUnknown, echoBack} {
		if s := scanAnswer(adu, r, adu, mode, true); s.pdu != nil {
			t.Errorf("mode %d: the echo was taken for the answer % x", mode, s.pdu)
		}
		if s := scanAnswer(slices.Concat(adu, good), r, adu, mode, true); !bytes.Equal(s.pdu, good[1:6]) {
			t.Errorf("mode %d: behind the echo: % x, want % x", mode, s.pdu, good[1:6])
		}
	}
	// Where nothing echoes it is data that happens to look like it.
	if s := scanAnswer(adu, r, adu, echoNone, true); !bytes.Equal(s.pdu, adu[1:6]) {
		t.Errorf("without echo: % x, want % x", s.pdu, adu[1:6])
	}
	if s := scanAnswer(good, r, adu, echoUnknown, true); s.plain {
		t.Error("an answer that could hide an echo must not prove that there is none")
	}
}

// Whatever is in front, once the line is silent the answer is found, unless
// what is in front and the answer's own bytes happen to make a frame.
func TestAnswerIsFoundBehindNoise(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := Request{Unit: 5, Function: ReadHoldingRegisters, Addr: 7, Count: uint16(rapid.IntRange(1, 20).Draw(t, "count"))}
		pdu, err := r.AppendPDU(nil)
		if err != nil {
			t.Fatal(err)
		}
		adu := AppendRTU(nil, r.Unit, pdu)
		data := rapid.SliceOfN(rapid.Byte(), r.dataLen(), r.dataLen()).Draw(t, "data")
		answer, err := r.AppendAnswer(nil, data)
		if err != nil {
			t.Fatal(err)
		}
		noise := rapid.SliceOfN(rapid.SampledFrom([]byte{0, 1, 3, 4, 5, 6, 0x83, 0xff}), 0, 40).Draw(t, "noise")
		s := scanAnswer(append(slices.Clone(noise), AppendRTU(nil, r.Unit, answer)...), r, adu, echoUnknown, true)
		if s.foreign > 0 || s.mismatch {
			t.Skip("the noise holds a frame")
		}
		if !bytes.Equal(s.pdu, answer) {
			t.Fatalf("behind % x: % x, want % x", noise, s.pdu, answer)
		}
	})
}

func FuzzScanAnswer(f *testing.F) {
	for _, g := range goldenFrames(f) {
		f.Add(g.request[1:len(g.request)-2], g.answer, byte(0), true)
		f.Add(g.request[1:len(g.request)-2], slices.Concat(g.request, []byte{0}, g.answer), byte(2), false)
	}
	f.Fuzz(func(t *testing.T, request, in []byte, echo byte, final bool) {
		r, err := ParseRequest(17, request)
		if err != nil {
			return
		}
		adu := AppendRTU(nil, r.Unit, request)
		in = in[:min(len(in), received*maxADU)]
		s := scanAnswer(in, r, adu, echoMode(echo%3), final)
		if s.pdu == nil {
			return
		}
		if len(s.pdu) > maxADU-3 || s.end > len(in) {
			t.Fatalf("answer of %d bytes ends at %d of %d", len(s.pdu), s.end, len(in))
		}
		frame := in[s.end-len(s.pdu)-3 : s.end]
		if CRC(frame) != 0 || frame[0] != r.Unit || Function(frame[1])&^exceptionBit != r.Function {
			t.Errorf("% x was taken for the answer to %v", frame, r)
		}
	})
}
