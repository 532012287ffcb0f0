// Package doctor looks at the machine as the gateway would find it: whether the
// disk under the data folder can be believed, rights, room, clock and serial
// ports. Each [Finding] says what is wrong and what to do. It changes nothing:
// the file it writes in the data folder is gone when it returns. It starts no
// goroutines.
package doctor

import "cmp"

// Level says how bad a finding is.
type Level string

// The levels, from good to bad.
const (
	OK      Level = "ok"
	Note    Level = "note"    // good to know
	Warning Level = "warning" // works, and will hurt one day
	Problem Level = "problem" // the gateway cannot do, or keep, what it should
)

// Finding is the result of one look.
type Finding struct {
	Check  string `json:"check"`
	Level  Level  `json:"level"`
	Text   string `json:"text"`
	Remedy string `json:"remedy,omitempty"`
}

// Worst returns the worst level of the findings.
func Worst(fs []Finding) Level {
	rank := map[Level]int{OK: 0, Note: 1, Warning: 2, Problem: 3}
	worst := OK
	for _, f := range fs {
		if cmp.Compare(rank[f.Level], rank[worst]) > 0 {
			worst = f.Level
		}
	}
	return worst
}
