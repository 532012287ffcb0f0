package console

import (
	"encoding"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// openMetrics renders the numbers of a status snapshot as OpenMetrics text.
// A family is named by the path of json names that leads to it; members of a
// list or map become labels. Durations are seconds, times are Unix seconds,
// booleans 0 or 1, a list of texts is its length. A state (a field named
// "state" that is text) is a gauge of 1 with the state as a label.
//
// What is a uint64 only grows while the process lives: it is a counter, and its
// name ends in _total. Everything else is a gauge. The tag metric says what the
// type cannot:
//
//	metric:"gauge"  a uint64 that is no count
//	metric:"label"  the fields that together tell the members of a list apart;
//	                without one it is the field whose json name is "name"
//	metric:"-"      not for the metrics
func openMetrics(prefix string, status any) (b []byte) {
	c := collector{families: map[string][]string{}}
	c.walk(prefix, nil, reflect.ValueOf(status))
	for _, name := range c.order {
		typ, family := "gauge", name
		if base, ok := strings.CutSuffix(name, "_total"); ok {
			typ, family = "counter", base
		}
		b = fmt.Appendf(b, "# TYPE %s %s\n", family, typ)
		for _, line := range c.families[name] {
			b = append(append(append(b, name...), line...), '\n')
		}
	}
	return append(b, "# EOF\n"...)
}

type collector struct {
	order    []string
	families map[string][]string // family -> "{labels} value"
}

// maxMembers is how many members of a list have metrics of their own, the first: what
// strangers call themselves must not fill whoever collects this.
const maxMembers = 256

type label struct{ name, value string }

func (c *collector) sample(family string, labels []label, value string) {
	if _, ok := c.families[family]; !ok {
		c.order = append(c.order, family)
	}
	var s strings.Builder
	for i, l := range labels {
		if i == 0 {
			s.WriteByte('{')
		} else {
			s.WriteByte(',')
		}
		s.WriteString(l.name + `="` + labelEscaper.Replace(strings.ToValidUTF8(l.value, "\uFFFD")) + `"`)
	}
	if len(labels) > 0 {
		s.WriteByte('}')
	}
	c.families[family] = append(c.families[family], s.String()+" "+value)
}

var labelEscaper = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)

func (c *collector) walk(name string, labels []label, v reflect.Value) {
	for v.Kind() == reflect.Interface || v.Kind() == reflect.Pointer {
		if v.IsNil() {
			return
		}
		v = v.Elem()
	}
	if !v.IsValid() {
		return
	}
	switch x := v.Interface().(type) {
	case time.Time:
		if !x.IsZero() {
			c.sample(name+"_timestamp_seconds", labels, strconv.FormatFloat(float64(x.UnixMilli())/1000, 'f', 3, 64))
		}
		return
	case time.Duration:
		c.sample(strings.TrimSuffix(name, "_ns")+"_seconds", labels, strconv.FormatFloat(x.Seconds(), 'g', -1, 64))
		return
	case encoding.TextMarshaler:
		if text, err := x.MarshalText(); err == nil && lastWord(name) == "state" {
			c.sample(name, with(labels, "state", string(text)), "1")
		}
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		c.walkStruct(name, labels, v)
	case reflect.Map:
		keys := v.MapKeys()
		slices.SortFunc(keys, func(a, b reflect.Value) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
		one, label := singular(name), lastWord(singular(name))
		if v.Type().Elem().Kind() == reflect.Uint64 { // counts by reason, under one name
			one, label = name, "reason"
		}
		for _, k := range keys {
			c.walk(one, with(labels, label, fmt.Sprint(k)), v.MapIndex(k))
		}
	case reflect.Slice, reflect.Array:
		switch v.Type().Elem().Kind() {
		case reflect.Uint8:
			return
		case reflect.String:
			c.sample(name, labels, strconv.Itoa(v.Len()))
			return
		default:
		}
		seen := map[string]bool{"": true}
		if more := v.Len() - maxMembers; more > 0 {
			c.sample(name+"_without_metrics", labels, strconv.Itoa(more))
		}
		for i := range min(v.Len(), maxMembers) {
			el := v.Index(i)
			id := elementName(el)
			if seen[id] { // two series of one name would spoil the whole scrape
				id = strings.TrimSpace(id + " " + strconv.Itoa(i))
			}
			seen[id] = true
			one := singular(name)
			c.walk(one, with(labels, lastWord(one), id), el)
		}
	case reflect.Bool:
		value := "0"
		if v.Bool() {
			value = "1"
		}
		c.sample(name, labels, value)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		c.sample(name, labels, strconv.FormatInt(v.Int(), 10))
	case reflect.Uint64:
		c.sample(name+"_total", labels, strconv.FormatUint(v.Uint(), 10))
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32:
		c.sample(name, labels, strconv.FormatUint(v.Uint(), 10))
	case reflect.Float32, reflect.Float64:
		c.sample(name, labels, strconv.FormatFloat(v.Float(), 'g', -1, 64))
	default:
	}
}

func (c *collector) walkStruct(name string, labels []label, v reflect.Value) {
	for f, fv := range v.Fields() {
		if !f.IsExported() {
			continue
		}
		tag, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch metric := f.Tag.Get("metric"); {
		case metric == "-", metric == "label":
		case metric == "gauge":
			c.sample(name+"_"+tag, labels, fmt.Sprint(fv))
		case f.Anonymous && tag == "":
			c.walk(name, labels, fv)
		case tag == "" || tag == "-":
		case tag == "state" && fv.Kind() == reflect.String:
			c.sample(name+"_state", with(labels, "state", fv.String()), "1")
		default:
			c.walk(name+"_"+tag, labels, fv)
		}
	}
}

// elementName is what tells a struct from the others of its list, else "".
func elementName(v reflect.Value) string {
	for v.Kind() == reflect.Interface || v.Kind() == reflect.Pointer {
		if v.IsNil() {
			return ""
		}
		v = v.Elem()
	}
	if v.Kind() != reflect.Struct {
		return ""
	}
	var name string
	var labels []string
	for f, fv := range v.Fields() {
		tag, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Tag.Get("metric") == "label":
			if value := fmt.Sprint(fv); value != "" {
				labels = append(labels, value)
			}
		case name != "":
		case tag == "name" && fv.Kind() == reflect.String:
			name = fv.String()
		case f.Anonymous && tag == "":
			name = elementName(fv)
		}
	}
	if len(labels) > 0 {
		return strings.Join(labels, " ")
	}
	return name
}

func with(labels []label, name, value string) []label {
	return append(slices.Clone(labels), label{name, value})
}

// singular is the name of one member of a list: uplink of uplinks, bus of buses.
func singular(name string) string {
	if one, ok := strings.CutSuffix(name, "ses"); ok {
		return one + "s"
	}
	return strings.TrimSuffix(name, "s")
}

func lastWord(name string) string { return name[strings.LastIndexByte(name, '_')+1:] }
