// Package modbus polls field devices by Modbus: the codec of the protocol (RTU
// and ASCII frames, those of Modbus/TCP, functions 1 to 6, 15, 16, 22, 23 and
// 43/14, exceptions), the decoding of registers into values, and [Bus], which
// reads everything behind one serial line or one [Peer] on the network in its
// rhythm and hands over readings.
//
// What it holds to, each with a test, since products and libraries in the field
// were seen to get it wrong:
//
//   - A late answer never becomes another register's value. An answer to a read
//     does not repeat the address, so after a timeout the unit is left alone for
//     twice the timeout and what it says then is thrown away; the line is silent
//     and its buffer empty before each request; a frame of the unit that answers
//     something else makes all it says suspect. What remains: an answer later
//     than three timeouts after its request, of the same function and length as
//     the one awaited then; a second copy of an answer that comes once the next
//     request is out; bytes hurt so that the CRC fits, 1 in 65536 of those
//     garbled; and noise in place of a late answer that has its three first
//     bytes and its length, 1 in 2^24 bursts of it: it counts as the answer,
//     garbled, and the request is repeated at once. Over TCP, TLS and UDP
//     answers carry the id of their request, none of which has two meanings
//     while an answer may come: nobody is left alone there, and nothing remains
//     but a peer that gives a wrong id, mixes the bytes of several answers, or
//     repeats one 65536 requests later.
//   - A unit that does not answer takes at most a tenth of the bus from the
//     others, whether it is dead (probed at 1 to 60 s back-off) or answers now
//     and then.
//   - A bus that has more to do than it can is late for all alike: each interval
//     is stretched by the same factor, which [Options.Forecast] knows beforehand.
//   - One register that a unit refuses costs itself, not its block: the block is
//     halved until it is found, and it is asked again after a minute to an hour.
//   - A register without a value is null with quality "bad", never 0.
//
// Register references ([ParseRegister]) are protocol addresses, zero-based:
// what a manual calls 40001 is holding:0.
//
// Points that are declared so are written by commands on their set topics: see
// [Bus.TakeCommands] and [Point]. Anybody in the process may make requests by
// [Bus.Do].
//
// It writes nothing to devices by itself, opens no port (see adapters/port) and
// does not know where readings go. [Bus.Run] is one goroutine, which owns the
// line; a connection to a peer has one more, which reads. [Bus.TakeCommands] has
// one for each device with points that can be written, until it is stopped. Errors
// to test for: [*ExceptionError], [ErrNoAnswer], [ErrGarbled], [ErrMismatch],
// [ErrMalformed], and of requests from outside [ErrBusy], [ErrDown], [ErrNotOpen]
// and [ErrLost].
package modbus
