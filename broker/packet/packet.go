// Package packet reads and writes MQTT control packets, versions 3.1, 3.1.1
// and 5.0, as values. It opens no sockets, starts no goroutines and reads no
// clock. Decoding errors wrap [ErrMalformed] or [ErrProtocol] (MQTT 5.0 §4.13).
package packet

// Version is the protocol level of a CONNECT packet (MQTT 5.0 §3.1.2.2).
type Version byte

// The protocol versions.
const (
	V31  Version = 3 // protocol name MQIsdp
	V311 Version = 4
	V5   Version = 5
)

// Type is the control packet type (MQTT 5.0 §2.1.2).
type Type byte

// The control packet types.
const (
	TypeConnect Type = iota + 1
	TypeConnack
	TypePublish
	TypePuback
	TypePubrec
	TypePubrel
	TypePubcomp
	TypeSubscribe
	TypeSuback
	TypeUnsubscribe
	TypeUnsuback
	TypePingreq
	TypePingresp
	TypeDisconnect
	TypeAuth
)

// Packet is one control packet. The values are pointers to the structs of
// this package: *Connect, *Publish, ...
type Packet interface {
	Type() Type
	// AppendTo appends the packet in wire form for that version. What the
	// version does not know (properties, reason codes) is left out; what
	// cannot be said at all (a string over 65535 bytes, QoS 3, a packet over
	// 268,435,455 bytes) is an error, and b comes back unchanged.
	AppendTo(b []byte, v Version) ([]byte, error)
}

// UserProperty is one name-value pair; order and repetition count
// (MQTT 5.0 §2.2.2.2).
type UserProperty struct{ Key, Value string }

// Properties are the MQTT 5.0 properties of every packet but PUBLISH, and of a
// will. Where absent and zero mean the same by the specification the field is
// a plain value; where they differ it is a pointer. Which of them a packet may
// carry is checked when decoding (MQTT 5.0 table 2-4).
type Properties struct {
	PayloadFormat       byte    // will
	MessageExpiry       *uint32 // will, seconds
	ContentType         string  // will
	ResponseTopic       string  // will
	CorrelationData     []byte  // will
	WillDelay           uint32  // will, seconds
	SubscriptionID      uint32  // SUBSCRIBE, 1 to 268,435,455
	SessionExpiry       *uint32 // CONNECT, CONNACK, DISCONNECT, seconds
	AssignedClientID    string
	ServerKeepAlive     *uint16 // seconds
	AuthMethod          string
	AuthData            []byte
	RequestProblemInfo  *byte // absent means 1
	RequestResponseInfo byte
	ResponseInfo        string
	ServerReference     string
	ReasonString        string
	ReceiveMaximum      uint16 // absent means 65535
	TopicAliasMaximum   uint16
	MaximumQoS          *byte  // absent means 2
	RetainAvailable     *byte  // absent means 1
	MaximumPacketSize   uint32 // absent means no limit
	WildcardAvailable   *byte  // absent means 1
	SubIDAvailable      *byte  // absent means 1
	SharedAvailable     *byte  // absent means 1
	User                []UserProperty
}

// Will is the will of a CONNECT packet (MQTT 5.0 §3.1.2.5).
type Will struct {
	Topic      string
	Payload    []byte
	QoS        byte
	Retain     bool
	Properties Properties
}

// Connect asks for a session (MQTT 5.0 §3.1, MQTT 3.1.1 §3.1).
type Connect struct {
	Version Version
	// CleanStart is Clean Session in 3.x.
	CleanStart bool
	// KeepAlive is the longest silence allowed, in seconds; 0 turns it off.
	KeepAlive   uint16
	ClientID    string
	Will        *Will
	HasUsername bool
	Username    string
	HasPassword bool
	Password    []byte
	Properties  Properties
}

// Connack answers a CONNECT (MQTT 5.0 §3.2). Reason is a 5.0 reason code; for
// 3.x it is translated to and from the return codes 0 to 5.
type Connack struct {
	SessionPresent bool
	Reason         ReasonCode
	Properties     Properties
}

// Publish carries an application message (MQTT 5.0 §3.3). When it comes from a
// Reader its byte slices point into the reader's buffer.
type Publish struct {
	Dup      bool
	QoS      byte
	Retain   bool
	PacketID uint16 // 0 when QoS is 0
	Topic    []byte // empty when only TopicAlias names the topic
	// TopicAlias is 0 when there is none (0 on the wire is refused with 0x94).
	TopicAlias uint16
	// HasExpiry says that MessageExpiry (seconds) was given.
	HasExpiry     bool
	MessageExpiry uint32
	// SubscriptionIDs come from a server only, 1 to 268,435,455 each.
	SubscriptionIDs []uint32
	// Properties are those that travel unaltered (payload format indicator,
	// content type, response topic, correlation data, user properties), in
	// wire form and in order, without the length prefix.
	Properties []byte
	Payload    []byte
}

// Puback, Pubrec, Pubrel and Pubcomp acknowledge (MQTT 5.0 §3.4 to §3.7).
type (
	Puback struct {
		PacketID   uint16
		Reason     ReasonCode
		Properties Properties
	}
	Pubrec struct {
		PacketID   uint16
		Reason     ReasonCode
		Properties Properties
	}
	Pubrel struct {
		PacketID   uint16
		Reason     ReasonCode
		Properties Properties
	}
	Pubcomp struct {
		PacketID   uint16
		Reason     ReasonCode
		Properties Properties
	}
)

// Filter is one topic filter of a SUBSCRIBE with its options
// (MQTT 5.0 §3.8.3.1); 3.x knows only QoS.
type Filter struct {
	Filter            string
	QoS               byte
	NoLocal           bool
	RetainAsPublished bool
	RetainHandling    byte
}

// Subscribe asks for topics (MQTT 5.0 §3.8).
type Subscribe struct {
	PacketID   uint16
	Filters    []Filter
	Properties Properties
}

// Suback answers a SUBSCRIBE, one code for each filter (MQTT 5.0 §3.9).
type Suback struct {
	PacketID   uint16
	Reasons    []ReasonCode
	Properties Properties
}

// Unsubscribe gives topics back (MQTT 5.0 §3.10).
type Unsubscribe struct {
	PacketID   uint16
	Filters    []string
	Properties Properties
}

// Unsuback answers an UNSUBSCRIBE; Reasons is empty in 3.x (MQTT 5.0 §3.11).
type Unsuback struct {
	PacketID   uint16
	Reasons    []ReasonCode
	Properties Properties
}

// Pingreq and Pingresp keep the connection alive (MQTT 5.0 §3.12, §3.13).
type (
	Pingreq  struct{}
	Pingresp struct{}
)

// Disconnect ends the connection (MQTT 5.0 §3.14).
type Disconnect struct {
	Reason     ReasonCode
	Properties Properties
}

// Auth carries an extended authentication exchange (MQTT 5.0 §3.15).
type Auth struct {
	Reason     ReasonCode
	Properties Properties
}
