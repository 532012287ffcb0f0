package client

import (
	"errors"
	"fmt"

	"holdfast/broker/packet"
)

// Errors that callers test for.
var (
	// ErrClosed means that this side has closed the connection, or that it
	// was used after its end.
	ErrClosed = errors.New("connection is closed")
	// ErrKeepAlive means that nothing came from the server in time after a
	// PINGREQ (MQTT 5.0 §3.1.2.10): it is gone, or the way to it.
	ErrKeepAlive = errors.New("no answer to PINGREQ")
	// ErrOutputFull means that too much waits to be sent already; nothing was
	// queued.
	ErrOutputFull = errors.New("output is full")
	// ErrTooLarge means that the packet is larger than the server takes
	// (MQTT 5.0 §3.2.2.3.6); nothing was queued.
	ErrTooLarge = errors.New("packet is larger than the server takes")
	// ErrExpired means that the message expired before it was sent
	// (MQTT 5.0 §3.3.2.3.3).
	ErrExpired = errors.New("message has expired")
)

// ConnackError is the server's refusal of a connection (MQTT 5.0 §3.2.2.2).
type ConnackError struct {
	// Reason is a failure; 3.1.1 return codes come as their 5.0 equals.
	Reason packet.ReasonCode
	// Version is the one that was tried.
	Version packet.Version
	// ReasonString and ServerReference are what the server added, or empty.
	ReasonString    string
	ServerReference string
}

// Error names the reason and what the server said to it.
func (e *ConnackError) Error() string {
	return "server refused the connection: " + said(e.Reason, e.ReasonString)
}

// DisconnectError is the server's DISCONNECT (MQTT 5.0 §3.14).
type DisconnectError struct {
	Reason          packet.ReasonCode
	ReasonString    string
	ServerReference string
}

// Error names the reason and what the server said to it.
func (e *DisconnectError) Error() string {
	return "server ended the connection: " + said(e.Reason, e.ReasonString)
}

// RefusedError is a PUBACK or PUBREC with a failure: the server does not take
// the message. It also stands for what the server said at CONNACK that it does
// not take; such a message was not sent.
type RefusedError struct {
	Topic        string
	Reason       packet.ReasonCode
	ReasonString string
}

// Error names the topic, the reason and what the server said to it.
func (e *RefusedError) Error() string {
	return fmt.Sprintf("message to %q refused: %s", e.Topic, said(e.Reason, e.ReasonString))
}

func said(reason packet.ReasonCode, text string) string {
	if text == "" {
		return fmt.Sprintf("%s (0x%02X)", reason, byte(reason))
	}
	return fmt.Sprintf("%s (0x%02X): %q", reason, byte(reason), text)
}
