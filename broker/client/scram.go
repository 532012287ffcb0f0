package client

import (
	"context"
	"errors"
	"fmt"

	"holdfast/broker/packet"
	"holdfast/broker/scram"
)

// ErrNoSCRAM means that the connection was not made with [Options.SCRAM].
var ErrNoSCRAM = errors.New("connection was made without SCRAM")

// login is an authentication by SCRAM-SHA-256 under way (MQTT 5.0 §4.12).
type login struct {
	scram *scram.Client
	// challenged: our proof has been sent; proven: the server's has come.
	challenged, proven bool
}

func newLogin(o *Options) (*login, error) {
	c, err := scram.NewClient(o.Username, o.Password)
	if err != nil {
		return nil, err
	}
	return &login{scram: c}, nil
}

// first is the first message's place in a CONNECT or AUTH.
func (l *login) first(p *packet.Properties) {
	p.AuthMethod, p.AuthData = scram.Name, l.scram.First()
}

// answer is the answer to an AUTH that asks for more.
func (l *login) answer(p *packet.Auth) (*packet.Auth, error) {
	answer := &packet.Auth{Reason: packet.ReasonContinueAuthentication}
	answer.Properties.AuthMethod = scram.Name
	switch {
	case p.Properties.AuthMethod != scram.Name: // MQTT 5.0 §4.12 [MQTT-4.12.0-5]
		return nil, authError(packet.ReasonBadAuthenticationMethod, "authentication method", "is not "+scram.Name)
	case l.proven:
		return nil, authError(packet.ReasonProtocolError, "reason code", "the authentication is over")
	case l.challenged:
		// Some servers prove themselves before they let us in, not with that.
		if err := l.scram.Verify(p.Properties.AuthData); err != nil {
			return nil, err
		}
		l.proven = true
		return answer, nil
	}
	data, err := l.scram.Respond(p.Properties.AuthData)
	if err != nil {
		return nil, fmt.Errorf("authenticate: %w", err)
	}
	l.challenged = true
	answer.Properties.AuthData = data
	return answer, nil
}

// finish checks what came with the CONNACK or AUTH of success.
func (l *login) finish(p *packet.Properties) error {
	switch {
	case p.AuthMethod != scram.Name:
		return authError(packet.ReasonBadAuthenticationMethod, "authentication method", "is not "+scram.Name)
	case l.proven:
		return nil
	}
	if err := l.scram.Verify(p.AuthData); err != nil {
		return fmt.Errorf("authenticate: %w", err)
	}
	return nil
}

func authError(reason packet.ReasonCode, field, detail string) error {
	return &packet.Error{Reason: reason, Type: packet.TypeAuth, Field: field, Detail: detail}
}

// reauthentication is a login on a connection that is open.
type reauthentication struct {
	login *login
	done  chan error // of 1
}

// Reauthenticate logs in once more on the open connection, whose messages go on
// meanwhile, and returns when the server has agreed (MQTT 5.0 §4.12.1). A
// server that does not agree ends the connection, and so do we when it does not
// prove itself. Only one may be under way; it needs [Conn.Run], and
// [Options.SCRAM].
func (c *Conn) Reauthenticate(ctx context.Context) error {
	if !c.opts.SCRAM {
		return ErrNoSCRAM
	}
	l, err := newLogin(&c.opts)
	if err != nil {
		return err
	}
	again := &reauthentication{login: l, done: make(chan error, 1)}
	c.mu.Lock()
	if c.again != nil {
		c.mu.Unlock()
		return errors.New("authenticate again: it is under way already")
	}
	c.again = again
	c.mu.Unlock()
	hello := &packet.Auth{Reason: packet.ReasonReauthenticate}
	l.first(&hello.Properties)
	if err := c.Queue(hello); err != nil {
		return err
	}
	c.Flush()
	select {
	case err := <-again.done:
		return err
	case <-c.ended:
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.err
	case <-ctx.Done():
		return fmt.Errorf("authenticate again: %w", context.Cause(ctx))
	}
}

// receiveAuth takes an AUTH on the read loop. Computing our proof holds up what
// comes behind it, for as long as the password's iterations take.
func (c *Conn) receiveAuth(p *packet.Auth) error {
	c.mu.Lock()
	again := c.again
	c.mu.Unlock()
	if again == nil {
		return unexpected(p) // MQTT 5.0 §4.12
	}
	if p.Reason == packet.ReasonSuccess {
		err := again.login.finish(&p.Properties)
		c.mu.Lock()
		c.again = nil
		c.mu.Unlock()
		again.done <- err
		return err
	}
	answer, err := again.login.answer(p)
	if err != nil {
		return err
	}
	return c.Queue(answer)
}
