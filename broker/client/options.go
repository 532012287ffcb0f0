package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"time"

	"holdfast/broker/packet"
	"holdfast/broker/topic"
)

// The defaults of [Options].
const (
	defaultConnectTimeout    = 20 * time.Second
	defaultWriteTimeout      = 30 * time.Second
	defaultMaximumPacketSize = 16 << 20
	defaultOutputLimit       = 1 << 20
)

// Options say where to connect and how. The zero value of a field is its
// default; only URL is needed, and not even that by [NewConn].
type Options struct {
	// URL of the server: mqtt:// or tcp:// (port 1883), mqtts://, ssl:// or
	// tls:// (port 8883). A user name and password in it count when Username
	// and Password are empty.
	URL string
	// ClientID may be empty: the server then gives one ([Limits.ClientID]), in
	// 3.1.1 only together with CleanStart.
	ClientID string
	// Username and Password are left out when empty. 3.1.1 takes no password
	// without a user name (MQTT 3.1.1 §3.1.2.9 [MQTT-3.1.2-22]).
	Username string
	Password string
	// SCRAM logs in with Username and Password by SCRAM-SHA-256: the password
	// is not sent, and a server that does not know it is not believed. It
	// needs 5.0, and does not fall back (MQTT 5.0 §4.12, RFC 7677).
	SCRAM bool
	// KeepAlive is the longest silence, in whole seconds up to 65535 s; 0
	// turns it off. A server may overrule it (MQTT 5.0 §3.1.2.10,
	// §3.2.2.3.14).
	KeepAlive time.Duration
	// PingTimeout is how long the server may stay silent after a PINGREQ has
	// gone out. 0 means half of the keep alive, but 5 s to 30 s.
	PingTimeout time.Duration
	// CleanStart ends a session that the server still has (MQTT 5.0
	// §3.1.2.4).
	CleanStart bool
	// SessionExpiry is how long the server keeps the session after the
	// connection, in seconds, 0xFFFFFFFF for ever (MQTT 5.0 §3.1.2.11.2). A
	// 3.1.1 server knows only "with the connection" and "for ever": Dial asks
	// it for the latter unless CleanStart is set and SessionExpiry is 0, and
	// when both are set it ends the old session with a connection of its own
	// first.
	SessionExpiry uint32
	// Version is 3.1.1 or 5.0; 0 means 5.0 and, when the server does not know
	// it, 3.1.1. "Does not know" includes a server that closes at CONNECT,
	// and a proxy whose server is away does that too: who connects again and
	// again sets what [Conn.Version] said once.
	Version packet.Version
	// Will is published by the server when the connection ends without a
	// DISCONNECT (MQTT 5.0 §3.1.2.5).
	Will *packet.Will
	// TLS is for mqtts://; nil means TLS 1.2 or later, the system's
	// authorities and the host name of the URL.
	TLS *tls.Config
	// ReceiveMaximum is how many QoS 1 and QoS 2 messages the server may have
	// on the way to us; 0 means 65535 (MQTT 5.0 §3.1.2.11.3).
	ReceiveMaximum uint16
	// MaximumPacketSize is the largest packet taken from the server, in
	// bytes; 0 means 16 MiB. A larger one ends the connection (MQTT 5.0
	// §3.1.2.11.4).
	MaximumPacketSize uint32
	// TopicAliasMaximum is how many topic aliases the server may use; the
	// handler sees the topics (MQTT 5.0 §3.1.2.11.5).
	TopicAliasMaximum uint16
	// User are the user properties of CONNECT.
	User []packet.UserProperty
	// Dial opens the connection under TLS; nil means TCP without the kernel's
	// keep alive.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// ConnectTimeout bounds each attempt from the dial to CONNACK; 0 means
	// 20 s.
	ConnectTimeout time.Duration
	// WriteTimeout is how long the peer may refuse to take a further 16 KiB;
	// 0 means 30 s.
	WriteTimeout time.Duration
	// OutputLimit is how many bytes may wait to be sent before Queue refuses a
	// PUBLISH with [ErrOutputFull]; 0 means 1 MiB. An empty buffer takes any.
	OutputLimit int
	// Drained is called when half of OutputLimit is free again after a refusal;
	// from the writer's goroutine, it must not block. Client sets its own.
	Drained func()
	// Pinged is called with the time from a PINGREQ to its PINGRESP; from the
	// goroutine of Run, it must not block.
	Pinged func(trip time.Duration)
	// Session carries what is not finished from one [Client] to the next; nil
	// means one that ends with the connection. Conn does not look at it.
	Session *Session
}

func (o Options) withDefaults() Options {
	setDefault(&o.ConnectTimeout, defaultConnectTimeout)
	setDefault(&o.WriteTimeout, defaultWriteTimeout)
	setDefault(&o.MaximumPacketSize, defaultMaximumPacketSize)
	setDefault(&o.OutputLimit, defaultOutputLimit)
	return o
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Validate tells what is wrong, naming the field.
func (o Options) Validate() error {
	var err error
	switch {
	case o.Version != 0 && o.Version != packet.V311 && o.Version != packet.V5:
		err = fmt.Errorf("Version: %d is neither 3.1.1 (%d) nor 5.0 (%d)", o.Version, packet.V311, packet.V5)
	case o.SCRAM && o.Version != 0 && o.Version != packet.V5:
		err = errors.New("SCRAM: needs version 5.0")
	case o.KeepAlive < 0 || o.KeepAlive > 65535*time.Second || o.KeepAlive%time.Second != 0:
		err = fmt.Errorf("KeepAlive: %v is not a whole number of seconds from 0 to 65535", o.KeepAlive)
	case o.PingTimeout < 0 || o.ConnectTimeout < 0 || o.WriteTimeout < 0:
		err = errors.New("PingTimeout, ConnectTimeout, WriteTimeout: less than 0")
	case o.OutputLimit < 0:
		err = fmt.Errorf("OutputLimit: %d is less than 0", o.OutputLimit)
	case o.Will != nil && o.Will.QoS > 2:
		err = fmt.Errorf("QoS %d of Will", o.Will.QoS)
	case o.Will != nil:
		if bad := topic.ValidName(o.Will.Topic); bad != nil {
			err = fmt.Errorf("topic %q of Will: %w", o.Will.Topic, bad)
		}
	}
	if err != nil {
		return fmt.Errorf("client options: %w", err)
	}
	return nil
}

// server is where a URL leads.
type server struct {
	address string // host:port
	host    string // for the certificate
	tls     bool
}

// readURL finds the server, and puts the user name and password in the URL into
// o when it has none. The errors do not show the URL: it may hold a password.
func readURL(o *Options) (server, error) {
	u, err := url.Parse(o.URL)
	if err != nil {
		if inner, ok := errors.AsType[*url.Error](err); ok {
			err = inner.Err
		}
		return server{}, fmt.Errorf("server URL: %w", err)
	}
	t := server{host: u.Hostname()}
	port := "1883"
	switch u.Scheme {
	case "mqtt", "tcp":
	case "mqtts", "ssl", "tls":
		t.tls, port = true, "8883"
	default:
		return server{}, fmt.Errorf("server URL: scheme %q is none of mqtt, mqtts, tcp, ssl, tls", u.Scheme)
	}
	if t.host == "" {
		return server{}, errors.New("server URL: no host")
	}
	if p := u.Port(); p != "" {
		port = p
	}
	if u.User != nil && o.Username == "" && o.Password == "" {
		o.Username = u.User.Username()
		o.Password, _ = u.User.Password()
	}
	t.address = net.JoinHostPort(t.host, port)
	return t, nil
}

// connectFor is the CONNECT packet that asks for these options.
func connectFor(o *Options) *packet.Connect {
	c := &packet.Connect{
		Version:     o.Version,
		CleanStart:  o.CleanStart,
		KeepAlive:   uint16(o.KeepAlive / time.Second),
		ClientID:    o.ClientID,
		Will:        o.Will,
		HasUsername: o.Username != "",
		Username:    o.Username,
		HasPassword: o.Password != "",
		Password:    []byte(o.Password),
	}
	if o.SCRAM {
		c.HasUsername, c.HasPassword, c.Username, c.Password = false, false, "", nil
	}
	if o.Version != packet.V5 {
		// Clean Session 1 also ends the session with the connection (MQTT
		// 3.1.1 §3.1.2.4).
		c.CleanStart = o.CleanStart && o.SessionExpiry == 0
		return c
	}
	c.Properties = packet.Properties{
		ReceiveMaximum:    o.ReceiveMaximum,
		TopicAliasMaximum: o.TopicAliasMaximum,
		MaximumPacketSize: o.MaximumPacketSize,
		User:              o.User,
	}
	if o.SessionExpiry != 0 {
		c.Properties.SessionExpiry = new(o.SessionExpiry)
	}
	return c
}
