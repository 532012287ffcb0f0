package modbus

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// Function is a function code (MODBUS Application Protocol V1.1b3 §6).
type Function byte

// The functions this package encodes and decodes.
const (
	ReadCoils              Function = 1
	ReadDiscreteInputs     Function = 2
	ReadHoldingRegisters   Function = 3
	ReadInputRegisters     Function = 4
	WriteSingleCoil        Function = 5
	WriteSingleRegister    Function = 6
	WriteMultipleCoils     Function = 15
	WriteMultipleRegisters Function = 16
	MaskWriteRegister      Function = 22
	ReadWriteRegisters     Function = 23
	ReadDeviceID           Function = 43 // with MEI type 14
)

// exceptionBit marks the function code of an exception answer (V1.1b3 §7).
const exceptionBit = 0x80

// String returns the name of the function as in the specification.
func (f Function) String() string {
	switch f {
	case ReadCoils:
		return "read coils"
	case ReadDiscreteInputs:
		return "read discrete inputs"
	case ReadHoldingRegisters:
		return "read holding registers"
	case ReadInputRegisters:
		return "read input registers"
	case WriteSingleCoil:
		return "write single coil"
	case WriteSingleRegister:
		return "write single register"
	case WriteMultipleCoils:
		return "write multiple coils"
	case WriteMultipleRegisters:
		return "write multiple registers"
	case MaskWriteRegister:
		return "mask write register"
	case ReadWriteRegisters:
		return "read/write multiple registers"
	case ReadDeviceID:
		return "read device identification"
	default:
		return fmt.Sprintf("function %d", byte(f))
	}
}

// reads says that an answer of f is a byte count and that many bytes of data.
func (f Function) reads() bool {
	return f >= ReadCoils && f <= ReadInputRegisters || f == ReadWriteRegisters
}

// Writes says that f changes something in the unit.
func (f Function) Writes() bool {
	switch f {
	case WriteSingleCoil, WriteSingleRegister, WriteMultipleCoils, WriteMultipleRegisters, MaskWriteRegister, ReadWriteRegisters:
		return true
	default:
		return false
	}
}

func (f Function) bits() bool {
	return f == ReadCoils || f == ReadDiscreteInputs || f == WriteSingleCoil || f == WriteMultipleCoils
}

// The most one request can carry (V1.1b3 §6.1, §6.3, §6.11, §6.12, §6.17).
const (
	MaxReadRegisters  = 125
	MaxReadBits       = 2000
	MaxWriteRegisters = 123
	MaxWriteBits      = 1968
	// MaxReadWriteRegisters is the most that function 23 writes; it reads
	// MaxReadRegisters.
	MaxReadWriteRegisters = 121
)

// limit is the largest count of f, 0 for a function unknown here.
func (f Function) limit() int {
	switch f {
	case ReadCoils, ReadDiscreteInputs:
		return MaxReadBits
	case ReadHoldingRegisters, ReadInputRegisters, ReadWriteRegisters:
		return MaxReadRegisters
	case WriteSingleCoil, WriteSingleRegister, MaskWriteRegister, ReadDeviceID:
		return 1
	case WriteMultipleCoils:
		return MaxWriteBits
	case WriteMultipleRegisters:
		return MaxWriteRegisters
	default:
		return 0
	}
}

// Known says that requests of f can be encoded and decoded.
func (f Function) Known() bool { return f.limit() > 0 }

// Exception is the code a unit gives when it refuses (V1.1b3 §7).
type Exception byte

// The exception codes of the specification.
const (
	IllegalFunction       Exception = 1
	IllegalDataAddress    Exception = 2
	IllegalDataValue      Exception = 3
	ServerDeviceFailure   Exception = 4
	Acknowledge           Exception = 5
	ServerDeviceBusy      Exception = 6
	NegativeAcknowledge   Exception = 7 // not in V1.1b3; older devices send it
	MemoryParityError     Exception = 8
	GatewayPathUnavail    Exception = 10
	GatewayTargetNoAnswer Exception = 11
)

// String returns the name of the exception as in the specification.
func (e Exception) String() string {
	switch e {
	case IllegalFunction:
		return "illegal function"
	case IllegalDataAddress:
		return "illegal data address"
	case IllegalDataValue:
		return "illegal data value"
	case ServerDeviceFailure:
		return "server device failure"
	case Acknowledge:
		return "acknowledge"
	case ServerDeviceBusy:
		return "server device busy"
	case NegativeAcknowledge:
		return "negative acknowledge"
	case MemoryParityError:
		return "memory parity error"
	case GatewayPathUnavail:
		return "gateway path unavailable"
	case GatewayTargetNoAnswer:
		return "gateway target device failed to respond"
	default:
		return "not in the specification"
	}
}

// ExceptionError is a refusal by the unit: it is alive and understood us.
type ExceptionError struct {
	Function Function
	Code     Exception
}

// Error names the code both ways, since manuals list numbers.
func (e *ExceptionError) Error() string {
	return fmt.Sprintf("%v: exception %d (%v)", e.Function, byte(e.Code), e.Code)
}

// What is wrong with bytes that should be a request or an answer.
var (
	// ErrMalformed: the bytes are no PDU of a known function.
	ErrMalformed = errors.New("malformed")
	// ErrMismatch: a well-formed answer, but to another question.
	ErrMismatch = errors.New("answer to another request")
)

// Request is one request to one unit.
type Request struct {
	// Unit is the address on the bus, 1 to 247; 0 is a broadcast, allowed
	// with functions that write.
	Unit byte
	// Function says what to do with which table.
	Function Function
	// Addr is the zero-based protocol address of the first register or bit,
	// Count how many there are; 1 with functions 5, 6 and 22. Function 23 reads
	// them. Both are 0 with function 43.
	Addr, Count uint16
	// WriteAddr is where function 23 writes; 0 with all others.
	WriteAddr uint16
	// Data is what to write as it is on the wire: two bytes per register,
	// big-endian, or the bits of functions 15 packed from the low bit up;
	// FF 00 or 00 00 for function 5; the AND and the OR mask for function 22.
	// For function 43 it is the MEI type 14, the code and the object to begin
	// with. Empty with functions that only read.
	Data []byte
}

// String describes the request for logs: "unit 17 read holding registers 100..109".
func (r Request) String() string {
	switch {
	case r.Function == ReadDeviceID:
		return fmt.Sprintf("unit %d %v", r.Unit, r.Function)
	case r.Count <= 1:
		return fmt.Sprintf("unit %d %v %d", r.Unit, r.Function, r.Addr)
	}
	return fmt.Sprintf("unit %d %v %d..%d", r.Unit, r.Function, r.Addr, int(r.Addr)+int(r.Count)-1)
}

// dataLen is how many bytes Count values take on the wire, or what stands for
// them with function 22.
func (r Request) dataLen() int {
	switch {
	case r.Function == MaskWriteRegister:
		return 4
	case r.Function == WriteSingleCoil || !r.Function.bits():
		return 2 * int(r.Count)
	}
	return (int(r.Count) + 7) / 8
}

func (r Request) check() error {
	n := r.Function.limit()
	switch {
	case n == 0:
		return fmt.Errorf("%w: %v is not supported", ErrMalformed, r.Function)
	case r.WriteAddr != 0 && r.Function != ReadWriteRegisters:
		return fmt.Errorf("%w: %v has no second address", ErrMalformed, r.Function)
	case r.Function == ReadDeviceID:
		if r.Addr != 0 || r.Count != 0 || len(r.Data) != 3 || r.Data[0] != meiDeviceID || r.Data[1] < IdentifyBasic || r.Data[1] > IdentifyOne {
			return fmt.Errorf("%w: %v carries 0E, a code within 1..4 and an object, not % X (V1.1b3 §6.21)", ErrMalformed, r.Function, r.Data)
		}
		return nil
	case r.Count < 1 || int(r.Count) > n:
		return fmt.Errorf("%w: %v of %d is outside 1..%d", ErrMalformed, r.Function, r.Count, n)
	case int(r.Addr)+int(r.Count) > 1<<16:
		return fmt.Errorf("%w: %v at %d with %d goes past 65535", ErrMalformed, r.Function, r.Addr, r.Count)
	case r.Function == ReadWriteRegisters:
		if n := len(r.Data) / 2; n < 1 || n > MaxReadWriteRegisters || len(r.Data)%2 != 0 || int(r.WriteAddr)+n > 1<<16 {
			return fmt.Errorf("%w: %v writes %d bytes at %d, want 2 to %d that end before 65536", ErrMalformed, r.Function, len(r.Data), r.WriteAddr, 2*MaxReadWriteRegisters)
		}
	case r.Function.reads() && len(r.Data) != 0:
		return fmt.Errorf("%w: %v carries no data", ErrMalformed, r.Function)
	case !r.Function.reads() && len(r.Data) != r.dataLen():
		return fmt.Errorf("%w: %v of %d has %d bytes of data, want %d", ErrMalformed, r.Function, r.Count, len(r.Data), r.dataLen())
	case r.Function == WriteSingleCoil && (r.Data[1] != 0 || r.Data[0] != 0 && r.Data[0] != 0xff):
		return fmt.Errorf("%w: a coil is FF 00 or 00 00, not % X (V1.1b3 §6.5)", ErrMalformed, r.Data)
	}
	return nil
}

// AppendPDU appends function code and data, without unit and checksum.
func (r Request) AppendPDU(b []byte) ([]byte, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	b = append(b, byte(r.Function))
	if r.Function == ReadDeviceID {
		return append(b, r.Data...), nil
	}
	b = binary.BigEndian.AppendUint16(b, r.Addr)
	switch r.Function {
	case WriteSingleCoil, WriteSingleRegister, MaskWriteRegister:
		return append(b, r.Data...), nil
	case ReadWriteRegisters:
		b = binary.BigEndian.AppendUint16(b, r.Count)
		b = binary.BigEndian.AppendUint16(b, r.WriteAddr)
		b = binary.BigEndian.AppendUint16(b, uint16(len(r.Data)/2))
		b = append(b, byte(len(r.Data)))
		return append(b, r.Data...), nil
	case WriteMultipleCoils, WriteMultipleRegisters:
		b = binary.BigEndian.AppendUint16(b, r.Count)
		b = append(b, byte(len(r.Data)))
		return append(b, r.Data...), nil
	default:
		return binary.BigEndian.AppendUint16(b, r.Count), nil
	}
}

// ParseRequest is the inverse of [Request.AppendPDU]. Data points into pdu.
func ParseRequest(unit byte, pdu []byte) (Request, error) {
	if len(pdu) > 0 && Function(pdu[0]) == ReadDeviceID {
		r := Request{Unit: unit, Function: ReadDeviceID, Data: pdu[1:]}
		if err := r.check(); err != nil {
			return Request{}, err
		}
		return r, nil
	}
	if len(pdu) < 5 {
		return Request{}, fmt.Errorf("%w: a request of %d bytes", ErrMalformed, len(pdu))
	}
	r := Request{Unit: unit, Function: Function(pdu[0]), Addr: binary.BigEndian.Uint16(pdu[1:])}
	switch rest := pdu[3:]; r.Function {
	case WriteSingleCoil, WriteSingleRegister, MaskWriteRegister:
		r.Count, r.Data = 1, rest
	case ReadWriteRegisters:
		if len(rest) < 7 || int(rest[6]) != len(rest)-7 || int(binary.BigEndian.Uint16(rest[4:]))*2 != len(rest)-7 {
			return Request{}, fmt.Errorf("%w: byte count does not fit the length", ErrMalformed)
		}
		r.Count, r.WriteAddr, r.Data = binary.BigEndian.Uint16(rest), binary.BigEndian.Uint16(rest[2:]), rest[7:]
	case WriteMultipleCoils, WriteMultipleRegisters:
		r.Count = binary.BigEndian.Uint16(rest)
		if len(rest) < 3 || int(rest[2]) != len(rest)-3 {
			return Request{}, fmt.Errorf("%w: byte count does not fit the length", ErrMalformed)
		}
		r.Data = rest[3:]
	default:
		if len(rest) != 2 {
			return Request{}, fmt.Errorf("%w: a request of %d bytes, want 5", ErrMalformed, len(pdu))
		}
		r.Count = binary.BigEndian.Uint16(rest)
	}
	if err := r.check(); err != nil {
		return Request{}, err
	}
	return r, nil
}

// AppendAnswer appends the PDU of the answer a unit gives to r with success;
// data is what was read and is ignored with functions that write.
func (r Request) AppendAnswer(b, data []byte) ([]byte, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	b = append(b, byte(r.Function))
	if r.Function == ReadDeviceID {
		b = append(b, meiDeviceID)
		b = append(b, data...)
		if _, err := parseIdentification(data); err != nil {
			return nil, err
		}
		return b, nil
	}
	if r.Function.reads() {
		if len(data) != r.dataLen() {
			return nil, fmt.Errorf("%w: %d bytes answer %v of %d, want %d", ErrMalformed, len(data), r.Function, r.Count, r.dataLen())
		}
		b = append(b, byte(len(data)))
		return append(b, data...), nil
	}
	b = binary.BigEndian.AppendUint16(b, r.Addr)
	if r.Function.echoes() {
		return append(b, r.Data...), nil
	}
	return binary.BigEndian.AppendUint16(b, r.Count), nil
}

// echoes says that the answer of f is a copy of the request.
func (f Function) echoes() bool {
	return f == WriteSingleCoil || f == WriteSingleRegister || f == MaskWriteRegister
}

// answerLen is the length of the PDU of the answer with success, the greatest of
// one whose length is not known before.
func (r Request) answerLen() int {
	switch {
	case r.Function == ReadDeviceID:
		return maxPDU
	case r.Function.reads():
		return 2 + r.dataLen()
	case r.Function == MaskWriteRegister:
		return 7
	}
	return 5
}

// maxPDU is the longest PDU (V1.1b3 §4.1).
const maxPDU = 253

// ParseAnswer checks that pdu answers r and returns the data read, pointing
// into pdu; nil with functions that write. A refusal is an [*ExceptionError];
// other errors wrap [ErrMalformed] or [ErrMismatch]. That the answer is to this
// request and not to an earlier one like it, only the transport can know: an
// answer to a read does not repeat the address.
func (r Request) ParseAnswer(pdu []byte) (data []byte, err error) {
	if len(pdu) < 2 {
		return nil, fmt.Errorf("%w: an answer of %d bytes", ErrMalformed, len(pdu))
	}
	switch Function(pdu[0]) {
	case r.Function | exceptionBit:
		if len(pdu) != 2 {
			return nil, fmt.Errorf("%w: an exception of %d bytes", ErrMalformed, len(pdu))
		}
		return nil, &ExceptionError{Function: r.Function, Code: Exception(pdu[1])}
	case r.Function:
	default:
		return nil, fmt.Errorf("%w: function code %d, want %d", ErrMismatch, pdu[0], byte(r.Function))
	}
	if r.Function == ReadDeviceID {
		return r.parseDeviceID(pdu)
	}
	if r.Function.reads() {
		switch n := int(pdu[1]); {
		case n != len(pdu)-2:
			return nil, fmt.Errorf("%w: byte count %d before %d bytes", ErrMalformed, n, len(pdu)-2)
		case n != r.dataLen():
			return nil, fmt.Errorf("%w: %d bytes of data, want %d", ErrMismatch, n, r.dataLen())
		}
		return pdu[2:], nil
	}
	if len(pdu) != r.answerLen() {
		return nil, fmt.Errorf("%w: an answer of %d bytes, want %d", ErrMalformed, len(pdu), r.answerLen())
	}
	second := r.Count
	if r.Function.echoes() {
		second = binary.BigEndian.Uint16(r.Data)
	}
	if n := len(r.Data); r.Function == MaskWriteRegister && !bytes.Equal(pdu[5:], r.Data[n-2:]) {
		return nil, fmt.Errorf("%w: it confirms another mask", ErrMismatch)
	}
	if addr, got := binary.BigEndian.Uint16(pdu[1:]), binary.BigEndian.Uint16(pdu[3:]); addr != r.Addr || got != second {
		return nil, fmt.Errorf("%w: it confirms %d at %d, want %d at %d", ErrMismatch, got, addr, second, r.Addr)
	}
	return nil, nil
}
