package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"holdfast/broker/message"
	"holdfast/broker/packet"
)

// published starts a Publish and returns where its result comes.
func published(c *Client, m *message.Message) <-chan error {
	result := make(chan error, 1)
	go func() { result <- c.Publish(context.Background(), m) }()
	return result
}

func TestPublish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := clientOn(t, Options{}, &packet.Connack{}, nil)
		defer c.Abort()

		if err := c.Publish(t.Context(), msg("a/0", "zero", 0)); err != nil {
			t.Errorf("QoS 0: %v", err)
		}
		if p := expect[*packet.Publish](s); string(p.Topic) != "a/0" || p.QoS != 0 || string(p.Payload) != "zero" {
			t.Errorf("server got %+v", p)
		}

		result := published(c, msg("a/1", "one", 1))
		p := expect[*packet.Publish](s)
		if p.QoS != 1 || p.PacketID == 0 || p.Dup {
			t.Errorf("server got %+v", p)
		}
		s.nothingMore()
		select {
		case err := <-result:
			t.Errorf("Publish returned %v before PUBACK", err)
		default:
		}
		s.send(&packet.Puback{PacketID: p.PacketID})
		if err := <-result; err != nil {
			t.Errorf("QoS 1: %v", err)
		}

		result = published(c, msg("a/2", "two", 2))
		p = expect[*packet.Publish](s)
		s.send(&packet.Pubrec{PacketID: p.PacketID})
		if rel := expect[*packet.Pubrel](s); rel.PacketID != p.PacketID || rel.Reason != 0 {
			t.Errorf("PUBREL = %+v", rel)
		}
		select {
		case err := <-result:
			t.Errorf("Publish returned %v before PUBCOMP", err)
		default:
		}
		s.send(&packet.Pubcomp{PacketID: p.PacketID, Reason: packet.ReasonPacketIDNotFound})
		if err := <-result; err != nil { // the server had released it already
			t.Errorf("QoS 2: %v", err)
		}
		if n := c.session.Pending() + c.session.ids.InUse(); n != 0 {
			t.Errorf("%d messages and ids left", n)
		}
	})
}

func TestPublishRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := clientOn(t, Options{}, &packet.Connack{}, nil)
		defer c.Abort()
		result := published(c, msg("a", "", 1))
		s.send(&packet.Puback{PacketID: expect[*packet.Publish](s).PacketID, Reason: packet.ReasonQuotaExceeded, Properties: packet.Properties{ReasonString: "full"}})
		err := <-result
		if e, ok := errors.AsType[*RefusedError](err); !ok || e.Reason != packet.ReasonQuotaExceeded || e.Topic != "a" || e.ReasonString != "full" {
			t.Errorf("QoS 1: %v", err)
		}
		result = published(c, msg("b", "", 2))
		s.send(&packet.Pubrec{PacketID: expect[*packet.Publish](s).PacketID, Reason: packet.ReasonNotAuthorized})
		err = <-result
		if e, ok := errors.AsType[*RefusedError](err); !ok || e.Reason != packet.ReasonNotAuthorized {
			t.Errorf("QoS 2: %v", err)
		}
		s.nothingMore() // no PUBREL after a refusal (MQTT 5.0 §4.3.3)
		if n := c.session.ids.InUse(); n != 0 {
			t.Errorf("%d ids left", n)
		}
	})
}

func TestPublishWhatTheServerDoesNotTake(t *testing.T) {
	no := byte(0)
	c, _ := clientOn(t, Options{}, &packet.Connack{Properties: packet.Properties{
		MaximumQoS: new(byte(1)), RetainAvailable: &no, MaximumPacketSize: 100,
	}}, nil)
	defer c.Abort()
	retained := msg("a", "", 0)
	retained.Retain = true
	expired := msg("a", "", 1)
	expired.HasExpiry, expired.Expiry, expired.Received = true, 1, time.Now().Add(-2*time.Second)
	expired0 := *expired
	expired0.QoS = 0
	tests := map[string]struct {
		m    *message.Message
		want func(error) bool
	}{
		"QoS 2":        {msg("a", "", 2), func(err error) bool { e, ok := errors.AsType[*RefusedError](err); return ok && e.Reason == 0x9B }},
		"retain":       {retained, func(err error) bool { e, ok := errors.AsType[*RefusedError](err); return ok && e.Reason == 0x9A }},
		"large, QoS 0": {msg("a", string(make([]byte, 100)), 0), func(err error) bool { return errors.Is(err, ErrTooLarge) }},
		"large, QoS 1": {msg("a", string(make([]byte, 100)), 1), func(err error) bool { return errors.Is(err, ErrTooLarge) }},
		"wildcard":     {msg("a/+", "", 1), func(err error) bool { return err != nil }},
		"empty topic":  {msg("", "", 0), func(err error) bool { return err != nil }},
		"QoS 3":        {msg("a", "", 3), func(err error) bool { return err != nil }},
		"expired":      {expired, func(err error) bool { return errors.Is(err, ErrExpired) }},
		"expired, 0":   {&expired0, func(err error) bool { return errors.Is(err, ErrExpired) }},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if err := c.Publish(t.Context(), tt.m); !tt.want(err) {
				t.Errorf("Publish = %v", err)
			}
		})
	}
	if n := c.session.Pending() + c.session.ids.InUse(); n != 0 {
		t.Errorf("%d messages and ids left", n)
	}
}

func TestReceiveMaximumOfTheServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := clientOn(t, Options{}, &packet.Connack{Properties: packet.Properties{ReceiveMaximum: 3}}, nil)
		defer c.Abort()
		const n = 20
		finished := 0
		for i := range n {
			c.PublishAsync(msg(fmt.Sprintf("a/%02d", i), "", byte(1+i%2)), func(err error) {
				if err != nil {
					t.Errorf("message %d: %v", i, err)
				}
				finished++
			})
		}
		var got []string
		var answers []packet.Packet // not given yet
		open := 0                   // messages without PUBACK or PUBCOMP
		for {
			synctest.Wait()
			if len(s.in) == 0 && len(answers) == 0 {
				break
			}
			if len(s.in) == 0 {
				if answers[0].Type() != packet.TypePubrec { // a PUBREC makes no room (MQTT 5.0 §4.9)
					open--
				}
				s.send(answers[0])
				answers = answers[1:]
				continue
			}
			switch p := (<-s.in).(type) {
			case *packet.Publish:
				got = append(got, string(p.Topic))
				if open++; open > 3 {
					t.Fatalf("%d messages open, want at most 3", open)
				}
				if p.QoS == 1 {
					answers = append(answers, &packet.Puback{PacketID: p.PacketID})
				} else {
					answers = append(answers, &packet.Pubrec{PacketID: p.PacketID})
				}
			case *packet.Pubrel:
				answers = append(answers, &packet.Pubcomp{PacketID: p.PacketID})
			}
		}
		if finished != n || len(got) != n || !slices.IsSorted(got) {
			t.Errorf("%d of %d finished; the server got %v", finished, n, got)
		}
	})
}

func TestConnectionEndsWithMessagesOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := clientOn(t, Options{}, &packet.Connack{Properties: packet.Properties{ReceiveMaximum: 1}}, nil)
		sent, waiting := published(c, msg("a", "", 1)), published(c, msg("b", "", 2))
		sub := make(chan error, 1)
		go func() {
			_, err := c.Subscribe(context.Background(), []packet.Filter{{Filter: "x"}})
			sub <- err
		}()
		synctest.Wait()
		s.nc.Close()
		<-c.Done()
		for what, ch := range map[string]<-chan error{"sent": sent, "waiting": waiting, "subscribe": sub} {
			if err := want(t, ch, what); err == nil || !errors.Is(err, c.Err()) {
				t.Errorf("%s = %v, want %v", what, err, c.Err())
			}
		}
		if err := c.Publish(t.Context(), msg("a", "", 1)); err == nil {
			t.Error("Publish after the end = nil")
		}
		if err := c.Publish(t.Context(), msg("a", "", 0)); !errors.Is(err, ErrClosed) {
			t.Errorf("Publish of QoS 0 after the end = %v, want ErrClosed", err)
		}
		if _, err := c.Subscribe(t.Context(), []packet.Filter{{Filter: "x"}}); !errors.Is(err, ErrClosed) {
			t.Errorf("Subscribe after the end = %v, want ErrClosed", err)
		}
		if err := c.Disconnect(t.Context()); !errors.Is(err, ErrClosed) {
			t.Errorf("Disconnect after the end = %v, want ErrClosed", err)
		}
	})
}

func TestReceive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		messages := make(chan Message, 20)
		c, s := clientOn(t, Options{}, &packet.Connack{}, func(m Message) { messages <- m })
		defer c.Abort()
		s.send(
			&packet.Publish{Topic: []byte("a"), Payload: []byte("zero"), SubscriptionIDs: []uint32{5, 6}},
			&packet.Publish{Topic: []byte("b"), Payload: []byte("one"), QoS: 1, PacketID: 9, Dup: true, Retain: true},
			&packet.Publish{Topic: []byte("c"), Payload: []byte("two"), QoS: 2, PacketID: 9},
			&packet.Publish{Topic: []byte("c"), Payload: []byte("two"), QoS: 2, PacketID: 9, Dup: true},
			&packet.Pubrel{PacketID: 9},
			&packet.Pubrel{PacketID: 9},
			&packet.Publish{Topic: []byte("c"), Payload: []byte("new"), QoS: 2, PacketID: 9},
		)
		if p := expect[*packet.Puback](s); p.PacketID != 9 {
			t.Errorf("PUBACK = %+v", p)
		}
		expect[*packet.Pubrec](s)
		expect[*packet.Pubrec](s)
		if p := expect[*packet.Pubcomp](s); p.Reason != packet.ReasonSuccess {
			t.Errorf("PUBCOMP = %+v", p)
		}
		if p := expect[*packet.Pubcomp](s); p.Reason != packet.ReasonPacketIDNotFound {
			t.Errorf("PUBCOMP for a PUBREL that came again = %+v", p)
		}
		expect[*packet.Pubrec](s)
		var got []string
		for len(messages) > 0 {
			m := <-messages
			got = append(got, fmt.Sprintf("%s %s %d %v %v %v", m.Topic, m.Payload, m.QoS, m.Dup, m.Retain, m.SubscriptionIDs))
		}
		want := []string{"a zero 0 false false [5 6]", "b one 1 true true []", "c two 2 false false []", "c new 2 false false []"}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("messages (-want +got):\n%s", diff)
		}
	})
}

func TestSubscribe(t *testing.T) {
	for _, v := range []packet.Version{packet.V5, packet.V311} {
		t.Run(v.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, s := clientOn(t, Options{Version: v}, &packet.Connack{}, nil)
				defer c.Abort()
				go func() {
					p := expect[*packet.Subscribe](s)
					s.send(&packet.Suback{PacketID: p.PacketID, Reasons: []packet.ReasonCode{1, 0x80}})
					u := expect[*packet.Unsubscribe](s)
					unsuback := &packet.Unsuback{PacketID: u.PacketID}
					if v == packet.V5 {
						unsuback.Reasons = []packet.ReasonCode{packet.ReasonNoSubscriptionExisted}
					}
					s.send(unsuback)
				}()
				got, err := c.Subscribe(t.Context(), []packet.Filter{{Filter: "a/#", QoS: 1}, {Filter: "b", QoS: 2}})
				if err != nil || !slices.Equal(got, []packet.ReasonCode{1, 0x80}) {
					t.Errorf("Subscribe = %v, %v", got, err)
				}
				got, err = c.Unsubscribe(t.Context(), []string{"a/#"})
				want := packet.ReasonNoSubscriptionExisted
				if v == packet.V311 {
					want = packet.ReasonSuccess
				}
				if err != nil || !slices.Equal(got, []packet.ReasonCode{want}) {
					t.Errorf("Unsubscribe = %v, %v, want %v", got, err, want)
				}
				if _, err := c.Subscribe(t.Context(), []packet.Filter{{Filter: "a#"}}); err == nil {
					t.Error("Subscribe to an invalid filter = nil")
				}
				if _, err := c.Subscribe(t.Context(), nil); err == nil {
					t.Error("Subscribe to nothing = nil")
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				if _, err := c.Subscribe(ctx, []packet.Filter{{Filter: "x"}}); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("Subscribe without an answer = %v", err)
				}
			})
		})
	}
}

func TestAnswersThatDoNotFit(t *testing.T) {
	tests := map[string]struct {
		do     func(c *Client)
		answer func(s *fakeServer)
	}{
		"SUBACK with another number of codes": {
			do: func(c *Client) { _, _ = c.Subscribe(context.Background(), []packet.Filter{{Filter: "a"}}) },
			answer: func(s *fakeServer) {
				s.send(&packet.Suback{PacketID: expect[*packet.Subscribe](s).PacketID, Reasons: []packet.ReasonCode{0, 0}})
			},
		},
		"UNSUBACK to a SUBSCRIBE": {
			do: func(c *Client) { _, _ = c.Subscribe(context.Background(), []packet.Filter{{Filter: "a"}}) },
			answer: func(s *fakeServer) {
				s.send(&packet.Unsuback{PacketID: expect[*packet.Subscribe](s).PacketID, Reasons: []packet.ReasonCode{0}})
			},
		},
		"PUBACK to a QoS 2 message": {
			do:     func(c *Client) { _ = c.Publish(context.Background(), msg("a", "", 2)) },
			answer: func(s *fakeServer) { s.send(&packet.Puback{PacketID: expect[*packet.Publish](s).PacketID}) },
		},
		"PUBREC to a QoS 1 message": {
			do:     func(c *Client) { _ = c.Publish(context.Background(), msg("a", "", 1)) },
			answer: func(s *fakeServer) { s.send(&packet.Pubrec{PacketID: expect[*packet.Publish](s).PacketID}) },
		},
		"PUBCOMP before PUBREC": {
			do:     func(c *Client) { _ = c.Publish(context.Background(), msg("a", "", 2)) },
			answer: func(s *fakeServer) { s.send(&packet.Pubcomp{PacketID: expect[*packet.Publish](s).PacketID}) },
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, s := clientOn(t, Options{}, &packet.Connack{}, nil)
				go tt.do(c)
				tt.answer(s)
				if p := expect[*packet.Disconnect](s); p.Reason != packet.ReasonProtocolError {
					t.Errorf("DISCONNECT reason = %s, want protocol error", p.Reason)
				}
				s.nc.Close()
				<-c.Done()
				if !errors.Is(c.Err(), packet.ErrProtocol) {
					t.Errorf("Err() = %v, want ErrProtocol", c.Err())
				}
			})
		})
	}
}

// Servers of 3.1.1 without QoS 2 answer PUBACK, and have the message.
func TestPubackEndsQoS2In311(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := clientOn(t, Options{Version: packet.V311}, &packet.Connack{}, nil)
		defer c.Abort()
		result := published(c, msg("a", "", 2))
		s.send(&packet.Puback{PacketID: expect[*packet.Publish](s).PacketID})
		if err := <-result; err != nil || c.Err() != nil {
			t.Errorf("Publish returned %v, connection %v", err, c.Err())
		}
		if n := c.session.Pending() + c.session.ids.InUse(); n != 0 {
			t.Errorf("%d messages and ids left", n)
		}
		result = published(c, msg("a", "", 2))
		id := expect[*packet.Publish](s).PacketID
		s.send(&packet.Pubrec{PacketID: id})
		expect[*packet.Pubrel](s)
		s.send(&packet.Puback{PacketID: id}) // now it is nonsense
		<-c.Done()
		if err := <-result; err == nil || !errors.Is(c.Err(), packet.ErrProtocol) {
			t.Errorf("Publish returned %v, connection %v", err, c.Err())
		}
	})
}

func TestAnswersToNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := clientOn(t, Options{}, &packet.Connack{}, nil)
		s.send(&packet.Puback{PacketID: 7}, &packet.Pubcomp{PacketID: 7}, &packet.Suback{PacketID: 7, Reasons: []packet.ReasonCode{0}}, &packet.Pubrec{PacketID: 7})
		if p := expect[*packet.Pubrel](s); p.PacketID != 7 || p.Reason != packet.ReasonPacketIDNotFound {
			t.Errorf("PUBREL = %+v, want 0x92", p)
		}
		if c.Err() != nil {
			t.Errorf("Err() = %v", c.Err())
		}
		c.Abort()
	})
}

func TestDisconnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := clientOn(t, Options{}, &packet.Connack{}, nil)
		go func() {
			expect[*packet.Publish](s)
			expect[*packet.Disconnect](s)
			s.nc.Close()
		}()
		c.PublishAsync(msg("a", "", 0), nil)
		if err := c.Disconnect(t.Context()); err != nil {
			t.Errorf("Disconnect = %v", err)
		}
		if c.Err() == nil {
			t.Error("Err() = nil after the end")
		}
	})
}

func TestOutputFullIsNoLoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := clientOn(t, Options{OutputLimit: 2000}, &packet.Connack{}, nil)
		defer c.Abort()
		const n = 200
		left := n
		for i := range n {
			c.PublishAsync(msg(fmt.Sprintf("a/%d", i), string(make([]byte, 100)), 1), func(err error) {
				if err != nil {
					t.Errorf("message %d: %v", i, err)
				}
				left--
			})
		}
		for i := range n {
			p := expect[*packet.Publish](s)
			if want := fmt.Sprintf("a/%d", i); string(p.Topic) != want {
				t.Fatalf("topic = %s, want %s", p.Topic, want)
			}
			s.send(&packet.Puback{PacketID: p.PacketID})
		}
		synctest.Wait()
		if left != 0 {
			t.Errorf("%d messages without an answer", left)
		}
	})
}

func TestConversions(t *testing.T) {
	now := time.Unix(1000, 0)
	rapid.Check(t, func(t *rapid.T) {
		topicName := rapid.StringN(1, 50, 100).Draw(t, "topic")
		m := &message.Message{
			Topic: topicName, Payload: rapid.SliceOf(rapid.Byte()).Draw(t, "payload"), Properties: rapid.SliceOf(rapid.Byte()).Draw(t, "properties"),
			QoS: rapid.ByteRange(0, 2).Draw(t, "qos"), Retain: rapid.Bool().Draw(t, "retain"), Received: now,
		}
		if m.HasExpiry = rapid.Bool().Draw(t, "has expiry"); m.HasExpiry {
			m.Expiry = rapid.Uint32Range(1, 1000).Draw(t, "expiry")
		}
		p := packet.Publish{Topic: []byte("an old and longer topic"), PacketID: 9, TopicAlias: 7, Dup: true}
		if !PublishOf(&p, m, now) {
			t.Fatal("PublishOf = false for a message that is alive")
		}
		got := MessageOf(&p, now)
		for i := range p.Payload { // the copy shares nothing
			p.Payload[i]++
		}
		for i := range p.Payload {
			p.Payload[i]--
		}
		if len(m.Payload) == 0 {
			m.Payload = nil
		}
		if len(m.Properties) == 0 {
			m.Properties = nil
		}
		if diff := cmp.Diff(m, got); diff != "" {
			t.Fatalf("message through a PUBLISH (-want +got):\n%s", diff)
		}
		if len(got.Payload) > 0 && len(got.Properties) > 0 {
			before := slices.Clone(got.Properties)
			_ = append(got.Payload, 'x')
			if !slices.Equal(before, got.Properties) {
				t.Fatal("appending to the payload changes the properties")
			}
		}
	})
	old := &message.Message{Topic: "a", HasExpiry: true, Expiry: 10, Received: now}
	var p packet.Publish
	if !PublishOf(&p, old, now.Add(7*time.Second)) || p.MessageExpiry != 3 {
		t.Errorf("expiry after 7 of 10s = %d, want 3", p.MessageExpiry)
	}
	if PublishOf(&p, old, now.Add(10*time.Second)) {
		t.Error("PublishOf = true for an expired message")
	}
	m := msg("some/topic", "payload", 1)
	if n := testing.AllocsPerRun(100, func() { PublishOf(&p, m, now) }); n != 0 {
		t.Errorf("PublishOf allocates %v times, want 0", n)
	}
}

func TestPacketIDs(t *testing.T) {
	var ids PacketIDs
	if ids.Reserve(0) {
		t.Error("Reserve(0) = true")
	}
	if !ids.Reserve(3) || ids.Reserve(3) {
		t.Error("Reserve(3) twice")
	}
	var got []uint16
	for range 4 {
		id, _ := ids.Take()
		got = append(got, id)
	}
	if !slices.Equal(got, []uint16{1, 2, 4, 5}) {
		t.Errorf("Take = %v, want 1 2 4 5", got)
	}
	ids.Free(2)
	for range 65535 - 4 {
		if _, ok := ids.Take(); !ok {
			t.Fatalf("Take = false with %d in use", ids.InUse())
		}
	}
	if id, ok := ids.Take(); ok {
		t.Errorf("Take = %d with all in use", id)
	}
	ids.Free(2)
	if id, ok := ids.Take(); !ok || id != 2 {
		t.Errorf("Take = %d, %v, want the only one free, 2", id, ok)
	}
}
