package serial

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// csvFormat finds fields by the columns of a row.
type csvFormat struct {
	separator string
	header    bool
	names     []string // of the points' fields
	columns   int      // of a row; 0: as many as the points need
	place     []int    // of each point; nil: no header has come yet
}

func newCSVFormat(o *Options, points []point) (format, error) {
	f := &csvFormat{separator: o.Separator, header: o.Header, names: fieldNames(points)}
	switch {
	case len([]rune(o.Separator)) != 1 || o.Separator == `"`:
		return nil, fmt.Errorf("separator: %q is not one character, other than a double quote", o.Separator)
	case o.Header && len(o.Columns) > 0:
		return nil, errors.New("columns: has no use with header: the device names them")
	case o.Header:
	case len(o.Columns) > 0:
		f.columns = len(o.Columns)
		for i, name := range f.names {
			at := slices.Index(o.Columns, name)
			if at < 0 {
				return nil, fmt.Errorf("point[%d].field: columns has no %q", i, name)
			}
			f.place = append(f.place, at)
		}
	default:
		for i, name := range f.names {
			n, err := strconv.ParseUint(name, 10, 16)
			if err != nil || n == 0 {
				return nil, fmt.Errorf("point[%d].field: %q is not the number of a column, from 1; columns or header would give them names", i, name)
			}
			f.place = append(f.place, int(n)-1)
		}
	}
	return f, nil
}

var errNoHeader = errors.New("frame came before the names of the columns")

func (f *csvFormat) parse(frame []byte) (fields, error) {
	row, err := splitRow(string(frame), f.separator)
	if err != nil {
		return fields{}, err
	}
	if f.header && f.learn(row) {
		return fields{}, errNothing
	}
	if f.place == nil {
		return fields{}, errNoHeader
	}
	if f.columns > 0 && len(row) != f.columns {
		return fields{}, fmt.Errorf("frame has %d columns, not %d", len(row), f.columns)
	}
	return fields{get: func(i int) (any, bool) {
		if f.place[i] >= len(row) {
			return nil, false
		}
		return row[f.place[i]], true
	}}, nil
}

// learn takes a row for the header if it has the names of all points.
func (f *csvFormat) learn(row []string) bool {
	place := make([]int, 0, len(f.names))
	for _, name := range f.names {
		at := slices.Index(row, name)
		if at < 0 {
			return false
		}
		place = append(place, at)
	}
	f.place, f.columns = place, len(row)
	return true
}

var errQuote = errors.New("frame has a quote without its end")

// splitRow splits a row into its columns, without blanks around them. A column
// in double quotes may hold the separator, and a quote written twice (RFC 4180
// §2).
func splitRow(s, separator string) ([]string, error) {
	var row []string
	for {
		s = strings.TrimLeft(s, " ")
		if !strings.HasPrefix(s, `"`) {
			cell, rest, more := strings.Cut(s, separator)
			row = append(row, strings.TrimSpace(cell))
			if !more {
				return row, nil
			}
			s = rest
			continue
		}
		var cell strings.Builder
		s = s[1:]
		for {
			part, rest, ok := strings.Cut(s, `"`)
			if !ok {
				return nil, errQuote
			}
			cell.WriteString(part)
			s = rest
			if !strings.HasPrefix(s, `"`) {
				break
			}
			cell.WriteByte('"')
			s = s[1:]
		}
		row = append(row, cell.String())
		if s = strings.TrimLeft(s, " \r"); s == "" {
			return row, nil
		}
		rest, ok := strings.CutPrefix(s, separator)
		if !ok {
			return nil, errQuote
		}
		s = rest
	}
}
