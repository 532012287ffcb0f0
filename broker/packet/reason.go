package packet

import "fmt"

// ReasonCode is an MQTT 5.0 reason code; 0x80 and above are failures
// (MQTT 5.0 §2.4).
type ReasonCode byte

// The reason codes (MQTT 5.0 table 2-6).
const (
	ReasonSuccess                     ReasonCode = 0x00 // also normal disconnection, granted QoS 0
	ReasonGrantedQoS1                 ReasonCode = 0x01
	ReasonGrantedQoS2                 ReasonCode = 0x02
	ReasonDisconnectWithWill          ReasonCode = 0x04
	ReasonNoMatchingSubscribers       ReasonCode = 0x10
	ReasonNoSubscriptionExisted       ReasonCode = 0x11
	ReasonContinueAuthentication      ReasonCode = 0x18
	ReasonReauthenticate              ReasonCode = 0x19
	ReasonUnspecified                 ReasonCode = 0x80
	ReasonMalformedPacket             ReasonCode = 0x81
	ReasonProtocolError               ReasonCode = 0x82
	ReasonImplementationSpecific      ReasonCode = 0x83
	ReasonUnsupportedProtocolVersion  ReasonCode = 0x84
	ReasonClientIDNotValid            ReasonCode = 0x85
	ReasonBadUserNameOrPassword       ReasonCode = 0x86
	ReasonNotAuthorized               ReasonCode = 0x87
	ReasonServerUnavailable           ReasonCode = 0x88
	ReasonServerBusy                  ReasonCode = 0x89
	ReasonBanned                      ReasonCode = 0x8A
	ReasonServerShuttingDown          ReasonCode = 0x8B
	ReasonBadAuthenticationMethod     ReasonCode = 0x8C
	ReasonKeepAliveTimeout            ReasonCode = 0x8D
	ReasonSessionTakenOver            ReasonCode = 0x8E
	ReasonTopicFilterInvalid          ReasonCode = 0x8F
	ReasonTopicNameInvalid            ReasonCode = 0x90
	ReasonPacketIDInUse               ReasonCode = 0x91
	ReasonPacketIDNotFound            ReasonCode = 0x92
	ReasonReceiveMaximumExceeded      ReasonCode = 0x93
	ReasonTopicAliasInvalid           ReasonCode = 0x94
	ReasonPacketTooLarge              ReasonCode = 0x95
	ReasonMessageRateTooHigh          ReasonCode = 0x96
	ReasonQuotaExceeded               ReasonCode = 0x97
	ReasonAdministrativeAction        ReasonCode = 0x98
	ReasonPayloadFormatInvalid        ReasonCode = 0x99
	ReasonRetainNotSupported          ReasonCode = 0x9A
	ReasonQoSNotSupported             ReasonCode = 0x9B
	ReasonUseAnotherServer            ReasonCode = 0x9C
	ReasonServerMoved                 ReasonCode = 0x9D
	ReasonSharedSubsNotSupported      ReasonCode = 0x9E
	ReasonConnectionRateExceeded      ReasonCode = 0x9F
	ReasonMaximumConnectTime          ReasonCode = 0xA0
	ReasonSubscriptionIDsNotSupported ReasonCode = 0xA1
	ReasonWildcardSubsNotSupported    ReasonCode = 0xA2
)

// Failed says whether the code is a failure (MQTT 5.0 §2.4).
func (r ReasonCode) Failed() bool { return r >= 0x80 }

// fieldReason is the name of the field in all packets.
const fieldReason = "reason code"

// reasonTable gives each code its name and the packets it may be in
// (MQTT 5.0 §2.4, table 2-6).
var reasonTable = [...]struct {
	name string
	in   uint16
}{
	ReasonSuccess:                     {"success", bitConnack | bitAcks | bitSuback | bitUnsuback | bitDisconnect | bitAuth},
	ReasonGrantedQoS1:                 {"granted qos 1", bitSuback},
	ReasonGrantedQoS2:                 {"granted qos 2", bitSuback},
	ReasonDisconnectWithWill:          {"disconnect with will message", bitDisconnect},
	ReasonNoMatchingSubscribers:       {"no matching subscribers", bitReceipt},
	ReasonNoSubscriptionExisted:       {"no subscription existed", bitUnsuback},
	ReasonContinueAuthentication:      {"continue authentication", bitAuth},
	ReasonReauthenticate:              {"re-authenticate", bitAuth},
	ReasonUnspecified:                 {"unspecified error", bitConnack | bitReceipt | bitSuback | bitUnsuback | bitDisconnect},
	ReasonMalformedPacket:             {"malformed packet", bitConnack | bitDisconnect},
	ReasonProtocolError:               {"protocol error", bitConnack | bitDisconnect},
	ReasonImplementationSpecific:      {"implementation specific error", bitConnack | bitReceipt | bitSuback | bitUnsuback | bitDisconnect},
	ReasonUnsupportedProtocolVersion:  {"unsupported protocol version", bitConnack},
	ReasonClientIDNotValid:            {"client identifier not valid", bitConnack},
	ReasonBadUserNameOrPassword:       {"bad user name or password", bitConnack},
	ReasonNotAuthorized:               {"not authorized", bitConnack | bitReceipt | bitSuback | bitUnsuback | bitDisconnect},
	ReasonServerUnavailable:           {"server unavailable", bitConnack},
	ReasonServerBusy:                  {"server busy", bitConnack | bitDisconnect},
	ReasonBanned:                      {"banned", bitConnack},
	ReasonServerShuttingDown:          {"server shutting down", bitDisconnect},
	ReasonBadAuthenticationMethod:     {"bad authentication method", bitConnack | bitDisconnect},
	ReasonKeepAliveTimeout:            {"keep alive timeout", bitDisconnect},
	ReasonSessionTakenOver:            {"session taken over", bitDisconnect},
	ReasonTopicFilterInvalid:          {"topic filter invalid", bitSuback | bitUnsuback | bitDisconnect},
	ReasonTopicNameInvalid:            {"topic name invalid", bitConnack | bitReceipt | bitDisconnect},
	ReasonPacketIDInUse:               {"packet identifier in use", bitReceipt | bitSuback | bitUnsuback},
	ReasonPacketIDNotFound:            {"packet identifier not found", bitRelease},
	ReasonReceiveMaximumExceeded:      {"receive maximum exceeded", bitDisconnect},
	ReasonTopicAliasInvalid:           {"topic alias invalid", bitDisconnect},
	ReasonPacketTooLarge:              {"packet too large", bitConnack | bitDisconnect},
	ReasonMessageRateTooHigh:          {"message rate too high", bitDisconnect},
	ReasonQuotaExceeded:               {"quota exceeded", bitConnack | bitReceipt | bitSuback | bitDisconnect},
	ReasonAdministrativeAction:        {"administrative action", bitDisconnect},
	ReasonPayloadFormatInvalid:        {"payload format invalid", bitConnack | bitReceipt | bitDisconnect},
	ReasonRetainNotSupported:          {"retain not supported", bitConnack | bitDisconnect},
	ReasonQoSNotSupported:             {"qos not supported", bitConnack | bitDisconnect},
	ReasonUseAnotherServer:            {"use another server", bitConnack | bitDisconnect},
	ReasonServerMoved:                 {"server moved", bitConnack | bitDisconnect},
	ReasonSharedSubsNotSupported:      {"shared subscriptions not supported", bitSuback | bitDisconnect},
	ReasonConnectionRateExceeded:      {"connection rate exceeded", bitConnack | bitDisconnect},
	ReasonMaximumConnectTime:          {"maximum connect time", bitDisconnect},
	ReasonSubscriptionIDsNotSupported: {"subscription identifiers not supported", bitSuback | bitDisconnect},
	ReasonWildcardSubsNotSupported:    {"wildcard subscriptions not supported", bitSuback | bitDisconnect},
}

// String returns the specification's name in lower case, such as "topic alias
// invalid". 0x00 is "success" in every packet.
func (r ReasonCode) String() string {
	if int(r) < len(reasonTable) && reasonTable[r].name != "" {
		return reasonTable[r].name
	}
	return fmt.Sprintf("reason code 0x%02x", byte(r))
}

// In says whether a packet of that type may carry the code
// (MQTT 5.0 §2.4, table 2-6).
func (r ReasonCode) In(t Type) bool {
	return int(r) < len(reasonTable) && reasonTable[r].in&(1<<t) != 0
}

// reason checks a code that was taken.
func (c *cursor) reason(t Type, code byte) ReasonCode {
	r := ReasonCode(code)
	if !r.In(t) {
		c.fail(errReason(r))
	}
	return r
}

// checkReason checks a code that will be appended.
func (w *builder) checkReason(t Type, r ReasonCode) {
	if !r.In(t) {
		w.fail(errReason(r))
	}
}

func errReason(r ReasonCode) *Error {
	return protocol(fieldReason, "0x%02x is not allowed here", byte(r))
}
