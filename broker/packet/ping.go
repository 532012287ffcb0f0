package packet

// Pingreq asks for a sign of life (MQTT 5.0 §3.12).
type Pingreq struct{}

// Pingresp gives it (MQTT 5.0 §3.13).
type Pingresp struct{}

// Type returns [TypePingreq].
func (*Pingreq) Type() Type { return TypePingreq }

// Type returns [TypePingresp].
func (*Pingresp) Type() Type { return TypePingresp }

// AppendTo appends the packet in wire form, the same in all versions.
func (*Pingreq) AppendTo(b []byte, _ Version) ([]byte, error) {
	return append(b, byte(TypePingreq)<<4, 0), nil
}

// AppendTo appends the packet in wire form, the same in all versions.
func (*Pingresp) AppendTo(b []byte, _ Version) ([]byte, error) {
	return append(b, byte(TypePingresp)<<4, 0), nil
}
