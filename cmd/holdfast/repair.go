package main

import (
	"context"
	"encoding/json"
	"time"

	"holdfast/broker/durable"
	"holdfast/broker/message"
	"holdfast/cmd/holdfast/config"
	"holdfast/storeforward"
)

// maxRepairs is how many reports may wait to be published; there is at most one a
// minute, and what finds no room is in the log and the status all the same.
const maxRepairs = 4

// repairMessage is the report about a database that was set aside: retained, so
// that whoever looks later finds the latest.
func repairMessage(gateway string, r storeforward.Repair) (*message.Message, error) {
	payload, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	return &message.Message{Topic: config.OwnTopics + gateway + "/store/repair", Payload: payload, QoS: 1, Retain: true, Received: time.Now()}, nil
}

// publishRepairs publishes the reports as they come, until ctx ends.
func (gw *gateway) publishRepairs(ctx context.Context, id string) {
	for {
		select {
		case r := <-gw.g.repairs:
			m, err := repairMessage(id, r)
			if err == nil {
				err = gw.g.broker.Publish(m, durable.Origin{}, nil)
			}
			if err != nil {
				gw.log.Warn("repair not published", "err", err)
			}
		case <-ctx.Done():
			return
		}
	}
}
