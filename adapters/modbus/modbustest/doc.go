// Package modbustest is a Modbus slave for tests, demonstrations and the
// bench: it speaks RTU or ASCII on any io.ReadWriter (the master end of a pty, one
// end of a [Line], a socket) and Modbus/TCP on a listener (of TLS, too) or on
// datagrams, for any number of units
// with registers from maps or callbacks, and it can do wrong what field
// devices do wrong: answer late, garbled, cut short, as somebody else, twice,
// with noise around, or not at all.
//
// It shares no code with package modbus, so that a mistake there is not
// answered by the same mistake here. It never dials, opens no port and knows
// no configuration.
//
// [Slave.Serve] owns one reading goroutine, one that parses, and one per unit
// addressed; all have ended when it returns.
package modbustest
