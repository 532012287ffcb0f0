package uplink

import (
	"time"

	"holdfast/broker/message"
)

const (
	// waited is how old a message is that counts as backlog: what has just been
	// published is not held back for it.
	waited = 2 * time.Second
	// paceBurst is what may go out at once after a pause, as time of the rate.
	paceBurst = 250 * time.Millisecond
)

// pace is a token bucket in bytes. It may run into debt by what goes out at once,
// so that there is no message it never lets through.
type pace struct {
	rate   float64 // bytes a second; 0 knows no bound
	tokens float64
	at     time.Time
}

func (p *pace) fill(now time.Time) {
	most := p.rate * paceBurst.Seconds()
	if p.at.IsZero() {
		p.tokens = most
	} else {
		p.tokens = min(p.tokens+p.rate*now.Sub(p.at).Seconds(), most)
	}
	p.at = now
}

// waits is how long nothing may go.
func (p *pace) waits(now time.Time) time.Duration {
	if p.rate == 0 {
		return 0
	}
	if p.fill(now); p.tokens > 0 {
		return 0
	}
	return time.Duration((1 - p.tokens) / p.rate * float64(time.Second))
}

func (p *pace) spend(bytes int) { p.tokens -= float64(bytes) }

// hasWaited says that a message is backlog.
func (l *link) hasWaited(m *message.Message) bool {
	return l.pace.rate > 0 && l.now.Sub(m.Received) > waited
}
