package modbus

import (
	"bytes"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// golden is one exchange out of testdata/frames, written from the examples of
// the specification with CRCs computed by others (pymodbus).
type golden struct {
	unit            byte
	data            []byte
	exception       Exception
	request, answer []byte
}

func goldenFrames(tb testing.TB) map[string]golden {
	tb.Helper()
	files, err := filepath.Glob("testdata/frames/*.frame")
	if err != nil {
		tb.Fatal(err)
	}
	if len(files) == 0 {
		tb.Fatal("testdata/frames is empty")
	}
	all := map[string]golden{}
	unhex := func(s string) []byte {
		b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
		if err != nil {
			tb.Fatalf("%q: %v", s, err)
		}
		return b
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			tb.Fatal(err)
		}
		var g golden
		for line := range strings.Lines(string(text)) {
			line, _, _ = strings.Cut(line, "#")
			line = strings.TrimSpace(line)
			key, value, ok := strings.Cut(line, ": ")
			switch {
			case line == "":
			case ok && key == "unit":
				n, err := strconv.Atoi(value)
				if err != nil {
					tb.Fatal(err)
				}
				g.unit = byte(n)
			case ok && key == "exception":
				n, err := strconv.Atoi(value)
				if err != nil {
					tb.Fatal(err)
				}
				g.exception = Exception(n)
			case ok && key == "data":
				g.data = unhex(value)
			case g.request == nil:
				g.request = unhex(line)
			default:
				g.answer = unhex(line)
			}
		}
		all[strings.TrimSuffix(filepath.Base(f), ".frame")] = g
	}
	return all
}

func TestGoldenFrames(t *testing.T) {
	for name, g := range goldenFrames(t) {
		t.Run(name, func(t *testing.T) {
			if CRC(g.request) != 0 || CRC(g.answer) != 0 {
				t.Fatalf("CRC of the request = %#x, of the answer = %#x, want 0", CRC(g.request), CRC(g.answer))
			}
			r, err := ParseRequest(g.request[0], g.request[1:len(g.request)-2])
			if err != nil {
				t.Fatal(err)
			}
			if r.Unit != g.unit {
				t.Errorf("unit = %d, want %d", r.Unit, g.unit)
			}
			pdu, err := r.AppendPDU(nil)
			if err != nil {
				t.Fatal(err)
			}
			if got := AppendRTU(nil, r.Unit, pdu); !bytes.Equal(got, g.request) {
				t.Errorf("request = % x, want % x", got, g.request)
			}
			// A line that is known to have no echo: the answer to a single
			// write is its copy.
			s := scanAnswer(g.answer, r, g.request, echoNone, true)
			data, err := r.ParseAnswer(s.pdu)
			if g.exception != 0 {
				want := &ExceptionError{Function: r.Function, Code: g.exception}
				var got *ExceptionError
				if !errors.As(err, &got) || *got != *want {
					t.Errorf("error = %v, want %v", err, want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(g.data, data); diff != "" {
				t.Errorf("data (-want +got):\n%s", diff)
			}
			pdu, err = r.AppendAnswer(nil, g.data)
			if err != nil {
				t.Fatal(err)
			}
			if got := AppendRTU(nil, r.Unit, pdu); !bytes.Equal(got, g.answer) {
				t.Errorf("answer = % x, want % x", got, g.answer)
			}
		})
	}
}

// Each answer of the golden frames is one in ASCII too, and none of another
// request.
func TestGoldenAnswersInASCII(t *testing.T) {
	all := goldenFrames(t)
	for name, g := range all {
		for other, h := range all {
			r, err := ParseRequest(h.request[0], h.request[1:len(h.request)-2])
			if err != nil {
				t.Fatal(err)
			}
			same := name == other || g.request[1] == h.request[1] // the exception is to one of the others
			if got := answers(g.answer[1:len(g.answer)-2], r); name == other && !got || !same && got {
				t.Errorf("the answer of %s answers %s: %v", name, other, got)
			}
		}
	}
}
