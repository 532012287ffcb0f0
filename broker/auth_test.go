package broker_test

import (
	"context"
	"net"
	"strings"
	"testing"
	"testing/synctest"

	"holdfast/broker"
	"holdfast/broker/brokertest"
	"holdfast/broker/packet"
)

// users lets in who gives its own name as password, and lets a user do what
// its name is in.
type users struct{}

func (users) Authenticate(_ context.Context, info broker.ConnInfo) (broker.Identity, packet.ReasonCode) {
	if info.HasUsername && string(info.Password) != info.Username {
		return broker.Identity{}, packet.ReasonBadUserNameOrPassword
	}
	return broker.Identity{Name: info.Username}, packet.ReasonSuccess
}

// Exists: all but "former" could come back.
func (users) Exists(id broker.Identity) bool { return id.Name != "former" }

func (users) Elsewhere(broker.Identity) (string, bool) { return "", false }

func (users) Authorize(id broker.Identity, action broker.Action, topic string) bool {
	switch action {
	case broker.ActionPublish:
		return strings.Contains(topic, id.Name)
	case broker.ActionSubscribe:
		return topic != "forbidden/#"
	case broker.ActionReceive:
		return !strings.Contains(topic, "secret") || id.Name == "boss"
	}
	return false
}

func as(p *packet.Connect, user string) *packet.Connect {
	p.HasUsername, p.Username, p.HasPassword, p.Password = true, user, true, []byte(user)
	return p
}

func TestAuth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t, nil, func(o *broker.Options) { o.Auth = users{} })
		wrong := as(brokertest.V5("wrong"), "u")
		wrong.Password = []byte("x")
		if got := brokertest.Raw(t, b.Pipe(), packet.V5).Try(wrong); got.Reason != packet.ReasonBadUserNameOrPassword {
			t.Errorf("wrong password: %v", got.Reason)
		}
		badWill := as(brokertest.V4("will"), "u")
		badWill.Will = &packet.Will{Topic: "other"}
		if got := brokertest.Raw(t, b.Pipe(), packet.V311).Try(badWill); got.Reason != packet.ReasonNotAuthorized {
			t.Errorf("will without a right: %v", got.Reason)
		}
		boss := brokertest.Connect(t, b.Pipe(), as(brokertest.V5("b"), "boss"))
		u := brokertest.Connect(t, b.Pipe(), as(brokertest.V5("u"), "u"))
		if got := u.Subscribe(1, "forbidden/#", "#", "$share/g/forbidden/#"); got[0] != packet.ReasonNotAuthorized || got[1] != 1 || got[2] != packet.ReasonNotAuthorized {
			t.Errorf("SUBACK %v", got)
		}
		boss.Subscribe(1, "#")
		if got := u.Publish(1, false, "boss/room", "x"); got != packet.ReasonNotAuthorized {
			t.Errorf("PUBACK %v", got)
		}
		boss.Publish(1, true, "boss/secret", "kept")
		boss.Publish(1, false, "boss/open", "open")
		if got := boss.Messages(2); got[0] != "kept" || got[1] != "open" {
			t.Errorf("boss got %q", got)
		}
		if got := u.Messages(1); got[0] != "open" {
			t.Errorf("u got %q", got)
		}
		u.Subscribe(0, "boss/+") // retained messages are judged too
		if got := u.Silent(); len(got) > 0 {
			t.Errorf("u got %v", got)
		}
		// The client id of a user who is gone: its rights change with it.
		keep := brokertest.Keep(as(brokertest.V5("p"), "former"), 60)
		p := brokertest.Connect(t, b.Pipe(), keep)
		p.Subscribe(1, "boss/#")
		synctest.Wait()
		p.Rest()
		boss.Publish(1, false, "boss/secret", "not for the former")
		p = brokertest.Connect(t, b.Pipe(), as(keep, "boss"))
		boss.Publish(1, false, "boss/secret", "for boss")
		if got := p.Messages(1); got[0] != "for boss" {
			t.Errorf("got %q", got)
		}
	})
}

// addrConn is a pipe that says it comes from elsewhere.
type addrConn struct {
	net.Conn

	remote net.Addr
}

func (c addrConn) RemoteAddr() net.Addr { return c.remote }

func TestAnonymous(t *testing.T) {
	local := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}
	local6 := &net.TCPAddr{IP: net.IPv6loopback}
	remote := &net.TCPAddr{IP: net.IPv4(192, 168, 1, 7)}
	unix := &net.UnixAddr{Net: "unix"}
	tests := map[string]struct {
		policy broker.Anonymous
		from   net.Addr
		auth   broker.Auth
		user   string
		want   packet.ReasonCode
	}{
		"default, loopback":             {from: local},
		"default, IPv6 loopback":        {from: local6},
		"default, Unix socket":          {from: unix},
		"default, elsewhere":            {from: remote, want: packet.ReasonNotAuthorized},
		"a user nobody can check":       {from: remote, user: "u", want: packet.ReasonNotAuthorized},
		"a user from elsewhere":         {from: remote, auth: users{}, user: "u"},
		"anonymous from elsewhere":      {from: remote, auth: users{}, want: packet.ReasonNotAuthorized},
		"never, loopback":               {policy: broker.AnonymousNever, from: local, want: packet.ReasonNotAuthorized},
		"always, elsewhere":             {policy: broker.AnonymousAlways, from: remote},
		"loopback, elsewhere, by name":  {policy: broker.AnonymousLoopback, from: remote, want: packet.ReasonNotAuthorized},
		"never, a user on the loopback": {policy: broker.AnonymousNever, from: local, auth: users{}, user: "u"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := brokertest.New(t, nil, func(o *broker.Options) { o.Auth = tt.auth })
				client, server := net.Pipe()
				b.ServeConn(addrConn{server, tt.from}, broker.Listener{Name: "l", Anonymous: tt.policy})
				p := brokertest.V5("c")
				if tt.user != "" {
					as(p, tt.user)
				}
				if got := brokertest.Raw(t, client, packet.V5).Try(p); got.Reason != tt.want {
					t.Errorf("CONNACK %v, want %v", got.Reason, tt.want)
				}
			})
		})
	}
}
