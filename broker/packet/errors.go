package packet

import (
	"errors"
	"fmt"
	"strings"
)

// The two kinds of wrong packets (MQTT 5.0 §4.13.1). Test with errors.Is; what
// to answer is in [Error.Reason].
var (
	// ErrMalformed is a packet that cannot be parsed.
	ErrMalformed = errors.New("malformed packet")
	// ErrProtocol is a packet that can be parsed and says what is not allowed.
	ErrProtocol = errors.New("protocol error")
)

// Error says what is wrong with a packet. It holds no payload, no password and
// nothing else that a peer wrote, only numbers and names from the
// specification.
type Error struct {
	// Reason is the code to answer with in CONNACK or DISCONNECT.
	Reason ReasonCode
	// Type is the packet's type; 0 while that is unknown.
	Type Type
	// Version is the version a CONNECT announced, if that far was readable and
	// the version is known: the one to answer it in. 0 for all other packets.
	Version Version
	// Field is the specification's name of the field, in lower case.
	Field string
	// Detail says what is wrong with the field.
	Detail string
}

// Error returns for example "PUBLISH topic alias: 0 is not allowed (topic
// alias invalid)".
func (e *Error) Error() string {
	var s strings.Builder
	if e.Type != 0 {
		s.WriteString(e.Type.String())
		s.WriteByte(' ')
	}
	s.WriteString(e.Field)
	if e.Detail != "" {
		s.WriteString(": ")
		s.WriteString(e.Detail)
	}
	s.WriteString(" (")
	s.WriteString(e.Reason.String())
	s.WriteByte(')')
	return s.String()
}

// Unwrap returns [ErrMalformed] for reason 0x81 and [ErrProtocol] for all
// others: they are protocol errors that have a code of their own.
func (e *Error) Unwrap() error {
	if e.Reason == ReasonMalformedPacket {
		return ErrMalformed
	}
	return ErrProtocol
}

// malformed and protocol make the two common kinds. They return *Error, so
// that a caller can tell none from one without an interface between.
func malformed(field, format string, args ...any) *Error {
	return refuse(ReasonMalformedPacket, field, format, args...)
}

func protocol(field, format string, args ...any) *Error {
	return refuse(ReasonProtocolError, field, format, args...)
}

func refuse(reason ReasonCode, field, format string, args ...any) *Error {
	return &Error{Reason: reason, Field: field, Detail: fmt.Sprintf(format, args...)}
}
