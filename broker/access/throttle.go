package access

import (
	"hash/maphash"
	"net"
	"net/netip"
	"sync"
	"time"
)

// throttle makes those who guess passwords wait. Failures are counted under
// three keys: address and user together, from the first one on; the address,
// whoever it tries to be; and the user, wherever from. The latter two have a
// few failures free, or one misconfigured device would slow down its
// neighbours behind the same router.
//
// A key with failures gives out one turn after the other, so that many
// connections at once are no faster than one.
type throttle struct {
	seed maphash.Seed

	mu   sync.Mutex
	keys map[throttleKey]*throttleEntry // guarded by mu; at most maxThrottled
}

type throttleOptions struct {
	delay, most time.Duration
}

const (
	// freeFailures is how many an address or a user has before it is slowed
	// down for all: a site's devices after a changed password.
	freeFailures = 10
	// forgetAfter is how long failures are remembered.
	forgetAfter = 10 * time.Minute
	// trustFor is how long an address where a user has logged in is not slowed
	// down for the failures that others make with the user's name.
	trustFor = 24 * time.Hour
	// maxThrottled bounds the memory, about 1 MB.
	maxThrottled = 8192
)

// throttleKey names what is counted. Users stand by their hash: their names
// are whatever a stranger sends.
type throttleKey struct {
	addr netip.Prefix
	user uint64
	kind throttleKind
}

type throttleKind byte

const (
	throttlePair throttleKind = iota
	throttleAddr
	throttleUser
)

type throttleEntry struct {
	failures int
	last     time.Time // latest failure
	next     time.Time // when the next turn may be given
	trusted  time.Time // pair: latest success
}

func newThrottle() *throttle {
	return &throttle{seed: maphash.MakeSeed(), keys: map[throttleKey]*throttleEntry{}}
}

// place is where a client comes from: an IPv4 address, or the /64 of an IPv6
// address, for whoever has one address of it has them all.
func place(addr net.Addr) (p netip.Prefix, local bool) {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}, true
	}
	ip := tcp.AddrPort().Addr().Unmap().WithZone("")
	bits := 32
	if ip.Is6() {
		bits = 64
	}
	p, _ = ip.Prefix(bits)
	return p, ip.IsLoopback()
}

// keysOf are the keys of a log-in. This machine is not one key for all of its
// programs.
func (t *throttle) keysOf(addr net.Addr, user string) []throttleKey {
	p, local := place(addr)
	h := maphash.String(t.seed, user)
	keys := []throttleKey{{p, h, throttlePair}, {netip.Prefix{}, h, throttleUser}}
	if !local {
		keys = append(keys, throttleKey{p, 0, throttleAddr})
	}
	return keys
}

// turn says how long a log-in has to wait for its turn; ok is false when that
// is longer than may be waited.
func (t *throttle) turn(o throttleOptions, now time.Time, keys []throttleKey) (wait time.Duration, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	at := now
	trusted := t.trustedLocked(now, keys)
	for _, k := range keys {
		if trusted && k.kind == throttleUser {
			continue
		}
		if e := t.keys[k]; e.step(k, o, now) > 0 && e.next.After(at) {
			at = e.next
		}
	}
	wait = at.Sub(now)
	if wait > o.most {
		return 0, false
	}
	for _, k := range keys {
		if trusted && k.kind == throttleUser {
			continue
		}
		if e := t.keys[k]; e != nil {
			e.next = at.Add(e.step(k, o, now))
		}
	}
	return wait, true
}

func (t *throttle) trustedLocked(now time.Time, keys []throttleKey) bool {
	for _, k := range keys {
		if e := t.keys[k]; k.kind == throttlePair && e != nil {
			return e.failures == 0 && now.Sub(e.trusted) < trustFor
		}
	}
	return false
}

// step is the pause between two turns of a key.
func (e *throttleEntry) step(k throttleKey, o throttleOptions, now time.Time) time.Duration {
	if e == nil || now.Sub(e.last) > forgetAfter {
		return 0
	}
	n := e.failures
	if k.kind != throttlePair {
		n -= freeFailures
	}
	if n <= 0 {
		return 0
	}
	return min(o.delay<<min(n-1, 16), o.most)
}

// failed counts a failure.
func (t *throttle) failed(o throttleOptions, now time.Time, keys []throttleKey) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, k := range keys {
		e := t.entryLocked(k, now)
		if now.Sub(e.last) > forgetAfter {
			e.failures = 0
		}
		e.failures++
		e.last = now
		if next := now.Add(e.step(k, o, now)); next.After(e.next) {
			e.next = next
		}
	}
}

// succeeded ends the slowing down of that user at that address. What the
// address has tried elsewhere stays: one valid password buys no guesses at
// others.
func (t *throttle) succeeded(now time.Time, keys []throttleKey) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, k := range keys {
		if k.kind == throttlePair {
			*t.entryLocked(k, now) = throttleEntry{trusted: now}
		}
	}
}

// entryLocked finds or makes an entry. When there are too many, one of a few
// looked at goes: the one that was used longest ago.
func (t *throttle) entryLocked(k throttleKey, now time.Time) *throttleEntry {
	e := t.keys[k]
	if e != nil {
		return e
	}
	if len(t.keys) >= maxThrottled {
		var oldest throttleKey
		age, n := time.Duration(-1), 0
		for k, e := range t.keys {
			last := e.last
			if e.trusted.After(last) {
				last = e.trusted
			}
			if a := now.Sub(last); a > age {
				oldest, age = k, a
			}
			if n++; n == 16 {
				break
			}
		}
		delete(t.keys, oldest)
	}
	e = &throttleEntry{}
	t.keys[k] = e
	return e
}

// size is how many keys are remembered.
func (t *throttle) size() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.keys)
}
