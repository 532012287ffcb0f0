// Package server answers the Modbus requests of others: of a local PLC or
// SCADA that wants the last values as registers ([Registers]), and of masters
// elsewhere that want to reach the units of a serial line ([Gateway]). [Server]
// takes their connections over TCP and hands each request to one of the two; [Line]
// hears them as a slave on a serial line, among others.
//
//	connection --> frame --> Registers --> the last values, in memory
//	 (a goroutine              |  \-- writes --> Writer --> set topics
//	  each, one request        |
//	  after the other)         +--> Gateway --> Bus.Do --> the line, beside its polls
//
// The frames are those of MODBUS Messaging on TCP/IP V1.0b; what lies below, TLS
// perhaps, is the business of whoever opens the listener. Requests of one
// connection are answered in their order, one at a time: what a master sends ahead
// waits in its socket. Everything is bounded: connections, the time one may be
// silent or take to read its answer, values by what is configured.
//
// Frames on a line are those of MODBUS over Serial Line V1.02; see Line for what it
// does not answer. It opens no sockets, polls nothing and knows no topics. It owns one goroutine per
// connection and one per listener, which end with [Server.Run]. It has no errors
// that callers test for but [ErrRefused], which a Writer returns.
package server
