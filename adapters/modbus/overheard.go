package modbus

// unknownLen is the length of a frame that does not say yet how long it is.
const unknownLen = 2*maxADU + 1

// RequestLen is how long the RTU frame at the start of b, at least unit and function
// code, is as a request, by its own account; 0 if it is none, more than len(b) while
// that cannot be said.
func RequestLen(b []byte) int {
	switch Function(b[1]) {
	case ReadCoils, ReadDiscreteInputs, ReadHoldingRegisters, ReadInputRegisters, WriteSingleCoil, WriteSingleRegister:
		return 8
	case MaskWriteRegister:
		return 10
	case WriteMultipleCoils, WriteMultipleRegisters:
		return counted(b, 6)
	case ReadWriteRegisters:
		return counted(b, 10)
	case ReadDeviceID:
		return 7
	default:
		return 0
	}
}

// AnswerLen is [RequestLen] for answers.
func AnswerLen(b []byte) int {
	f := Function(b[1])
	if f&exceptionBit != 0 && (f &^ exceptionBit).Known() {
		return 5
	}
	switch f {
	case ReadCoils, ReadDiscreteInputs, ReadHoldingRegisters, ReadInputRegisters, ReadWriteRegisters:
		return counted(b, 2)
	case WriteSingleCoil, WriteSingleRegister, WriteMultipleCoils, WriteMultipleRegisters:
		return 8
	case MaskWriteRegister:
		return 10
	case ReadDeviceID: // unit, 43, 14, code, conformity, more, next, count, objects
		n := 8
		if len(b) < n {
			return unknownLen
		}
		for range b[7] {
			if len(b) < n+2 {
				return unknownLen
			}
			n += 2 + int(b[n+1])
		}
		return n + 2
	default:
		return 0
	}
}

// counted is the length of a frame with a count of bytes at i, which follow it.
func counted(b []byte, i int) int {
	if len(b) <= i {
		return unknownLen
	}
	return i + 1 + int(b[i]) + 2
}
