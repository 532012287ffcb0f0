package broker_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/broker"
	"holdfast/broker/brokertest"
	"holdfast/broker/durable"
	"holdfast/broker/packet"
)

func TestConnectAnswers(t *testing.T) {
	will := func(topic string) *packet.Will { return &packet.Will{Topic: topic, Payload: []byte("x"), QoS: 1} }
	tests := map[string]struct {
		connect packet.Connect
		want    packet.ReasonCode
	}{
		"5.0":                                {connect: packet.Connect{Version: packet.V5, ClientID: "a", CleanStart: true}},
		"5.0 with an empty client id":        {connect: packet.Connect{Version: packet.V5}},
		"3.1.1 clean with an empty id":       {connect: packet.Connect{Version: packet.V311, CleanStart: true}},
		"3.1 with 23 characters":             {connect: packet.Connect{Version: packet.V31, CleanStart: true, ClientID: strings.Repeat("é", 23)}},
		"3.1 with 24 characters":             {connect: packet.Connect{Version: packet.V31, CleanStart: true, ClientID: strings.Repeat("é", 24)}, want: packet.ReasonClientIDNotValid},
		"an authentication method":           {connect: packet.Connect{Version: packet.V5, ClientID: "a", Properties: packet.Properties{AuthMethod: "SCRAM-SHA-1"}}, want: packet.ReasonBadAuthenticationMethod},
		"a will topic with a wildcard":       {connect: packet.Connect{Version: packet.V5, ClientID: "a", Will: will("a/+")}, want: packet.ReasonTopicNameInvalid},
		"a will for $SYS":                    {connect: packet.Connect{Version: packet.V5, ClientID: "a", Will: will("$SYS/broker/uptime")}, want: packet.ReasonNotAuthorized},
		"a will for $SYS in 3.1.1":           {connect: packet.Connect{Version: packet.V311, CleanStart: true, ClientID: "a", Will: will("$SYS/x")}, want: packet.ReasonNotAuthorized},
		"a user name without an Auth to ask": {connect: packet.Connect{Version: packet.V5, ClientID: "a", HasUsername: true, Username: "u"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := brokertest.New(t, nil)
				c := brokertest.Raw(t, b.Pipe(), tt.connect.Version)
				got := c.Try(&tt.connect)
				if got.Reason != tt.want {
					t.Fatalf("CONNACK %v, want %v", got.Reason, tt.want)
				}
				if tt.want.Failed() {
					if _, told := c.Ended(); told {
						t.Error("a DISCONNECT followed the refusal")
					}
					return
				}
				assigned := tt.connect.Version == packet.V5 && tt.connect.ClientID == ""
				if (got.Properties.AssignedClientID != "") != assigned {
					t.Errorf("assigned client id %q", got.Properties.AssignedClientID)
				}
				c.Silent()
			})
		})
	}
}

func TestConnectRefusedWithoutAnswer(t *testing.T) {
	tests := map[string]string{
		"no CONNECT first":                       "\xc0\x00",
		"PUBLISH first":                          "\x30\x04\x00\x01a1",
		"reserved packet type":                   "\x00\x00",
		"3.1.1 will topic with a wildcard":       "\x10\x14\x00\x04MQTT\x04\x06\x00\x00\x00\x01a\x00\x02+/\x00\x01w",
		"3.1.1 with the reserved connect flag":   "\x10\x0d\x00\x04MQTT\x04\x03\x00\x00\x00\x01a",
		"3.1.1 password without a user name":     "\x10\x10\x00\x04MQTT\x04\x42\x00\x00\x00\x01a\x00\x01p",
		"a fixed header with five length bytes":  "\x10\xff\xff\xff\xff\x01",
		"a CONNECT larger than max_connect_size": "\x10\xff\xff\x7f",
		"wrong fixed header flags":               "\x11\x0d\x00\x04MQTT\x04\x02\x00\x00\x00\x01a",
	}
	for name, in := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := brokertest.New(t, nil)
				c := brokertest.Raw(t, b.Pipe(), packet.V311)
				c.SendBytes([]byte(in))
				c.Ended()
				if st := b.Status(); st.Clients != 0 || st.Sessions != 0 {
					t.Errorf("left behind: %+v", st)
				}
			})
		})
	}
}

func TestConnectAnswersWhatItCannotRead(t *testing.T) {
	tests := map[string]struct {
		in      string
		version packet.Version
		want    packet.ReasonCode
	}{
		"level 6":                    {"\x10\x0d\x00\x04MQTT\x06\x02\x00\x00\x00\x01a", packet.V311, packet.ReasonUnsupportedProtocolVersion},
		"another name":               {"\x10\x0d\x00\x04MQIS\x04\x02\x00\x00\x00\x01a", packet.V311, packet.ReasonUnsupportedProtocolVersion},
		"3.1.1, no id, session kept": {"\x10\x0c\x00\x04MQTT\x04\x00\x00\x00\x00\x00", packet.V311, packet.ReasonClientIDNotValid},
		"5.0 with the reserved flag": {"\x10\x0e\x00\x04MQTT\x05\x03\x00\x00\x00\x00\x01a", packet.V5, packet.ReasonMalformedPacket},
		"5.0 with receive maximum 0": {"\x10\x11\x00\x04MQTT\x05\x02\x00\x00\x03\x21\x00\x00\x00\x01a", packet.V5, packet.ReasonProtocolError},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := brokertest.New(t, nil)
				c := brokertest.Raw(t, b.Pipe(), tt.version)
				c.SendBytes([]byte(tt.in))
				ack, _ := c.Take(packet.TypeConnack).(*packet.Connack)
				if ack.Reason != tt.want {
					t.Errorf("CONNACK %v, want %v", ack.Reason, tt.want)
				}
				c.Ended()
			})
		})
	}
}

func TestConnackTellsTheLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t, nil, func(o *broker.Options) {
			o.MaxKeepAlive, o.MaxSessionExpiry = time.Minute, time.Hour
			o.ReceiveMaximum, o.MaxPacketSize, o.MaxTopicAliases = 7, 5000, 3
		})
		p := brokertest.Keep(brokertest.V5("a"), 7200)
		p.KeepAlive = 300
		got := brokertest.Connect(t, b.Pipe(), p).Connack.Properties
		if got.ServerKeepAlive == nil || *got.ServerKeepAlive != 60 {
			t.Errorf("server keep alive %v, want 60", got.ServerKeepAlive)
		}
		if got.SessionExpiry == nil || *got.SessionExpiry != 3600 {
			t.Errorf("session expiry %v, want 3600", got.SessionExpiry)
		}
		if got.ReceiveMaximum != 7 || got.MaximumPacketSize != 5000 || got.TopicAliasMaximum != 3 {
			t.Errorf("limits %+v", got)
		}
	})
}

func TestConnectTimeout(t *testing.T) {
	for name, sent := range map[string]string{"nothing": "", "half a CONNECT": "\x10\x0d\x00\x04MQ"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := brokertest.New(t, nil, func(o *broker.Options) { o.ConnectTimeout = 5 * time.Second })
				c := brokertest.Raw(t, b.Pipe(), packet.V311)
				c.SendBytes([]byte(sent))
				start := time.Now()
				c.Ended()
				if d := time.Since(start); d != 5*time.Second {
					t.Errorf("closed after %v, want 5s", d)
				}
			})
		})
	}
}

func TestMaxConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t, nil, func(o *broker.Options) { o.MaxConnections = 2 })
		first := brokertest.Connect(t, b.Pipe(), brokertest.V5("1"))
		brokertest.Connect(t, b.Pipe(), brokertest.V4("2"))
		if got := brokertest.Raw(t, b.Pipe(), packet.V5).Try(brokertest.V5("3")); got.Reason != packet.ReasonServerBusy {
			t.Errorf("third: %v, want server busy", got.Reason)
		}
		first.Disconnect(0)
		synctest.Wait()
		brokertest.Connect(t, b.Pipe(), brokertest.V5("3"))
	})
}

func TestMaxSessions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t, nil, func(o *broker.Options) { o.MaxSessions = 1 })
		brokertest.Connect(t, b.Pipe(), brokertest.Keep(brokertest.V5("1"), 10))
		got := brokertest.Raw(t, b.Pipe(), packet.V5).Try(brokertest.Keep(brokertest.V5("2"), 10))
		if got.Reason != packet.ReasonQuotaExceeded {
			t.Errorf("second session: %v, want quota exceeded", got.Reason)
		}
		brokertest.Connect(t, b.Pipe(), brokertest.V5("3"))
	})
}

// TestConnackWaitsForTheStore: creating, resuming and ending a persistent
// session, and a will, are durable before the CONNACK.
func TestConnackWaitsForTheStore(t *testing.T) {
	withWill := func(p *packet.Connect, w packet.Will) *packet.Connect {
		p.Will = &w
		return p
	}
	tests := map[string]struct {
		p     *packet.Connect
		waits bool
	}{
		"clean session":                      {brokertest.V5("new"), false},
		"new persistent session":             {brokertest.Keep(brokertest.V5("new"), 60), true},
		"new persistent session, 3.1.1":      {brokertest.Keep(brokertest.V4("new"), 0), true},
		"resumed session":                    {brokertest.Keep(brokertest.V5("old"), 60), true},
		"clean start ends a session":         {brokertest.V5("old"), true},
		"QoS 1 will":                         {withWill(brokertest.V5("new"), packet.Will{Topic: "w", QoS: 1}), true},
		"retained will":                      {withWill(brokertest.V5("new"), packet.Will{Topic: "w", Retain: true}), true},
		"QoS 0 will needs no durability":     {withWill(brokertest.V5("new"), packet.Will{Topic: "w"}), false},
		"session expiry 0 is no persistence": {brokertest.Keep(brokertest.V5("new"), 0), false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := brokertest.New(t, nil)
				brokertest.Connect(t, b.Pipe(), brokertest.Keep(brokertest.V5("old"), 60)).Disconnect(0)
				b.Store.Hold()
				c := brokertest.Raw(t, b.Pipe(), tt.p.Version)
				c.Send(tt.p)
				synctest.Wait()
				if waits := c.Received() == 0; waits != tt.waits {
					t.Errorf("CONNACK waits for the store: %v, want %v", waits, tt.waits)
				}
				b.Store.Unhold()
				c.Take(packet.TypeConnack)
			})
		})
	}
}

// While the disk fails a 5.0 client that asks for a session is told that it ends
// with the connection, and has all that needs no disk; who cannot be told, or has
// a will to be kept, is refused.
func TestConnectWhenTheStoreFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t, nil)
		keep := func(id string) *packet.Connect { return brokertest.Keep(brokertest.V5(id), 60) }
		b.Store.SetFailing(durable.ErrFull)

		c := brokertest.Connect(t, b.Pipe(), keep("a"))
		if x := c.Connack.Properties.SessionExpiry; x == nil || *x != 0 || c.Connack.SessionPresent {
			t.Errorf("CONNACK %+v, want a session expiry interval of 0", c.Connack)
		}
		c.Subscribe(2, "a")
		p := brokertest.Connect(t, b.Pipe(), brokertest.V5("p"))
		for qos := byte(0); qos <= 2; qos++ {
			p.Publish(qos, false, "a", "x")
			c.Message()
		}
		if n := b.Status().SessionsUnstored; n != 1 {
			t.Errorf("%d sessions counted, want 1", n)
		}

		small, will := keep("b"), keep("b")
		small.Properties.MaximumPacketSize = 20 // not enough to be told
		will.Will = &packet.Will{Topic: "w", QoS: 1}
		for name, x := range map[string]*packet.Connect{"small packets": small, "a will": will} {
			r := brokertest.Raw(t, b.Pipe(), packet.V5)
			if got := r.Try(x); got.Reason != packet.ReasonQuotaExceeded {
				t.Errorf("%s: CONNACK %v, want quota exceeded", name, got.Reason)
			}
			r.Ended()
		}
		old := brokertest.Raw(t, b.Pipe(), packet.V311)
		if got := old.Try(brokertest.Keep(brokertest.V4("b"), 0)); got.Reason != packet.ReasonServerUnavailable {
			t.Errorf("CONNACK of 3.1.1 %v, want server unavailable", got.Reason)
		}

		b.Store.SetFailing(nil)
		again := brokertest.Connect(t, b.Pipe(), keep("a")) // takes over
		if again.Connack.SessionPresent || again.Connack.Properties.SessionExpiry != nil {
			t.Errorf("CONNACK %+v, want a new session as asked for", again.Connack)
		}
		again.Subscribe(1, "a")
		again.Kill()
		synctest.Wait()
		p.Publish(1, false, "a", "kept")
		if again = brokertest.Connect(t, b.Pipe(), keep("a")); !again.Connack.SessionPresent {
			t.Error("the session is not present")
		}
		if got := again.Messages(1); got[0] != "kept" {
			t.Errorf("got %q", got)
		}
	})
}
