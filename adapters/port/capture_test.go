package port

import (
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"
	"time"
)

func chunks(c *Capture) (out []Chunk, err error) {
	for {
		chunk, err := c.Next()
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return out, err
		}
		out = append(out, chunk)
	}
}

// What is written is read as it was, settings included.
func TestCaptureRoundTrip(t *testing.T) {
	o := DefaultOptions()
	o.Device, o.Baud, o.DataBits, o.Parity, o.StopBits = "usb:0403:6001", 300, 7, ParityEven, 2
	started := time.Date(2026, 3, 1, 8, 15, 2, 500_000_000, time.UTC)
	want := []Chunk{
		{Sent: true, Bytes: []byte("/?!\r\n")},
		{At: 1500 * time.Microsecond, Bytes: []byte{0}},
		{At: 100 * time.Hour, Bytes: []byte("\xff\x00!")},
	}
	b := []byte(CaptureHeader(o, started))
	for _, c := range want {
		b = c.Append(b)
	}
	c, err := ReadCapture(strings.NewReader(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	got, err := chunks(c)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%s\ngot %v, %v", b, got, err)
	}
	if !c.Started.Equal(started) || c.Options != o {
		t.Errorf("started %v with %+v", c.Started, c.Options)
	}
}

func TestCaptureThatIsNone(t *testing.T) {
	head := captureMark + "\n"
	for in, want := range map[string]string{
		"":                              `line 0: is not "# holdfast capture 1"`,
		"# holdfast capture 2\n":        "line 1: is not",
		"0 < 00\n":                      "line 1: is not",
		head + "# baud = fast\n":        "line 2: baud: ",
		head + "# started = today\n":    "line 2: started: ",
		head + "0.5 = 00\n":             "line 2: is not SECONDS",
		head + "0.5 < 0\n":              "line 2: is not SECONDS",
		head + "0.5 <\n":                "line 2: is not SECONDS",
		head + "-1 < 00\n":              `line 2: "-1" is no number`,
		head + "1m2 < 00\n":             `line 2: "1m2" is no number`,
		head + "1.2.3 < 00\n":           `line 2: "1.2.3" is no number`,
		head + "\n2 < 00\n# x\n1 < 00":  "line 5: 1s is before the line above",
		head + strings.Repeat("a", 2e6): "line 2: bufio.Scanner: token too long",
	} {
		c, err := ReadCapture(strings.NewReader(in))
		if err == nil {
			_, err = chunks(c)
		}
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%.40q: %v, want %s", in, err, want)
		}
	}
}

func FuzzCapture(f *testing.F) {
	f.Add(CaptureHeader(DefaultOptions(), time.Unix(0, 0)) + "0.000001 < 01 02\n# remark\n1 > ff\n")
	f.Fuzz(func(t *testing.T, in string) {
		c, err := ReadCapture(strings.NewReader(in))
		if err != nil {
			return
		}
		got, _ := chunks(c)
		b := []byte(captureMark + "\n")
		for i := range got {
			got[i].At = got[i].At.Truncate(time.Microsecond)
			b = got[i].Append(b)
		}
		c, err = ReadCapture(strings.NewReader(string(b)))
		if err != nil {
			t.Fatal(err)
		}
		again, err := chunks(c)
		if err != nil || len(again) != len(got) {
			t.Fatalf("%v: %d chunks, want %d\n%s", err, len(again), len(got), b)
		}
		for i := range got {
			if !reflect.DeepEqual(again[i].Bytes, got[i].Bytes) || (again[i].At-got[i].At).Abs() > time.Microsecond {
				t.Errorf("%v became %v", got[i], again[i])
			}
		}
	})
}
