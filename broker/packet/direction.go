package packet

// FromClient says whether a client may send what p says; the server asks it
// about each packet it has decoded. The error is of type [*Error].
func FromClient(p Packet) error {
	if err := fromClient(p); err != nil {
		err.Type = p.Type()
		return err
	}
	return nil
}

func fromClient(p Packet) *Error {
	switch p := p.(type) {
	case *Connack, *Suback, *Unsuback, *Pingresp:
		return protocol("packet type", "comes from servers only")
	case *Publish:
		if len(p.SubscriptionIDs) > 0 { // MQTT 5.0 [MQTT-3.3.4-6]
			return protocol(propertyTable[idSubscriptionID].name, "comes from servers only")
		}
	case *Disconnect:
		if !p.Reason.fromClient() {
			return protocol(fieldReason, "0x%02x comes from servers only", byte(p.Reason))
		}
		if p.Properties.ServerReference != "" { // MQTT 5.0 §3.14.2.2.5
			return protocol(propertyTable[idServerReference].name, "comes from servers only")
		}
	case *Auth:
		if p.Reason == ReasonSuccess { // MQTT 5.0 §3.15.2.1
			return protocol(fieldReason, "0x%02x comes from servers only", byte(p.Reason))
		}
	}
	return nil
}

// fromClient says whether the code may be in a client's DISCONNECT
// (MQTT 5.0 §3.14.2.1, table 3-10).
func (r ReasonCode) fromClient() bool {
	switch r {
	case ReasonSuccess, ReasonDisconnectWithWill, ReasonUnspecified, ReasonMalformedPacket, ReasonProtocolError,
		ReasonImplementationSpecific, ReasonBadAuthenticationMethod, ReasonTopicNameInvalid,
		ReasonReceiveMaximumExceeded, ReasonTopicAliasInvalid, ReasonPacketTooLarge, ReasonMessageRateTooHigh,
		ReasonQuotaExceeded, ReasonAdministrativeAction, ReasonPayloadFormatInvalid:
		return true
	default:
		return false
	}
}

// FromServer says whether a server may send what p says; the client asks it
// about each packet it has decoded. The error is of type [*Error].
func FromServer(p Packet) error {
	if err := fromServer(p); err != nil {
		err.Type = p.Type()
		return err
	}
	return nil
}

func fromServer(p Packet) *Error {
	switch p := p.(type) {
	case *Connect, *Subscribe, *Unsubscribe, *Pingreq:
		return protocol("packet type", "comes from clients only")
	case *Disconnect:
		if p.Reason == ReasonDisconnectWithWill { // MQTT 5.0 table 3-10
			return protocol(fieldReason, "0x%02x comes from clients only", byte(p.Reason))
		}
		if p.Properties.SessionExpiry != nil { // MQTT 5.0 §3.14.2.2.2 [MQTT-3.14.2-2]
			return protocol(propertyTable[idSessionExpiry].name, "comes from clients only")
		}
	case *Auth:
		if p.Reason == ReasonReauthenticate { // MQTT 5.0 §3.15.2.1
			return protocol(fieldReason, "0x%02x comes from clients only", byte(p.Reason))
		}
	}
	return nil
}
