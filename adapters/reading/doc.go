// Package reading is one measured value: which device and point, the value,
// its unit and quality, and when it was measured with how sure that time is; its
// forms on the wire ([Renderer]: JSON, SenML, line protocol and others), and JSON
// and SenML read back ([Parse], [UnpackSenML]); and which readings are reported at
// all ([Reporter]). It never publishes, keeps or computes averages, and starts no
// goroutines. [Clock] is the only part that asks the system anything. What cannot
// be rendered as a number becomes null with quality "bad"; the error that callers
// test for is [ErrSenML].
package reading
