// Package reading is one measured value: which device and point, the value,
// its unit and quality, and when it was measured with how sure that time is;
// and its rendering as JSON. It never publishes, keeps or computes averages,
// and starts no goroutines. [Clock] is the only part that asks the system
// anything. It returns no errors that callers test for: what cannot be
// rendered as a number becomes null with quality "bad".
package reading
