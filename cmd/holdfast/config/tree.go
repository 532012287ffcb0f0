package config

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// position is where a key was written.
type position struct {
	file string
	line int
}

func (p position) String() string {
	if p.line == 0 {
		return p.file
	}
	return p.file + ":" + strconv.Itoa(p.line)
}

// node is one value of the files put together, with the place it came from.
// value is a map[string]*node, a []*node, or a scalar as go-toml gives it
// (string, int64, float64, bool, a date).
type node struct {
	at    position
	value any
}

// parseFile reads one TOML file into a tree. Syntax errors name file, line and
// column.
func parseFile(path string) (*node, error) {
	data, err := readRegular(path, maxFile)
	if err != nil {
		return nil, err
	}
	// Editors of Windows put a byte order mark in front.
	return parse(path, bytes.TrimPrefix(data, []byte("\xef\xbb\xbf")))
}

// maxFile bounds one file of the configuration: the map of a large plant, 60
// devices of 40 points, has 400 kB.
const maxFile = 16 << 20

// readRegular reads a file that has an end: not a pipe, which may never
// deliver, and not a device.
func readRegular(path string, limit int64) ([]byte, error) {
	info, err := os.Stat(path) //nolint:gosec // whoever writes the configuration names the files
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s: is not a regular file", path)
	case info.Size() > limit:
		return nil, fmt.Errorf("%s: is larger than %d bytes", path, limit)
	}
	return os.ReadFile(path) //nolint:gosec // whoever writes the configuration names the files
}

func parse(path string, data []byte) (*node, error) {
	var values map[string]any
	if err := toml.Unmarshal(data, &values); err != nil {
		if de, ok := errors.AsType[*toml.DecodeError](err); ok {
			row, col := de.Position()
			return nil, fmt.Errorf("%s:%d:%d: %s", path, row, col, strings.TrimPrefix(de.Error(), "toml: "))
		}
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return build(path, "", values, position{file: path, line: 1}, lines(data)), nil
}

// build turns go-toml's values into nodes; key is the path of this value.
func build(file, key string, value any, at position, lines map[string]int) *node {
	if l, ok := lines[key]; ok {
		at = position{file: file, line: l}
	}
	switch v := value.(type) {
	case map[string]any:
		table := make(map[string]*node, len(v))
		for k, child := range v {
			table[k] = build(file, join(key, k), child, at, lines)
		}
		return &node{at, table}
	case []any:
		list := make([]*node, len(v))
		for i, child := range v {
			list[i] = build(file, index(key, i), child, at, lines)
		}
		return &node{at, list}
	default:
		return &node{at, v}
	}
}

// join and index write key paths the way messages show them:
// device.boiler.point[1].register.
func join(path, key string) string {
	if key == "" || strings.ContainsAny(key, ". \t\"'[]") {
		key = strconv.Quote(key)
	}
	if path == "" {
		return key
	}
	return path + "." + key
}

func index(path string, i int) string { return fmt.Sprintf("%s[%d]", path, i) }

// lines maps key paths to the lines they stand on. The document is known to be
// valid.
func lines(data []byte) map[string]int {
	found := map[string]int{}
	counts := map[string]int{} // elements so far of each array of tables
	p := &liner{}
	p.Reset(data)
	for i, c := range data {
		if c == '\n' {
			p.ends = append(p.ends, i)
		}
	}
	prefix := ""
	for p.NextExpression() {
		e := p.Expression()
		switch e.Kind {
		case unstable.Table:
			prefix = ""
			markKey(p, e.Key(), &prefix, counts, found, false)
		case unstable.ArrayTable:
			prefix = ""
			markKey(p, e.Key(), &prefix, counts, found, true)
		case unstable.KeyValue:
			markValue(p, e, prefix, counts, found)
		default:
		}
	}
	return found
}

// liner is a parser that knows its lines. The parser's own Shape counts them from
// the start for every key, which takes minutes for a plant's worth of points.
type liner struct {
	unstable.Parser
	ends []int // where the lines end
}

func (l *liner) line(r unstable.Range) int {
	n, _ := slices.BinarySearch(l.ends, int(r.Offset))
	return n + 1
}

// markKey walks a dotted key from *path on and leaves the whole path there.
func markKey(p *liner, key unstable.Iterator, path *string, counts, found map[string]int, array bool) {
	for key.Next() {
		n := key.Node()
		*path = join(*path, string(n.Data))
		if n.Raw.Length > 0 {
			mark(found, *path, p.line(n.Raw))
		}
		if key.IsLast() && array {
			counts[*path]++
			line := found[*path]
			if n.Raw.Length > 0 {
				line = p.line(n.Raw)
			}
			*path = index(*path, counts[*path]-1)
			mark(found, *path, line)
			continue
		}
		if c := counts[*path]; c > 0 { // a table below the array's last element
			*path = index(*path, c-1)
		}
	}
}

func mark(found map[string]int, path string, line int) {
	if _, ok := found[path]; !ok {
		found[path] = line
	}
}

func markValue(p *liner, kv *unstable.Node, prefix string, counts, found map[string]int) {
	path := prefix
	markKey(p, kv.Key(), &path, counts, found, false)
	switch v := kv.Value(); v.Kind {
	case unstable.InlineTable:
		for it := v.Children(); it.Next(); {
			markValue(p, it.Node(), path, counts, found)
		}
	case unstable.Array:
		i := 0
		for it := v.Children(); it.Next(); i++ {
			el := it.Node()
			at := index(path, i)
			if el.Raw.Length > 0 {
				mark(found, at, p.line(el.Raw))
			}
			if el.Kind == unstable.InlineTable {
				for sub := el.Children(); sub.Next(); {
					markValue(p, sub.Node(), at, counts, found)
				}
			}
		}
	default:
	}
}

// merge lays over on top of base: tables are merged key by key, everything
// else, arrays too, is replaced.
func merge(base, over *node) *node {
	b, ok1 := base.value.(map[string]*node)
	o, ok2 := over.value.(map[string]*node)
	if !ok1 || !ok2 {
		return over
	}
	merged := maps.Clone(b)
	for k, v := range o {
		if old, ok := merged[k]; ok {
			merged[k] = merge(old, v)
		} else {
			merged[k] = v
		}
	}
	return &node{base.at, merged}
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
