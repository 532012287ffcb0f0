package serial

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"holdfast/adapters/reading"
)

// withStar appends the checksum.
func withStar(s string) string {
	sum := byte(0)
	for _, c := range []byte(s[1:]) {
		sum ^= c
	}
	return fmt.Sprintf("%s*%02X", s, sum)
}

func nmeaDecoder(tb testing.TB, fields ...string) *decoder {
	tb.Helper()
	o := DefaultOptions()
	o.Format = FormatNMEA
	for i, f := range fields {
		o.Points = append(o.Points, Point{Name: fmt.Sprint("p", i), Field: f})
	}
	d, err := newDecoder("gps", &o)
	if err != nil {
		tb.Fatal(err)
	}
	return d
}

func TestNMEA(t *testing.T) {
	const (
		rmc   = "$GPRMC,123519,A,4807.038,N,01131.000,E,022.4,084.4,230394,003.1,W*6A"
		gga   = "$GPGGA,123519,4807.038,N,01131.000,E,1,08,0.9,545.4,M,46.9,M,,*47"
		vtg   = "$GPVTG,054.7,T,034.4,M,005.5,N,010.2,K*48"
		gll   = "$GPGLL,4916.45,N,12311.12,W,225444,A,*1D"
		gsa   = "$GPGSA,A,3,04,05,,09,12,,,24,,,,,2.5,1.3,2.1*39"
		zda   = "$GPZDA,201530.00,04,07,2002,00,00*60"
		void  = "$GPRMC,081836,V,,,,,,,130998,,,N"
		mwv   = "$WIMWV,214.8,R,0.1,K,A"
		mda   = "$WIMDA,29.9230,I,1.0133,B,21.4,C,,,44.2,,8.8,C,120.3,T,117.1,M,3.7,N,1.9,M"
		xdr   = "$IIXDR,C,19.52,C,AIRTEMP,P,1.02481,B,BARO,H,55.1,P,HUM"
		south = "$GNGLL,3357.5,S,01825.25,E,,A,A"
	)
	tests := map[string]struct{ in, field, want string }{
		"latitude":                  {rmc, "RMC.latitude", "48.1173 °"},
		"longitude":                 {rmc, "RMC.longitude", "11.5166667 °"},
		"speed":                     {rmc, "RMC.speed", "22.4 kn"},
		"variation":                 {rmc, "RMC.variation", "-3.1 °"},
		"by number":                 {rmc, "RMC.8", "84.4 "},
		"of a talker":               {rmc, "GPRMC.course", "84.4 °"},
		"of another talker":         {rmc, "GLRMC.course", errNothing.Error()},
		"altitude":                  {gga, "GGA.altitude", "545.4 m"},
		"satellites":                {gga, "GGA.satellites", "8 "},
		"VTG":                       {vtg, "VTG.speed", "10.2 km/h"},
		"west":                      {gll, "GLL.longitude", "-123.1853333 °"},
		"south":                     {south, "GLL.latitude", "-33.9583333 °"},
		"GSA":                       {gsa, "GSA.vdop", "2.1 "},
		"ZDA":                       {zda, "ZDA.4", "2002 "},
		"void":                      {withStar(void), "RMC.latitude", "bad: device has no value"},
		"no value where none":       {withStar("$GPGGA,1,,,,,0,00,,,M,,M,,"), "GGA.altitude", "bad: device has no value"},
		"quality of none":           {withStar("$GPGGA,1,,,,,0,00,,,M,,M,,"), "GGA.quality", "0 "},
		"wind":                      {mwv, "MWV.speed", "0.1 km/h"},
		"wind, relative":            {mwv, "MWV[R].angle", "214.8 °"},
		"wind, not the true one":    {mwv, "MWV[T].angle", errNothing.Error()},
		"wind, void":                {withStar("$WIMWV,,R,,,V"), "MWV.angle", "bad: device has no value"},
		"weather":                   {mda, "MDA.humidity", "44.2 %"},
		"dew":                       {mda, "MDA.dew_point", "8.8 °C"},
		"heading":                   {withStar("$HEHDT,274.07,T"), "HDT.heading", "274.07 °"},
		"depth":                     {"$SDDBT,7.8,f,2.4,M,1.3,F*0D", "DBT.depth", "2.4 m"},
		"water":                     {withStar("$YXMTW,17.75,C"), "MTW.temperature", "17.75 °C"},
		"transducer":                {xdr, "XDR.BARO", "1.02481 bar"},
		"transducer's humidity":     {xdr, "XDR.HUM", "55.1 %"},
		"transducer not there":      {xdr, "XDR.ENGINE", errNothing.Error()},
		"a maker's own":             {withStar("$PGRME,15.0,M,45.0,M,25.0,M"), "PGRME.3", "45 "},
		"another sentence":          {vtg, "RMC.speed", errNothing.Error()},
		"a column it has not":       {vtg, "VTG.40", errNothing.Error()},
		"wrong checksum":            {strings.Replace(rmc, "022.4", "022.5", 1), "RMC.speed", errCheckWrong.Error()},
		"minutes that are none":     {withStar("$GPGLL,4860.00,N,1,E,1,A"), "GLL.latitude", `bad: "4860.00" is not degrees and minutes`},
		"degrees that are none":     {withStar("$GPGLL,inf,N,1,E,1,A"), "GLL.latitude", `bad: "inf" is no angle`},
		"a direction that is none":  {withStar("$GPGLL,4800.00,X,1,E,1,A"), "GLL.latitude", "bad: " + errNoDirection.Error()},
		"no sentence":               {"hello", "RMC.speed", errNoSentence.Error()},
		"nothing":                   {"$", "RMC.speed", errNoSentence.Error()},
		"more columns than allowed": {"$GPRMC" + strings.Repeat(",", 81), "RMC.speed", errLongNMEA.Error()},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			res, err := nmeaDecoder(t, tt.field).decode([]byte(tt.in), reading.Stamp{Wall: time.Now()})
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

// The time is that of RMC and ZDA; a sentence with a time only is of the nearest
// day, and one without has the gateway's. What a sentence does not speak of is not
// missing.
func TestNMEATime(t *testing.T) {
	d := nmeaDecoder(t, "GGA.quality", "RMC.status", "ZDA.4", "HDT.heading")
	for _, step := range []struct{ in, want string }{
		{"$GPGGA,235958,4807.038,N,01131.000,E,1,08,0.9,545.4,M,46.9,M,,", ""},
		{"$GPRMC,235959.50,A,4807.038,N,01131.000,E,,,311225,,", "2025-12-31T23:59:59.5Z"},
		{"$GPGGA,000000.25,4807.038,N,01131.000,E,1,08,0.9,545.4,M,46.9,M,,", "2026-01-01T00:00:00.25Z"},
		{"$GPGGA,235959.75,4807.038,N,01131.000,E,1,08,0.9,545.4,M,46.9,M,,", "2025-12-31T23:59:59.75Z"},
		{"$GPRMC,000001,V,,,,,,,010180,,", ""},
		{"$HEHDT,274.07,T", ""},
		{"$GPZDA,000002,01,01,2026,00,00", "2026-01-01T00:00:02Z"},
		{"$GPGGA,235959.75,4807.038,N,01131.000,E,1,08,0.9,545.4,M,46.9,M,,", "2025-12-31T23:59:59.75Z"},
		{"$GPZDA,000002,31,02,2026,00,00", ""},
		{"$GPZDA,250002,01,01,2026,00,00", ""},
	} {
		res, err := d.decode([]byte(withStar(step.in)), reading.Stamp{Wall: time.Now()})
		if err != nil || len(res.readings) != 1 || res.missing != 0 {
			t.Fatalf("%s: %+v, %v", step.in, res, err)
		}
		got := ""
		if at := res.readings[0].Time.Device; !at.IsZero() {
			got = at.Format(time.RFC3339Nano)
		}
		if got != step.want {
			t.Errorf("%s: %s, want %s", step.in, got, step.want)
		}
	}
}

func TestNMEAFieldsThatAreNone(t *testing.T) {
	for field, want := range map[string]string{
		"latitude": `is no sentence`, "RMC": `is no sentence`, "RMC.": `is no sentence`, "rmc.speed": `is no sentence`, "MWV[R.angle": `is no sentence`, "MWV[].angle": `is no sentence`,
		"RMC.0": "column 0 is outside", "RMC.81": "column 81 is outside", "RMC.voltage": "RMC has status, latitude", "TXT.text": "the columns of TXT have no names here",
	} {
		o := DefaultOptions()
		o.Format, o.Points = FormatNMEA, []Point{{Name: "p", Field: field}}
		if err := o.Validate(); err == nil || !strings.HasPrefix(err.Error(), "point[0].field: ") || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", field, err, want)
		}
	}
}

func FuzzNMEA(f *testing.F) {
	f.Add("$GPRMC,123519,A,4807.038,N,01131.000,E,022.4,084.4,230394,003.1,W*6A")
	f.Add("$GPGGA,123519,4807.038,N,01131.000,E,1,08,0.9,545.4,M,46.9,M,,")
	f.Add("$IIXDR,C,19.52,C,AIRTEMP,P,1.02481,B,BARO")
	f.Add("$WIMWV,214.8,R,0.1,K,A")
	d := nmeaDecoder(f, "RMC.latitude", "GGA.longitude", "RMC.variation", "XDR.BARO", "MWV[R].speed", "GLL.latitude", "VTG.80")
	f.Fuzz(func(t *testing.T, in string) {
		res, err := d.decode([]byte(in), reading.Stamp{Wall: time.Now()})
		if err != nil {
			return
		}
		for _, r := range res.readings {
			if v, ok := r.Value.(float64); ok && (math.IsNaN(v) || r.Point == "p0" && math.Abs(v) > 181) {
				t.Errorf("%q: %v", in, r)
			}
		}
	})
}
