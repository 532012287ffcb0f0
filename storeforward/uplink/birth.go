package uplink

import (
	"context"
	"encoding/json"
	"time"

	"holdfast/broker/message"
	"holdfast/broker/packet"
)

// gatewayStatus is the payload of the will, the birth and the last message.
type gatewayStatus struct {
	State string `json:"state"` // "online" or "offline"
	// Session grows with every start of the gateway; device states carry it
	// too, and count only while it is the same.
	Session uint64 `json:"session"`
	// Reason says why: of the start or the reconnect, or of the stop.
	Reason  string `json:"reason"`
	Version string `json:"version"`
	// Time is when the message was made; a will is made at connect.
	Time string `json:"time"`
}

func (u *Uplink) statusPayload(state, reason string) []byte {
	b, err := json.Marshal(gatewayStatus{
		State: state, Session: u.store.StartNumber(), Reason: reason,
		Version: u.opts.Software, Time: time.Now().UTC().Format("2006-01-02T15:04:05.000Z"),
	})
	if err != nil {
		return nil // a struct of strings and numbers has no way to fail
	}
	return b
}

// will is published by the cloud when the link breaks: in 5.0 only after the
// will delay, so that a cellular link that flaps wakes nobody.
func (u *Uplink) will() *packet.Will {
	if u.opts.StatusTopic == "" {
		return nil
	}
	return &packet.Will{
		Topic: u.opts.statusTopic(), QoS: 1, Retain: true,
		Payload:    u.statusPayload("offline", "connection lost"),
		Properties: packet.Properties{WillDelay: uint32(u.opts.WillDelay / time.Second)},
	}
}

// announceLocked puts a status message in front of everything else.
func (l *link) announceLocked(state, reason string) *flight {
	u := l.u
	if u.opts.StatusTopic == "" {
		return nil
	}
	f := &flight{
		remote: u.opts.statusTopic(), qos: 1, retain: true, state: flightReady,
		msg: &message.Message{Topic: u.opts.statusTopic(), Payload: u.statusPayload(state, reason), QoS: 1, Retain: true},
	}
	if f.id, _ = l.sess.ids.Take(); f.id == 0 {
		return nil
	}
	l.sess.add(f)
	l.own = append(l.own, f)
	return f
}

// closePatience bounds the writing of DISCONNECT.
const closePatience = time.Second

// stop says goodbye: nothing new goes out but "offline" with the reason; when
// the cloud has acknowledged it, DISCONNECT without the will. When it does not
// within the time there is, the will is to say it.
func (l *link) stop(ctx context.Context) {
	u := l.u
	why := stopReason(ctx)
	u.setState(StateStopping, why)
	l.detach()
	ctx = context.WithoutCancel(ctx)
	waiting, cancel := context.WithTimeout(ctx, u.opts.StopTimeout)
	defer cancel()
	u.mu.Lock()
	l.leaving = true
	l.own = nil // a birth that has not gone out is not true any more
	l.last = l.announceLocked("offline", why)
	l.said = l.last == nil
	u.mu.Unlock()
	said := l.farewell(waiting)
	reason := packet.ReasonSuccess
	if !said {
		reason = packet.ReasonDisconnectWithWill
	}
	closing, cancel := context.WithTimeout(ctx, closePatience)
	defer cancel()
	if err := l.conn.Close(closing, reason); err != nil {
		u.log.Warn("no clean end of the connection", "err", err)
	}
}

// farewell runs the writer until the last message is acknowledged.
func (l *link) farewell(ctx context.Context) bool {
	for {
		l.u.mu.Lock()
		l.fillLocked(time.Now())
		said, over := l.said, l.err != nil
		l.unlock()
		l.conn.Flush()
		if said || over {
			return said
		}
		select {
		case <-l.u.wake:
		case <-ctx.Done():
			return false
		}
	}
}

// stopReason is why Run's context ended, for people.
func stopReason(ctx context.Context) string {
	switch cause := context.Cause(ctx); cause {
	case nil, context.Canceled: //nolint:errorlint // exactly these: no reason was given
		return "stopped"
	default:
		return cause.Error()
	}
}

// startReason says in the birth message how the last run ended.
func startReason(m memory) string {
	switch {
	case !m.Ran:
		return "first start"
	case m.Stop == "":
		return "start after power loss or kill"
	default:
		return "start after stop: " + m.Stop
	}
}
