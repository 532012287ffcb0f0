package broker_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/broker"
	"holdfast/broker/brokertest"
	"holdfast/broker/packet"
)

// knock is an Auth with a method of its own: the client says "knock", the
// server asks "who", and lets in whoever answers "it is NAME". It asks "who"
// again whenever it hears "sorry", and does not answer to "wait" until its
// context ends.
type knock struct{ gate }

func (*knock) BeginExchange(method string, _ broker.ConnInfo) broker.Exchange {
	if method != "KNOCK" {
		return nil
	}
	return &knocking{}
}

type knocking struct{ knocked bool }

func (k *knocking) Step(ctx context.Context, data []byte) ([]byte, broker.Identity, packet.ReasonCode) {
	said := string(data)
	switch {
	case said == "wait":
		<-ctx.Done()
		return nil, broker.Identity{}, packet.ReasonServerBusy
	case said == "sorry", !k.knocked && said == "knock":
		k.knocked = true
		return []byte("who"), broker.Identity{}, packet.ReasonContinueAuthentication
	case k.knocked && len(said) > 6 && said[:6] == "it is ":
		return []byte("hello"), broker.Identity{Name: said[6:]}, packet.ReasonSuccess
	}
	return nil, broker.Identity{}, packet.ReasonNotAuthorized
}

func knockConnect(data string) *packet.Connect {
	p := brokertest.V5("pump")
	p.Properties.AuthMethod = "KNOCK"
	if data != "" {
		p.Properties.AuthData = []byte(data)
	}
	return p
}

func auth(reason packet.ReasonCode, method, data string) *packet.Auth {
	p := &packet.Auth{Reason: reason}
	p.Properties.AuthMethod = method
	if data != "" {
		p.Properties.AuthData = []byte(data)
	}
	return p
}

func more(data string) *packet.Auth {
	return auth(packet.ReasonContinueAuthentication, "KNOCK", data)
}

func again(data string) *packet.Auth { return auth(packet.ReasonReauthenticate, "KNOCK", data) }

func knockBroker(t *testing.T) *brokertest.Broker {
	t.Helper()
	return brokertest.New(t, nil, func(o *broker.Options) { o.Auth = &knock{} })
}

func takeAuth(t *testing.T, c *brokertest.Client, reason packet.ReasonCode, data string) {
	t.Helper()
	p, _ := c.Take(packet.TypeAuth).(*packet.Auth)
	if p.Reason != reason || p.Properties.AuthMethod != "KNOCK" || string(p.Properties.AuthData) != data {
		t.Errorf("AUTH %v %q %q, want %v %q", p.Reason, p.Properties.AuthMethod, p.Properties.AuthData, reason, data)
	}
	if p.Properties.ReasonString != "" || len(p.Properties.User) > 0 {
		t.Errorf("AUTH carries %+v", p.Properties)
	}
}

func knocked(t *testing.T, b *brokertest.Broker) *brokertest.Client {
	t.Helper()
	c := brokertest.Raw(t, b.Pipe(), packet.V5)
	c.Send(knockConnect("knock"))
	takeAuth(t, c, packet.ReasonContinueAuthentication, "who")
	c.Send(more("it is pump"))
	ack, _ := c.Take(packet.TypeConnack).(*packet.Connack)
	if ack.Reason != packet.ReasonSuccess || ack.Properties.AuthMethod != "KNOCK" || string(ack.Properties.AuthData) != "hello" {
		t.Fatalf("CONNACK %v %q %q", ack.Reason, ack.Properties.AuthMethod, ack.Properties.AuthData)
	}
	return c
}

// MQTT 5.0 §4.12.
func TestExtendedAuthentication(t *testing.T) {
	tests := map[string]struct {
		connect *packet.Connect
		then    []packet.Packet // sent one after the other, each after an AUTH "who"
		want    packet.ReasonCode
		silent  bool // no CONNACK comes
	}{
		"knock and name":                  {connect: knockConnect("knock"), then: []packet.Packet{more("it is pump")}},
		"asked twice":                     {connect: knockConnect("knock"), then: []packet.Packet{more("sorry"), more("it is pump")}},
		"a refusal at once":               {connect: knockConnect("let me in"), want: packet.ReasonNotAuthorized},
		"a refusal on the way":            {connect: knockConnect("knock"), then: []packet.Packet{more("nobody")}, want: packet.ReasonNotAuthorized},
		"an AUTH without data":            {connect: knockConnect("knock"), then: []packet.Packet{more("")}, want: packet.ReasonNotAuthorized},
		"another method on the way":       {connect: knockConnect("knock"), then: []packet.Packet{auth(packet.ReasonContinueAuthentication, "RING", "it is pump")}, want: packet.ReasonBadAuthenticationMethod},
		"to authenticate again too early": {connect: knockConnect("knock"), then: []packet.Packet{again("knock")}, want: packet.ReasonProtocolError},
		"success from the client":         {connect: knockConnect("knock"), then: []packet.Packet{auth(packet.ReasonSuccess, "KNOCK", "x")}, want: packet.ReasonProtocolError},
		"a PUBLISH before the CONNACK":    {connect: knockConnect("knock"), then: []packet.Packet{&packet.Publish{Topic: []byte("t")}}, want: packet.ReasonProtocolError},
		"a PINGREQ before the CONNACK":    {connect: knockConnect("knock"), then: []packet.Packet{&packet.Pingreq{}}, want: packet.ReasonProtocolError},
		"a second CONNECT":                {connect: knockConnect("knock"), then: []packet.Packet{knockConnect("knock")}, want: packet.ReasonProtocolError},
		"more than there may be":          {connect: knockConnect("knock"), then: []packet.Packet{more(string(make([]byte, 65535)))}, want: packet.ReasonPacketTooLarge},
		"a goodbye on the way":            {connect: knockConnect("knock"), then: []packet.Packet{&packet.Disconnect{}}, silent: true},
		"without end": {
			connect: knockConnect("knock"), want: packet.ReasonNotAuthorized,
			then: []packet.Packet{more("sorry"), more("sorry"), more("sorry"), more("sorry"), more("sorry"), more("sorry"), more("sorry"), more("sorry")},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := knockBroker(t)
				c := brokertest.Raw(t, b.Pipe(), packet.V5)
				c.Send(tt.connect)
				for _, p := range tt.then {
					takeAuth(t, c, packet.ReasonContinueAuthentication, "who")
					bytes, err := p.AppendTo(nil, packet.V5)
					if err != nil {
						// What the codec does not send, as success of a client.
						t.Fatal(err)
					}
					c.SendBytes(bytes)
				}
				if tt.silent {
					c.Ended()
					if got := c.All(); len(got) > 0 {
						t.Errorf("got %v", got)
					}
					return
				}
				ack, _ := c.Take(packet.TypeConnack).(*packet.Connack)
				if ack.Reason != tt.want {
					t.Errorf("CONNACK %v, want %v", ack.Reason, tt.want)
				}
				if tt.want.Failed() {
					c.Ended()
				} else {
					c.Silent()
				}
			})
		})
	}
}

// Who knows no method, and who names one nobody knows, is refused.
func TestUnknownAuthenticationMethod(t *testing.T) {
	for name, change := range map[string]func(*broker.Options){
		"no Auth":        func(*broker.Options) {},
		"a plain Auth":   func(o *broker.Options) { o.Auth = &gate{} },
		"another method": func(o *broker.Options) { o.Auth = &knock{} },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := brokertest.New(t, nil, change)
				c := brokertest.Raw(t, b.Pipe(), packet.V5)
				p := brokertest.V5("pump")
				p.Properties.AuthMethod = "RING"
				if ack := c.Try(p); ack.Reason != packet.ReasonBadAuthenticationMethod || ack.Properties.AuthMethod != "" {
					t.Errorf("CONNACK %v, method %q", ack.Reason, ack.Properties.AuthMethod)
				}
				c.Ended()
			})
		})
	}
}

// The whole exchange has the connect timeout, and its steps know.
func TestExtendedAuthenticationEndsInTime(t *testing.T) {
	for name, play := range map[string]func(c *brokertest.Client){
		"a client that falls silent": func(*brokertest.Client) {},
		"a step that waits":          func(c *brokertest.Client) { c.Send(more("wait")) },
		"a client that dawdles": func(c *brokertest.Client) {
			pass(6 * time.Second)
			c.Send(more("sorry"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := knockBroker(t)
				c := brokertest.Raw(t, b.Pipe(), packet.V5)
				start := time.Now()
				c.Send(knockConnect("knock"))
				takeAuth(t, c, packet.ReasonContinueAuthentication, "who")
				play(c)
				c.EndedWithin(time.Minute)
				if took := time.Since(start); took > 12*time.Second {
					t.Errorf("closed after %v", took)
				}
			})
		})
	}
}

// MQTT 5.0 §4.12.1: as often as the client likes, and its messages go on.
func TestReauthentication(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := knockBroker(t)
		c := knocked(t, b)
		c.Subscribe(1, "t")
		for range 3 {
			c.Send(again("knock"))
			takeAuth(t, c, packet.ReasonContinueAuthentication, "who")
			if got := c.Publish(1, false, "t", "meanwhile"); got != packet.ReasonSuccess {
				t.Errorf("PUBACK %v", got)
			}
			c.Messages(1)
			c.Send(more("it is pump"))
			takeAuth(t, c, packet.ReasonSuccess, "hello")
		}
		// Nothing is left to run out.
		pass(time.Minute)
		c.Silent()
	})
}

func TestReauthenticationFails(t *testing.T) {
	tests := map[string]struct {
		then []packet.Packet
		want packet.ReasonCode
		or   packet.ReasonCode // where two clocks race
	}{
		"a refusal":                  {then: []packet.Packet{again("let me in")}, want: packet.ReasonNotAuthorized},
		"another user":               {then: []packet.Packet{again("knock"), more("it is valve")}, want: packet.ReasonNotAuthorized},
		"another method":             {then: []packet.Packet{auth(packet.ReasonReauthenticate, "RING", "knock")}, want: packet.ReasonBadAuthenticationMethod},
		"another method on the way":  {then: []packet.Packet{again("knock"), auth(packet.ReasonContinueAuthentication, "RING", "it is pump")}, want: packet.ReasonBadAuthenticationMethod},
		"nothing to go on with":      {then: []packet.Packet{more("it is pump")}, want: packet.ReasonProtocolError},
		"twice at once":              {then: []packet.Packet{again("knock"), again("knock")}, want: packet.ReasonProtocolError},
		"a step before its turn":     {then: []packet.Packet{again("wait"), more("knock")}, want: packet.ReasonProtocolError},
		"success from the client":    {then: []packet.Packet{auth(packet.ReasonSuccess, "KNOCK", "x")}, want: packet.ReasonProtocolError},
		"a step that takes too long": {then: []packet.Packet{again("wait")}, want: packet.ReasonNotAuthorized, or: packet.ReasonServerBusy},
		"a client that falls silent": {then: []packet.Packet{again("knock")}, want: packet.ReasonNotAuthorized},
		"a client that goes on and on": {
			then: []packet.Packet{again("knock"), more("sorry"), more("sorry"), more("sorry"), more("sorry"), more("sorry"), more("sorry"), more("sorry"), more("sorry")},
			want: packet.ReasonNotAuthorized,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := knocked(t, knockBroker(t))
				for _, p := range tt.then {
					bytes, err := p.AppendTo(nil, packet.V5)
					if err != nil {
						t.Fatal(err)
					}
					c.SendBytes(bytes)
					synctest.Wait()
				}
				got, told := c.EndedWithin(time.Minute)
				if !told || got != tt.want && (tt.or == 0 || got != tt.or) {
					t.Errorf("DISCONNECT %v (sent: %v), want %v", got, told, tt.want)
				}
			})
		})
	}
}

// The connection may end at any point of it; goleak sees what is left.
func TestConnectionEndsDuringAuthentication(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := knockBroker(t)
		half := brokertest.Raw(t, b.Pipe(), packet.V5)
		half.Send(knockConnect("knock"))
		takeAuth(t, half, packet.ReasonContinueAuthentication, "who")
		half.Kill()
		c := knocked(t, b)
		c.Send(again("wait"))
		synctest.Wait()
		c.Kill()
		synctest.Wait()
		if st := b.Status(); st.Connections != 0 || st.Sessions != 0 {
			t.Errorf("%d connections and %d sessions left", st.Connections, st.Sessions)
		}
	})
}

// A client that named no method may not send AUTH (MQTT 5.0 [MQTT-4.12.0-7]).
func TestAuthWithoutMethod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := brokertest.Connect(t, knockBroker(t).Pipe(), brokertest.V5("pump"))
		if c.Connack.Properties.AuthMethod != "" {
			t.Errorf("CONNACK names the method %q", c.Connack.Properties.AuthMethod)
		}
		c.Send(again("knock"))
		if got, _ := c.Ended(); got != packet.ReasonProtocolError {
			t.Errorf("DISCONNECT %v", got)
		}
	})
}
