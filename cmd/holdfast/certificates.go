package main

import (
	"log/slog"
	"time"

	"holdfast/broker"
	"holdfast/broker/durable"
	"holdfast/broker/message"
	"holdfast/storeforward/sparkplug"
)

// certificatesPrefix is where hosts look for births (Sparkplug 3.0, 10.1.4).
const certificatesPrefix = "$sparkplug/certificates/"

// maxBirth and births bound the births that wait to be kept; what has no room is
// dropped, counted and logged.
const (
	maxBirth = 1 << 20
	births   = 64
)

// keepCertificates makes the broker "Sparkplug aware": births of edge nodes and
// devices that pass through it are kept as retained messages, so that a host that
// comes later need not ask for them. Deaths go as they are; that a server may put
// their time right it need not ([tck-id-conformance-mqtt-aware-ndeath-timestamp]).
func keepCertificates(b *broker.Broker, log *slog.Logger) (*broker.Inbox, error) {
	filters := []string{sparkplug.Namespace + "/+/NBIRTH/+", sparkplug.Namespace + "/+/DBIRTH/+/+"}
	return b.OpenInbox(broker.InboxOptions{Name: "sparkplug certificates", Queue: births, MaxSize: maxBirth}, filters, func(in broker.Incoming) {
		if len(in.Payload) == 0 {
			return // it would clear what is kept
		}
		failed := func(err error) {
			if err != nil {
				log.Warn("birth not kept", "topic", in.Topic, "err", err)
			}
		}
		m := &message.Message{Topic: certificatesPrefix + in.Topic, Payload: in.Payload, QoS: 1, Retain: true, Received: time.Now()}
		if err := b.Publish(m, durable.Origin{}, failed); err != nil {
			failed(err)
		}
	})
}
