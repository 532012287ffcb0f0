package serial

import (
	"fmt"
	"strings"
	"testing"
)

// The check values of the catalogue of parametrised CRC algorithms: what each
// makes of "123456789". The sums are by hand.
var checkValues = map[string]uint32{
	"crc8-smbus": 0xf4, "crc8-i432": 0xa1, "crc8-maxim": 0xa1, "crc8-nrsc5": 0xf7, "crc8-rohc": 0xd0,
	"crc8-j1850": 0x4b, "crc8-autosar": 0xdf, "crc8-cdma2000": 0xda,
	"crc16-modbus": 0x4b37, "crc16-arc": 0xbb3d, "crc16-usb": 0xb4c8, "crc16-ibm-3740": 0x29b1, "crc16-spi": 0xe5cc,
	"crc16-xmodem": 0x31c3, "crc16-kermit": 0x2189, "crc16-x25": 0x906e, "crc16-mcrf4xx": 0x6f91,
	"crc16-dnp": 0xea82, "crc16-en13757": 0xc2b7,
	"crc32": 0xcbf43926, "crc32c": 0xe3069283, "crc32-bzip2": 0xfc891918, "crc32-mpeg2": 0x0376e6e7,
	"sum8": 0xdd, "sum16": 0x01dd, "sum8-complement": 0x22, "lrc": 0x23, "xor": 0x31, CheckNMEA: 0x31, CheckP1: 0xbb3d,
}

func checkFor(t testing.TB, name string, change func(*Options)) *check {
	t.Helper()
	o := DefaultOptions()
	o.Check = name
	if change != nil {
		change(&o)
	}
	c, err := newCheck(&o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestCheckValues(t *testing.T) {
	for name := range checks {
		want, ok := checkValues[name]
		if !ok {
			t.Errorf("%s has no check value in this test", name)
			continue
		}
		c := checkFor(t, name, nil)
		if got := c.mask(c.sum([]byte("123456789"))); got != want {
			t.Errorf("%s of 123456789 = %#x, want %#x", name, got, want)
		}
	}
}

func TestVerify(t *testing.T) {
	const stx, etx = "\x02", "\x03"
	tests := map[string]struct {
		check  string
		change func(*Options)
		body   string // raw as well, unless there is a raw
		raw    string
		want   string
		err    error
	}{
		"Modbus, low byte first":         {check: "crc16-modbus", body: "\x01\x03\x00\x00\x00\x0a\xc5\xcd", want: "\x01\x03\x00\x00\x00\x0a"},
		"the bytes the other way round":  {check: "crc16-modbus", body: "123456789\x4b\x37", err: errCheckWrong},
		"unless it is said":              {check: "crc16-modbus", change: func(o *Options) { o.CheckOrder = OrderBig }, body: "123456789\x4b\x37", want: "123456789"},
		"hexadecimal":                    {check: "crc16-modbus", change: func(o *Options) { o.CheckEncoding = EncodingHex }, body: "1234567894b37", want: "123456789"},
		"not hexadecimal":                {check: "crc16-modbus", change: func(o *Options) { o.CheckEncoding = EncodingHex }, body: "1234567894b3x", err: errCheckWrong},
		"four bytes":                     {check: "crc32", body: "123456789\x26\x39\xf4\xcb", want: "123456789"},
		"one wrong bit":                  {check: "crc32", body: "123456788\x26\x39\xf4\xcb", err: errCheckWrong},
		"shorter than the checksum":      {check: "crc32", body: "123", err: errCheckShort},
		"the checksum alone":             {check: "xor", body: "\x00", want: ""},
		"before a last byte":             {check: "xor", change: func(o *Options) { o.CheckAt = -2 }, body: "123456789\x31\r", want: "123456789\x31\r"},
		"first, over the rest":           {check: "sum8", change: func(o *Options) { o.CheckAt, o.CheckFrom = 0, 1 }, body: "\xdd123456789", want: "\xdd123456789"},
		"over a part":                    {check: "xor", change: func(o *Options) { o.CheckFrom, o.CheckTo = 1, 10 }, body: "#123456789!!\x31", want: "#123456789!!"},
		"over all but so many":           {check: "xor", change: func(o *Options) { o.CheckFrom, o.CheckTo = 1, -3 }, body: "#123456789!!\x31", want: "#123456789!!"},
		"a part that is not there":       {check: "xor", change: func(o *Options) { o.CheckTo = 100 }, body: "12\x31", err: errCheckShort},
		"a part that ends before itself": {check: "xor", change: func(o *Options) { o.CheckFrom, o.CheckTo = 3, -4 }, body: "123\x31", err: errCheckShort},
		"in the trailer":                 {check: "xor", body: "123456789", raw: stx + "123456789" + etx + "\x30", want: "123456789"},
		"NMEA":                           {check: CheckNMEA, body: "$GPGLL,5300.97914,N,00259.98174,E,125926,A*28", want: "$GPGLL,5300.97914,N,00259.98174,E,125926,A"},
		"NMEA, another digit":            {check: CheckNMEA, body: "$GPGLL,5300.97915,N,00259.98174,E,125926,A*28", err: errCheckWrong},
		"NMEA without a star":            {check: CheckNMEA, body: "$GPGLL,5300.97914", err: errCheckShort},
		"NMEA with something behind":     {check: CheckNMEA, body: "$GPGLL,5300.97914,N,00259.98174,E,125926,A*281", err: errCheckWrong},
		"NMEA without a dollar":          {check: CheckNMEA, body: "GPGLL,5300.97914*28", err: errCheckShort},
		"P1":                             {check: CheckP1, body: "/!" + p1CRC("/!"), want: "/!"},
		"P1, ends apart":                 {check: CheckP1, body: "ISk5\r\n", raw: "/ISk5\r\n!" + p1CRC("/ISk5\r\n!") + "\r\n", want: "ISk5\r\n"},
		"P1, wrong":                      {check: CheckP1, body: "/!0000", err: errCheckWrong},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c := checkFor(t, tt.check, tt.change)
			f := plain([]byte(tt.body))
			if tt.raw != "" {
				f.raw = []byte(tt.raw)
			}
			got, err := c.verify(f)
			if err != tt.err || string(got) != tt.want { //nolint:errorlint // these very ones
				t.Errorf("verify(%q) = %q, %v, want %q, %v", f.raw, got, err, tt.want, tt.err)
			}
		})
	}
}

func p1CRC(s string) string {
	return fmt.Sprintf("%04X", crc{16, 0x8005, 0, 0, true}.sum()([]byte(s)))
}

func FuzzVerify(f *testing.F) {
	f.Add([]byte("123456789\x31"), "xor", -1, 0, 0, false)
	f.Add([]byte("$A*00"), CheckNMEA, 0, 3, -2, true)
	f.Fuzz(func(t *testing.T, frame []byte, name string, at, from, to int, inHex bool) {
		o := DefaultOptions()
		o.Check, o.CheckAt, o.CheckFrom, o.CheckTo = name, at, from, to
		if inHex {
			o.CheckEncoding = EncodingHex
		}
		c, err := newCheck(&o)
		if err != nil || name == "" {
			return
		}
		if body, err := c.verify(plain(frame)); err == nil && !strings.HasPrefix(string(frame), string(body)) {
			t.Errorf("%q lost more than its end: %q", frame, body)
		}
	})
}
