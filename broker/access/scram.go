package access

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"time"

	"holdfast/broker"
	"holdfast/broker/packet"
	"holdfast/broker/scram"
)

var _ broker.ExtendedAuth = (*Access)(nil)

// NewSCRAMHash makes SCRAM-SHA-256 keys of a password, for clients that log in
// without sending it. They serve for those that do send it, too.
func NewSCRAMHash(password []byte) (Hash, error) {
	keys, err := scram.NewKeys(password)
	return Hash{scheme: schemeSCRAM, keys: keys}, err
}

// BeginExchange implements [broker.ExtendedAuth]. SCRAM-SHA-256 is known once
// a user has keys for it, on listeners where nothing else says who a client
// is.
func (a *Access) BeginExchange(method string, info broker.ConnInfo) broker.Exchange {
	r := a.rules.Load()
	if method != scram.Name || len(r.scrams) == 0 || r.identity[info.Listener].byConnection() {
		return nil
	}
	return &exchange{a: a, rules: r, info: info}
}

// exchange is one log-in by SCRAM-SHA-256.
type exchange struct {
	a      *Access
	rules  *Rules
	info   broker.ConnInfo
	asked  bool          // for the first message, which the client may leave to be asked for
	server *scram.Server // nil before the first message
	exists bool          // there is such a user
	keys   []throttleKey
}

// Step implements [broker.Exchange]. It waits while log-ins from that address
// or for that user are being slowed down.
func (e *exchange) Step(ctx context.Context, data []byte) ([]byte, broker.Identity, packet.ReasonCode) {
	nobody := broker.Identity{ClientID: e.info.ClientID, Listener: e.info.Listener}
	if e.server == nil && data == nil && !e.asked {
		e.asked = true
		return nil, nobody, packet.ReasonContinueAuthentication
	}
	if e.server == nil {
		answer, reason := e.begin(ctx, data)
		return answer, nobody, reason
	}
	answer, id, reason := e.finish(data)
	if reason.Failed() {
		id = nobody
	}
	return answer, id, reason
}

func (e *exchange) begin(ctx context.Context, first []byte) ([]byte, packet.ReasonCode) {
	server, err := scram.Begin(first)
	if err != nil {
		return nil, e.refuse("", err.Error())
	}
	name := server.User
	e.keys = e.a.throttle.keysOf(e.info.Remote, name)
	wait, ok := e.a.throttle.turn(e.rules.throttle, time.Now(), e.keys)
	if !ok {
		e.a.throttled.Add(1)
		e.a.logFailure(&e.info, name, "too many failures before")
		return nil, packet.ReasonConnectionRateExceeded
	}
	if wait > 0 {
		e.a.throttled.Add(1)
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return nil, packet.ReasonServerBusy
		}
	}
	e.server = server
	u := e.rules.users[name]
	e.exists = u != nil && u.hash.scheme == schemeSCRAM
	if !e.exists {
		return server.Challenge(e.rules.decoy(name)), packet.ReasonContinueAuthentication
	}
	return server.Challenge(u.hash.keys), packet.ReasonContinueAuthentication
}

func (e *exchange) finish(final []byte) ([]byte, broker.Identity, packet.ReasonCode) {
	a, name := e.a, e.server.User
	answer, err := e.server.Finish(final)
	switch {
	case err != nil && !errors.Is(err, scram.ErrProof):
		a.throttle.failed(e.rules.throttle, time.Now(), e.keys)
		return nil, broker.Identity{}, e.refuse(name, err.Error())
	case err != nil || !e.exists:
		a.throttle.failed(e.rules.throttle, time.Now(), e.keys)
		return nil, broker.Identity{}, e.refuse(name, "wrong user name or password")
	}
	a.throttle.succeeded(time.Now(), e.keys)
	id := broker.Identity{Name: name, ClientID: e.info.ClientID, Listener: e.info.Listener}
	if u := e.rules.users[name]; !u.welcome(&id) {
		a.notAllowed.Add(1)
		a.logFailure(&e.info, name, "not with this client id or on this listener")
		return nil, id, packet.ReasonNotAuthorized
	}
	if a.rules.Load() != e.rules {
		return nil, id, packet.ReasonServerBusy // judged by rules that are gone
	}
	a.logins.Add(1)
	return answer, id, packet.ReasonSuccess
}

// refuse counts and logs. The client is told no more than that it may not
// (RFC 5802 §7 has words for what went wrong, which help those who guess).
func (e *exchange) refuse(name, why string) packet.ReasonCode {
	e.a.failures.Add(1)
	e.a.logFailure(&e.info, name, why)
	return packet.ReasonNotAuthorized
}

// decoy are the keys of a user who does not exist: always the same salt for a
// name, and the iterations of one of those there are, so that the challenge
// does not tell which names exist (RFC 5802 §9). They come from the keys of
// the others, which nobody else has, and so outlast a restart.
func (r *Rules) decoy(name string) scram.Keys {
	secret := sha256.New()
	for _, u := range r.scrams {
		secret.Write(u.hash.keys.Server[:])
		secret.Write(u.hash.keys.Stored[:])
	}
	key := secret.Sum(nil)
	sum := func(what string) (s [sha256.Size]byte) {
		h := hmac.New(sha256.New, key)
		h.Write([]byte(what + "\x00" + name))
		h.Sum(s[:0])
		return s
	}
	pick := sum("pick")
	like := r.scrams[binary.BigEndian.Uint64(pick[:])%uint64(len(r.scrams))].hash.keys
	salt := sum("salt")
	return scram.Keys{
		Salt: salt[:min(len(like.Salt), len(salt))], Iterations: like.Iterations,
		Stored: sum("stored"), Server: sum("server"),
	}
}
