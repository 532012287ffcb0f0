package serial_test

import (
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/adapters/port"
	"holdfast/adapters/serial"
)

// samples are devices as people have them; testdata/devices has what each says,
// in hexadecimal with remarks.
var samples = map[string]struct {
	options func(*serial.Options)
	want    map[string]string // beginning of the payload by point
}{
	// A laser particle sensor: 42 4d, length, 13 numbers, sum of 16 bits.
	"pms5003": {
		options: func(o *serial.Options) {
			o.Framing, o.Sync, o.LengthOffset, o.LengthSize, o.LengthAdjust = serial.FramingLength, "0x424D", 2, 2, 4
			o.Check, o.Format = "sum16", serial.FormatBinary
			o.Points = []serial.Point{{Name: "pm1", At: 10}, {Name: "pm2_5", At: 12}, {Name: "pm10", At: 14}}
		},
		want: map[string]string{"pm1": `{"value":5,`, "pm2_5": `{"value":8,`, "pm10": `{"value":9,`},
	},
	// A CO2 sensor: nine bytes, two's complement of the sum of seven.
	"mhz19": {
		options: func(o *serial.Options) {
			o.Framing, o.Sync, o.Length = serial.FramingFixed, "0xFF86", 9
			o.Check, o.CheckFrom, o.Format = "lrc", 1, serial.FormatBinary
			o.Points = []serial.Point{{Name: "co2", At: 2}, {Name: "temperature", Type: "uint8", At: 4, Offset: -40}}
		},
		want: map[string]string{"co2": `{"value":608,`, "temperature": `{"value":27,`},
	},
	// An ultrasonic distance sensor: ff, distance, sum.
	"a02yyuw": {
		options: func(o *serial.Options) {
			o.Framing, o.Sync, o.Length, o.Check, o.Format = serial.FramingFixed, "0xFF", 4, "sum8", serial.FormatBinary
			o.Points = []serial.Point{{Name: "distance", At: 1}}
		},
		want: map[string]string{"distance": `{"value":1953,`},
	},
	// A scale: STX, status, weight with decimal comma and unit, ETX, block check.
	"scale": {
		options: func(o *serial.Options) {
			o.Framing, o.Start, o.End, o.Trailer = serial.FramingStartEnd, "0x02", "0x03", 1
			o.Check, o.CheckFrom, o.Format, o.Columns = "xor", 1, serial.FormatCSV, []string{"state", "weight"}
			o.Separator, o.Decimal = ";", ","
			o.Points = []serial.Point{{Name: "weight", Suffixes: []string{"kg"}}, {Name: "state", Type: serial.TypeText}}
		},
		want: map[string]string{"weight": `{"value":-12.5,`, "state": `{"value":"ST",`},
	},
	// Bytes in HDLC frames with the frame check sequence of RFC 1662.
	"hdlc": {
		options: func(o *serial.Options) {
			o.Framing, o.Start, o.End, o.Escape, o.EscapeXor = serial.FramingStartEnd, "0x7E", "0x7E", "0x7D", 0x20
			o.Check, o.Format = "crc16-x25", serial.FormatBinary
			o.Points = []serial.Point{{Name: "level", Type: "uint16", At: 0}}
		},
		want: map[string]string{"level": `{"value":32382,`}, // 7e 7e: both escaped
	},
	// A serial printer line that only silence ends.
	"silence": {
		options: func(o *serial.Options) {
			o.Framing, o.Format, o.PairSeparator, o.KeySeparator = serial.FramingSilence, serial.FormatKeyValue, " ", ":"
			o.Points = []serial.Point{{Name: "U"}, {Name: "I"}}
		},
		want: map[string]string{"U": `{"value":230.1,`, "I": `{"value":0.52,`},
	},
}

// fixture reads a file of hexadecimal digits, with remarks after "#".
func fixture(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "devices", name+".hex"))
	if err != nil {
		t.Fatal(err)
	}
	var digits strings.Builder
	for line := range strings.Lines(string(b)) {
		line, _, _ = strings.Cut(line, "#")
		digits.WriteString(strings.Join(strings.Fields(line), ""))
	}
	raw, err := hex.DecodeString(digits.String())
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return string(raw)
}

// Each device is heard through a line that carries noise, and half a frame,
// before what it says.
func TestSampleDevices(t *testing.T) {
	for name, tt := range samples {
		t.Run(name, func(t *testing.T) {
			said := fixture(t, name)
			o := serial.DefaultOptions()
			tt.options(&o)
			for _, driver := range []string{port.DriverBugst, port.DriverTarm} {
				t.Run(driver, func(t *testing.T) {
					r := start(t, driver, o)
					r.open(1)
					stop, done := make(chan struct{}), make(chan struct{})
					go func() {
						defer close(done)
						for first := true; ; first = false {
							out := said
							if first {
								out = "\x00\xfe" + said[:len(said)/2] + said
							}
							if _, err := r.master.WriteString(out); err != nil {
								return
							}
							select {
							case <-stop:
								return
							case <-time.After(100 * time.Millisecond):
							}
						}
					}()
					t.Cleanup(func() { close(stop); <-done })
					for point, want := range tt.want {
						r.await("sensors/scale/"+point, want)
					}
				})
			}
		})
	}
}
