package storeforward

import (
	"context"
	"database/sql/driver"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"
	"unicode/utf8"
)

// Rows can be read without SQLite, page by page
// (https://www.sqlite.org/fileformat2.html): a page that is lost takes only its own
// rows with it, whether it is the first one, with the header and the schema, or one
// high up in the tree of a table. Which table a page belongs to is known from the
// map of pointers, which every database of ours has, and from the roots, whose
// numbers follow from the order of the migrations; where the map is damaged the
// shape of the rows tells.

// shape is how the rows of a table look.
type shape struct {
	name    string
	columns []column
	rowid   bool // the key is kept beside the record
	taken   int  // rows that have been saved
}

type column struct {
	name, kind string
	null       bool // may be NULL
	alias      bool // is the rowid, and NULL in the record
	optional   bool // has a default: rows older than the column lack it
}

// scan reads a database page by page.
type scan struct {
	p      *pageFile
	shapes []*shape
	roots  map[int64]*shape // nil for an index
	maps   map[int64][]byte // pages of the map of pointers; nil for one that cannot be read
	take   func(*shape, []driver.Value) bool
	// pages that could not be read, cells of ours that were damaged.
	badPages, badCells int
}

// scanPages saves into the fresh database what the pages hold of the tables wanted,
// unless it is there, and says how much that was. old says where the roots are, if it
// can; nil is an old one that cannot.
func (s *Store) scanPages(ctx context.Context, aside string, old *db, wanted map[string]bool) (report string, err error) {
	p, err := openPages(aside)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	x := &scan{p: p, maps: make(map[int64][]byte)}
	if err := x.learn(ctx, s.w, old); err != nil {
		return "", err
	}
	var refused error // by the fresh database
	x.take = func(sh *shape, row []driver.Value) bool {
		if !wanted[sh.name] {
			return true
		}
		names := make([]string, len(row))
		for i := range row {
			names[i] = sh.columns[i].name
		}
		marks := strings.TrimSuffix(strings.Repeat("?, ", len(row)), ", ")
		verb := "IGNORE"
		if sh.name == "meta" {
			verb = "REPLACE" // a fresh database has the least of each
		}
		n, err := s.w.changes("INSERT OR "+verb+" INTO "+sh.name+" ("+strings.Join(names, ", ")+") VALUES ("+marks+")", row...)
		sh.taken += int(n)
		if DiskRefuses(err) {
			refused = err
		}
		return err == nil
	}
	if err := errors.Join(x.run(ctx), refused); err != nil {
		return "", err
	}
	var parts []string
	for _, sh := range x.shapes {
		if sh.taken > 0 {
			parts = append(parts, fmt.Sprintf("%s %d rows more from single pages", sh.name, sh.taken))
		}
	}
	if x.badPages > 0 || x.badCells > 0 {
		parts = append(parts, fmt.Sprintf("%d of %d pages and %d rows could not be read", x.badPages, p.pages, x.badCells))
	}
	return strings.Join(parts, ", "), nil
}

// learn finds out how rows look and where the roots are.
func (x *scan) learn(ctx context.Context, fresh, old *db) error {
	byName := make(map[string]*shape)
	for _, t := range salvageTables {
		sh := &shape{name: t.name}
		key := 0
		err := fresh.query(ctx, func(row []driver.Value) error {
			c := column{name: text(row[0]), kind: text(row[1]), null: integer(row[2]) == 0, optional: row[3] != nil || integer(row[2]) == 0}
			if integer(row[4]) > 0 {
				key++
				c.alias = c.kind == "INTEGER"
			}
			sh.columns = append(sh.columns, c)
			return nil
		}, `SELECT name, type, "notnull", dflt_value, pk FROM pragma_table_info(?) ORDER BY cid`, t.name)
		if err != nil {
			return err
		}
		without, err := fresh.queryInt("SELECT sql LIKE '%WITHOUT ROWID%' FROM sqlite_schema WHERE type = 'table' AND name = ?", t.name)
		if err != nil {
			return err
		}
		sh.rowid = without == 0
		for i := range sh.columns {
			sh.columns[i].alias = sh.columns[i].alias && sh.rowid && key == 1
		}
		x.shapes = append(x.shapes, sh)
		byName[t.name] = sh
	}
	for _, d := range []*db{old, fresh} {
		if d == nil {
			continue
		}
		x.roots = make(map[int64]*shape)
		err := d.query(ctx, func(row []driver.Value) error {
			if root := integer(row[2]); root > 0 {
				x.roots[root] = nil
				if text(row[0]) == "table" {
					x.roots[root] = byName[text(row[1])]
				}
			}
			return nil
		}, "SELECT type, name, rootpage FROM sqlite_schema")
		if err == nil && len(x.roots) > 0 {
			return nil
		}
	}
	return nil
}

func (x *scan) run(ctx context.Context) error {
	b := make([]byte, x.p.size)
	for n := int64(2); n <= x.p.pages; n++ { // the first has the schema only
		if err := ctx.Err(); err != nil {
			return err
		}
		if x.isMap(n) {
			continue
		}
		kind, _, known := x.pointer(n)
		if known && kind != ptrRoot && kind != ptrTree {
			continue // free, or the rest of a long row
		}
		if err := x.p.page(n, b); err != nil {
			x.badPages++
			continue
		}
		sh, index := x.tableOf(n)
		if index {
			continue
		}
		if !x.readPage(n, b, sh) && (known || sh != nil) {
			x.badPages++
		}
	}
	return nil
}

// Kinds of entries in the map of pointers.
const (
	ptrRoot     = 1
	ptrFree     = 2
	ptrLong     = 3 // first page of the rest of a long row
	ptrLongNext = 4
	ptrTree     = 5 // page of a tree that is not its root
)

func (x *scan) mapOf(n int64) int64 {
	per := int64(x.p.size)/5 + 1
	return (n-2)/per*per + 2
}

func (x *scan) isMap(n int64) bool { return x.mapOf(n) == n }

// pointer is what the map says of a page: what it is, and the page above it.
func (x *scan) pointer(n int64) (kind byte, above int64, known bool) {
	if n < 3 {
		return 0, 0, false
	}
	at := x.mapOf(n)
	b, ok := x.maps[at]
	if !ok {
		b = make([]byte, x.p.size)
		if x.p.page(at, b) != nil {
			b = nil
		}
		x.maps[at] = b
	}
	off := int(5 * (n - at - 1))
	if b == nil || off+5 > len(b) || b[off] < ptrRoot || b[off] > ptrTree {
		return 0, 0, false
	}
	return b[off], int64(binary.BigEndian.Uint32(b[off+1:])), true
}

// tableOf finds the table of a page by going up to its root; nil when the way is
// lost. index says that it is none that is saved.
func (x *scan) tableOf(n int64) (sh *shape, index bool) {
	const deepest = 20 // SQLite's own bound
	for range deepest {
		kind, above, known := x.pointer(n)
		switch {
		case !known:
			return nil, false
		case kind == ptrRoot:
			sh, ok := x.roots[n]
			return sh, ok && sh == nil
		case kind != ptrTree:
			return nil, false
		}
		n = above
	}
	return nil, false
}

// Types of pages.
const (
	pageIndexInterior = 0x02
	pageIndexLeaf     = 0x0A
	pageTableLeaf     = 0x0D
	pageTableInterior = 0x05
)

// readPage takes the rows of a page. sh is nil when the table is not known. It
// returns false when the page is none that could have any.
func (x *scan) readPage(n int64, b []byte, sh *shape) bool {
	header := 8
	switch b[0] {
	case pageTableLeaf, pageIndexLeaf:
	case pageIndexInterior:
		header = 12
	case pageTableInterior:
		return true // keys only
	default:
		return false
	}
	if sh != nil && sh.rowid != (b[0] == pageTableLeaf) {
		return false
	}
	cells := int(binary.BigEndian.Uint16(b[3:]))
	if header+2*cells > len(b) {
		return false
	}
	for i := range cells {
		at := int(binary.BigEndian.Uint16(b[header+2*i:]))
		if !x.readCell(n, b, at, sh) && sh != nil {
			x.badCells++
		}
	}
	return true
}

// readCell takes one row, if it is one.
func (x *scan) readCell(n int64, b []byte, at int, sh *shape) bool {
	if at < 8 || at >= len(b) {
		return false
	}
	c := b[at:]
	if b[0] == pageIndexInterior {
		if len(c) < 4 {
			return false
		}
		c = c[4:]
	}
	size, c, ok := uvarint(c)
	if !ok || size < 2 || size > uint64(x.p.pages)*uint64(x.p.size) {
		return false
	}
	rowid := uint64(0)
	if b[0] == pageTableLeaf {
		if rowid, c, ok = uvarint(c); !ok {
			return false
		}
	}
	record, ok := x.payload(n, c, int(size), b[0] == pageTableLeaf)
	if !ok {
		return false
	}
	values, ok := decodeRecord(record)
	if !ok {
		return false
	}
	if sh == nil {
		sh = x.guess(values, b[0] == pageTableLeaf)
	}
	if sh == nil || !sh.fits(values) {
		return false
	}
	for i := range values {
		if sh.columns[i].alias {
			values[i] = int64(rowid)
		}
	}
	return x.take(sh, values)
}

// payload is the record of a cell, put together from its pages.
func (x *scan) payload(n int64, c []byte, size int, table bool) ([]byte, bool) {
	u := x.p.size
	most, least := (u-12)*64/255-23, (u-12)*32/255-23
	if table {
		most = u - 35
	}
	local := size
	if size > most {
		if local = least + (size-least)%(u-4); local > most {
			local = least
		}
	}
	if local > len(c) || local < size && local+4 > len(c) {
		return nil, false
	}
	if local == size {
		return c[:size], true
	}
	record := append(make([]byte, 0, size), c[:local]...)
	next := int64(binary.BigEndian.Uint32(c[local:]))
	b := make([]byte, u)
	for before, kind := n, byte(ptrLong); len(record) < size; kind = ptrLongNext {
		if k, above, known := x.pointer(next); !known || k != kind || above != before || x.p.page(next, b) != nil {
			return nil, false
		}
		record = append(record, b[4:min(u, 4+size-len(record))]...)
		before, next = next, int64(binary.BigEndian.Uint32(b))
	}
	return record, true
}

// guess finds the only table whose rows look like this. Narrow ones look like the
// entries of an index.
func (x *scan) guess(values []driver.Value, rowid bool) (found *shape) {
	const wide = 5
	for _, sh := range x.shapes {
		if sh.rowid != rowid || len(values) < wide || len(values) != len(sh.columns) || !sh.fits(values) {
			continue
		}
		if found != nil {
			return nil
		}
		found = sh
	}
	return found
}

// fits says whether a record can be a row of the table.
func (sh *shape) fits(values []driver.Value) bool {
	if len(values) > len(sh.columns) {
		return false
	}
	for i, c := range sh.columns {
		if i >= len(values) {
			if !c.optional {
				return false
			}
			continue
		}
		ok := false
		switch v := values[i].(type) {
		case nil:
			ok = c.null || c.alias
		case int64:
			ok = c.kind == "INTEGER" && !c.alias
		case string:
			ok = c.kind == "TEXT" && utf8.ValidString(v)
		case []byte:
			ok = c.kind == "BLOB"
		}
		if !ok {
			return false
		}
	}
	return true
}

// decodeRecord reads the values of a record.
func decodeRecord(b []byte) (values []driver.Value, ok bool) {
	size, types, ok := uvarint(b)
	// The header holds at least its own length.
	if !ok || size > uint64(len(b)) || size < uint64(len(b)-len(types)) {
		return nil, false
	}
	body := b[size:]
	types = b[len(b)-len(types) : size]
	for len(types) > 0 {
		var kind uint64
		if kind, types, ok = uvarint(types); !ok {
			return nil, false
		}
		n, ok := kindSize(kind)
		if !ok || n > uint64(len(body)) {
			return nil, false
		}
		p := body[:n]
		body = body[n:]
		switch {
		case kind == 0:
			values = append(values, nil)
		case kind <= 6:
			v := int64(0)
			if p[0] >= 0x80 {
				v = -1
			}
			for _, x := range p {
				v = v<<8 | int64(x)
			}
			values = append(values, v)
		case kind == 8, kind == 9:
			values = append(values, int64(kind-8))
		case kind%2 == 0:
			values = append(values, append([]byte{}, p...))
		default:
			values = append(values, string(p))
		}
	}
	return values, len(body) == 0
}

// kindSize is how long a value of that serial type is; there are no numbers with a
// fraction in our tables.
func kindSize(kind uint64) (n uint64, ok bool) {
	switch {
	case kind <= 4:
		return kind, true
	case kind == 5:
		return 6, true
	case kind == 6:
		return 8, true
	case kind == 8, kind == 9:
		return 0, true
	case kind >= 12 && kind < math.MaxUint32:
		return (kind - 12) / 2, true
	default:
		return 0, false
	}
}

// uvarint reads SQLite's variable-length integer: seven bits of each byte, most
// significant first, and all eight of a ninth.
func uvarint(b []byte) (v uint64, rest []byte, ok bool) {
	for i := range min(len(b), 9) {
		if i == 8 {
			return v<<8 | uint64(b[i]), b[9:], true
		}
		v = v<<7 | uint64(b[i]&0x7F)
		if b[i] < 0x80 {
			return v, b[i+1:], true
		}
	}
	return 0, nil, false
}
