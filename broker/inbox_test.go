package broker_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"holdfast/broker"
	"holdfast/broker/brokertest"
	"holdfast/broker/durable"
	"holdfast/broker/message"
	"holdfast/broker/packet"
	"holdfast/broker/topic"
)

// letter is what an inbox got.
func letter(in broker.Incoming) string {
	return fmt.Sprintf("%s %s QoS %d retain %v of %q/%q", in.Topic, in.Payload, in.QoS, in.Retain, in.From, in.User)
}

// named lets everybody in under the user name given.
type named struct{}

func (named) Authenticate(_ context.Context, info broker.ConnInfo) (broker.Identity, packet.ReasonCode) {
	return broker.Identity{Name: info.Username, ClientID: info.ClientID}, packet.ReasonSuccess
}

func (named) Authorize(id broker.Identity, action broker.Action, name string) bool {
	return action != broker.ActionReceive || strings.HasPrefix(name, "for/"+id.Name)
}

func (named) Exists(broker.Identity) bool              { return true }
func (named) Elsewhere(broker.Identity) (string, bool) { return "", false }

// An inbox gets what is published, once and in order, whatever QoS, and nothing
// that was retained before.
func TestInbox(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t, nil, func(o *broker.Options) { o.Auth = named{} })
		p := brokertest.V5("c")
		p.HasUsername, p.Username = true, "anna"
		c := brokertest.Connect(t, b.Pipe(), p)
		c.Publish(1, true, "x/a/set", "old")
		var mu sync.Mutex
		var got []string
		x, err := b.OpenInbox(broker.InboxOptions{Name: "test", Queue: 10, MaxSize: 100}, []string{"x/+/set", "x/a/#"}, func(in broker.Incoming) {
			mu.Lock()
			got = append(got, letter(in))
			mu.Unlock()
		})
		if err != nil {
			t.Fatal(err)
		}
		for qos := byte(0); qos <= 2; qos++ {
			c.Publish(qos, qos == 1, "x/a/set", fmt.Sprint(qos))
		}
		if err := b.Publish(&message.Message{Topic: "x/b/set", Payload: []byte("own")}, durable.Origin{}, nil); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		x.Close()
		c.Publish(1, false, "x/a/set", "late")
		want := []string{
			`x/a/set 0 QoS 0 retain false of "c"/"anna"`,
			`x/a/set 1 QoS 1 retain true of "c"/"anna"`,
			`x/a/set 2 QoS 2 retain false of "c"/"anna"`,
			`x/b/set own QoS 0 retain false of ""/""`,
		}
		if !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
		for name, want := range map[string]bool{"for/anna": true, "for/bert": false} {
			if got := b.MayReceive("c", name); got != want {
				t.Errorf("MayReceive(c, %s) = %v, want %v", name, got, want)
			}
		}
		if err := b.AddRecipient(broker.Recipient{Name: "cloud"}); err != nil {
			t.Fatal(err)
		}
		for from, want := range map[string]bool{"": true, "cloud": true, "somebody": false} {
			if got := b.MayReceive(from, "for/anna"); got != want {
				t.Errorf("MayReceive(%q, for/anna) = %v, want %v", from, got, want)
			}
		}
		if _, err := b.OpenInbox(broker.InboxOptions{}, []string{"a/#/b"}, nil); !errors.Is(err, topic.ErrInvalid) {
			t.Errorf("a filter that is none: %v", err)
		}
	})
}

// A publisher whose message goes to an inbox is told that it has a subscriber.
func TestInboxIsASubscriber(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t, nil)
		x, err := b.OpenInbox(broker.InboxOptions{Queue: 1, MaxSize: 100}, []string{"a"}, func(broker.Incoming) {})
		if err != nil {
			t.Fatal(err)
		}
		defer x.Close()
		c := brokertest.Connect(t, b.Pipe(), brokertest.V5("c"))
		for name, want := range map[string]packet.ReasonCode{"a": packet.ReasonSuccess, "b": packet.ReasonNoMatchingSubscribers} {
			if got := c.Publish(1, false, name, "x"); got != want {
				t.Errorf("PUBACK for %s = %v, want %v", name, got, want)
			}
		}
	})
}

// What an inbox has no room for is dropped and counted; nobody waits for it.
func TestFullInboxDropsAndCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t, nil)
		hold := make(chan struct{})
		var got []string
		x, err := b.OpenInbox(broker.InboxOptions{Name: "test", Queue: 2, MaxSize: 10}, []string{"a"}, func(in broker.Incoming) {
			<-hold
			got = append(got, string(in.Payload))
		})
		if err != nil {
			t.Fatal(err)
		}
		c := brokertest.Connect(t, b.Pipe(), brokertest.V5("c"))
		c.Publish(1, false, "a", "0")
		synctest.Wait() // it is in hand
		for _, payload := range []string{"1", "2", "3", "4"} {
			c.Publish(1, false, "a", payload)
		}
		c.Publish(0, false, "a", "more than ten bytes")
		synctest.Wait()
		if st := b.Broker.Status(); x.Dropped() != 3 || st.InboxDropped != 3 || st.InboxTaken != 3 {
			t.Errorf("%d dropped, status %d dropped and %d taken, want 3, 3 and 3", x.Dropped(), st.InboxDropped, st.InboxTaken)
		}
		close(hold)
		synctest.Wait()
		x.Close()
		if want := []string{"0", "1", "2"}; !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

// What a client is called decides whose its messages are.
func TestNoClientIsCalledAsAnUplink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t, nil)
		if err := b.AddRecipient(broker.Recipient{Name: "cloud"}); err != nil {
			t.Fatal(err)
		}
		c := brokertest.Raw(t, b.Pipe(), packet.V5)
		if ack := c.Try(brokertest.V5("cloud")); ack == nil || ack.Reason != packet.ReasonClientIDNotValid {
			t.Errorf("CONNACK %+v, want client identifier not valid", ack)
		}
	})
}
