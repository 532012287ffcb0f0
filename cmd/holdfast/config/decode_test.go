package config

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

type sample struct {
	Name    string            `toml:"name"`
	Every   time.Duration     `toml:"every"`
	Level   uint8             `toml:"level"`
	Count   int               `toml:"count"`
	Share   float64           `toml:"share"`
	On      bool              `toml:"on"`
	Limit   *int              `toml:"limit"`
	List    []string          `toml:"list"`
	Inner   inner             `toml:"inner"`
	Rows    []inner           `toml:"row"`
	Named   map[string]inner  `toml:"named"`
	Hidden  string            `toml:"-"`
	Strings map[string]string `toml:"strings"`
}

type inner struct {
	Key  string `toml:"key"`
	Size int    `toml:"size"`
}

func (i *inner) setDefaults() { i.Size = 7 }

func decodeSample(t *testing.T, text string) (sample, error) {
	t.Helper()
	root, err := parse("h.toml", []byte(text))
	if err != nil {
		return sample{}, err
	}
	var s sample
	d := decoder{places: map[string]position{}}
	d.decode("", root, reflect.ValueOf(&s).Elem())
	return s, d.err()
}

func TestDecodeFillsEveryKind(t *testing.T) {
	t.Setenv("HF_LEVEL", " 12 ")
	t.Setenv("HF_EVERY", "3m")
	t.Setenv("HF_NAME", "13")
	got, err := decodeSample(t, `
name = "env:HF_NAME"
every = "env:HF_EVERY"
level = "env:HF_LEVEL"
count = -4
share = 2
on = true
limit = 9
list = ["a", "text:env:b"]
inner = { key = "k" }
strings = { x = "y" }
[[row]]
key = "one"
[[row]]
size = 2
[named.first]
key = "n"
[named."second one"]
size = 3
`)
	if err != nil {
		t.Fatal(err)
	}
	nine := 9
	want := sample{
		Name: "13", Every: 3 * time.Minute, Level: 12, Count: -4, Share: 2, On: true, Limit: &nine,
		List: []string{"a", "env:b"}, Inner: inner{Key: "k"},
		Rows:    []inner{{Key: "one", Size: 7}, {Size: 2}},
		Named:   map[string]inner{"first": {Key: "n", Size: 7}, "second one": {Size: 3}},
		Strings: map[string]string{"x": "y"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestProblemsNameFileLineKeyAndWhatWasExpected(t *testing.T) {
	t.Setenv("HF_SECRET", "hunter2")
	tests := map[string]struct{ in, want string }{
		"syntax":              {"name = \n", "h.toml:1:8: "},
		"twice":               {"name = 'a'\nname = 'b'\n", "h.toml"},
		"unknown key":         {"\nnme = 'x'\n", `h.toml:2: nme: unknown key; did you mean "name"?`},
		"unknown in array":    {"[[row]]\nkey='a'\n[[row]]\nkey='b'\nsiez=1\n", `h.toml:5: row[1].siez: unknown key; did you mean "size"?`},
		"unknown in map":      {"[named.a]\nx=1\n", `h.toml:2: named.a.x: unknown key; known here: key, size`},
		"unknown table":       {"[nmed.a]\nsize=1\n", `h.toml:1: nmed: unknown key; did you mean "named"?`},
		"text for number":     {"count = 'x'\n", `h.toml:1: count: expected a whole number, found the text "x"`},
		"fraction for number": {"count = 1.5\n", `h.toml:1: count: expected a whole number, found the number 1.5`},
		"number for text":     {"name = 5\n", `h.toml:1: name: expected text in quotes, found the number 5`},
		"number for duration": {"every = 5\n", `h.toml:1: every: expected a duration in quotes such as "5s", "500ms" or "1h30m", found the number 5`},
		"bad duration":        {"every = '5 seconds'\n", `h.toml:1: every: expected a duration such as "5s", "500ms" or "1h30m", found "5 seconds"`},
		"out of range":        {"level = 256\n", `h.toml:1: level: 256 is outside 0..255`},
		"negative":            {"level = -1\n", `h.toml:1: level: -1 is outside 0..255`},
		"table for scalar":    {"[count]\nx=1\n", `h.toml:1: count: expected a whole number, found a table`},
		"scalar for table":    {"inner = 3\n", `h.toml:1: inner: expected a table, found the number 3`},
		"scalar for array":    {"row = 3\n", `h.toml:1: row: expected an array, found the number 3`},
		"scalar for map":      {"named = 3\n", `h.toml:1: named: expected a table, found the number 3`},
		"element":             {"list = ['a',\n 2]\n", `list[1]: expected text in quotes, found the number 2`},
		"inline element":      {"row = [{key='a'},\n {kye='b'}]\n", `h.toml:2: row[1].kye: unknown key; did you mean "key"?`},
		"no such variable":    {"name = 'env:HF_NOT_SET'\n", `h.toml:1: name: env:HF_NOT_SET: the environment has no such variable`},
		"no credentials":      {"name = 'cred:x'\n", `h.toml:1: name: cred:x: no credentials were passed`},
		"credential path":     {"name = 'cred:../x'\n", `a credential's name has no slashes`},
		"no such file":        {"name = 'file:/does/not/exist'\n", `h.toml:1: name: file:/does/not/exist: `},
		"secret not shown":    {"count = 'env:HF_SECRET'\n", `h.toml:1: count: expected a whole number, found another text from env:HF_SECRET`},
		"secret duration":     {"every = 'env:HF_SECRET'\n", `found another text from env:HF_SECRET`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := decodeSample(t, tt.in)
			if err == nil {
				t.Fatalf("decode(%q) succeeded, want %q", tt.in, tt.want)
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("decode(%q) = %q, want it to contain %q", tt.in, err, tt.want)
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("the secret is shown: %v", err)
			}
		})
	}
}

func TestEveryProblemIsReportedInOrder(t *testing.T) {
	_, err := decodeSample(t, "zzz = 1\ncount = 'x'\n[inner]\nqqq = 1\n")
	want := "h.toml:1: zzz: unknown key; known here: count, every, inner, level, limit, list, name, named, on, row, share, strings\nh.toml:2: count: expected a whole number, found the text \"x\"\nh.toml:4: inner.qqq: unknown key; known here: key, size"
	if err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
}

func TestFileAndCredentialValuesLoseTheirLineEnd(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "pw"), []byte("s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	got, err := decodeSample(t, "name = 'cred:pw'\nlist = ['file:"+filepath.Join(dir, "pw")+"']\n")
	if err != nil || got.Name != "s3cret" || got.List[0] != "s3cret" {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestMergeLaysTablesOverAndReplacesArrays(t *testing.T) {
	base, err := parse("a.toml", []byte("name='a'\ncount=1\nlist=['x','y']\n[named.one]\nkey='1'\nsize=1\n"))
	if err != nil {
		t.Fatal(err)
	}
	over, err := parse("b.toml", []byte("count=2\nlist=['z']\n[named.one]\nsize=5\n[named.two]\nbad=1\n"))
	if err != nil {
		t.Fatal(err)
	}
	var s sample
	d := decoder{places: map[string]position{}}
	d.decode("", merge(base, over), reflect.ValueOf(&s).Elem())
	if err := d.err(); err == nil || !strings.HasPrefix(err.Error(), "b.toml:6: named.two.bad: unknown key") {
		t.Errorf("problem = %v, want one in b.toml:6", err)
	}
	if s.Name != "a" || s.Count != 2 || len(s.List) != 1 || s.Named["one"] != (inner{Key: "1", Size: 5}) {
		t.Errorf("merged = %+v", s)
	}
}

// A plant's worth of points is read in a moment, also on a small board, and its
// last line is still named.
func TestLargeFile(t *testing.T) {
	const rows = 20000
	start := time.Now()
	_, err := decodeSample(t, strings.Repeat("[[row]]\nkey = 'a'\nsize = 1\n", rows)+"extra = 1\n")
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("h.toml:%d: row[%d].extra: unknown key", 3*rows+1, rows-1)) {
		t.Errorf("decode: %v", err)
	}
	if took := time.Since(start); took > 10*time.Second { // 1.4 s on a busy machine; minutes when every line was counted from the start
		t.Errorf("took %v", took)
	}
}

func TestOnlyFilesWithAnEndAreRead(t *testing.T) {
	dir := t.TempDir()
	fifo, big, bom := filepath.Join(dir, "fifo"), filepath.Join(dir, "big"), filepath.Join(dir, "bom")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(big, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(big, maxFile+1); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(bom, []byte("\xef\xbb\xbf[gateway]\r\nid = \"x\"\r\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{fifo: "is not a regular file", "/dev/zero": "is not a regular file", big: "is larger than", dir: "is not a regular file"} {
		if _, err := Load(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Load(%s) = %v, want %q", path, err, want)
		}
		if _, _, err := resolve("file:" + path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("resolve(file:%s) = %v, want %q", path, err, want)
		}
	}
	if cfg, err := Load(bom); err != nil || cfg.Gateway.ID != "x" {
		t.Errorf("a file from Windows: %v, id %q", err, cfg.Gateway.ID)
	}
}
