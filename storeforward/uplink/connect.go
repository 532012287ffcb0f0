package uplink

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"holdfast/broker/client"
	"holdfast/broker/packet"
)

const (
	// outputLimit is what may wait in the connection, in bytes: what is in there
	// cannot be overtaken. Acknowledged messages are bounded by the window; this
	// is for QoS 0, and a write to the system of that size is worth its price.
	outputLimit = 16 << 10
	// hangUps is how many connections in a row the cloud must close at CONNECT
	// before 3.1.1 is tried: a bad link looks the same.
	hangUps = 3
)

// protocol is what is known of the versions the cloud speaks. It belongs to
// Run's goroutine.
type protocol struct {
	version packet.Version
	fixed   bool // by configuration, or because 5.0 has worked
	hangUps int
}

func newProtocol(o *Options) protocol {
	switch o.Protocol {
	case Protocol311:
		return protocol{version: packet.V311, fixed: true}
	case Protocol5:
		return protocol{version: packet.V5, fixed: true}
	default:
		return protocol{version: packet.V5}
	}
}

// connect makes one attempt: name lookup, TCP, TLS, CONNECT. When the cloud
// does not know 5.0 it is asked again at once for 3.1.1; that it took this is
// remembered.
func (u *Uplink) connect(ctx context.Context, proto *protocol) (*client.Conn, error) {
	o, err := u.clientOptions(u.recall().Mark != u.mark())
	if err != nil {
		return nil, err
	}
	o.Version = proto.version
	conn, err := client.Dial(ctx, o)
	if err == nil {
		proto.fixed = true
		return conn, nil
	}
	if proto.fixed || !proto.unknown(err) {
		return nil, err
	}
	o.Version = packet.V311
	conn, again := client.Dial(ctx, o)
	if again != nil {
		return nil, fmt.Errorf("%w (5.0 before that: %w)", again, err)
	}
	*proto = protocol{version: packet.V311, fixed: true}
	u.log.Info("cloud speaks 3.1.1, not 5.0", "err", err)
	for i := range u.opts.Routes {
		if u.opts.Routes[i].Direction == DirectionBoth {
			u.log.Warn("route of both directions without no-local: own messages come back once", "topic", u.opts.Routes[i].Filter)
		}
	}
	return conn, nil
}

// unknown says that the cloud seems not to know 5.0: it says so, answers with
// what is no 5.0 CONNACK, or keeps hanging up at CONNECT (MQTT 5.0 §3.1.2.2).
func (p *protocol) unknown(err error) bool {
	if refusal, ok := errors.AsType[*client.ConnackError](err); ok {
		p.hangUps = 0
		return refusal.Reason == packet.ReasonUnsupportedProtocolVersion
	}
	if _, ok := errors.AsType[*packet.Error](err); ok {
		return true
	}
	for _, sign := range []error{io.EOF, io.ErrUnexpectedEOF, io.ErrClosedPipe, syscall.ECONNRESET, syscall.EPIPE} {
		if errors.Is(err, sign) {
			p.hangUps++
			return p.hangUps >= hangUps
		}
	}
	return false
}

func (u *Uplink) clientOptions(clean bool) (client.Options, error) {
	opts := &u.opts
	o := client.Options{
		URL: opts.URL, ClientID: opts.clientID(), Username: opts.Username, Password: opts.Password,
		KeepAlive: opts.KeepAlive, CleanStart: clean,
		// In 3.1.1 anything but 0 asks for a session that stays.
		SessionExpiry:     max(uint32(opts.SessionExpiry/time.Second), 1),
		Will:              u.will(),
		ReceiveMaximum:    uint16(opts.ReceiveMaximum),
		MaximumPacketSize: uint32(opts.MaximumPacketSize),
		ConnectTimeout:    opts.ConnectTimeout,
		Dial:              opts.Dial,
		OutputLimit:       outputLimit,
		Drained:           u.drained,
	}
	var err error
	o.TLS, err = opts.tlsConfig()
	return o, err
}

// tlsConfig reads the files, anew each time: renewed certificates are taken up
// with the next connection.
func (o Options) tlsConfig() (*tls.Config, error) {
	c := &tls.Config{
		MinVersion:         tls.VersionTLS12,
		ServerName:         o.ServerName,
		InsecureSkipVerify: o.Insecure, //nolint:gosec // only when the operator says so
	}
	if o.CAFile != "" {
		pem, err := os.ReadFile(o.CAFile)
		if err != nil {
			return nil, fmt.Errorf("uplink.ca_file: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("uplink.ca_file: %s holds no certificate in PEM", o.CAFile)
		}
	}
	if o.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(o.CertFile, o.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("uplink.cert_file: %w", err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

// explain puts into words for people why a connection failed or ended, where
// the error alone would mislead.
func explain(err error, now time.Time) string {
	bad, ok := errors.AsType[x509.CertificateInvalidError](err)
	if ok && bad.Reason == x509.Expired && bad.Cert != nil {
		if now.Before(bad.Cert.NotBefore) {
			return fmt.Sprintf("our clock is wrong (%s), or the cloud's certificate is not valid before %s",
				now.UTC().Format(time.DateTime), bad.Cert.NotBefore.UTC().Format(time.DateTime))
		}
		return fmt.Sprintf("the cloud's certificate expired on %s, or our clock is wrong (%s)",
			bad.Cert.NotAfter.UTC().Format(time.DateTime), now.UTC().Format(time.DateTime))
	}
	if gone, ok := errors.AsType[*client.DisconnectError](err); ok && gone.Reason == packet.ReasonSessionTakenOver {
		return "another connection uses our client id: " + err.Error()
	}
	return err.Error()
}

// needsPerson says that only a person can make the next attempt end
// differently.
func needsPerson(err error) bool {
	if refusal, ok := errors.AsType[*client.ConnackError](err); ok {
		return lasting(refusal.Reason)
	}
	if gone, ok := errors.AsType[*client.DisconnectError](err); ok {
		return lasting(gone.Reason)
	}
	return false
}

// needsPatience says that a quick attempt would make things worse: our twin
// would throw us out again, or we it.
func needsPatience(err error) bool {
	gone, ok := errors.AsType[*client.DisconnectError](err)
	return ok && gone.Reason == packet.ReasonSessionTakenOver
}
