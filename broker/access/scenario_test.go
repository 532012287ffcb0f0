package access_test

import (
	"log/slog"
	"testing"

	"holdfast/broker"
	"holdfast/broker/access"
	"holdfast/broker/brokertest"
	"holdfast/broker/packet"
)

// secret is the hash of the password "secret".
const secret = "$6$q+CKFXfTxQi2ZVYq$cXceQslRk+pDXwZ/NrX/PDPeSUJoz7KLAuxuOXtqyxzARF4CradqmhXfTbAFKLJk/yLhtHzS0BiYnGUKH+cpAg=="

// site is a broker whose rights can be changed while it runs.
type site struct {
	*brokertest.Broker

	t     *testing.T
	auth  *access.Access
	rules *access.Rules
}

// may are the rights of the users of a site.
type may map[string]struct{ read, write []string }

func compile(t *testing.T, m may) *access.Rules {
	t.Helper()
	o := access.DefaultOptions()
	o.Users = map[string]access.User{}
	for user, r := range m {
		o.Users[user] = access.User{Password: secret}
		if len(r.read) > 0 {
			o.Rules = append(o.Rules, access.Rule{Users: []string{user}, Allow: []access.Right{access.Read}, Topics: r.read})
		}
		if len(r.write) > 0 {
			o.Rules = append(o.Rules, access.Rule{Users: []string{user}, Allow: []access.Right{access.Write}, Topics: r.write})
		}
	}
	rules, err := access.Load(o, nil)
	if err != nil {
		t.Fatal(err)
	}
	return rules
}

func newSite(t *testing.T, store *brokertest.MemoryStore, m may) *site {
	t.Helper()
	s := &site{t: t, rules: compile(t, m)}
	s.auth = access.New(s.rules, slog.New(slog.DiscardHandler))
	s.Broker = brokertest.New(t, store, func(o *broker.Options) { o.Auth = s.auth })
	return s
}

// reload does what the gateway does at SIGHUP.
func (s *site) reload(m may) {
	s.t.Helper()
	before := s.rules
	s.rules = compile(s.t, m)
	s.auth.Replace(s.rules)
	s.Reauthorize()
	s.Revoke(func(id broker.Identity) bool { return s.rules.Revokes(before, id) })
}

func by(p *packet.Connect, user string) *packet.Connect {
	p.HasUsername, p.Username, p.HasPassword, p.Password = true, user, true, []byte("secret")
	return p
}

func (s *site) connect(p *packet.Connect, user string) *brokertest.Client {
	s.t.Helper()
	return brokertest.Connect(s.t, s.Pipe(), by(p, user))
}

func (s *site) expect(c *brokertest.Client, want ...string) {
	s.t.Helper()
	got := []string{}
	for _, p := range c.Silent() {
		if p, ok := p.(*packet.Publish); ok {
			got = append(got, string(p.Payload))
		}
	}
	if len(got) != len(want) {
		s.t.Errorf("got %q, want %q", got, want)
		return
	}
	for i := range got {
		if got[i] != want[i] {
			s.t.Errorf("got %q, want %q", got, want)
		}
	}
}

var boss = struct{ read, write []string }{[]string{"#"}, []string{"#"}}

func TestEachWayOfAMessageIsGuarded(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil, may{"boss": boss, "ann": {read: []string{"plant/open/#"}, write: []string{"ann/#"}}})
	b := s.connect(brokertest.V5("boss"), "boss")
	b.Subscribe(1, "#")

	wrong := by(brokertest.V5("x"), "ann")
	wrong.Password = []byte("guess")
	if got := brokertest.Raw(t, s.Pipe(), packet.V5).Try(wrong).Reason; got != packet.ReasonBadUserNameOrPassword {
		t.Errorf("a guess: %v", got)
	}
	will := by(brokertest.V5("w"), "ann")
	will.Will = &packet.Will{Topic: "plant/open/will", Payload: []byte("x")}
	if got := brokertest.Raw(t, s.Pipe(), packet.V5).Try(will).Reason; got != packet.ReasonNotAuthorized {
		t.Errorf("a will to a foreign topic: %v", got)
	}

	ann := s.connect(brokertest.V5("ann"), "ann")
	old := s.connect(brokertest.V4("old"), "ann")
	for qos := range byte(3) {
		if got := ann.Publish(qos, false, "plant/open/x", "forged"); qos > 0 && got != packet.ReasonNotAuthorized {
			t.Errorf("QoS %d to a foreign topic: %v", qos, got)
		}
		old.Publish(qos, false, "plant/open/x", "forged")
	}
	ann.Publish(1, true, "plant/open/x", "") // would clear a retained message
	// An alias is no way around: it is judged by what it stands for.
	ann.PublishWith(&packet.Publish{Topic: []byte("plant/open/x"), TopicAlias: 1, Payload: []byte("forged")})
	if got := ann.PublishWith(&packet.Publish{QoS: 1, TopicAlias: 1, Payload: []byte("forged")}); got != packet.ReasonNotAuthorized {
		t.Errorf("an alias of a foreign topic: %v", got)
	}
	ann.Publish(1, false, "ann/1", "own")
	s.expect(b, "own")

	codes := ann.Subscribe(1, "plant/open/#", "#", "plant/+/x", "$share/g/#", "$share/g/plant/open/+", "plant/secret", "$SYS/#")
	const no = packet.ReasonNotAuthorized
	for i, want := range []packet.ReasonCode{1, no, no, no, 1, no, no} {
		if codes[i] != want {
			t.Errorf("SUBACK %v: number %d is not %v", codes, i, want)
		}
	}
}

// Who may subscribe to more than it may read gets what it may read: as
// messages come, retained and stored.
func TestDeliveryIsGuarded(t *testing.T) {
	t.Parallel()
	store := brokertest.NewMemoryStore()
	defer store.Close()
	o := access.DefaultOptions()
	o.Users = map[string]access.User{"boss": {Password: secret}, "ann": {Password: secret}}
	o.Rules = []access.Rule{
		{Users: []string{"boss"}, Allow: []access.Right{access.Read, access.Write}, Topics: []string{"#"}},
		{Users: []string{"ann"}, Allow: []access.Right{access.Subscribe}, Topics: []string{"#"}},
		{Users: []string{"ann"}, Allow: []access.Right{access.Read}, Topics: []string{"open/#"}},
	}
	rules, err := access.Load(o, nil)
	if err != nil {
		t.Fatal(err)
	}
	s := &site{t: t, rules: rules, auth: access.New(rules, slog.New(slog.DiscardHandler))}
	s.Broker = brokertest.New(t, store, func(o *broker.Options) { o.Auth = s.auth })
	b := s.connect(brokertest.V5("boss"), "boss")
	b.Publish(1, true, "open/r", "open, kept")
	b.Publish(1, true, "secret/r", "secret, kept")
	ann := s.connect(brokertest.Keep(brokertest.V5("ann"), 60), "ann")
	ann.Subscribe(2, "#")
	if got := ann.Messages(1); got[0] != "open, kept" {
		t.Errorf("retained: %q", got)
	}
	for qos := range byte(3) {
		b.Publish(qos, false, "secret/x", "secret")
		b.Publish(qos, false, "open/x", "open")
		if got := ann.Messages(1); got[0] != "open" {
			t.Errorf("QoS %d: %q", qos, got)
		}
	}
	ann.Disconnect(0)
	b.Publish(1, false, "secret/x", "secret")
	b.Publish(2, false, "secret/x", "secret")
	b.Publish(1, false, "open/x", "stored")
	ann = s.connect(brokertest.Keep(brokertest.V5("ann"), 60), "ann")
	if got := ann.Messages(1); got[0] != "stored" {
		t.Errorf("stored: %q", got)
	}
	s.expect(ann)
}

// New rights hold at once for those who are connected.
func TestReload(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil, may{"boss": boss, "ann": {read: []string{"a/#", "b/#"}, write: []string{"a/#"}}, "gone": boss})
	b := s.connect(brokertest.V5("boss"), "boss")
	ann := s.connect(brokertest.V5("ann"), "ann")
	gone := s.connect(brokertest.V5("gone"), "gone")
	ann.Subscribe(1, "a/#", "b/#")
	b.Publish(1, false, "b/x", "before")
	if got := ann.Messages(1); got[0] != "before" {
		t.Errorf("got %q", got)
	}
	s.reload(may{"boss": boss, "ann": {read: []string{"a/#"}, write: []string{"c/#"}}})
	if got, told := gone.Ended(); !told || got != packet.ReasonNotAuthorized {
		t.Errorf("a user who is gone: DISCONNECT %v, %t", got, told)
	}
	b.Publish(1, false, "b/x", "no longer")
	b.Publish(1, false, "a/x", "still")
	if got := ann.Messages(1); got[0] != "still" {
		t.Errorf("got %q", got)
	}
	if got := ann.Publish(1, false, "a/x", "x"); got != packet.ReasonNotAuthorized {
		t.Errorf("a right that is gone: %v", got)
	}
	if got := ann.Publish(1, false, "c/x", "x"); got.Failed() {
		t.Errorf("a right that is new: %v", got)
	}
	if got := ann.Subscribe(1, "b/x"); got[0] != packet.ReasonNotAuthorized {
		t.Errorf("SUBACK %v", got)
	}
	if got := brokertest.Raw(t, s.Pipe(), packet.V5).Try(by(brokertest.V5("gone"), "gone")).Reason; got != packet.ReasonBadUserNameOrPassword {
		t.Errorf("the user who is gone comes back: %v", got)
	}
}

// What was stored under rights that are gone is not delivered.
func TestReloadConcernsWhatIsStored(t *testing.T) {
	t.Parallel()
	for _, qos := range []byte{1, 2} {
		store := brokertest.NewMemoryStore()
		defer store.Close()
		s := newSite(t, store, may{"boss": boss, "ann": {read: []string{"a/#", "b/#"}}})
		b := s.connect(brokertest.V5("boss"), "boss")
		ann := s.connect(brokertest.Keep(brokertest.V5("ann"), 60), "ann")
		ann.Subscribe(2, "a/#", "b/#")
		ann.Disconnect(0)
		b.Publish(qos, false, "b/x", "stored, then forbidden")
		b.Publish(qos, false, "a/x", "stored")
		s.reload(may{"boss": boss, "ann": {read: []string{"a/#"}}})
		ann = s.connect(brokertest.Keep(brokertest.V5("ann"), 60), "ann")
		if got := ann.Messages(1); got[0] != "stored" {
			t.Errorf("QoS %d: %q", qos, got)
		}
		s.expect(ann)
	}
}

// A will that was allowed is not published once it is not.
func TestReloadConcernsWills(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil, may{"boss": boss, "ann": {write: []string{"a/#"}}})
	b := s.connect(brokertest.V5("boss"), "boss")
	b.Subscribe(1, "#")
	p := brokertest.V5("ann")
	p.Will = &packet.Will{Topic: "a/will", QoS: 1, Payload: []byte("last words")}
	ann := s.connect(p, "ann")
	s.reload(may{"boss": boss, "ann": {write: []string{"b/#"}}})
	ann.Kill()
	for s.Status().Clients > 1 { // until the connection is gone
		b.Silent()
	}
	b.Publish(1, false, "end", "end")
	if got := b.Messages(1); got[0] != "end" {
		t.Errorf("got %q", got)
	}
}

// A client id with a session is that of its user: nobody else throws it out, is
// given what waits for it, or ends it. That holds across a restart, and until the
// user is gone.
func TestASessionBelongsToItsUser(t *testing.T) {
	t.Parallel()
	store := brokertest.NewMemoryStore()
	defer store.Close()
	before := may{"boss": boss, "ann": {read: []string{"a/#"}}}
	s := newSite(t, store, before)
	keep := func(v packet.Version) *packet.Connect {
		return brokertest.Keep(&packet.Connect{Version: v, ClientID: "shared"}, 60)
	}
	refused := func(when string) {
		t.Helper()
		for _, p := range []*packet.Connect{keep(packet.V5), keep(packet.V311), brokertest.V5("shared"), brokertest.V4("shared")} {
			if got := brokertest.Raw(t, s.Pipe(), p.Version).Try(by(p, "ann")).Reason; got != packet.ReasonNotAuthorized {
				t.Errorf("%s: another user takes the client id, %v, clean start %t: %v", when, p.Version, p.CleanStart, got)
			}
		}
		if n := s.Status().ClientIDsRefused; n != 4 {
			t.Errorf("%s: %d refusals counted, want 4", when, n)
		}
	}
	b := s.connect(brokertest.V5("b"), "boss")
	first := s.connect(keep(packet.V5), "boss")
	first.Subscribe(1, "#")
	refused("connected")
	b.Publish(1, false, "secret", "to one who was left alone")
	if got := first.Messages(1); got[0] != "to one who was left alone" {
		t.Errorf("got %q", got)
	}
	first.Disconnect(0)
	b.Publish(1, false, "secret", "stored")

	s.Stop(t)
	store.Restart()
	s = newSite(t, store, before)
	refused("after a restart")
	first = s.connect(keep(packet.V5), "boss")
	s.expect(first, "stored")
	first.Disconnect(0)

	s.reload(may{"chief": boss, "ann": {read: []string{"a/#"}}})
	c := s.connect(brokertest.V5("c"), "chief")
	heir := s.connect(keep(packet.V5), "ann")
	c.Publish(1, false, "secret", "for the boss")
	c.Publish(1, false, "a/x", "for ann")
	s.expect(heir, "for ann")
}

// What is kept over a restart is kept for whom it was kept before: rights that
// were taken away meanwhile are gone before the client comes back.
func TestRightsHoldAcrossARestart(t *testing.T) {
	t.Parallel()
	store := brokertest.NewMemoryStore()
	defer store.Close()
	s := newSite(t, store, may{"boss": boss, "ann": {read: []string{"a/#", "b/#"}, write: []string{"a/#"}}, "cat": {write: []string{"c/#"}}})
	ann := s.connect(brokertest.Keep(brokertest.V5("ann"), 600), "ann")
	ann.Subscribe(1, "a/#", "b/#")
	for user, topic := range map[string]string{"ann": "a/will", "cat": "c/will"} {
		p := brokertest.V5(user + " the dying")
		p.Will = &packet.Will{Topic: topic, QoS: 1, Payload: []byte("last words of " + user)}
		s.connect(p, user)
	}
	s.Stop(t)
	store.Restart()

	rules := compile(t, may{"boss": boss, "ann": {read: []string{"a/#"}}, "cat": {write: []string{"c/#"}}})
	s = &site{t: t, rules: rules, auth: access.New(rules, slog.New(slog.DiscardHandler))}
	s.Broker = brokertest.New(t, store, func(o *broker.Options) { o.Auth, o.WillGrace = s.auth, 0 })
	b := s.connect(brokertest.V5("b"), "boss")
	b.Subscribe(1, "a/will", "c/will")
	for s.Status().PendingWills > 0 {
		b.Silent()
	}
	b.Publish(1, false, "b/x", "no longer")
	b.Publish(1, false, "a/x", "still")
	if got := store.Backlog("ann"); got != 1 {
		t.Errorf("%d messages are kept for ann, want 1", got)
	}
	if got := s.Status().Denied; got != 1 {
		t.Errorf("%d denied, want the will of ann", got)
	}
	ann = s.connect(brokertest.Keep(brokertest.V5("ann"), 600), "ann")
	if got := ann.Messages(1); got[0] != "still" { // from the store, which takes its time
		t.Errorf("got %q, want still", got)
	}
	s.expect(ann)
}

// A user may belong to another server: its clients are told where, also those that
// are connected when that is decided. Others stay.
func TestUsersOfAnotherServer(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil, may{"boss": boss, "ann": boss})
	stays, goes := s.connect(brokertest.V5("b"), "boss"), s.connect(brokertest.V5("a"), "ann")
	for _, tt := range []struct {
		moved  bool
		reason packet.ReasonCode
	}{{false, packet.ReasonUseAnotherServer}, {true, packet.ReasonServerMoved}} {
		o := access.DefaultOptions()
		o.Users = map[string]access.User{
			"boss": {Password: secret},
			"ann":  {Password: secret, ServerReference: "other.example:1883", ServerMoved: tt.moved},
		}
		o.Rules = []access.Rule{{Allow: []access.Right{access.Read, access.Write}, Topics: []string{"#"}}}
		rules, err := access.Load(o, nil)
		if err != nil {
			t.Fatal(err)
		}
		s.auth.Replace(rules)
		if n := s.Redirect(); !tt.moved {
			got, told := goes.Ended()
			d, _ := goes.All()[0].(*packet.Disconnect)
			if n != 1 || !told || got != tt.reason || d.Properties.ServerReference != "other.example:1883" {
				t.Errorf("%d sent away; DISCONNECT %v to %q", n, got, d.Properties.ServerReference)
			}
		} else if n != 0 {
			t.Errorf("%d sent away", n)
		}
		for _, p := range []*packet.Connect{brokertest.V5("a"), brokertest.V4("a")} {
			ack := brokertest.Raw(t, s.Pipe(), p.Version).Try(by(p, "ann"))
			want, where := tt.reason, "other.example:1883"
			if p.Version < packet.V5 {
				want, where = packet.ReasonServerUnavailable, ""
			}
			if ack.Reason != want || ack.Properties.ServerReference != where {
				t.Errorf("%s: CONNACK %v to %q, want %v", p.Version, ack.Reason, ack.Properties.ServerReference, want)
			}
		}
		wrong := by(brokertest.V5("a"), "ann")
		wrong.Password = []byte("guess")
		if ack := brokertest.Raw(t, s.Pipe(), packet.V5).Try(wrong); ack.Reason != packet.ReasonBadUserNameOrPassword || ack.Properties.ServerReference != "" {
			t.Errorf("a guess: CONNACK %v to %q", ack.Reason, ack.Properties.ServerReference)
		}
	}
	if n := s.Status().Redirected; n != 5 {
		t.Errorf("%d redirected, want 5", n)
	}
	stays.Publish(1, false, "a", "x")
}
