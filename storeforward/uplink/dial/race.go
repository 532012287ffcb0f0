package dial

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"
)

// The times of RFC 8305 §8, and ours for lookups.
const (
	attemptDelay    = 250 * time.Millisecond // between the beginnings of two attempts
	resolutionDelay = 50 * time.Millisecond  // that AAAA is waited for when A has come
	lookupTimeout   = 12 * time.Second       // two servers that are silent for 5 s each, and a third
	staleAfter      = 3 * time.Second        // then the addresses of before are tried meanwhile
	// maxAddresses of one family are tried; pools are larger, and one attempt
	// is not to take for ever.
	maxAddresses = 8
)

// lookup finds the addresses of one family, "ip4" or "ip6".
type lookup func(ctx context.Context, network, host string) ([]netip.Addr, error)

// connect opens one connection.
type connect func(ctx context.Context, to netip.AddrPort) (net.Conn, error)

// race is one attempt to reach host by any of its addresses: those of both
// families in turn, IPv6 first, each begun when the one before has failed or
// has had its time; the first connection wins (RFC 8305).
//
//	[lookup ip6]--+                     +--[connect 1]--+
//	              +--> answers --> race +--[connect 2]--+--> results
//	[lookup ip4]--+                     +--[connect 3]--+
//
// All goroutines end before it returns.
type race struct {
	host    string
	port    uint16
	lookup  lookup
	connect connect
	known   []netip.Addr // that worked before

	waiting   [2][]netip.Addr // addresses not yet tried: IPv6, IPv4
	tried     map[netip.Addr]bool
	turn      int // family to try next
	lookups   int // without an answer
	attempts  int // without a result
	errs      []error
	answers   chan answer
	results   chan result
	wg        sync.WaitGroup
	mayBegin  time.Time // the resolution delay
	nextBegin time.Time // the attempt delay
}

type answer struct {
	family int
	addrs  []netip.Addr
	err    error
}

type result struct {
	addr netip.Addr
	conn net.Conn
	err  error
}

var families = [2]string{"ip6", "ip4"}

// run returns the first connection and the address it leads to.
func (r *race) run(ctx context.Context) (net.Conn, netip.Addr, error) {
	ctx, cancel := context.WithCancel(ctx)
	r.tried = map[netip.Addr]bool{}
	r.answers = make(chan answer, len(families))
	r.results = make(chan result, len(families)*maxAddresses+len(r.known))
	defer func() {
		cancel()
		r.wg.Wait()
		close(r.results)
		for late := range r.results {
			if late.conn != nil {
				_ = late.conn.Close()
			}
		}
	}()
	now := time.Now()
	if ip, err := netip.ParseAddr(r.host); err == nil {
		r.add(ip)
	} else {
		r.look(ctx)
	}
	stale := now.Add(staleAfter)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		now = time.Now()
		if r.lookups > 0 && !now.Before(stale) {
			r.add(r.known...)
		}
		r.begin(ctx, now)
		if r.attempts == 0 && r.lookups == 0 && len(r.waiting[0])+len(r.waiting[1]) == 0 {
			return nil, netip.Addr{}, r.failure()
		}
		timer.Reset(r.wake(now, stale))
		select {
		case a := <-r.answers:
			r.answered(a)
		case res := <-r.results:
			r.attempts--
			if res.err == nil {
				return res.conn, res.addr, nil
			}
			r.errs = append(r.errs, res.err)
			r.nextBegin = time.Time{}
		case <-timer.C:
		case <-ctx.Done():
			return nil, netip.Addr{}, several(append(r.errs, context.Cause(ctx)))
		}
	}
}

func (r *race) look(ctx context.Context) {
	for i, network := range families {
		r.lookups++
		r.wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
			defer cancel()
			addrs, err := r.lookup(ctx, network, r.host)
			r.answers <- answer{i, addrs, err}
		})
	}
}

func (r *race) answered(a answer) {
	r.lookups--
	r.add(a.addrs...)
	switch {
	case a.err == nil:
	case !hasNone(a.err):
		r.errs = append(r.errs, a.err)
		if r.lookups == 0 && len(r.tried) == 0 {
			r.add(r.known...) // nobody said that the name is gone
		}
	case r.lookups == 0 && len(r.errs) == 0 && len(r.tried) == 0:
		r.errs = append(r.errs, a.err)
	}
	if r.mayBegin.IsZero() && len(a.addrs) > 0 {
		if r.mayBegin = time.Now(); families[a.family] == "ip4" && r.lookups > 0 {
			r.mayBegin = r.mayBegin.Add(resolutionDelay)
		}
	}
	if r.lookups == 0 {
		r.mayBegin = time.Now()
	}
}

// hasNone says that a name has no address of the family, as opposed to an
// answer that has not come.
func hasNone(err error) bool {
	if gone, ok := errors.AsType[*net.DNSError](err); ok {
		return gone.IsNotFound
	}
	_, ok := errors.AsType[*net.AddrError](err)
	return ok
}

// several are the failures of one race, in one line.
type several []error

func (s several) Error() string {
	texts := make([]string, len(s))
	for i, err := range s {
		texts[i] = err.Error()
	}
	return strings.Join(texts, ", ")
}

func (s several) Unwrap() []error { return s }

// add has addresses tried that have not been.
func (r *race) add(addrs ...netip.Addr) {
	for _, a := range addrs {
		a = a.Unmap()
		family := 0
		if a.Is4() {
			family = 1
		}
		if !r.tried[a] && len(r.waiting[family]) < maxAddresses && len(r.tried) < cap(r.results) {
			r.tried[a] = true
			r.waiting[family] = append(r.waiting[family], a)
		}
	}
}

// begin starts the next attempt if it is time.
func (r *race) begin(ctx context.Context, now time.Time) {
	if now.Before(r.mayBegin) || now.Before(r.nextBegin) {
		return
	}
	family := r.turn
	if len(r.waiting[family]) == 0 {
		family ^= 1
	}
	if len(r.waiting[family]) == 0 {
		return
	}
	addr := r.waiting[family][0]
	r.waiting[family] = r.waiting[family][1:]
	r.turn = family ^ 1
	r.attempts++
	r.nextBegin = now.Add(attemptDelay)
	r.wg.Go(func() {
		conn, err := r.connect(ctx, netip.AddrPortFrom(addr, r.port))
		r.results <- result{addr, conn, err}
	})
}

// wake is how long nothing has to be done unless something happens.
func (r *race) wake(now, stale time.Time) time.Duration {
	next := now.Add(time.Hour)
	if r.lookups > 0 && now.Before(stale) {
		next = stale
	}
	if len(r.waiting[0])+len(r.waiting[1]) > 0 {
		for _, t := range []time.Time{r.mayBegin, r.nextBegin} {
			if t.After(now) && t.Before(next) {
				next = t
			}
		}
	}
	return next.Sub(now)
}

func (r *race) failure() error {
	if len(r.errs) == 0 {
		return fmt.Errorf("%s has no address", r.host)
	}
	return several(r.errs)
}
