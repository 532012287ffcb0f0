package modbus

import (
	"bytes"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"holdfast/adapters/modbus/modbustest"
)

func ascii(unit byte, pdu ...byte) []byte { return AppendASCII(nil, unit, pdu) }

// The frames of MODBUS over Serial Line in use: a request of the Modbus
// reference guide (PI-MBUS-300), whose LRC is given there.
func TestASCIIFrames(t *testing.T) {
	for in, want := range map[string]string{
		"11 03 00 6b 00 03": ":1103006B00037E\r\n",
		"06 03 00 6b 00 03": ":0603006B000389\r\n",
		"01 83 02":          ":0183027A\r\n",
	} {
		b, err := hex.DecodeString(strings.ReplaceAll(in, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		if got := AppendASCII(nil, b[0], b[1:]); string(got) != want {
			t.Errorf("AppendASCII(% x) = %q, want %q", b, got, want)
		}
		unit, pdu, err := ParseASCII([]byte(want))
		if err != nil || unit != b[0] || !bytes.Equal(pdu, b[1:]) {
			t.Errorf("ParseASCII(%q) = %d, % x, %v", want, unit, pdu, err)
		}
	}
	for in, want := range map[string]error{
		":1103006B00037F\r\n":                   ErrGarbled,
		":1103006B0003\r\n":                     ErrGarbled,
		":1103006B00037\r\n":                    ErrMalformed,
		":11G3006B00037E\r\n":                   ErrMalformed,
		":11EF\r\n":                             ErrMalformed,
		":\r\n":                                 ErrMalformed,
		"1103006B00037E\r\n":                    ErrMalformed,
		":1103006B00037E\n":                     ErrMalformed,
		":" + strings.Repeat("0", 512) + "\r\n": ErrMalformed,
		"":                                      ErrMalformed,
	} {
		if _, _, err := ParseASCII([]byte(in)); !errors.Is(err, want) {
			t.Errorf("ParseASCII(%q) = %v, want %v", in, err, want)
		}
	}
}

func TestScanASCII(t *testing.T) {
	r := Request{Unit: 5, Function: ReadHoldingRegisters, Addr: 100, Count: 2}
	adu := ascii(5, 3, 0, 100, 0, 2)
	good := ascii(5, 3, 4, 0xde, 0xad, 0xbe, 0xef)
	pdu := []byte{3, 4, 0xde, 0xad, 0xbe, 0xef}
	late, other, refused := ascii(5, 3, 2, 0, 9), ascii(6, 3, 4, 1, 2, 3, 4), ascii(5, 0x83, 2)
	hurt := func(i int) []byte {
		b := slices.Clone(good)
		b[i] ^= 1
		return b
	}
	cat := func(bs ...[]byte) []byte { return slices.Concat(bs...) }
	n := len(good)
	tests := map[string]struct {
		in    []byte
		echo  echoMode
		final bool
		want  scan
	}{
		"nothing yet":             {nil, 0, false, scan{}},
		"the answer":              {good, 0, false, scan{pdu: pdu, end: n, plain: true}},
		"an exception":            {refused, 0, false, scan{pdu: []byte{0x83, 2}, end: len(refused), plain: true}},
		"all but one":             {good[:n-1], 0, false, scan{partial: true}},
		"cut, line silent":        {good[:n-1], 0, true, scan{partial: true, hurt: true, skipped: n - 1}},
		"noise in front":          {cat([]byte("x\n"), good), 0, false, scan{pdu: pdu, end: n + 2, skipped: 2, plain: true}},
		"begun anew":              {cat(good[:7], good), 0, false, scan{pdu: pdu, end: n + 7, skipped: 7, hurt: true, plain: true}},
		"echo":                    {cat(adu, good), 0, false, scan{pdu: pdu, end: n + len(adu), echo: true}},
		"another unit in front":   {cat(other, good), 0, false, scan{pdu: pdu, end: 2 * n, foreign: 1, plain: true}},
		"a late answer in front":  {cat(late, good), 0, false, scan{mismatch: true, pdu: pdu, end: n + len(late), plain: true}},
		"another function":        {ascii(5, 1, 1, 0xff), 0, true, scan{mismatch: true}},
		"data hurt":               {hurt(8), 0, true, scan{garbled: true, hurt: true, skipped: n}},
		"LRC hurt":                {hurt(n - 3), 0, true, scan{garbled: true, hurt: true, skipped: n}},
		"unit hurt":               {hurt(2), 0, true, scan{hurt: true, skipped: n}},
		"no digit":                {bytes.Replace(good, []byte("D"), []byte("x"), 1), 0, true, scan{hurt: true, skipped: n}},
		"a line of something":     {[]byte("hello\r\n"), 0, true, scan{skipped: 7}},
		"lower case is read, too": {cat([]byte(":"), bytes.ToLower(good[1:])), 0, false, scan{pdu: pdu, end: n, plain: true}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got := scanASCII(tt.in, r, adu, tt.echo, tt.final)
			if !bytes.Equal(got.pdu, tt.want.pdu) {
				t.Errorf("pdu = % x, want % x", got.pdu, tt.want.pdu)
			}
			if !equalScan(got, tt.want) {
				t.Errorf("scanASCII(%q) = %+v, want %+v", tt.in, got, tt.want)
			}
		})
	}
}

// The echo of a single write is its own answer, by the specification.
func TestASCIIEchoThatIsAPerfectAnswer(t *testing.T) {
	r := Request{Unit: 5, Function: WriteSingleRegister, Addr: 1, Count: 1, Data: []byte{0, 9}}
	adu := ascii(5, 6, 0, 1, 0, 9)
	if s := scanASCII(adu, r, adu, echoUnknown, true); s.pdu != nil || !s.echo {
		t.Errorf("the echo was taken for the answer: %+v", s)
	}
	if s := scanASCII(slices.Concat(adu, adu), r, adu, echoBack, true); s.pdu == nil {
		t.Errorf("the answer behind the echo was not found: %+v", s)
	}
	if s := scanASCII(adu, r, adu, echoNone, true); s.pdu == nil {
		t.Errorf("on a line without echo the answer was not found: %+v", s)
	}
}

func FuzzScanASCII(f *testing.F) {
	for _, g := range goldenFrames(f) {
		request := g.request[1 : len(g.request)-2]
		f.Add(request, AppendASCII(nil, 17, g.answer[1:len(g.answer)-2]), byte(0), true)
		f.Add(request, slices.Concat(AppendASCII(nil, 17, request), []byte(":"), AppendASCII(nil, 17, g.answer[1:len(g.answer)-2])), byte(2), false)
	}
	f.Fuzz(func(t *testing.T, request, in []byte, echo byte, final bool) {
		if unit, pdu, err := ParseASCII(in); err == nil {
			if got := AppendASCII(nil, unit, pdu); !bytes.Equal(got, bytes.ToUpper(in)) {
				t.Errorf("%q was read and is written %q", in, got)
			}
		}
		r, err := ParseRequest(17, request)
		if err != nil {
			return
		}
		adu := AppendASCII(nil, r.Unit, request)
		in = in[:min(len(in), received*maxASCII)]
		s := scanASCII(in, r, adu, echoMode(echo%3), final)
		if s.pdu == nil {
			return
		}
		from := bytes.LastIndexByte(in[:s.end], ':')
		unit, pdu, err := ParseASCII(in[from:s.end])
		if err != nil || unit != r.Unit || !bytes.Equal(pdu, s.pdu) || Function(pdu[0])&^exceptionBit != r.Function {
			t.Errorf("%q was taken for the answer to %v", in[from:s.end], r)
		}
	})
}

// Behind what is no frame the answer is found, unless the noise has a colon
// after which its bytes and the answer's make one.
func TestASCIIAnswerIsFoundBehindNoise(t *testing.T) {
	r := Request{Unit: 5, Function: ReadHoldingRegisters, Addr: 7, Count: 2}
	adu := ascii(5, 3, 0, 7, 0, 2)
	rapid.Check(t, func(t *rapid.T) {
		data := rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "data")
		noise := rapid.SliceOfN(rapid.SampledFrom([]byte(":05\r\nx")), 0, 40).Draw(t, "noise")
		want := append([]byte{3, 4}, data...)
		s := scanASCII(append(noise, ascii(5, want...)...), r, adu, echoUnknown, true)
		if s.foreign > 0 || s.mismatch {
			t.Skip("the noise holds a frame")
		}
		if !bytes.Equal(s.pdu, want) {
			t.Fatalf("behind %q: % x, want % x", noise, s.pdu, want)
		}
	})
}

func TestBusSpeaksASCII(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := options(meter("m", 1, time.Second, 0, 1))
		o.Framing = FramingASCII
		r := newRig(t, o)
		u := r.slave.Unit(1)
		u.SetHolding(0, 7, 0xabcd)
		n := 0
		u.FaultFunc(func(modbustest.Request) (f modbustest.Fault) {
			n++
			f.NoiseBefore, f.NoiseAfter = []byte(":01"), []byte("\r\n")
			f.CorruptCRC, f.CorruptData, f.Silent = n%5 == 1, n%5 == 3, n%20 == 0
			return f
		})
		r.slave.SetEcho(true)
		r.start()
		r.after(time.Minute - 500*time.Millisecond)
		r.stop()
		good, bad := r.count("m")
		if st := r.unit(); good < 90 || bad != 0 || st.Garbled < 20 || st.Timeouts < 2 || st.State != UnitUp {
			t.Errorf("%d good and %d bad readings, status %+v; want 90 of 120 at least, none bad", good, bad, st)
		}
		for _, g := range r.of("p1") {
			if g != "43981 good" {
				t.Errorf("p1 = %s", g)
			}
		}
		if st := r.bus.Status(); !st.Echo {
			t.Error("the echo was not noticed")
		}
	})
}
