package demo

import (
	"slices"
	"strings"
	"sync"
)

// states is the sequence of states somebody has had, as the cloud was told,
// each once until it changes.
type states struct {
	mu  sync.Mutex
	all []string // guarded by mu
}

func (s *states) saw(state string) (changed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.all) > 0 && s.all[len(s.all)-1] == state {
		return false
	}
	s.all = append(s.all, state)
	return true
}

// now is the latest state; empty before the first.
func (s *states) now() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.all) == 0 {
		return ""
	}
	return s.all[len(s.all)-1]
}

// mark is a place in the sequence, for since.
func (s *states) mark() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.all)
}

// since says whether match was true of a state seen after the mark.
func (s *states) since(mark int, match func(string) bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.all[mark:], match)
}

func (s *states) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.all, " > ")
}
