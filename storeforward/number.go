package storeforward

import (
	"context"
	"database/sql/driver"
	"maps"
	"strings"
)

// numberPrefix keeps the numbers of others apart from what the store needs.
const numberPrefix = "number/"

// Number returns what was last kept under a name; 0 when nothing was.
func (s *Store) Number(name string) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.numbers[name]
}

// KeepNumbers keeps numbers by name, all of them in one transaction. Each call
// costs a commit; done is called when it is durable, and must not block.
func (s *Store) KeepNumbers(values map[string]int64, done func(error)) {
	values = maps.Clone(values)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.numbers == nil {
		s.numbers = make(map[string]int64)
	}
	maps.Copy(s.numbers, values)
	s.opLocked(func(d *db) error { return writeNumbers(d, values) }, nil, done)
}

func writeNumbers(d *db, values map[string]int64) error {
	for name, v := range values {
		if err := d.exec("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", numberPrefix+name, v); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) loadNumbers(ctx context.Context, d *db) error {
	s.numbers = make(map[string]int64)
	return d.query(ctx, func(row []driver.Value) error {
		s.numbers[strings.TrimPrefix(text(row[0]), numberPrefix)] = integer(row[1])
		return nil
	}, "SELECT key, value FROM meta WHERE key >= 'number/' AND key < 'number0'")
}
