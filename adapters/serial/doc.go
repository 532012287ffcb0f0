// Package serial listens to a device that talks by itself on a serial line:
// it cuts the bytes into frames, finds the fields in each frame, and publishes
// them as readings. It never sends anything and keeps no values. The only
// goroutine is the one that calls [Adapter.Run]. It has no errors that callers
// test for.
//
// Framing has a bound: whatever noise there was, at most the one frame that
// touches it is lost, and everything after the next delimiter is in step.
package serial
