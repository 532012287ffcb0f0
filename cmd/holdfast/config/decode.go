package config

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// ProblemError is one thing wrong with the configuration, with the place it was
// written at.
type ProblemError struct {
	File string
	Line int // 0 when the key is not in a file
	Key  string
	Text string
}

func (p *ProblemError) Error() string {
	at := position{p.File, p.Line}.String()
	if at != "" {
		at += ": "
	}
	return at + p.Key + ": " + p.Text
}

// decoder fills Go values from nodes, and notes every problem on the way.
type decoder struct {
	problems []error
	// places remembers where each key that was seen stands, for problems
	// that Validate finds later.
	places map[string]position
	// profiles are those that devices can name.
	profiles *Profiles
}

func (d *decoder) problem(at position, key, format string, args ...any) {
	d.problems = append(d.problems, &ProblemError{File: at.file, Line: at.line, Key: key, Text: fmt.Sprintf(format, args...)})
}

// err joins the problems in the order of the files.
func (d *decoder) err() error {
	slices.SortStableFunc(d.problems, func(a, b error) int {
		pa, _ := errors.AsType[*ProblemError](a)
		pb, _ := errors.AsType[*ProblemError](b)
		if pa == nil || pb == nil {
			return 0
		}
		return cmp.Or(cmp.Compare(pa.File, pb.File), cmp.Compare(pa.Line, pb.Line))
	})
	return errors.Join(d.problems...)
}

// nodeDecoder is implemented by types that choose their own shape.
type nodeDecoder interface {
	decodeNode(d *decoder, key string, n *node)
}

var (
	durationType = reflect.TypeFor[time.Duration]()
	nodeDecType  = reflect.TypeFor[nodeDecoder]()
)

// decode fills v, which is settable and holds the defaults, from n.
func (d *decoder) decode(key string, n *node, v reflect.Value) {
	d.places[key] = n.at
	if v.CanAddr() && v.Addr().Type().Implements(nodeDecType) {
		if nd, ok := reflect.TypeAssert[nodeDecoder](v.Addr()); ok {
			nd.decodeNode(d, key, n)
			return
		}
	}
	if v.Kind() == reflect.Pointer {
		fresh := reflect.New(v.Type().Elem())
		d.decode(key, n, fresh.Elem())
		v.Set(fresh)
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		d.decodeStruct(key, n, v)
	case reflect.Map:
		d.decodeMap(key, n, v)
	case reflect.Slice:
		list, ok := n.value.([]*node)
		if !ok {
			d.problem(n.at, key, "expected an array, found %s", describe(n))
			return
		}
		out := reflect.MakeSlice(v.Type(), len(list), len(list))
		for i, el := range list {
			prepare(out.Index(i))
			d.decode(index(key, i), el, out.Index(i))
		}
		v.Set(out)
	default:
		d.decodeScalar(key, n, v)
	}
}

// defaulter is implemented by pointers to types whose zero value is not the
// default.
type defaulter interface{ setDefaults() }

func prepare(v reflect.Value) {
	if defaults, ok := elementDefaults[v.Type()]; ok {
		v.Set(reflect.ValueOf(defaults()))
	}
	if p, ok := reflect.TypeAssert[defaulter](v.Addr()); ok {
		p.setDefaults()
	}
}

func (d *decoder) decodeMap(key string, n *node, v reflect.Value) {
	table, ok := n.value.(map[string]*node)
	if !ok {
		d.problem(n.at, key, "expected a table, found %s", describe(n))
		return
	}
	out := reflect.MakeMapWithSize(v.Type(), len(table))
	for _, k := range sortedKeys(table) {
		el := reflect.New(v.Type().Elem()).Elem()
		prepare(el)
		d.decode(join(key, k), table[k], el)
		out.SetMapIndex(reflect.ValueOf(k), el)
	}
	v.Set(out)
}

func (d *decoder) decodeStruct(key string, n *node, v reflect.Value) {
	table, ok := n.value.(map[string]*node)
	if !ok {
		d.problem(n.at, key, "expected a table, found %s", describe(n))
		return
	}
	d.decodeFields(key, table, fieldsOf(v))
}

func (d *decoder) decodeFields(key string, table map[string]*node, fields map[string]reflect.Value) {
	for _, k := range sortedKeys(table) {
		at := join(key, k)
		f, ok := fields[k]
		if !ok {
			d.problem(table[k].at, at, "unknown key%s", suggest(k, sortedKeys(fields)))
			continue
		}
		d.decode(at, table[k], f)
	}
}

// fieldsOf maps the toml names of v's fields to the fields; embedded structs,
// and those with the option inline, belong to v itself.
func fieldsOf(v reflect.Value) map[string]reflect.Value {
	fields := map[string]reflect.Value{}
	for f, fv := range v.Fields() {
		name, opt, _ := strings.Cut(f.Tag.Get("toml"), ",")
		switch {
		case f.Anonymous && name == "", opt == "inline":
			maps.Copy(fields, fieldsOf(fv))
		case f.IsExported() && name != "" && name != "-":
			fields[name] = fv
		}
	}
	return fields
}

func (d *decoder) decodeScalar(key string, n *node, v reflect.Value) {
	at, value, from := n.at, n.value, ""
	if s, ok := value.(string); ok {
		text, source, err := resolve(s)
		if err != nil {
			d.problem(at, key, "%v", err)
			return
		}
		value, from = text, source
	}
	if v.Type() == durationType {
		d.duration(key, at, value, from, v)
		return
	}
	// A value that was looked up is text; it is read as the type the key wants.
	if text, ok := value.(string); ok && from != "" && v.Kind() != reflect.String {
		value = scalarFromText(text)
	}
	switch v.Kind() {
	case reflect.String:
		if s, ok := value.(string); ok {
			v.SetString(s)
			return
		}
		d.problem(at, key, "expected text in quotes, found %s", describe(n))
	case reflect.Bool:
		if b, ok := value.(bool); ok {
			v.SetBool(b)
			return
		}
		d.problem(at, key, "expected true or false, found %s", shown(n, from))
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		i, ok := value.(int64)
		switch {
		case !ok:
			d.problem(at, key, "expected a whole number, found %s", shown(n, from))
		case v.OverflowInt(i):
			d.problem(at, key, "%d is outside %s", i, intRange(v.Type()))
		default:
			v.SetInt(i)
		}
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		i, ok := value.(int64)
		switch {
		case !ok:
			d.problem(at, key, "expected a whole number, found %s", shown(n, from))
		case i < 0 || v.OverflowUint(uint64(i)):
			d.problem(at, key, "%d is outside %s", i, intRange(v.Type()))
		default:
			v.SetUint(uint64(i))
		}
	case reflect.Float32, reflect.Float64:
		switch x := value.(type) {
		case float64:
			v.SetFloat(x)
		case int64:
			v.SetFloat(float64(x))
		default:
			d.problem(at, key, "expected a number, found %s", shown(n, from))
		}
	case reflect.Interface: // a number or a text, as the key's owner decides
		switch value.(type) {
		case string, int64, float64, bool:
			v.Set(reflect.ValueOf(value))
		default:
			d.problem(at, key, "expected a number or text, found %s", describe(n))
		}
	default:
		panic("config: no rule for type " + v.Type().String()) // our own Options, never input
	}
}

func (d *decoder) duration(key string, at position, value any, from string, v reflect.Value) {
	s, ok := value.(string)
	if !ok {
		d.problem(at, key, `expected a duration in quotes such as "5s", "500ms" or "1h30m", found %s`, describe(&node{value: value}))
		return
	}
	dur, err := time.ParseDuration(s)
	if err != nil {
		found := strconv.Quote(s)
		if from != "" {
			found = "another text from " + from
		}
		d.problem(at, key, `expected a duration such as "5s", "500ms" or "1h30m", found %s`, found)
		return
	}
	v.SetInt(int64(dur))
}

func intRange(t reflect.Type) string {
	bits := t.Bits()
	switch t.Kind() {
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return fmt.Sprintf("%d..%d", -1<<(bits-1), uint64(1)<<(bits-1)-1)
	default:
		return fmt.Sprintf("0..%d", uint64(math.MaxUint64)>>(64-bits))
	}
}

func scalarFromText(s string) any {
	s = strings.TrimSpace(s)
	if i, err := strconv.ParseInt(s, 0, 64); err == nil {
		return i
	}
	if f, err := strconv.ParseFloat(s, 64); err == nil {
		return f
	}
	if b, err := strconv.ParseBool(s); err == nil {
		return b
	}
	return s
}

// describe names a value's kind and, for scalars, the value.
func describe(n *node) string {
	switch v := n.value.(type) {
	case map[string]*node:
		return "a table"
	case []*node:
		return "an array"
	case string:
		if len(v) > 40 {
			return "text"
		}
		return "the text " + strconv.Quote(v)
	case int64:
		return "the number " + strconv.FormatInt(v, 10)
	case float64:
		return "the number " + strconv.FormatFloat(v, 'g', -1, 64)
	case bool:
		return strconv.FormatBool(v)
	default:
		return "a date or time"
	}
}

// shown is describe, but never shows what was looked up elsewhere: it may be a
// secret.
func shown(n *node, from string) string {
	if from != "" {
		return "another text from " + from
	}
	return describe(n)
}

// maxSecret bounds what is read for one value; a certificate chain fits.
const maxSecret = 64 << 10

// resolve looks up values written as env:NAME, file:PATH or cred:NAME
// (systemd credentials). source is empty for a value that stands for itself;
// text:… is taken literally. Errors never show the value.
func resolve(s string) (text, source string, err error) {
	scheme, rest, ok := strings.Cut(s, ":")
	if !ok {
		return s, "", nil
	}
	switch scheme {
	case "text":
		return rest, "", nil
	case "env":
		v, set := os.LookupEnv(rest)
		if !set {
			return "", s, fmt.Errorf("%s: the environment has no such variable", s)
		}
		return v, s, nil
	case "file":
		text, err = readSecret(rest)
	case "cred":
		dir := os.Getenv("CREDENTIALS_DIRECTORY")
		switch {
		case rest == "" || rest != filepath.Base(rest) || rest == "..":
			err = errors.New("a credential's name has no slashes")
		case dir == "":
			err = errors.New("no credentials were passed (set LoadCredential= in the unit)")
		default:
			text, err = readSecret(filepath.Join(dir, rest))
		}
	default:
		return s, "", nil
	}
	if err != nil {
		return "", s, fmt.Errorf("%s: %w", s, err)
	}
	return text, s, nil
}

func readSecret(path string) (string, error) {
	data, err := readRegular(path, maxSecret)
	if err != nil {
		return "", err
	}
	return strings.TrimRight(string(data), "\r\n"), nil
}

// suggest names the nearest known key.
func suggest(key string, known []string) string {
	best, distance := "", 3
	for _, k := range known {
		if dist := editDistance(key, k); dist < distance {
			best, distance = k, dist
		}
	}
	if best != "" {
		return fmt.Sprintf("; did you mean %q?", best)
	}
	if len(known) > 0 && len(known) <= 24 {
		return "; known here: " + strings.Join(known, ", ")
	}
	return ""
}

func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j]+1, row[j+1]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
