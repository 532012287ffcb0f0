// Package scram is SCRAM-SHA-256 (RFC 5802, RFC 7677) as values: the keys that
// a server keeps of a password, and the two sides of the exchange by which a
// client proves that it knows the password, and the server that it has the
// keys, without either telling the other. It sends nothing, starts no
// goroutines, and never keeps or shows a password.
//
//	Client                         Server
//	First    -- client-first ----> Begin
//	Respond  <- server-first ----- Challenge
//	         -- client-final ----> Finish
//	Verify   <- server-final -----
//
// Channel binding (SCRAM-SHA-256-PLUS) is not offered.
//
// Messages that are no SCRAM messages give [ErrMessage]; a client that does not
// know the password [ErrProof]; a server that does not have the keys
// [ErrServer].
package scram
