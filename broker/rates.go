package broker

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"time"
)

// bucket is a token bucket. It begins full.
type bucket struct {
	tokens float64
	last   time.Time // zero for one that was never used
}

// fill adds what has come since the last time.
func (b *bucket) fill(now time.Time, rate, burst float64) {
	if b.last.IsZero() {
		b.tokens = burst
	} else {
		b.tokens = min(burst, b.tokens+now.Sub(b.last).Seconds()*rate)
	}
	b.last = now
}

// take takes one token if there is one.
func (b *bucket) take(now time.Time, rate, burst float64) bool {
	b.fill(now, rate, burst)
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// owe takes n tokens, into debt if need be, and says how long it takes until
// that is paid.
func (b *bucket) owe(now time.Time, rate, burst float64, n int) time.Duration {
	b.fill(now, rate, burst)
	b.tokens -= float64(n)
	if b.tokens >= 0 {
		return 0
	}
	return time.Duration(-b.tokens / rate * float64(time.Second))
}

const (
	// connectBurst is how many seconds' worth of connects may come at once: a
	// site that comes back after a power cut.
	connectBurst = 10
	// maxRates bounds the memory for connect rates, about 1 MB. When there are
	// more keys the one that was used longest ago, of a few, is forgotten.
	maxRates = 8192
)

// rates are the connect rates of addresses and clients.
type rates struct {
	seed maphash.Seed

	mu sync.Mutex
	m  map[rateKey]*bucket // guarded by mu
}

// rateKey names what connects. Clients stand by their hash: their ids are
// whatever they say.
type rateKey struct {
	place netip.Prefix
	hash  uint64
}

// client is the key of a client: its id, and the user it has proved to be, so
// that nobody can use up the connects of another.
func (r *rates) client(id Identity) rateKey {
	var h maphash.Hash
	h.SetSeed(r.seed)
	_, _ = h.WriteString(id.Name) // never fails
	_ = h.WriteByte(0)
	_, _ = h.WriteString(id.ClientID)
	return rateKey{hash: h.Sum64()}
}

// take counts one connect; false is one too many. A rate of 0 sets no bound.
func (r *rates) take(k rateKey, perSecond int) bool {
	if perSecond == 0 {
		return true
	}
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	b := r.m[k]
	if b == nil {
		r.makeRoomLocked(now)
		b = &bucket{}
		r.m[k] = b
	}
	return b.take(now, float64(perSecond), float64(perSecond)*connectBurst)
}

func (r *rates) makeRoomLocked(now time.Time) {
	if len(r.m) < maxRates {
		return
	}
	var oldest rateKey
	age, n := time.Duration(-1), 0
	for k, b := range r.m {
		if a := now.Sub(b.last); a > age {
			oldest, age = k, a
		}
		if n++; n == 16 {
			break
		}
	}
	delete(r.m, oldest)
}
