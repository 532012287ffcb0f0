package serial

import (
	"encoding/hex"
	"fmt"
	"testing"
	"time"

	"holdfast/adapters/reading"
)

// Telegrams of real meters, as people have published them in issues and tests of
// open source projects: an Iskraemeco MT175 and an EMH eHZ.
var smlTelegrams = map[string]string{
	"ehz":   "1b1b1b1b01010101760700190b4cbead6200620072630101760101070019063f3f8f0b0901454d48000041f045010163662d00760700190b4cbeae620062007263070177010b0901454d48000041f045070100620affff72620165063f2f357777078181c78203ff0101010104454d480177070100000009ff010101010b0901454d48000041f0450177070100010800ff6400018201621e52ff560009247a550177070100010801ff0101621e52ff560009247a550177070100010802ff0101621e52ff5600000000000177070100100700ff0101621b52ff55000016030177078181c78205ff0172620165063f2f3501018302e77ef33ea97bb6bba9bfa4fbd8b9f2ede51207b15acf6b98a237c21ca4982ee3ce18efe8438f1deba9d5c40eb68ae8f201010163574a00760700190b4cbeb16200620072630201710163d658000000001b1b1b1b1a03e566",
	"mt175": "1B1B1B1B0101010176050F1A20606200620072630101760101050508B5760B090149534B000403DF63010163C4BA0076050F1A2061620062007263070177010B090149534B000403DF63070100620AFFFF7262016507AFF5DC7A77078181C78203FF010101010449534B0177070100000009FF010101010B090149534B000403DF630177070100010800FF650000018201621E52FF59000000000D637E080177070100010801FF0101621E52FF59000000000D637E080177070100010802FF0101621E52FF5900000000000000000177070100100700FF0101621B520055000000A80177070100240700FF0101621B520055000000750177070100380700FF0101621B5200550000001601770701004C0700FF0101621B5200550000001D0177078181C78205FF0101010183020C2DE05C56024E1CD45280F4A0769A95E629CAE205C55C9F1683CA5419778E1D9BCFA1C577A6B36A92709EBF05EA21BD01010163291C0076050F1A206262006200726302017101630054001B1B1B1B1A00AE84",
}

func smlTelegram(tb testing.TB, name string) []byte {
	tb.Helper()
	b, err := hex.DecodeString(smlTelegrams[name])
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// smlRead returns what a device with these fields makes of the stream, byte by byte.
func smlRead(t *testing.T, stream []byte, points ...Point) (values []string, c frameCounts) {
	t.Helper()
	o := DefaultOptions()
	o.Framing, o.Format, o.Points = FramingSML, FormatSML, points
	d, err := newDecoder("meter", &o)
	if err != nil {
		t.Fatal(err)
	}
	fr, err := o.newFramer()
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range stream {
		fr.push([]byte{b}, func(f frame) bool {
			res, err := d.decode(f.body, reading.Stamp{Wall: time.Now()})
			if err != nil {
				t.Errorf("% x: %v", f.body, err)
			}
			for _, r := range res.readings {
				values = append(values, fmt.Sprint(r.Value, " ", r.Unit))
			}
			return true
		})
	}
	return values, fr.counts()
}

func TestSMLTelegrams(t *testing.T) {
	energy, power, id := Point{Name: "e", Field: "1-0:1.8.0"}, Point{Name: "p", Field: "16.7.0"}, Point{Name: "i", Field: "1-0:0.0.9", Type: TypeText}
	maker := Point{Name: "m", Field: "129-129:199.130.3", Type: TypeText}
	for name, tt := range map[string]struct {
		points []Point
		want   string
	}{
		"ehz":   {[]Point{energy, power, maker}, "[1.53385557e+07 Wh 563.5 W EMH ]"},
		"mt175": {[]Point{energy, power, maker, {Name: "l1", Field: "1-0:36.7.0*255"}, id}, "[2.24624136e+07 Wh 168 W ISK  117 W 090149534b000403df63 ]"},
	} {
		got, c := smlRead(t, smlTelegram(t, name), tt.points...)
		if fmt.Sprint(got) != tt.want || c.frames != 1 || c.broken != 0 || c.garbage != 0 {
			t.Errorf("%s: got %v, %+v, want %s", name, got, c, tt.want)
		}
	}
}

// Noise costs the frame it touches; a start inside of a frame begins another.
func TestSMLFramerIsBackInStep(t *testing.T) {
	whole := smlTelegram(t, "mt175")
	hurt := append([]byte{}, whole...)
	hurt[60] ^= 1
	var stream []byte
	for _, part := range [][]byte{whole[50:], {0x1b, 0x1b}, whole, hurt, whole[:100], whole, {0x1b}, whole} {
		stream = append(stream, part...)
	}
	got, c := smlRead(t, stream, Point{Name: "p", Field: "16.7.0"})
	if len(got) != 3 || c.frames != 3 || c.broken != 1 || c.partial != 1 {
		t.Errorf("got %q, %+v, want three good frames, one broken, one partial", got, c)
	}
	endless := append(append([]byte{}, whole[:20]...), make([]byte, 100_000)...)
	fr := newSMLFramer(1024)
	fr.push(endless, func(frame) bool { t.Error("a frame"); return false })
	if fr.counts().oversized != 1 || cap(fr.buf) > 4096 || cap(fr.raw) > 8192 {
		t.Errorf("%+v, %d and %d bytes held", fr.counts(), cap(fr.buf), cap(fr.raw))
	}
	fr.push(whole[:30], nil)
	fr.quiet(nil)
	if fr.pending() || fr.counts().partial != 1 {
		t.Errorf("a silence ends nothing: %+v", fr.counts())
	}
}

// An escape within the data is doubled, and a KERMIT checksum is taken too.
func TestSMLEscapes(t *testing.T) {
	sums := newSMLFramer(100)
	for name, sum := range map[string]func([]byte) uint32{"x25": sums.x25, "kermit": sums.kerm} {
		b := []byte(smlStart + "\x05\x1b\x1b" + smlEscape + smlEscape + "\x1b\x00\x00" + smlEscape + "\x1a\x02")
		s := sum(b)
		fr := newSMLFramer(100)
		got := ""
		fr.push(append(b, byte(s), byte(s>>8)), func(f frame) bool { got = string(f.body); return true })
		if want := "\x05\x1b\x1b" + smlEscape + "\x1b"; got != want {
			t.Errorf("%s: % x, want % x; %+v", name, got, want, fr.counts())
		}
	}
}

func TestSMLSigns(t *testing.T) {
	for in, want := range map[string][2]any{
		"\x53\x80\x00": {int64(-32768), uint64(32768)}, "\x52\xff": {int64(-1), uint64(255)}, "\x63\x80\x00": {uint64(32768), uint64(32768)},
		"\x59\xff\xff\xff\xff\xff\xff\xff\xff": {int64(-1), ^uint64(0)}, "\x42\x01": {true, true}, "\x01": {nil, nil},
	} {
		for i, unsigned := range []bool{false, true} {
			if got, err := (&smlReader{[]byte(in)}).scalar(unsigned); err != nil || got != want[i] {
				t.Errorf("% x, unsigned %v: %v, %v, want %v", in, unsigned, got, err, want[i])
			}
		}
	}
}

func FuzzSML(f *testing.F) {
	for name := range smlTelegrams {
		f.Add(smlTelegram(f, name))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		fr := newSMLFramer(512)
		fm, err := newSMLFormat(nil, []point{{Point: Point{Field: "1.8.0"}}})
		if err != nil {
			t.Fatal(err)
		}
		fr.push(b, func(frame) bool { return true })
		if len(fr.buf) > 512+8 || len(fr.raw) > 2*512+32 {
			t.Errorf("%d and %d bytes are held", len(fr.buf), len(fr.raw))
		}
		if got, err := fm.parse(b); err == nil {
			got.get(0)
		}
		if len(b) > 16 {
			_, _ = fm.parse(b[8 : len(b)-8])
		}
	})
}
