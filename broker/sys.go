package broker

import (
	"fmt"
	"strconv"
	"time"

	"holdfast/broker/message"
)

// publishSys renews the $SYS topics under Mosquitto's names, so that what
// reads those reads these. They are retained in RAM only: the store has no
// interest in a number that is old in ten seconds.
func (b *Broker) publishSys() {
	st := b.Status()
	offline := st.Sessions - st.Clients
	now := time.Now()
	for _, x := range [...]struct{ name, value string }{
		{"version", b.opts.Version},
		{"uptime", fmt.Sprintf("%d seconds", int(st.Uptime/time.Second))},
		{"clients/connected", strconv.Itoa(st.Clients)},
		{"clients/disconnected", strconv.Itoa(offline)},
		{"clients/total", strconv.Itoa(st.Sessions)},
		{"clients/expired", strconv.FormatUint(st.SessionsExpired, 10)},
		{"messages/received", strconv.FormatUint(st.PacketsIn, 10)},
		{"publish/messages/received", strconv.FormatUint(st.MessagesIn, 10)},
		{"publish/messages/sent", strconv.FormatUint(st.MessagesOut, 10)},
		{"publish/messages/dropped", strconv.FormatUint(st.DroppedSlow+st.DroppedQueueFull+st.DroppedTooLarge, 10)},
		{"bytes/received", strconv.FormatUint(st.BytesIn, 10)},
		{"bytes/sent", strconv.FormatUint(st.BytesOut, 10)},
		{"retained messages/count", strconv.Itoa(st.Retained)},
		{"subscriptions/count", strconv.FormatInt(st.Subscriptions, 10)},
	} {
		m := &message.Message{Topic: "$SYS/broker/" + x.name, Payload: []byte(x.value), Retain: true, Received: now}
		// Without the store nothing can fail.
		_ = b.route(&job{m: m, ram: true})
	}
	b.clock.after(b.opts.SysInterval, b.publishSys)
}
