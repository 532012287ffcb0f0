package demo

import "sync"

// journal is what the local publisher knows: which numbers it has published to
// a topic and which the gateway has acknowledged.
type journal struct {
	mu      sync.Mutex
	last    uint64            // guarded by mu; numbers 1 to last are published
	acked   map[uint64]bool   // guarded by mu
	refused map[uint64]string // guarded by mu; number to reason
}

// next begins the next message and returns its number.
func (j *journal) next() uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.last++
	return j.last
}

// done takes note of what became of a message; nil is an acknowledgement.
func (j *journal) done(n uint64, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err != nil {
		if j.refused == nil {
			j.refused = map[uint64]string{}
		}
		j.refused[n] = err.Error()
		return
	}
	if j.acked == nil {
		j.acked = map[uint64]bool{}
	}
	j.acked[n] = true
}

// entries is what a journal says at one moment.
type entries struct {
	published uint64
	acked     []uint64          // ascending
	refused   map[uint64]string // without an acknowledgement for good
}

func (j *journal) entries() entries {
	j.mu.Lock()
	defer j.mu.Unlock()
	e := entries{published: j.last, refused: map[uint64]string{}}
	for n := uint64(1); n <= j.last; n++ {
		if j.acked[n] {
			e.acked = append(e.acked, n)
		} else if why, ok := j.refused[n]; ok {
			e.refused[n] = why
		}
	}
	return e
}

// open is how many messages have no answer yet.
func (j *journal) open() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return int(j.last) - len(j.acked) - len(j.refused)
}
