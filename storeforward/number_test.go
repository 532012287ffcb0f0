package storeforward

import (
	"testing"
)

// Numbers outlive a restart.
func TestNumbers(t *testing.T) {
	o := onFile(t)
	s := open(t, o)
	durably := make(chan error, 1)
	s.KeepNumbers(map[string]int64{"a/b": 7, "a/c": -1}, func(err error) { durably <- err })
	if err := <-durably; err != nil {
		t.Fatal(err)
	}
	s.KeepNumbers(map[string]int64{"a/b": 8}, func(err error) { durably <- err })
	if err := <-durably; err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	s = open(t, o)
	defer closeStore(t, s)
	for name, want := range map[string]int64{"a/b": 8, "a/c": -1, "a": 0} {
		if got := s.Number(name); got != want {
			t.Errorf("%s is %d, want %d", name, got, want)
		}
	}
}
