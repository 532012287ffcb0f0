package serial

import (
	"bytes"

	"holdfast/adapters/port"
	"holdfast/adapters/reading"
)

// Replay takes what was captured of the line instead of hearing it; start is when
// the capture began. Silence and timeouts are those of the capture, and nothing is
// waited for. What was sent counts as the poll that has this request. Replay is not
// called while Run runs, and after the last chunk once more with one that has no
// bytes.
func (a *Adapter) Replay(c port.Chunk, start reading.Stamp) {
	at := start
	at.Wall = start.Wall.Add(c.At)
	at.Boottime += c.At
	if a.heard.IsZero() {
		a.framer.lost()
		a.heard = start.Wall
		a.quiet = pause(a.line.Options())
	}
	if gap := a.quiet; gap > 0 && (at.Wall.Sub(a.heard) >= gap || len(c.Bytes) == 0) {
		ended := at
		ended.Wall = a.heard.Add(gap)
		a.framer.quiet(func(f frame) bool { return a.take(f, ended) })
		a.quiet = 0
	}
	a.expire(at.Wall)
	switch {
	case len(c.Bytes) == 0:
	case c.Sent:
		for _, q := range a.conv.polls {
			if bytes.Equal(q.request, c.Bytes) {
				a.framer.lost()
				a.framer.quiet(func(frame) bool { return true })
				a.asked = &exchange{poll: q, request: q.request, deadline: at.Wall.Add(q.Timeout), limit: at.Wall.Add(maxReadout)}
				a.count(func(s *Status) { s.Polls++ })
				break
			}
		}
	default:
		a.heard = at.Wall
		a.framer.push(c.Bytes, func(f frame) bool { return a.take(f, at) })
		a.goOn(at.Wall)
		a.quiet = 0
		if a.framer.pending() {
			a.quiet = a.gap()
		}
	}
	a.copyCounts()
}
