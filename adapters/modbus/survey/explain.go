package survey

import (
	"errors"

	"holdfast/adapters/modbus"
)

// Explain says in a sentence what an outcome means for whoever asked; empty when
// the error says all there is.
func Explain(err error) string {
	if e, ok := errors.AsType[*modbus.ExceptionError](err); ok {
		switch e.Code {
		case modbus.IllegalFunction:
			return "the unit is there but does not know this function; try another table (holding, input, coil, discrete)"
		case modbus.IllegalDataAddress:
			return "the unit is there but has no such register, or not as many; addresses are zero-based: what a manual calls 40001 is holding:0"
		case modbus.IllegalDataValue:
			return "the unit is there but takes no such count or value; read fewer at once, or write another value"
		case modbus.ServerDeviceFailure:
			return "the unit met an error of its own while it carried this out"
		case modbus.Acknowledge:
			return "the unit has accepted this and needs longer for it"
		case modbus.ServerDeviceBusy:
			return "the unit is busy with something else; try again later"
		case modbus.NegativeAcknowledge:
			return "the unit cannot do this now, often because writing is locked"
		case modbus.MemoryParityError:
			return "the unit's memory is damaged"
		case modbus.GatewayPathUnavail:
			return "the gateway has no way to this unit; look at its routing and unit range"
		case modbus.GatewayTargetNoAnswer:
			return "the gateway is there, the unit behind it did not answer"
		default:
			return "the unit is there and refuses with a code of its maker's"
		}
	}
	switch {
	case errors.Is(err, modbus.ErrNoAnswer):
		return "wrong unit number, wrong baud rate or parity, A and B swapped, or it needs a longer timeout"
	case errors.Is(err, modbus.ErrGarbled):
		return "something answers, but damaged: wrong parity, two units with one number, no termination, or noise"
	case errors.Is(err, modbus.ErrMismatch):
		return "something answers another question: a second master on the line, or answers later than the timeout"
	}
	return ""
}
