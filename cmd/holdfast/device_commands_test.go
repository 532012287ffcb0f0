package main

import (
	"bytes"
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"holdfast/adapters"
	"holdfast/broker"
	"holdfast/broker/brokertest"
	"holdfast/broker/packet"
)

// An adapter hears a command with all it has to know, and where its answer goes.
func TestLocalCommands(t *testing.T) {
	properties := func(p packet.PublishProperties) []byte {
		b, err := p.AppendTo(nil)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	answer := packet.PublishProperties{HasPayloadFormat: true, PayloadFormat: 1, ContentType: "application/json"}
	marked := answer
	marked.CorrelationData = []byte{1, 2}
	tests := map[string]struct {
		publish packet.Publish
		want    adapters.Command
	}{
		"plain": {
			publish: packet.Publish{QoS: 1},
			want:    adapters.Command{QoS: 1, AnswerTopic: "s/m/p/set/result", AnswerProperties: properties(answer)},
		},
		"a retained one": {
			publish: packet.Publish{Retain: true},
			want:    adapters.Command{Retain: true, AnswerTopic: "s/m/p/set/result", AnswerProperties: properties(answer)},
		},
		"a request": {
			publish: packet.Publish{
				QoS: 2, HasExpiry: true, MessageExpiry: 7,
				Properties: properties(packet.PublishProperties{ResponseTopic: "for/anna", CorrelationData: []byte{1, 2}, User: []packet.UserProperty{{Key: "k", Value: "v"}}}),
			},
			want: adapters.Command{
				QoS: 2, HasExpiry: true, Expiry: 7 * time.Second, Correlation: []byte{1, 2},
				AnswerTopic: "for/anna", AnswerProperties: properties(marked),
			},
		},
		"answers may go to the usual place": {
			publish: packet.Publish{Properties: properties(packet.PublishProperties{ResponseTopic: "s/m/p/set/result"})},
			want:    adapters.Command{AnswerTopic: "s/m/p/set/result", AnswerProperties: properties(answer)},
		},
		"not to a reading": {
			publish: packet.Publish{Properties: properties(packet.PublishProperties{ResponseTopic: "s/m/p", CorrelationData: []byte{1, 2}})},
			want: adapters.Command{
				Correlation: []byte{1, 2}, AnswerTopic: "s/m/p/set/result", AnswerProperties: properties(marked), AnswerRefused: true,
			},
		},
		"not to a topic of the server": {
			publish: packet.Publish{Properties: properties(packet.PublishProperties{ResponseTopic: "$SYS/x"})},
			want:    adapters.Command{AnswerTopic: "s/m/p/set/result", AnswerProperties: properties(answer), AnswerRefused: true},
		},
		"not where the client may not read": {
			publish: packet.Publish{Properties: properties(packet.PublishProperties{ResponseTopic: "for/bert"})},
			want:    adapters.Command{AnswerTopic: "s/m/p/set/result", AnswerProperties: properties(answer), AnswerRefused: true},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := brokertest.New(t, nil, func(o *broker.Options) { o.Auth = readers{} })
				got := make(chan adapters.Command, 2)
				cancel, err := localCommands{b: b.Broker, name: "bus", own: []string{"s/", "holdfast/"}}.
					Subscribe([]string{"s/+/+/set"}, func(c adapters.Command) { got <- c })
				if err != nil {
					t.Fatal(err)
				}
				defer cancel()
				p := brokertest.V5("panel")
				p.HasUsername, p.Username = true, "anna"
				c := brokertest.Connect(t, b.Pipe(), p)
				start := time.Now()
				tt.publish.Topic, tt.publish.Payload = []byte("s/m/p/set"), []byte("21.5")
				c.PublishWith(&tt.publish)
				tt.want.Topic, tt.want.Payload, tt.want.From, tt.want.User, tt.want.Received = "s/m/p/set", []byte("21.5"), "panel", "anna", start
				if diff := cmp.Diff(tt.want, <-got, cmp.Comparer(func(a, b []byte) bool { return bytes.Equal(a, b) })); diff != "" {
					t.Errorf("command (-want +got):\n%s", diff)
				}
				synctest.Wait()
				if len(got) > 0 {
					t.Error("it came twice")
				}
			})
		})
	}
}

// readers lets everybody in under the user name given, to read what is for them.
type readers struct{}

func (readers) Authenticate(_ context.Context, info broker.ConnInfo) (broker.Identity, packet.ReasonCode) {
	return broker.Identity{Name: info.Username, ClientID: info.ClientID}, packet.ReasonSuccess
}

func (readers) Authorize(id broker.Identity, action broker.Action, name string) bool {
	return action != broker.ActionReceive || name == "for/"+id.Name
}

func (readers) Exists(broker.Identity) bool              { return true }
func (readers) Elsewhere(broker.Identity) (string, bool) { return "", false }
