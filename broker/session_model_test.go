package broker_test

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"holdfast/broker/brokertest"
	"holdfast/broker/durable"
	"holdfast/broker/packet"
)

// sessionStep is one thing that happens to one of a few clients.
type sessionStep struct {
	what   string
	id     int
	v      packet.Version
	clean  bool
	expiry uint32 // seconds
	pass   time.Duration
}

// sessionModel is what a session should be.
type sessionModel struct {
	client *brokertest.Client // nil while offline
	kept   bool               // there is one
	v      packet.Version
	expiry uint32
	since  time.Time // offline
	waits  []string  // messages
}

func (m *sessionModel) alive(now time.Time) bool {
	return m.kept && (m.client != nil || m.expiry == durable.SessionExpiryNever ||
		now.Sub(m.since) < time.Duration(m.expiry)*time.Second)
}

func drawSessionSteps(t *rapid.T) []sessionStep {
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) sessionStep {
		return sessionStep{
			what:   rapid.SampledFrom([]string{"connect", "connect", "publish", "publish", "cut", "goodbye", "shorten", "pass"}).Draw(t, "what"),
			id:     rapid.IntRange(0, 2).Draw(t, "client"),
			v:      packet.Version(rapid.IntRange(3, 5).Draw(t, "version")),
			clean:  rapid.IntRange(0, 3).Draw(t, "clean") == 0,
			expiry: rapid.SampledFrom([]uint32{0, 10, 100, durable.SessionExpiryNever}).Draw(t, "expiry"),
			pass:   time.Duration(rapid.IntRange(1, 60).Draw(t, "seconds"))*time.Second + time.Millisecond,
		}
	}), 1, 60).Draw(t, "steps")
}

// TestSessionModel: sessions are there as long as they should be, with the
// messages that came meanwhile in order, and leave nothing behind.
func TestSessionModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		steps := drawSessionSteps(rt)
		wrong := ""
		synctest.Test(t, func(t *testing.T) { wrong = playSessions(t, steps) })
		if wrong != "" {
			rt.Fatal(wrong)
		}
	})
}

func playSessions(t *testing.T, steps []sessionStep) (wrong string) {
	t.Helper()
	b := brokertest.New(t, nil)
	pub := brokertest.Connect(t, b.Pipe(), brokertest.V5("pub"))
	models := make([]*sessionModel, 3)
	for i := range models {
		models[i] = &sessionModel{}
	}
	for i, s := range steps {
		if wrong := models[s.id].play(t, b, pub, s, fmt.Sprint(i)); wrong != "" {
			return fmt.Sprintf("step %d, %+v: %s", i, s, wrong)
		}
		synctest.Wait()
		want := 1
		for _, m := range models {
			if m.alive(time.Now()) {
				want++
			}
		}
		if got := b.Status().Sessions; got != want {
			return fmt.Sprintf("step %d, %+v: %d sessions, want %d", i, s, got, want)
		}
	}
	// Those who want to stay for ever are discarded; the others expire.
	for id, m := range models {
		if m.client != nil || m.expiry == durable.SessionExpiryNever {
			brokertest.Connect(t, b.Pipe(), brokertest.V5(fmt.Sprint(id))).Disconnect(0)
		}
	}
	pass(101 * time.Second)
	synctest.Wait()
	if st := b.Status(); st.Sessions != 1 || st.Subscriptions != 0 || st.Connections != 1 || st.StoredMessages != 0 {
		return fmt.Sprintf("left: %d sessions, %d subscriptions, %d connections, %d messages",
			st.Sessions, st.Subscriptions, st.Connections, st.StoredMessages)
	}
	return ""
}

func (m *sessionModel) play(t *testing.T, b *brokertest.Broker, pub *brokertest.Client, s sessionStep, payload string) (wrong string) {
	t.Helper()
	id := fmt.Sprint(s.id)
	switch s.what {
	case "connect":
		return m.connect(t, b, s, id)
	case "publish":
		pub.Publish(1, false, id, payload)
		switch {
		case m.client != nil:
			if got := string(m.client.Message().Payload); got != payload {
				return "got " + got
			}
		case m.alive(time.Now()):
			m.waits = append(m.waits, payload)
		}
	case "cut", "goodbye", "shorten":
		if m.client == nil {
			return ""
		}
		bye := &packet.Disconnect{}
		if s.what == "shorten" && m.v == packet.V5 && m.expiry != 0 {
			m.expiry = s.expiry
			bye.Properties.SessionExpiry = &s.expiry
		}
		if s.what == "cut" {
			m.client.Kill()
		} else {
			m.client.Send(bye)
			m.client.Ended()
		}
		m.client, m.since = nil, time.Now()
		if m.expiry == 0 {
			m.kept = false
		}
	case "pass":
		pass(s.pass)
	}
	return ""
}

func (m *sessionModel) connect(t *testing.T, b *brokertest.Broker, s sessionStep, id string) (wrong string) {
	t.Helper()
	p := &packet.Connect{Version: s.v, ClientID: id, CleanStart: s.clean}
	expiry := s.expiry
	if s.v == packet.V5 {
		p.Properties.SessionExpiry = &s.expiry
	} else if expiry = durable.SessionExpiryNever; s.clean {
		expiry = 0
	}
	want := m.alive(time.Now()) && !s.clean
	// A session of a client that takes over from itself: if it was to end with
	// its connection, it has.
	if m.client != nil && m.expiry == 0 {
		want = false
	}
	if !want {
		m.waits = nil
	}
	c := brokertest.Connect(t, b.Pipe(), p)
	if s.v > packet.V31 && c.Connack.SessionPresent != want { // 3.1 does not say (MQTT 3.1 §3.2)
		return fmt.Sprintf("session present is %v, want %v", c.Connack.SessionPresent, want)
	}
	if !want {
		c.Subscribe(1, id)
	}
	if got := c.Messages(len(m.waits)); strings.Join(got, " ") != strings.Join(m.waits, " ") {
		return fmt.Sprintf("got %v, want %v", got, m.waits)
	}
	*m = sessionModel{client: c, kept: true, v: s.v, expiry: expiry}
	return ""
}
