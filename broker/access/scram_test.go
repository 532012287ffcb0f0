package access_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/broker"
	"holdfast/broker/access"
	"holdfast/broker/brokertest"
	mqtt "holdfast/broker/client"
	"holdfast/broker/packet"
	"holdfast/broker/scram"
)

// scramKeys are cheap to compute.
func scramKeys(t *testing.T, password string) string {
	t.Helper()
	k, err := scram.Derive([]byte(password), []byte("salt of "+password), scram.MinIterations)
	if err != nil {
		t.Fatal(err)
	}
	return k.String()
}

// scramSite is a broker where pump has SCRAM keys and valve an argon2id hash.
func scramSite(t *testing.T, change func(*access.Options)) (*brokertest.Broker, *access.Access) {
	t.Helper()
	opts := access.DefaultOptions()
	opts.Users = map[string]access.User{
		"pump":  {Password: scramKeys(t, "hunter2")},
		"valve": {Password: access.NewHash([]byte("hunter3")).String()},
	}
	opts.Rules = []access.Rule{{Allow: []access.Right{access.Read, access.Write}, Topics: []string{"#"}}}
	if change != nil {
		change(&opts)
	}
	rules, err := access.Load(opts, nil)
	if err != nil {
		t.Fatal(err)
	}
	a := access.New(rules, slog.New(slog.DiscardHandler))
	return brokertest.New(t, nil, func(o *broker.Options) { o.Auth = a }), a
}

func logIn(t *testing.T, b *brokertest.Broker, user, password string) (*mqtt.Client, error) {
	t.Helper()
	c, err := mqtt.Connect(t.Context(), mqtt.Options{
		URL: "mqtt://broker", ClientID: "c-" + user, Username: user, Password: password, CleanStart: true, SCRAM: true,
		Dial: func(context.Context, string, string) (net.Conn, error) { return b.Pipe(), nil },
	}, nil)
	if err == nil {
		t.Cleanup(c.Abort)
	}
	return c, err
}

func refusal(err error) packet.ReasonCode {
	if refused, ok := errors.AsType[*mqtt.ConnackError](err); ok {
		return refused.Reason
	}
	return 0
}

func TestSCRAM(t *testing.T) {
	tests := map[string]struct {
		user, password string
		change         func(*access.Options)
		want           packet.ReasonCode
	}{
		"the password":        {user: "pump", password: "hunter2"},
		"another password":    {user: "pump", password: "hunter3", want: packet.ReasonNotAuthorized},
		"nobody":              {user: "nobody", password: "hunter2", want: packet.ReasonNotAuthorized},
		"a user without keys": {user: "valve", password: "hunter3", want: packet.ReasonNotAuthorized},
		"not with that client": {user: "pump", password: "hunter2", want: packet.ReasonNotAuthorized, change: func(o *access.Options) {
			o.Users["pump"] = access.User{Password: o.Users["pump"].Password, ClientIDs: []string{"%u"}}
		}},
		"nobody here has keys": {user: "valve", password: "hunter3", want: packet.ReasonBadAuthenticationMethod, change: func(o *access.Options) { delete(o.Users, "pump") }},
		"not on that listener": {user: "pump", password: "hunter2", want: packet.ReasonNotAuthorized, change: func(o *access.Options) {
			o.Users["pump"] = access.User{Password: o.Users["pump"].Password, Listeners: []string{"other"}}
		}},
		"there are no users yet": {user: "pump", password: "hunter2", want: packet.ReasonBadAuthenticationMethod, change: func(o *access.Options) { o.Users, o.Rules = nil, nil }},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b, a := scramSite(t, tt.change)
				c, err := logIn(t, b, tt.user, tt.password)
				if got := refusal(err); got != tt.want || (err == nil) != (tt.want == 0) {
					t.Fatalf("Connect: %v, want reason %v", err, tt.want)
				}
				if err != nil {
					if st := a.Status(); st.Logins != 0 {
						t.Errorf("%d log-ins counted", st.Logins)
					}
					return
				}
				if err := c.Conn().Reauthenticate(t.Context()); err != nil {
					t.Errorf("Reauthenticate: %v", err)
				}
				if got := c.Conn().Connack().Properties.AuthMethod; got != scram.Name {
					t.Errorf("CONNACK names the method %q", got)
				}
				if st := a.Status(); st.Logins != 2 || st.Failures != 0 {
					t.Errorf("status %+v", st)
				}
			})
		})
	}
}

// Keys fit the password itself, for clients that can only send it.
func TestSCRAMKeysForAPassword(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, _ := scramSite(t, nil)
		for password, want := range map[string]packet.ReasonCode{"hunter2": packet.ReasonSuccess, "hunter3": packet.ReasonBadUserNameOrPassword} {
			p := brokertest.V4("pump")
			p.HasUsername, p.Username, p.HasPassword, p.Password = true, "pump", true, []byte(password)
			if got := brokertest.Raw(t, b.Pipe(), packet.V311).Try(p).Reason; got != want {
				t.Errorf("with %q: %v, want %v", password, got, want)
			}
		}
	})
}

// The challenge of a name nobody has looks like that of one somebody has, and
// is the same each time, after a restart too.
func TestSCRAMTellsNoNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		challenge := func(b *brokertest.Broker, user string) string {
			c := brokertest.Raw(t, b.Pipe(), packet.V5)
			p := brokertest.V5("c")
			p.Properties.AuthMethod, p.Properties.AuthData = scram.Name, []byte("n,,n="+user+",r=mine")
			c.Send(p)
			asked, _ := c.Take(packet.TypeAuth).(*packet.Auth)
			_, rest, _ := strings.Cut(string(asked.Properties.AuthData), ",")
			return rest
		}
		b, _ := scramSite(t, nil)
		again, _ := scramSite(t, nil)
		seen := map[string]string{}
		for _, user := range []string{"pump", "valve", "nobody", "somebody"} {
			first := challenge(b, user)
			if len(first) != len(challenge(b, "pump")) || !strings.HasSuffix(first, ",i=4096") {
				t.Errorf("%s: challenge %q", user, first)
			}
			if got := challenge(again, user); got != first {
				t.Errorf("%s: challenge %q, then %q", user, first, got)
			}
			if other, twice := seen[first]; twice {
				t.Errorf("%s and %s have one salt", user, other)
			}
			seen[first] = user
		}
	})
}

// Who guesses is slowed down, and in the end refused unheard.
func TestSCRAMIsThrottled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, a := scramSite(t, nil)
		start := time.Now()
		for range 5 {
			if _, err := logIn(t, b, "pump", "wrong"); refusal(err) != packet.ReasonNotAuthorized {
				t.Fatalf("Connect: %v", err)
			}
		}
		if took := time.Since(start); took < 5*time.Second {
			t.Errorf("five guesses took %v", took)
		}
		if st := a.Status(); st.Failures != 5 || st.Throttled == 0 {
			t.Errorf("status %+v", st)
		}
		if _, err := logIn(t, b, "pump", "hunter2"); err != nil {
			t.Error(err)
		}
	})
}

// The client may leave its first message to be asked for (RFC 4422 §5).
func TestSCRAMFirstMessageAskedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, _ := scramSite(t, nil)
		c := brokertest.Raw(t, b.Pipe(), packet.V5)
		p := brokertest.V5("c")
		p.Properties.AuthMethod = scram.Name
		c.Send(p)
		side, err := scram.NewClient("pump", "hunter2")
		if err != nil {
			t.Fatal(err)
		}
		send := func(data []byte) {
			a := &packet.Auth{Reason: packet.ReasonContinueAuthentication}
			a.Properties.AuthMethod, a.Properties.AuthData = scram.Name, data
			c.Send(a)
		}
		if asked, _ := c.Take(packet.TypeAuth).(*packet.Auth); asked.Properties.AuthData != nil {
			t.Errorf("asked with %q", asked.Properties.AuthData)
		}
		send(side.First())
		asked, _ := c.Take(packet.TypeAuth).(*packet.Auth)
		final, err := side.Respond(asked.Properties.AuthData)
		if err != nil {
			t.Fatal(err)
		}
		send(final)
		ack, _ := c.Take(packet.TypeConnack).(*packet.Connack)
		if err := side.Verify(ack.Properties.AuthData); err != nil || ack.Reason != packet.ReasonSuccess {
			t.Errorf("CONNACK %v, %v", ack.Reason, err)
		}
	})
}

// After a reload with another password the client has to log in again, and
// cannot with the old one.
func TestSCRAMReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, a := scramSite(t, nil)
		c, err := logIn(t, b, "pump", "hunter2")
		if err != nil {
			t.Fatal(err)
		}
		opts := access.DefaultOptions()
		opts.Users = map[string]access.User{"pump": {Password: scramKeys(t, "new")}}
		rules, err := access.Load(opts, nil)
		if err != nil {
			t.Fatal(err)
		}
		old := a.Replace(rules)
		if !rules.Revokes(old, broker.Identity{Name: "pump", ClientID: "c-pump", Listener: "pipe"}) {
			t.Error("a new password revokes nothing")
		}
		if err := c.Conn().Reauthenticate(t.Context()); err == nil {
			t.Error("the old password is good still")
		}
		<-c.Done()
		if reason, ok := errors.AsType[*mqtt.DisconnectError](c.Err()); !ok || reason.Reason != packet.ReasonNotAuthorized {
			t.Errorf("the connection ended with %v", c.Err())
		}
		if _, err := logIn(t, b, "pump", "new"); err != nil {
			t.Error(err)
		}
	})
}

func TestNewSCRAMHash(t *testing.T) {
	h, err := access.NewSCRAMHash([]byte("hunter2"))
	if err != nil {
		t.Fatal(err)
	}
	again, err := access.ParseHash(h.String())
	if err != nil || again.String() != h.String() {
		t.Errorf("ParseHash(%q) = %q, %v", h, again, err)
	}
	if !again.Verify([]byte("hunter2")) || again.Verify([]byte("hunter3")) {
		t.Error("the hash does not fit its password, or fits another")
	}
	if _, err := access.ParseHash("SCRAM-SHA-256$1:AAAA$AAAA:AAAA"); err == nil {
		t.Error("ParseHash takes one iteration")
	}
}
