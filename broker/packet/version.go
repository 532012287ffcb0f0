package packet

import "strconv"

// Version is the protocol level of a CONNECT packet (MQTT 5.0 §3.1.2.2).
type Version byte

// The protocol versions.
const (
	V31  Version = 3 // protocol name MQIsdp
	V311 Version = 4
	V5   Version = 5
)

// String returns the version as it is spoken of: "3.1", "3.1.1", "5.0".
func (v Version) String() string {
	switch v {
	case V31:
		return "3.1"
	case V311:
		return "3.1.1"
	case V5:
		return "5.0"
	}
	return "level " + strconv.Itoa(int(v))
}

// protocolName is what a CONNECT of that version calls the protocol; empty for
// a version we do not know (MQTT 5.0 §3.1.2.1, MQTT 3.1 §3.1).
func (v Version) protocolName() string {
	switch v {
	case V31:
		return "MQIsdp"
	case V311, V5:
		return "MQTT"
	}
	return ""
}
