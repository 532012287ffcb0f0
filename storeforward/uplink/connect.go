package uplink

import (
	"context"
	"errors"
	"io"
	"net"
	"syscall"
	"time"

	"holdfast/broker/client"
	"holdfast/broker/packet"
	"holdfast/storeforward/uplink/dial"
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
	// noRetain and noQoS say that the cloud has refused our will for that
	// (MQTT 5.0 §3.2.2.2): it gets one without.
	noRetain, noQoS bool
}

func newProtocol(o *Options) protocol {
	if o.SCRAM { // which 3.1.1 does not have
		return protocol{version: packet.V5, fixed: true}
	}
	switch o.Protocol {
	case Protocol311:
		return protocol{version: packet.V311, fixed: true}
	case Protocol5:
		return protocol{version: packet.V5, fixed: true}
	default:
		return protocol{version: packet.V5}
	}
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

// clientOptions are those for the way p; opened is told of each connection.
func (u *Uplink) clientOptions(p dial.Path, clean bool, opened func(*dial.Conn)) client.Options {
	opts := &u.opts
	return client.Options{
		// TLS, WebSocket and all else is done by the dialer.
		URL: "mqtt://" + p.Address(), ClientID: opts.clientID(), Username: opts.Username, Password: opts.Password, SCRAM: opts.SCRAM,
		KeepAlive: opts.KeepAlive, CleanStart: clean,
		// In 3.1.1 anything but 0 asks for a session that stays.
		SessionExpiry:     max(uint32(opts.SessionExpiry/time.Second), 1),
		Will:              u.will(),
		ReceiveMaximum:    uint16(opts.ReceiveMaximum),
		MaximumPacketSize: uint32(opts.MaximumPacketSize),
		ConnectTimeout:    opts.ConnectTimeout,
		Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			c, err := u.dialer.Dial(ctx, p)
			if err != nil {
				return nil, err // not a nil *dial.Conn
			}
			opened(c)
			u.showed(c)
			return c, nil
		},
		OutputLimit: outputLimit,
		Drained:     u.drained,
		Pinged:      u.pinged,
	}
}

// showed keeps what is to be known of the certificates.
func (u *Uplink) showed(c *dial.Conn) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.status.OwnCertificate = certificateStatus(u.status.OwnCertificate, c.Own)
	u.status.CloudCertificate = certificateStatus(nil, c.Cloud)
	select {
	case u.shown <- struct{}{}:
	default: // it will look anyway
	}
}

// pinged takes a measurement of the round trip.
func (u *Uplink) pinged(trip time.Duration) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.tripLocked(trip)
}

// tripLocked puts one measurement into the running mean.
func (u *Uplink) tripLocked(trip time.Duration) {
	if u.roundTrip == 0 {
		u.roundTrip = trip
	}
	u.roundTrip += (trip - u.roundTrip) / 8
}
