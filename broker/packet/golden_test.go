package packet_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"holdfast/broker/packet"
)

var update = flag.Bool("update", false, "rewrite the value, error and encodes lines of testdata/*/*.pkt")

// golden is one file of testdata: comments and "key: value" lines, a blank
// line, then hex with a comment behind each field.
//
//	version  the version to decode for
//	expect   ok, or the reason code of the error
//	value    what it decodes to (written by -update)
//	error    the error's text (written by -update)
//	encodes  what the value encodes to, if that is not what it came from
//	         (written by -update)
type golden struct {
	head    []string // lines that -update leaves alone
	version packet.Version
	expect  string
	results map[string]string
	body    string
	frame   []byte
}

var resultKeys = []string{"value", "error", "encodes"}

func readGolden(tb testing.TB, path string) golden {
	tb.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		tb.Fatal(err)
	}
	head, body, ok := strings.Cut(string(text), "\n\n")
	if !ok {
		tb.Fatalf("%s has no blank line", path)
	}
	g := golden{body: body, results: map[string]string{}}
	for line := range strings.Lines(head) {
		line = strings.TrimSpace(line)
		key, value, ok := strings.Cut(line, ": ")
		switch {
		case strings.HasPrefix(line, "#"):
		case !ok:
			tb.Fatalf("%s: %q is neither a comment nor key: value", path, line)
		case slices.Contains(resultKeys, key):
			g.results[key] = value
			continue
		case key == "expect":
			g.expect = value
		case key == "version":
			n, err := strconv.ParseUint(value, 10, 8)
			if err != nil {
				tb.Fatalf("%s: version: %v", path, err)
			}
			g.version = packet.Version(n)
		default:
			tb.Fatalf("%s: unknown key %q", path, key)
		}
		g.head = append(g.head, line)
	}
	var digits strings.Builder
	for line := range strings.Lines(body) {
		line, _, _ = strings.Cut(line, "#")
		digits.WriteString(strings.Join(strings.Fields(line), ""))
	}
	if g.frame, err = hex.DecodeString(digits.String()); err != nil {
		tb.Fatalf("%s: %v", path, err)
	}
	return g
}

func (g golden) write(path string, results map[string]string) error {
	var s strings.Builder
	for _, line := range g.head {
		s.WriteString(line + "\n")
	}
	for _, key := range resultKeys {
		if v, ok := results[key]; ok {
			s.WriteString(key + ": " + v + "\n")
		}
	}
	s.WriteString("\n" + g.body)
	return os.WriteFile(path, []byte(s.String()), 0o644)
}

func goldenFiles(tb testing.TB) []string {
	tb.Helper()
	paths, err := fs.Glob(os.DirFS("testdata"), "*/*.pkt")
	if err != nil {
		tb.Fatal(err)
	}
	if len(paths) == 0 {
		tb.Fatal("testdata holds no .pkt files")
	}
	return paths
}

func TestGolden(t *testing.T) {
	seen := map[string]bool{}
	for _, name := range goldenFiles(t) {
		seen[filepath.Dir(name)] = true
		t.Run(strings.TrimSuffix(name, ".pkt"), func(t *testing.T) {
			path := filepath.Join("testdata", name)
			g := readGolden(t, path)
			results, expect := judge(t, g)
			if expect != g.expect {
				t.Errorf("Decode(% x) says %s (%s), want %s", g.frame, expect, results["error"], g.expect)
			}
			if *update {
				if err := g.write(path, results); err != nil {
					t.Fatal(err)
				}
				return
			}
			for _, key := range resultKeys {
				if got, want := results[key], g.results[key]; got != want {
					t.Errorf("%s of % x is\n%s\nwant\n%s", key, g.frame, got, want)
				}
			}
		})
	}
	for typ := packet.TypeConnect; typ <= packet.TypeAuth; typ++ {
		if dir := strings.ToLower(typ.String()); !seen[dir] {
			t.Errorf("testdata/%s holds no .pkt files", dir)
		}
	}
}

// judge decodes and encodes. expect is ok or a reason code.
func judge(t *testing.T, g golden) (results map[string]string, expect string) {
	t.Helper()
	original := bytes.Clone(g.frame)
	p, err := packet.Decode(g.frame, g.version, nil)
	if !bytes.Equal(g.frame, original) {
		t.Errorf("Decode changed its input to % x, was % x", g.frame, original)
	}
	if err != nil {
		e, ok := errors.AsType[*packet.Error](err)
		if !ok {
			t.Fatalf("Decode(% x) returns %T, want *packet.Error", g.frame, err)
		}
		want := packet.ErrProtocol
		if e.Reason == packet.ReasonMalformedPacket {
			want = packet.ErrMalformed
		}
		if !errors.Is(err, want) {
			t.Errorf("%v does not wrap %v", err, want)
		}
		if p != nil {
			t.Errorf("Decode(% x) returns a packet with its error", g.frame)
		}
		return map[string]string{"error": err.Error()}, fmt.Sprintf("0x%02x", byte(e.Reason))
	}
	results = map[string]string{"value": render(p)}
	encoded, err := p.AppendTo(nil, g.version)
	if err != nil {
		t.Fatalf("AppendTo of what % x decoded to: %v", g.frame, err)
	}
	if !bytes.Equal(encoded, g.frame) {
		results["encodes"] = fmt.Sprintf("% x", encoded)
		again, err := packet.Decode(encoded, g.version, nil)
		if err != nil {
			t.Fatalf("Decode(% x), encoded from % x: %v", encoded, g.frame, err)
		}
		if got := render(again); got != results["value"] {
			t.Errorf("% x encodes to % x, which says\n%s\nwant\n%s", g.frame, encoded, got, results["value"])
		}
	}
	return results, "ok"
}

// render writes a value with its fields that are not zero, in one line.
func render(v any) string {
	var s strings.Builder
	renderTo(&s, reflect.ValueOf(v))
	return s.String()
}

func renderTo(s *strings.Builder, v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		renderTo(s, v.Elem())
	case reflect.Struct:
		s.WriteString(v.Type().Name() + "{")
		separator := ""
		for i := range v.NumField() {
			f := v.Type().Field(i)
			if !f.IsExported() || v.Field(i).IsZero() || f.Type == reflect.TypeFor[[]uint32]() && v.Field(i).Len() == 0 {
				continue
			}
			s.WriteString(separator + f.Name + ": ")
			renderTo(s, v.Field(i))
			separator = ", "
		}
		s.WriteString("}")
	case reflect.Slice:
		if v.Type() == reflect.TypeFor[[]byte]() {
			fmt.Fprintf(s, "%q", v.Bytes())
			return
		}
		s.WriteString("[")
		for i := range v.Len() {
			if i > 0 {
				s.WriteString(", ")
			}
			renderTo(s, v.Index(i))
		}
		s.WriteString("]")
	case reflect.String:
		fmt.Fprintf(s, "%q", v.String())
	default:
		fmt.Fprint(s, v.Interface())
	}
}
