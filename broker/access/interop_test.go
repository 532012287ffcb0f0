//go:build integration

package access_test

import (
	"context"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"

	"holdfast/broker/scram"
)

// pahoLogin is an AuthHandler for paho.golang.
type pahoLogin struct {
	side   *scram.Client
	proven chan error
}

func (p *pahoLogin) Authenticate(a *paho.Auth) *paho.Auth {
	answer := &paho.Auth{ReasonCode: 0x18, Properties: &paho.AuthProperties{AuthMethod: scram.Name}}
	if a.ReasonCode == 0 {
		p.proven <- p.side.Verify(a.Properties.AuthData)
		return answer
	}
	data, err := p.side.Respond(a.Properties.AuthData)
	if err != nil {
		p.proven <- err
	}
	answer.Properties.AuthData = data
	return answer
}

func (*pahoLogin) Authenticated() {}

// paho.golang logs in by SCRAM, and again.
func TestPahoSCRAM(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	b, _ := scramSite(t, nil)
	for password, want := range map[string]byte{"hunter2": 0, "hunter3": 0x87} {
		side, err := scram.NewClient("pump", password)
		if err != nil {
			t.Fatal(err)
		}
		handler := &pahoLogin{side: side, proven: make(chan error, 1)}
		c := paho.NewClient(paho.ClientConfig{Conn: packets.NewThreadSafeConn(b.Pipe()), AuthHandler: handler, OnServerDisconnect: func(d *paho.Disconnect) { t.Errorf("DISCONNECT %d: %v", d.ReasonCode, d.Properties) }})
		ack, err := c.Connect(ctx, &paho.Connect{
			ClientID: "paho", CleanStart: true, KeepAlive: 30,
			Properties: &paho.ConnectProperties{AuthMethod: scram.Name, AuthData: side.First()},
		})
		if ack == nil || ack.ReasonCode != want {
			t.Fatalf("Connect with %q: %v, %v", password, ack, err)
		}
		if want != 0 {
			continue
		}
		if err := side.Verify(ack.Properties.AuthData); err != nil {
			t.Error(err)
		}
		if handler.side, err = scram.NewClient("pump", password); err != nil {
			t.Fatal(err)
		}
		got, err := c.Authenticate(ctx, &paho.Auth{
			ReasonCode: 0x19, Properties: &paho.AuthProperties{AuthMethod: scram.Name, AuthData: handler.side.First()},
		})
		if err != nil || !got.Success {
			t.Errorf("Authenticate: %v, %v", got, err)
		}
		if err := c.Disconnect(&paho.Disconnect{}); err != nil {
			t.Error(err)
		}
	}
}
