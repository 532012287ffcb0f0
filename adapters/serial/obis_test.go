package serial

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"holdfast/adapters/reading"
)

// The examples of the DSMR P1 companion standards, 5.0.2 §6.12 and 2.2 §4, and
// lines of the Belgian and Luxembourgish ones (e-MUCS-P1 1.4, Luxmetering 1.1.3).
const (
	dsmr5 = "/ISk5\\2MT382-1000\r\n\r\n1-3:0.2.8(50)\r\n0-0:1.0.0(101209113020W)\r\n0-0:96.1.1(4B384547303034303436333935353037)\r\n" +
		"1-0:1.8.1(123456.789*kWh)\r\n1-0:1.8.2(123456.789*kWh)\r\n1-0:2.8.1(123456.789*kWh)\r\n1-0:2.8.2(123456.789*kWh)\r\n0-0:96.14.0(0002)\r\n" +
		"1-0:1.7.0(01.193*kW)\r\n1-0:2.7.0(00.000*kW)\r\n0-0:96.7.21(00004)\r\n0-0:96.7.9(00002)\r\n" +
		"1-0:99.97.0(2)(0-0:96.7.19)(101208152415W)(0000000240*s)(101208151004W)(0000000301*s)\r\n0-0:96.13.0()\r\n1-0:32.7.0(220.1*V)\r\n1-0:31.7.0(001*A)\r\n" +
		"0-1:24.1.0(003)\r\n0-1:96.1.0(3232323241424344313233343536373839)\r\n0-1:24.2.1(101209112500W)(12785.123*m3)\r\n!"
	dsmr22 = "/ISk5\\2ME382-1003\r\n\r\n0-0:96.1.1(4B414C37303035303739363336333132)\r\n1-0:1.8.1(00000.000*kWh)\r\n1-0:1.7.0(0000.01*kW)\r\n0-0:17.0.0(0999.00*kW)\r\n0-0:96.13.1()\r\n" +
		"0-1:24.1.0(3)\r\n0-1:24.3.0(090212160000)(00)(60)(1)(0-1:24.2.1)(m3)\r\n(00012.345)\r\n0-1:24.4.0(1)\r\n!\r\n"
	belgian    = "/FLU5\\253769484_A\r\n\r\n0-0:96.1.4(50217)\r\n0-0:1.0.0(200512135409S)\r\n1-0:1.4.0(02.351*kW)\r\n0-0:96.3.10(1)\r\n0-1:24.2.3(200512134558S)(00112.384*m3)\r\n0-2:24.2.1(200512134558S)(00872.234*m3)\r\n!"
	luxembourg = "/Lux5\\253663629_D\r\n\r\n1-3:0.2.8(42)\r\n0-0:1.0.0(190808150501S)\r\n1-0:1.8.0(000123.456*kWh)\r\n1-0:3.8.0(000000.500*kvarh)\r\n!"
	mode62056  = "/LGZ4ZMF100AC.M29\r\n\x02F.F(00)\r\n0.0.0(50123456)1.8.0(00012.34*kWh)\r\n1-1:2.8.0*255(00056.7*kWh)\r\n!\r\n\x03"
)

func TestOBIS(t *testing.T) {
	tests := map[string]struct {
		in, field, typ string
		want           string // value, unit
	}{
		"energy":                   {dsmr5, "1-0:1.8.1", "", "123456.789 kWh"},
		"power":                    {dsmr5, "1-0:1.7.0", "", "1.193 kW"},
		"code without a channel":   {dsmr5, "1.7.0", "", "1.193 kW"},
		"tariff":                   {dsmr5, "0-0:96.14.0", "", "2 "},
		"equipment":                {dsmr5, "0-0:96.1.1", TypeText, "4B384547303034303436333935353037 "},
		"gas":                      {dsmr5, "0-1:24.2.1", "", "12785.123 m3"},
		"when the gas was read":    {dsmr5, "0-1:24.2.1[0]", TypeText, "101209112500W "},
		"power failures":           {dsmr5, "1-0:99.97.0[3]", "", "240 s"},
		"empty text":               {dsmr5, "0-0:96.13.0", TypeText, "bad: device has no value"},
		"DSMR 2.2, gas":            {dsmr22, "0-1:24.3.0", "", "12.345 m3"},
		"DSMR 2.2, when":           {dsmr22, "0-1:24.3.0[0]", TypeText, "090212160000 "},
		"Belgium, gas":             {belgian, "0-1:24.2.3", "", "112.384 m3"},
		"Belgium, water":           {belgian, "0-2:24.2.1", "", "872.234 m3"},
		"Belgium, breaker":         {belgian, "0-0:96.3.10", TypeBool, "true "},
		"Luxembourg":               {luxembourg, "1-0:3.8.0", "", "0.5 kvarh"},
		"IEC 62056-21":             {mode62056, "1.8.0", "", "12.34 kWh"},
		"IEC 62056-21, with *255":  {mode62056, "1-1:2.8.0", "", "56.7 kWh"},
		"IEC 62056-21, one line":   {mode62056, "0.0.0", TypeText, "50123456 "},
		"not in the frame":         {dsmr5, "9-9:9.9.9", "", "frame holds none of the points"},
		"no such place":            {dsmr5, "1-0:1.8.1[1]", "", "frame holds none of the points"},
		"no objects":               {"/ISk5\r\n\r\n!", "1.8.0", "", errNoObjects.Error()},
		"cut off":                  {"1-0:1.8.1(12", "1.8.1", "", `"1-0:1.8.1" is cut off`},
		"a line that is no object": {"1-0:1.8.1(12)\r\nx\r\n", "1.8.1", "", `"x" is no object`},
		"no code":                  {"(12)", "1.8.1", "", `"(12)" has no code`},
		"too many values":          {"1-0:1.8.1" + strings.Repeat("(1)", 65), "1.8.1", "", `"1-0:1.8.1" has more than 64 values`},
	}
	at := reading.Stamp{Wall: time.Now(), Synchronised: true}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			o := DefaultOptions()
			o.Format, o.Points = FormatOBIS, []Point{{Name: "p", Field: tt.field, Type: tt.typ}}
			d, err := newDecoder("meter", &o)
			if err != nil {
				t.Fatal(err)
			}
			res, err := d.decode([]byte(tt.in), at)
			var got string
			switch {
			case err != nil:
				got = err.Error()
			case res.readings[0].Quality == reading.Bad:
				got = "bad: " + res.readings[0].Reason
			default:
				got = fmt.Sprint(res.readings[0].Value, " ", res.readings[0].Unit)
			}
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestOBISFieldsThatAreNone(t *testing.T) {
	for _, field := range []string{"voltage", "1-0:1.8.1[", "1-0:1.8.1[x]", "1-0:1.8.1[64]", "[0]", "1-0:1.8.1]"} {
		o := DefaultOptions()
		o.Format, o.Points = FormatOBIS, []Point{{Name: "p", Field: field}}
		if err := o.Validate(); err == nil || !strings.HasPrefix(err.Error(), "point[0].field: ") {
			t.Errorf("%q: %v", field, err)
		}
	}
}

// The meter's clock says in which time it goes: in the hour that comes twice too.
func TestP1Time(t *testing.T) {
	for in, want := range map[string]string{
		"101209113020W": "2010-12-09T10:30:20Z", "251026023000S": "2025-10-26T00:30:00Z", "251026023000W": "2025-10-26T01:30:00Z",
		"101209113020": "", "101209113020X": "", "101309113020W": "", "": "",
	} {
		got := ""
		if at := p1Time([]byte(in)); !at.IsZero() {
			got = at.UTC().Format(time.RFC3339)
		}
		if got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
}

// A whole telegram through framing and checksum, with noise before it.
func TestP1Stream(t *testing.T) {
	o := DefaultOptions()
	o.Framing, o.Start, o.End, o.Trailer, o.Check, o.MaxLength = FramingStartEnd, "/", "!", 4, CheckP1, 2048
	o.Format, o.Points = FormatOBIS, []Point{{Name: "power", Field: "1-0:1.7.0"}}
	d, err := newDecoder("meter", &o)
	if err != nil {
		t.Fatal(err)
	}
	fr, err := o.newFramer()
	if err != nil {
		t.Fatal(err)
	}
	c, err := newCheck(&o)
	if err != nil {
		t.Fatal(err)
	}
	good, whole := 0, dsmr5+p1CRC(dsmr5)+"\r\n"
	hurt := strings.Replace(whole, "01.193", "01.913", 1)
	for _, b := range []byte("kW)\r\n!EF2F\r\n" + whole + hurt + whole) {
		fr.push([]byte{b}, func(f frame) bool {
			body, err := c.verify(f)
			if err != nil {
				return false
			}
			res, err := d.decode(body, reading.Stamp{Wall: time.Now()})
			if err != nil || res.readings[0].Value != 1.193 {
				t.Errorf("%v %v", res.readings, err)
			}
			good++
			return true
		})
	}
	if good != 2 {
		t.Errorf("%d telegrams were good, want 2", good)
	}
}

func FuzzOBIS(f *testing.F) {
	for _, s := range []string{dsmr5, dsmr22, belgian, luxembourg, mode62056} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		fm, err := newOBISFormat(nil, []point{{Point: Point{Field: "1.8.0"}}, {Point: Point{Field: "0-1:24.2.1[0]"}}})
		if err != nil {
			t.Fatal(err)
		}
		got, err := fm.parse(b)
		if err != nil {
			return
		}
		for i := range 2 {
			if v, ok := got.get(i); ok && v != nil && len(v.(string))+len(got.unit(i)) > 2*len(b) {
				t.Errorf("%q is longer than the frame", v)
			}
		}
	})
}
