package broker

import (
	"context"
	"fmt"
	"net"

	"holdfast/broker/packet"
)

// Auth decides who may connect and what they may do. Its methods are called
// from the goroutines of the connections, several at once.
type Auth interface {
	// Authenticate looks at a CONNECT. ReasonSuccess lets the client in as
	// that identity; any code of 0x80 or above goes into the CONNACK. ctx
	// ends with the connect timeout. A client without user name, password
	// and certificate is presented only if its listener allows anonymous
	// clients.
	Authenticate(ctx context.Context, info ConnInfo) (Identity, packet.ReasonCode)
	// Authorize says whether the identity may do that to a topic: a topic
	// name, or for ActionSubscribe a topic filter (without $share/group/).
	// It must not block; answers about ActionReceive are kept until the next
	// call of [Broker.Reauthorize].
	Authorize(id Identity, action Action, topic string) bool
	// Exists says whether the identity's user could still log in somewhere. The
	// session of one who can is nobody else's: another user is refused its
	// client id.
	Exists(id Identity) bool
	// Elsewhere names the server where that client belongs, in the form of
	// MQTT 5.0 §4.11, and whether it does so for good; empty is here. It is
	// asked once the client has proved who it is, and by [Broker.Redirect].
	Elsewhere(id Identity) (server string, forGood bool)
}

// ConnInfo is what is known of a client that wants to connect.
type ConnInfo struct {
	Listener    string // name of the listener
	Remote      net.Addr
	Version     packet.Version
	ClientID    string // as assigned if the client gave none
	HasUsername bool
	Username    string
	HasPassword bool
	Password    []byte // valid during the call
	// Anonymous says that the listener would let this client in without user
	// name, password and certificate.
	Anonymous bool
	// Certificate is the subject's common name of a verified client
	// certificate, empty without one.
	Certificate string
	// AlternativeNames are the subject alternative names of that certificate:
	// DNS names, then e-mail addresses, then URIs.
	AlternativeNames []string
	// Peer is the user of the process at the other end of a Unix socket, as
	// the kernel tells it: "unix:NAME", or "unix:UID" for a user without a
	// name. Empty elsewhere, and where the kernel does not tell.
	Peer string
}

// Identity is who a client turned out to be.
type Identity struct {
	// Name is the user; empty for an anonymous client.
	Name     string
	ClientID string
	Listener string
	// Restored says that this is the owner of a session or will kept from before
	// the start, whose client has not returned. Which listener it came by is not
	// known, Listener is empty: what it may do by any of them it may do. Nothing
	// is sent to it before it is known.
	Restored bool
}

// Action is something a client may be allowed to do with a topic.
type Action byte

// The actions.
const (
	ActionPublish   Action = iota + 1 // send to a topic name, by PUBLISH or as a will
	ActionSubscribe                   // hold a topic filter
	ActionReceive                     // be sent messages of a topic name
)

// Anonymous says which clients may connect without user name, password and
// certificate.
type Anonymous string

// The policies for anonymous clients.
const (
	AnonymousLoopback Anonymous = "loopback" // the default: only from this machine
	AnonymousNever    Anonymous = "never"
	AnonymousAlways   Anonymous = "always"
)

// Listener is the policy of one listening socket.
type Listener struct {
	// Name is how the listener is called in logs, status and [ConnInfo].
	Name string `toml:"name"`
	// Anonymous is "loopback" (also when empty), "never" or "always".
	Anonymous Anonymous `toml:"anonymous"`
}

// Validate names the key that is out of range.
func (l Listener) Validate() error {
	switch l.Anonymous {
	case "", AnonymousLoopback, AnonymousNever, AnonymousAlways:
		return nil
	}
	return fmt.Errorf("listener.anonymous: %q is not loopback, never or always", string(l.Anonymous))
}

// allowsAnonymous applies the policy to where a client comes from. Sockets
// that are no IP sockets (Unix sockets, pipes) cannot come from elsewhere.
func (l Listener) allowsAnonymous(remote net.Addr) bool {
	switch l.Anonymous {
	case AnonymousAlways:
		return true
	case AnonymousNever:
		return false
	default:
	}
	tcp, ok := remote.(*net.TCPAddr)
	if !ok {
		return remote == nil || remote.Network() == "unix" || remote.Network() == "pipe"
	}
	return tcp.IP.IsLoopback()
}
