package access

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"

	"holdfast/broker"
	"holdfast/broker/packet"
)

// Access answers the broker; it implements [broker.Auth]. Its methods may be
// called from many goroutines.
type Access struct {
	log      *slog.Logger
	rules    atomic.Pointer[Rules]
	throttle *throttle
	secret   [32]byte // of this process; see remembered

	mu       sync.Mutex
	hashing  chan struct{}       // guarded by mu; a place for each password that may be hashed at once
	good     map[string][32]byte // guarded by mu; by user, see remembered
	lastLog  time.Time           // guarded by mu
	unlogged int                 // guarded by mu; failures since lastLog

	logins, failures, throttled, notAllowed, anonymous, reloads atomic.Uint64
}

var _ broker.Auth = (*Access)(nil)

// logEvery is the shortest time between two lines about log-ins that failed:
// whoever guesses passwords does not fill the disk.
const logEvery = 5 * time.Second

// New returns an Access with these rules.
func New(rules *Rules, log *slog.Logger) *Access {
	a := &Access{log: log.With("component", "access"), throttle: newThrottle()}
	_, _ = rand.Read(a.secret[:]) // never fails (crypto/rand)
	a.set(rules)
	return a
}

func (a *Access) set(rules *Rules) {
	a.mu.Lock()
	if cap(a.hashing) != rules.maxHashing {
		a.hashing = make(chan struct{}, rules.maxHashing)
	}
	a.good = map[string][32]byte{}
	a.mu.Unlock()
	a.rules.Store(rules)
}

// Replace takes new rules and returns those before. Questions that come
// afterwards are answered from the new ones only. The caller tells the broker
// to ask again ([broker.Broker.Reauthorize]) and disconnects the clients that
// [Rules.Revokes] names.
func (a *Access) Replace(rules *Rules) (old *Rules) {
	old = a.rules.Load()
	a.set(rules)
	a.reloads.Add(1)
	return old
}

// Authenticate implements [broker.Auth]. It waits while log-ins from that
// address or for that user are being slowed down, and for its turn to hash.
func (a *Access) Authenticate(ctx context.Context, info broker.ConnInfo) (broker.Identity, packet.ReasonCode) {
	r := a.rules.Load()
	id := broker.Identity{ClientID: info.ClientID, Listener: info.Listener}
	var reason packet.ReasonCode
	switch by := r.identity[info.Listener]; {
	case by.byConnection():
		id.Name, reason = a.byConnection(by, &info)
	case !r.guarded || !info.HasUsername && !info.HasPassword:
		// A user name that nothing proves is no user name.
		if !info.Anonymous {
			a.notAllowed.Add(1)
			return id, packet.ReasonNotAuthorized
		}
		a.anonymous.Add(1)
		return id, packet.ReasonSuccess
	default:
		id.Name, reason = a.byPassword(ctx, r, &info)
	}
	if reason.Failed() {
		return broker.Identity{ClientID: info.ClientID, Listener: info.Listener}, reason
	}
	if u := r.users[id.Name]; u != nil && !u.welcome(&id) {
		a.notAllowed.Add(1)
		a.logFailure(&info, id.Name, "not with this client id or on this listener")
		return broker.Identity{ClientID: info.ClientID, Listener: info.Listener}, packet.ReasonNotAuthorized
	}
	if a.rules.Load() != r {
		return broker.Identity{ClientID: info.ClientID, Listener: info.Listener}, packet.ReasonServerBusy // judged by rules that are gone
	}
	a.logins.Add(1)
	return id, packet.ReasonSuccess
}

// Authorize implements [broker.Auth].
func (a *Access) Authorize(id broker.Identity, action broker.Action, topic string) bool {
	return a.rules.Load().allows(&id, action, topic)
}

// Exists implements [broker.Auth].
func (a *Access) Exists(id broker.Identity) bool {
	return a.rules.Load().known(&id)
}

// Elsewhere implements [broker.Auth].
func (a *Access) Elsewhere(id broker.Identity) (server string, forGood bool) {
	u := a.rules.Load().users[id.Name]
	if u == nil {
		return "", false
	}
	return u.server, u.moved
}

// welcome says whether the user may use that client id and listener.
func (u *user) welcome(id *broker.Identity) bool {
	return (len(u.clientIDs) == 0 || slices.ContainsFunc(u.clientIDs, func(c string) bool {
		return c == id.ClientID || c == "%u" && id.ClientID == id.Name
	})) && (len(u.listeners) == 0 || slices.Contains(u.listeners, id.Listener))
}

func (a *Access) byConnection(by ListenerIdentity, info *broker.ConnInfo) (string, packet.ReasonCode) {
	name, missing := info.Certificate, "no name in a client certificate"
	switch by {
	case ByAlternativeName:
		name = ""
		if len(info.AlternativeNames) > 0 {
			name = info.AlternativeNames[0]
		}
	case ByPeer:
		name, missing = strings.TrimPrefix(info.Peer, "unix:"), "no user at the other end of the socket"
	default:
	}
	if err := ValidUser(name); err != nil {
		a.failures.Add(1)
		a.logFailure(info, name, missing)
		return "", packet.ReasonNotAuthorized
	}
	return name, packet.ReasonSuccess
}

func (a *Access) byPassword(ctx context.Context, r *Rules, info *broker.ConnInfo) (string, packet.ReasonCode) {
	keys := a.throttle.keysOf(info.Remote, info.Username)
	wait, ok := a.throttle.turn(r.throttle, time.Now(), keys)
	if !ok {
		a.throttled.Add(1)
		a.logFailure(info, info.Username, "too many failures before")
		return "", packet.ReasonConnectionRateExceeded
	}
	if wait > 0 {
		a.throttled.Add(1)
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return "", packet.ReasonServerBusy
		}
	}
	good, err := a.check(ctx, r, info)
	switch {
	case err != nil:
		return "", packet.ReasonServerBusy
	case !good:
		a.failures.Add(1)
		a.throttle.failed(r.throttle, time.Now(), keys)
		a.logFailure(info, info.Username, "wrong user name or password")
		return "", packet.ReasonBadUserNameOrPassword
	}
	a.throttle.succeeded(time.Now(), keys)
	return info.Username, packet.ReasonSuccess
}

// check compares the password. For a user who does not exist it does the work
// that one of those who do would cost, and says no.
func (a *Access) check(ctx context.Context, r *Rules, info *broker.ConnInfo) (bool, error) {
	u := r.users[info.Username]
	exists := u != nil && u.hash.scheme != schemeNone && info.HasPassword
	if !exists {
		u = a.stranger(r, info.Username)
	}
	mark := a.mark(u, info.Password)
	if exists && a.remembered(u, mark) {
		return true, nil
	}
	a.mu.Lock()
	places := a.hashing
	a.mu.Unlock()
	select {
	case places <- struct{}{}:
	case <-ctx.Done():
		return false, ctx.Err()
	}
	fits := u.hash.Verify(info.Password)
	<-places
	if !exists || !fits {
		return false, nil
	}
	a.mu.Lock()
	if a.rules.Load() == r {
		a.good[u.name] = mark
	}
	a.mu.Unlock()
	return true, nil
}

// stranger is the user whose hash a name without one is compared with: always
// the same for a name, and any of those there are, so that their times do not
// tell which names exist when hashes of several kinds are in use.
func (a *Access) stranger(r *Rules, name string) *user {
	if len(r.named) == 0 {
		return &user{hash: nobody()}
	}
	sum := hmac.New(sha256.New, a.secret[:])
	sum.Write([]byte("stranger\x00" + name))
	return r.named[binary.BigEndian.Uint64(sum.Sum(nil))%uint64(len(r.named))]
}

// nobody is a hash like a new one, of nothing.
var nobody = sync.OnceValue(func() Hash {
	h := NewHash(nil)
	clear(h.sum)
	return h
})

// mark is a short proof of a password that was right, for this process only.
// Reconnecting with it costs no argon2: after a power cut twenty devices come
// back at once, and one slow core would hash for all of them.
func (a *Access) mark(u *user, password []byte) (m [32]byte) {
	sum := hmac.New(sha256.New, a.secret[:])
	for _, part := range [][]byte{[]byte(u.name), []byte(u.hash.String()), password} {
		sum.Write(binary.BigEndian.AppendUint64(nil, uint64(len(part))))
		sum.Write(part)
	}
	sum.Sum(m[:0])
	return m
}

func (a *Access) remembered(u *user, mark [32]byte) bool {
	a.mu.Lock()
	good, ok := a.good[u.name]
	a.mu.Unlock()
	return ok && hmac.Equal(good[:], mark[:])
}

// logFailure tells of a log-in that failed, now and then.
func (a *Access) logFailure(info *broker.ConnInfo, user, why string) {
	now := time.Now()
	a.mu.Lock()
	a.unlogged++
	n := a.unlogged
	if now.Sub(a.lastLog) < logEvery {
		a.mu.Unlock()
		return
	}
	a.lastLog, a.unlogged = now, 0
	a.mu.Unlock()
	remote := ""
	if info.Remote != nil {
		remote = info.Remote.String()
	}
	a.log.Warn("log-in refused", "user", Printable(user), "client_id", Printable(info.ClientID), "remote", remote,
		"listener", info.Listener, "reason", why, "failures", n)
}

// maxPrintable is how much of a name from outside is shown, in bytes.
const maxPrintable = 128

// Printable makes a text from outside fit for a log: what cannot be printed is
// written as an escape, and what is long is cut.
func Printable(s string) string {
	var b strings.Builder
	for i, r := range s {
		if b.Len() >= maxPrintable {
			fmt.Fprintf(&b, "... (%d bytes)", len(s))
			break
		}
		switch {
		case r == unicode.ReplacementChar || r != ' ' && !unicode.IsGraphic(r) || r == '\\':
			if r == unicode.ReplacementChar && s[i] != 0xEF {
				fmt.Fprintf(&b, `\x%02x`, s[i])
			} else {
				fmt.Fprintf(&b, `\u{%x}`, r)
			}
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

// Status is a snapshot. Counters start at 0 with the process.
type Status struct {
	Closed     bool   `json:"closed"` // users or rules are configured
	Users      int    `json:"users"`
	Rules      int    `json:"rules"` // lines of the ACL file included
	Logins     uint64 `json:"logins"`
	Anonymous  uint64 `json:"anonymous"`   // clients let in without a user name
	Failures   uint64 `json:"failures"`    // wrong user name, password or certificate
	Throttled  uint64 `json:"throttled"`   // log-ins made to wait, or refused, for failures before
	NotAllowed uint64 `json:"not_allowed"` // refused for their listener or client id
	Watched    int    `json:"watched"`     // addresses and users whose log-ins are remembered
	Reloads    uint64 `json:"reloads"`
}

// Status returns a snapshot.
func (a *Access) Status() Status {
	r := a.rules.Load()
	return Status{
		Closed: r.closed, Users: len(r.users), Rules: r.count(),
		Logins: a.logins.Load(), Anonymous: a.anonymous.Load(), Failures: a.failures.Load(),
		Throttled: a.throttled.Load(), NotAllowed: a.notAllowed.Load(),
		Watched: a.throttle.size(), Reloads: a.reloads.Load(),
	}
}

func (r *Rules) count() int {
	n := len(r.rules)
	for _, rs := range r.byUser {
		n += len(rs)
	}
	if r.acl != nil {
		n += len(r.acl.anonymous) + len(r.acl.patterns)
		for _, lines := range r.acl.users {
			n += len(lines)
		}
	}
	return n
}
