package uplink

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"time"

	"holdfast/broker/client"
	"holdfast/broker/packet"
	"holdfast/storeforward/uplink/dial"
)

// class is what a failure means for the next attempt.
type class byte

// The classes, the most hopeful first.
const (
	classSoon     class = iota // with back-off
	classEnded                 // the cloud has ended it, as it may have for all
	classPatience              // the cloud is busy: a quick attempt makes it worse
	classTwin                  // another connection has our client id
	classPerson                // only a person can make it end differently
)

// classes are what the cloud's reasons mean in CONNACK (MQTT 5.0 §3.2.2.2) and
// DISCONNECT (§3.14.2.1); those that are not here are worth another try soon.
var classes = map[packet.ReasonCode]class{
	packet.ReasonMalformedPacket:            classPerson,
	packet.ReasonProtocolError:              classPerson,
	packet.ReasonUnsupportedProtocolVersion: classPerson,
	packet.ReasonClientIDNotValid:           classPerson,
	packet.ReasonBadUserNameOrPassword:      classPerson,
	packet.ReasonNotAuthorized:              classPerson,
	packet.ReasonBanned:                     classPerson,
	packet.ReasonBadAuthenticationMethod:    classPerson,
	packet.ReasonTopicNameInvalid:           classPerson, // the will's, in CONNACK
	packet.ReasonPacketTooLarge:             classPerson,
	packet.ReasonPayloadFormatInvalid:       classPerson,
	packet.ReasonRetainNotSupported:         classPerson,
	packet.ReasonQoSNotSupported:            classPerson,

	packet.ReasonServerBusy:             classPatience,
	packet.ReasonQuotaExceeded:          classPatience,
	packet.ReasonConnectionRateExceeded: classPatience,
	packet.ReasonMessageRateTooHigh:     classPatience,
	packet.ReasonAdministrativeAction:   classPatience,

	packet.ReasonSessionTakenOver: classTwin,

	packet.ReasonServerShuttingDown: classEnded,
	packet.ReasonServerUnavailable:  classEnded,
	packet.ReasonUseAnotherServer:   classEnded,
	packet.ReasonServerMoved:        classEnded,
	packet.ReasonMaximumConnectTime: classEnded,
}

// roundError is what each way said when none led to the cloud.
type roundError []error

// Error parts them by semicolons.
func (r roundError) Error() string {
	texts := make([]string, len(r))
	for i, err := range r {
		texts[i] = err.Error()
	}
	return strings.Join(texts, "; ")
}

func (r roundError) Unwrap() []error { return r }

// classify says what err means for the next attempt. Of several ways the most
// hopeful counts.
func classify(err error) class {
	if round, ok := errors.AsType[roundError](err); ok {
		best := classPerson
		for _, one := range round {
			best = min(best, classify(one))
		}
		return best
	}
	if refusal, ok := errors.AsType[*client.ConnackError](err); ok {
		return classes[refusal.Reason]
	}
	if gone, ok := errors.AsType[*client.DisconnectError](err); ok {
		return classes[gone.Reason]
	}
	if aboutCertificate(err) || errors.Is(err, dial.ErrProxyLogin) {
		return classPerson
	}
	for _, sign := range []error{io.EOF, io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.EPIPE} {
		if errors.Is(err, sign) {
			return classEnded
		}
	}
	return classSoon
}

// aboutCertificate says that a certificate, the cloud's or ours, is the reason.
func aboutCertificate(err error) bool {
	if _, ok := errors.AsType[x509.CertificateInvalidError](err); ok {
		return true
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return true
	}
	if _, ok := errors.AsType[x509.HostnameError](err); ok {
		return true
	}
	return oursRefused(err)
}

// oursRefused says that the cloud does not take our certificate: an alert of
// TLS, which with 1.3 comes only when we wait for CONNACK.
func oursRefused(err error) bool {
	alert, ok := errors.AsType[*net.OpError](err)
	return ok && alert.Op == "remote error" && strings.Contains(alert.Err.Error(), "certificate")
}

// referral is where the cloud sends us (MQTT 5.0 §4.11), or empty.
func referral(err error) string {
	sends := func(r packet.ReasonCode) bool {
		return r == packet.ReasonUseAnotherServer || r == packet.ReasonServerMoved
	}
	if refusal, ok := errors.AsType[*client.ConnackError](err); ok && sends(refusal.Reason) {
		return refusal.ServerReference
	}
	if gone, ok := errors.AsType[*client.DisconnectError](err); ok && sends(gone.Reason) {
		return gone.ServerReference
	}
	return ""
}

// stateAfter is the state in which the next attempt is waited for. A way that
// is refused says more than one that is dead.
func (u *Uplink) stateAfter(err error, now time.Time) State {
	if round, ok := errors.AsType[roundError](err); ok {
		for _, one := range round {
			if state := u.stateAfter(one, now); state != StateBackingOff {
				return state
			}
		}
		return StateBackingOff
	}
	switch kind := classify(err); {
	case aboutCertificate(err) && kind == classPerson, kind == classEnded && u.ownUntimely(now) != "":
		return StateCertificate
	case kind == classPerson:
		return StateAuthRefused
	default:
		return StateBackingOff
	}
}

// ownUntimely says that our certificate is not valid now; empty when it is, or
// there is none. A cloud that refuses it may close before we have read why.
func (u *Uplink) ownUntimely(now time.Time) string {
	own, err := u.opts.Own()
	switch {
	case err != nil || own == nil:
		return ""
	case now.After(own.NotAfter):
		return fmt.Sprintf("our certificate expired on %s, or our clock is wrong (%s)", utc(own.NotAfter), utc(now))
	case now.Before(own.NotBefore):
		return u.clockOr(now, "our certificate is not valid before "+utc(own.NotBefore))
	}
	return ""
}

func utc(t time.Time) string { return t.UTC().Format(time.DateTime) }

// clockOr blames our clock: one before the floor is certainly wrong, another one
// may be, or else what or says is the reason.
func (u *Uplink) clockOr(now time.Time, or string) string {
	if floor := u.opts.ClockFloor; now.Before(floor) {
		return fmt.Sprintf("our clock is wrong: it says %s, and it is later than %s", utc(now), utc(floor))
	}
	return fmt.Sprintf("our clock is wrong (%s), or %s", utc(now), or)
}

// explain puts into words for people why a connection failed or ended, where
// the error alone would mislead.
func (u *Uplink) explain(err error, now time.Time) string {
	if bad, ok := errors.AsType[x509.CertificateInvalidError](err); ok && bad.Reason == x509.Expired && bad.Cert != nil {
		if now.Before(bad.Cert.NotBefore) {
			return u.clockOr(now, "the cloud's certificate is not valid before "+utc(bad.Cert.NotBefore))
		}
		return fmt.Sprintf("the cloud's certificate expired on %s, or our clock is wrong (%s)", utc(bad.Cert.NotAfter), utc(now))
	}
	if untimely := u.ownUntimely(now); untimely != "" && (oursRefused(err) || classify(err) == classEnded) {
		return untimely + ": " + err.Error()
	}
	if oursRefused(err) {
		own, bad := u.opts.Own()
		switch {
		case bad != nil:
			return "the cloud refuses our certificate: " + bad.Error()
		case own == nil:
			return "the cloud wants a certificate of ours (cert_file, key_file): " + err.Error()
		}
		return "the cloud refuses our certificate: " + err.Error()
	}
	if gone, ok := errors.AsType[*client.DisconnectError](err); ok && gone.Reason == packet.ReasonSessionTakenOver {
		return "another connection uses our client id: " + err.Error()
	}
	return err.Error()
}
