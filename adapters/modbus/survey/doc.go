// Package survey finds out what is on a Modbus line: which units answer, what
// they say of themselves, which profiles fit them, what their registers could
// mean, and what others say to each other on a line that is only listened to.
//
// It asks by a function that it is given ([modbus.Do]), opens nothing, writes
// nothing to units and starts no goroutines.
package survey
