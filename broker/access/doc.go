// Package access decides who may connect to the broker and what they may do:
// users with hashed passwords or client certificates, and rules about topics.
// It reads Mosquitto's password and ACL files as they are, beside users and
// rules given as [Options]. Once any of these is given, what no rule allows is
// denied; until then everybody whom a listener lets in may do everything.
//
// [Load] compiles the options and files into [Rules]; [Access] answers the
// broker from them (it implements broker.Auth) and takes new ones while clients
// are connected ([Access.Replace]). The package never keeps a password and never
// logs one, opens nothing but the two files, and starts no goroutines:
// log-ins are hashed and slowed down in the goroutine of the connection that
// asks.
//
// [Load] returns errors that join a [FileError] for each wrong line of a file.
package access
