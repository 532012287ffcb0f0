package broker

import (
	"bytes"
	"context"
	"errors"
	"sync"

	"holdfast/broker/packet"
)

// ExtendedAuth is an [Auth] that knows methods of extended authentication
// (MQTT 5.0 §4.12). A broker whose Options.Auth is none refuses clients that
// name a method with 0x8C.
type ExtendedAuth interface {
	Auth
	// BeginExchange begins an authentication by that method: for a CONNECT
	// that names it, and each time such a client wants to authenticate again.
	// Nil if the method is not known, or not for this client. The client's
	// user name and password are in info, and prove nothing.
	BeginExchange(method string, info ConnInfo) Exchange
}

// Exchange is one authentication under way. Its calls come one at a time.
type Exchange interface {
	// Step takes the authentication data of a CONNECT or AUTH packet, nil for
	// none and valid during the call, and returns the server's.
	// [packet.ReasonContinueAuthentication] asks the client for more;
	// [packet.ReasonSuccess] lets it in as that identity, and answer goes with
	// the CONNACK or the last AUTH; any code of 0x80 or above refuses it. ctx
	// ends with the connect timeout.
	Step(ctx context.Context, data []byte) (answer []byte, id Identity, reason packet.ReasonCode)
}

// maxSteps is how many packets a client may take for one authentication. The
// methods of SASL need two or three; without a bound a client could keep the
// server at it.
const maxSteps = 8

// errAuthMethod is what a method answers that is not the connection's.
func errAuthMethod() error {
	return &packet.Error{
		Reason: packet.ReasonBadAuthenticationMethod, Type: packet.TypeAuth, Field: "authentication method",
		Detail: "is not that of the CONNECT", // MQTT 5.0 §4.12 [MQTT-4.12.0-5], §4.12.1 [MQTT-4.12.1-1]
	}
}

// exchange authenticates a client whose CONNECT names a method, and waits for
// its AUTH packets (MQTT 5.0 §4.12). The read deadline and the largest packet
// are those of the handshake.
func (x *connecting) exchange(ctx context.Context, info ConnInfo) packet.ReasonCode {
	c, method := x.c, x.p.Properties.AuthMethod
	auth, ok := c.b.opts.Auth.(ExtendedAuth)
	if !ok {
		return packet.ReasonBadAuthenticationMethod // [MQTT-4.12.0-1]
	}
	e := auth.BeginExchange(method, info)
	if e == nil {
		return packet.ReasonBadAuthenticationMethod
	}
	data := x.p.Properties.AuthData
	for range maxSteps {
		answer, id, reason := e.Step(ctx, data)
		switch {
		case reason == packet.ReasonSuccess:
			id.ClientID, id.Listener = x.clientID, c.listener.Name
			c.identity = &id
			x.authData = answer
			c.auth = &authentication{c: c, method: method, info: info}
			c.auth.info.Password = nil // valid during the handshake only
			return packet.ReasonSuccess
		case reason != packet.ReasonContinueAuthentication:
			return reason // [MQTT-4.12.0-4]
		}
		p := authPacket(packet.ReasonContinueAuthentication, method, answer)
		if !c.fits(p) || !c.out.packet(nil, p, c.version) {
			return packet.ReasonImplementationSpecific // as with a CONNACK that does not fit
		}
		c.b.count.controlOut.Add(1)
		if data, reason = x.awaitAuth(method); reason.Failed() {
			return reason
		}
	}
	return packet.ReasonNotAuthorized
}

// awaitAuth reads the client's next AUTH. Until the CONNACK it may send nothing
// but that and DISCONNECT (MQTT 5.0 §3.1.2.11.9 [MQTT-3.1.2-30]).
func (x *connecting) awaitAuth(method string) (data []byte, reason packet.ReasonCode) {
	c := x.c
	p, err := c.reader.Next()
	if err == nil {
		c.b.count.packetsIn.Add(1)
		err = packet.FromClient(p)
	}
	if err != nil {
		return nil, x.broken(err)
	}
	switch p := p.(type) {
	case *packet.Auth:
		switch {
		case p.Properties.AuthMethod != method:
			return nil, x.broken(errAuthMethod())
		case p.Reason != packet.ReasonContinueAuthentication: // [MQTT-4.12.0-3]
			return nil, x.broken(protocolError(p.Type(), "reason code", "there is no session yet to authenticate again for"))
		}
		return p.Properties.AuthData, packet.ReasonSuccess
	case *packet.Disconnect:
		return nil, x.broken(errEnded)
	default:
		return nil, x.broken(protocolError(p.Type(), "packet type", "comes before the authentication is over"))
	}
}

// broken remembers why the exchange ended where there is nobody, or nothing, to
// answer; else it is answered with the reason.
func (x *connecting) broken(err error) packet.ReasonCode {
	var wire *packet.Error
	if !errors.As(err, &wire) {
		x.err = err
		return packet.ReasonUnspecified
	}
	x.c.b.count.protocolErrors.Add(1)
	return wire.Reason
}

func authPacket(reason packet.ReasonCode, method string, data []byte) *packet.Auth {
	p := &packet.Auth{Reason: reason}
	p.Properties.AuthMethod, p.Properties.AuthData = method, data
	return p
}

// authentication is what a connected client has that named a method: it may
// authenticate again at any time (MQTT 5.0 §4.12.1), and goes on with its work
// meanwhile.
//
// A step may wait, for a log-in that is being slowed down, so it is taken in a
// goroutine of its own; the client waits for its answer before it sends the
// next AUTH.
type authentication struct {
	c      *conn
	method string
	info   ConnInfo

	mu       sync.Mutex
	exchange Exchange // guarded by mu; nil while nothing is under way
	stepping bool     // guarded by mu
	steps    int      // guarded by mu
	timeout  *event   // guarded by mu
}

// handleAuth takes a client's AUTH (MQTT 5.0 §3.15, §4.12.1).
func (c *conn) handleAuth(p *packet.Auth) error {
	a := c.auth
	if a == nil {
		// [MQTT-4.12.0-7]
		return protocolError(p.Type(), "packet type", "there was no authentication method in CONNECT")
	}
	if p.Properties.AuthMethod != a.method {
		return errAuthMethod()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case p.Reason == packet.ReasonReauthenticate && a.exchange != nil:
		return protocolError(p.Type(), "reason code", "authentication is under way")
	case p.Reason == packet.ReasonContinueAuthentication && (a.exchange == nil || a.stepping):
		return protocolError(p.Type(), "reason code", "there is nothing to go on with")
	case p.Reason == packet.ReasonReauthenticate:
		auth, _ := c.b.opts.Auth.(ExtendedAuth) // or there were no method
		if a.exchange = auth.BeginExchange(a.method, a.info); a.exchange == nil {
			return &packet.Error{
				Reason: packet.ReasonBadAuthenticationMethod, Type: p.Type(), Field: "authentication method",
				Detail: "is no longer known",
			}
		}
		a.steps = 0
		e := a.exchange
		a.timeout = c.b.clock.after(c.b.opts.ConnectTimeout, func() { a.expire(e) })
	}
	if a.steps++; a.steps > maxSteps {
		return &packet.Error{Reason: packet.ReasonNotAuthorized, Type: p.Type(), Field: "authentication data", Detail: "does not come to an end"}
	}
	a.stepping = true
	e, data := a.exchange, bytes.Clone(p.Properties.AuthData)
	c.b.spawn(func(ctx context.Context) { a.step(ctx, e, data) })
	return nil
}

// step takes one step and answers.
func (a *authentication) step(ctx context.Context, e Exchange, data []byte) {
	c := a.c
	ctx, cancel := context.WithTimeout(ctx, c.b.opts.ConnectTimeout)
	defer cancel()
	answer, id, reason := e.Step(ctx, data)
	if reason == packet.ReasonSuccess && id.Name != c.identity.Name {
		// Its subscriptions and what waits for it were another's.
		reason = packet.ReasonNotAuthorized
	}
	if reason.Failed() {
		a.failed(reason)
		return
	}
	a.mu.Lock()
	a.stepping = false
	if reason == packet.ReasonSuccess {
		a.endLocked()
	}
	a.mu.Unlock()
	c.tell(authPacket(reason, a.method, answer))
	if reason == packet.ReasonSuccess {
		c.b.log.Info("client authenticated again", "client_id", c.identity.ClientID, "user", c.identity.Name)
	}
}

// expire is called by the session clock.
func (a *authentication) expire(e Exchange) {
	a.mu.Lock()
	late := a.exchange == e
	a.mu.Unlock()
	if late {
		a.failed(packet.ReasonNotAuthorized)
	}
}

// failed ends the connection (MQTT 5.0 §4.12.1 [MQTT-4.12.1-2]).
func (a *authentication) failed(reason packet.ReasonCode) {
	a.c.b.log.Warn("client not authenticated again", "client_id", a.c.identity.ClientID, "remote", a.c.remote(), "reason", reason.String())
	a.c.end(reason, "authentication again", false)
}

// stop ends what is under way with the connection.
func (a *authentication) stop() {
	if a == nil {
		return
	}
	a.mu.Lock()
	a.endLocked()
	a.mu.Unlock()
}

func (a *authentication) endLocked() {
	if a.timeout != nil {
		a.c.b.clock.cancel(a.timeout)
	}
	a.exchange, a.timeout = nil, nil
}
