// Package console answers questions about the running gateway over HTTP on a
// Unix socket that only the gateway's user and group may open: the status that
// `holdfast status` prints, the metrics, whether it is healthy, and profiles of
// the process. It changes nothing in the gateway but queues and sessions, when
// `holdfast queue` and `holdfast session` ask for that with POST, and what
// `holdfast modbus` has a bus of the gateway do; writes to devices are in the log
// with the user who asked for them.
//
// It owns the goroutines of one http.Server; Serve returns when they have ended.
package console
