package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"holdfast/broker/packet"
)

// maxConnack bounds the CONNACK, in bytes; a server may put any number of user
// properties into it.
const maxConnack = 256 << 10

// errNoConnack means that the server closed the connection in place of an
// answer to CONNECT, as old servers do that do not know the version.
var errNoConnack = errors.New("server closed the connection at CONNECT")

// Dial connects to the server of o.URL and returns after its CONNACK. The
// server's refusal is a [*ConnackError]. With o.Version 0 a server that does
// not know 5.0 is asked again for 3.1.1, on a new connection: it says so with
// reason 0x84 or return code 1, or closes at CONNECT (MQTT 5.0 §3.1.2.2).
func Dial(ctx context.Context, o Options) (*Conn, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	to, err := readURL(&o)
	if err != nil {
		return nil, err
	}
	o = o.withDefaults()
	if o.SCRAM {
		o.Version = packet.V5
	}
	if o.Version != 0 {
		return dialVersion(ctx, &o, to)
	}
	o.Version = packet.V5
	c, err := dialVersion(ctx, &o, to)
	if err == nil || !versionUnknown(err) {
		return c, err
	}
	o.Version = packet.V311
	c, again := dialVersion(ctx, &o, to)
	if again != nil {
		return nil, fmt.Errorf("%w (MQTT 5.0 before that: %w)", again, err)
	}
	return c, nil
}

func versionUnknown(err error) bool {
	if refusal, ok := errors.AsType[*ConnackError](err); ok {
		return refusal.Reason == packet.ReasonUnsupportedProtocolVersion
	}
	return errors.Is(err, errNoConnack)
}

// dialVersion connects with o.Version.
func dialVersion(ctx context.Context, o *Options, to server) (*Conn, error) {
	if o.Version == packet.V311 && o.CleanStart && o.SessionExpiry != 0 {
		// 3.1.1 cannot ask for a new session that outlives the connection.
		// A first connection ends the old one; it has no will that could go
		// off.
		first := *o
		first.SessionExpiry, first.Will = 0, nil
		c, err := dialOnce(ctx, &first, to)
		if err != nil {
			return nil, err
		}
		if err := c.Close(ctx, packet.ReasonSuccess); err != nil {
			return nil, fmt.Errorf("end the old session: %w", err)
		}
	}
	return dialOnce(ctx, o, to)
}

func dialOnce(ctx context.Context, o *Options, to server) (*Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, o.ConnectTimeout)
	defer cancel()
	dial := o.Dial
	if dial == nil {
		// MQTT has its own keep alive; the kernel's would cost traffic on
		// metered links.
		dial = (&net.Dialer{KeepAlive: -1}).DialContext
	}
	raw, err := dial(ctx, "tcp", to.address)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", to.address, err)
	}
	m := newMeter(raw)
	nc := net.Conn(m)
	if to.tls {
		conf := o.TLS.Clone()
		if conf == nil {
			conf = &tls.Config{MinVersion: tls.VersionTLS12}
		}
		setDefault(&conf.ServerName, to.host)
		tc := tls.Client(m, conf)
		if err := tc.HandshakeContext(ctx); err != nil {
			raw.Close()
			return nil, fmt.Errorf("connect to %s: TLS: %w", to.address, err)
		}
		nc = tc
	}
	c, err := handshake(ctx, nc, m, o)
	if err != nil {
		nc.Close()
		return nil, fmt.Errorf("connect to %s: %w", to.address, err)
	}
	return c, nil
}

// NewConn does the handshake on a connection that is open already, TLS and all;
// o.URL is not looked at, and o.Version 0 means 5.0 without another attempt. nc
// belongs to the Conn, and is closed when NewConn fails.
func NewConn(ctx context.Context, nc net.Conn, o Options) (*Conn, error) {
	if err := o.Validate(); err != nil {
		nc.Close()
		return nil, err
	}
	o = o.withDefaults()
	setDefault(&o.Version, packet.V5)
	ctx, cancel := context.WithTimeout(ctx, o.ConnectTimeout)
	defer cancel()
	m := newMeter(nc)
	c, err := handshake(ctx, m, m, &o)
	if err != nil {
		nc.Close()
		return nil, err
	}
	return c, nil
}

// handshake sends CONNECT and reads CONNACK until ctx ends. It reads no byte
// beyond it.
func handshake(ctx context.Context, nc net.Conn, m *meter, o *Options) (*Conn, error) {
	stop := context.AfterFunc(ctx, func() { _ = nc.SetDeadline(past) })
	ack, err := exchange(nc, o)
	if !stop() {
		// The past deadline may come after whatever is set now: the
		// connection is of no use.
		return nil, fmt.Errorf("wait for CONNACK: %w", context.Cause(ctx))
	}
	if err != nil {
		return nil, err
	}
	return newConn(nc, m, o, ack), nil
}

// past is a deadline that unblocks what waits.
var past = time.Unix(1, 0)

func exchange(nc net.Conn, o *Options) (*packet.Connack, error) {
	hello := connectFor(o)
	var l *login
	if o.SCRAM {
		var err error
		if l, err = newLogin(o); err != nil {
			return nil, err
		}
		l.first(&hello.Properties)
	}
	if err := writePacket(nc, hello, o.Version); err != nil {
		return nil, err
	}
	p, err := readConnack(nc, o.Version)
	for err == nil && l != nil && p.Type() == packet.TypeAuth {
		p, err = continueLogin(nc, l, p, o.Version)
	}
	if err != nil {
		return nil, err
	}
	ack, ok := p.(*packet.Connack)
	if !ok {
		// MQTT 5.0 §3.2 [MQTT-3.2.0-1].
		return nil, &packet.Error{
			Reason: packet.ReasonProtocolError, Type: p.Type(),
			Field: "packet type", Detail: "the first packet from the server is not CONNACK",
		}
	}
	if ack.Reason.Failed() {
		return nil, &ConnackError{
			Reason: ack.Reason, Version: o.Version,
			ReasonString: ack.Properties.ReasonString, ServerReference: ack.Properties.ServerReference,
		}
	}
	if ack.SessionPresent && hello.CleanStart {
		// MQTT 5.0 §3.2.2.1.1 [MQTT-3.2.2-2].
		return nil, &packet.Error{
			Reason: packet.ReasonProtocolError, Type: packet.TypeConnack,
			Field: "session present", Detail: "set though a clean start was asked for",
		}
	}
	if l != nil {
		if err := l.finish(&ack.Properties); err != nil {
			return nil, err
		}
	}
	return ack, nil
}

func writePacket(nc net.Conn, p packet.Packet, v packet.Version) error {
	b, err := p.AppendTo(nil, v)
	if err == nil {
		_, err = nc.Write(b)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", p.Type(), err)
	}
	return nil
}

// readConnack reads the server's next packet before, or with, its CONNACK.
func readConnack(nc net.Conn, v packet.Version) (packet.Packet, error) {
	frame, err := readFrame(nc, maxConnack)
	if err != nil {
		return nil, noConnack(fmt.Errorf("read CONNACK: %w", err))
	}
	p, err := packet.Decode(frame, v, nil)
	if err == nil {
		err = packet.FromServer(p)
	}
	if err != nil {
		return nil, fmt.Errorf("read CONNACK: %w", err)
	}
	return p, nil
}

// continueLogin answers an AUTH before the CONNACK and reads what follows.
func continueLogin(nc net.Conn, l *login, p packet.Packet, v packet.Version) (packet.Packet, error) {
	auth, _ := p.(*packet.Auth)
	if auth.Reason != packet.ReasonContinueAuthentication { // MQTT 5.0 §4.12 [MQTT-4.12.0-2]
		return nil, authError(packet.ReasonProtocolError, "reason code", "only a CONNACK can end it")
	}
	answer, err := l.answer(auth)
	if err != nil {
		return nil, err
	}
	if err := writePacket(nc, answer, v); err != nil {
		return nil, err
	}
	return readConnack(nc, v)
}

// noConnack marks errors that say the server hung up in an orderly way. A reset
// does not count: it is how a broken link ends, and 5.0 must not be given up for
// that.
func noConnack(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: %w", errNoConnack, err)
	}
	return err
}

// readFrame reads exactly one packet of at most limit bytes.
func readFrame(r io.Reader, limit int) ([]byte, error) {
	frame := make([]byte, 2, 64)
	if _, err := io.ReadFull(r, frame); err != nil {
		return nil, err
	}
	for {
		n, err := packet.Frame(frame, limit)
		if err != nil {
			return nil, err
		}
		have := len(frame)
		if n == 0 {
			n = have + 1 // the length goes on
		}
		if n == have {
			return frame, nil
		}
		frame = append(frame, make([]byte, n-have)...)
		if _, err := io.ReadFull(r, frame[have:]); err != nil {
			return nil, err
		}
	}
}
