package storeforward

import (
	"embed"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"
)

// migrations are numbered from 1 and never edited after a release. The number
// of the last one applied is the database's user_version.
//
//go:embed migrations/*.sql
var migrations embed.FS

// applicationID marks our database files: "Hfst".
const applicationID = 0x48667374

type migration struct {
	number int
	name   string
	sql    string
}

// loadMigrations returns them in order; numbers without gaps are the contract.
func loadMigrations(files fs.FS) ([]migration, error) {
	names, err := fs.Glob(files, "migrations/*.sql") // sorted
	if err != nil {
		return nil, err
	}
	list := make([]migration, 0, len(names))
	for i, name := range names {
		number, _, _ := strings.Cut(path.Base(name), "_")
		n, err := strconv.Atoi(number)
		if err != nil || n != i+1 {
			return nil, fmt.Errorf("migration %s: want number %04d", name, i+1)
		}
		sql, err := fs.ReadFile(files, name)
		if err != nil {
			return nil, err
		}
		list = append(list, migration{number: n, name: path.Base(name), sql: string(sql)})
	}
	return list, nil
}

// migrate brings the database up to the last migration, each in a transaction of
// its own with the version it leads to.
func migrate(d *db, list []migration) error {
	version, err := d.queryInt("PRAGMA user_version")
	if err != nil {
		return err
	}
	for _, m := range list {
		if int64(m.number) <= version {
			continue
		}
		err := d.script(fmt.Sprintf("BEGIN IMMEDIATE;\n%s\n;PRAGMA application_id = %d; PRAGMA user_version = %d; COMMIT;", m.sql, applicationID, m.number))
		if err != nil {
			if d.inTransaction() {
				_ = d.script("ROLLBACK") // the first error says it all
			}
			return fmt.Errorf("migrate %s: %w", m.name, err)
		}
	}
	return nil
}
