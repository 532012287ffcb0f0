package packet_test

import (
	"errors"
	"testing"

	"holdfast/broker/packet"
)

func TestDirection(t *testing.T) {
	tests := map[string]struct {
		p              packet.Packet
		client, server bool
	}{
		"connect":                            {&packet.Connect{}, true, false},
		"connack":                            {&packet.Connack{}, false, true},
		"publish":                            {&packet.Publish{}, true, true},
		"publish with a subscription id":     {&packet.Publish{SubscriptionIDs: []uint32{1}}, false, true},
		"puback":                             {&packet.Puback{}, true, true},
		"pubrec":                             {&packet.Pubrec{}, true, true},
		"pubrel":                             {&packet.Pubrel{}, true, true},
		"pubcomp":                            {&packet.Pubcomp{}, true, true},
		"subscribe":                          {&packet.Subscribe{}, true, false},
		"suback":                             {&packet.Suback{}, false, true},
		"unsubscribe":                        {&packet.Unsubscribe{}, true, false},
		"unsuback":                           {&packet.Unsuback{}, false, true},
		"pingreq":                            {&packet.Pingreq{}, true, false},
		"pingresp":                           {&packet.Pingresp{}, false, true},
		"disconnect":                         {&packet.Disconnect{}, true, true},
		"disconnect with will message":       {&packet.Disconnect{Reason: packet.ReasonDisconnectWithWill}, true, false},
		"disconnect, server shutting down":   {&packet.Disconnect{Reason: packet.ReasonServerShuttingDown}, false, true},
		"disconnect, packet too large":       {&packet.Disconnect{Reason: packet.ReasonPacketTooLarge}, true, true},
		"disconnect with session expiry":     {&packet.Disconnect{Properties: packet.Properties{SessionExpiry: new(uint32)}}, true, false},
		"disconnect with a server reference": {&packet.Disconnect{Properties: packet.Properties{ServerReference: "x"}}, false, true},
		"auth, success":                      {&packet.Auth{}, false, true},
		"auth, continue":                     {&packet.Auth{Reason: packet.ReasonContinueAuthentication}, true, true},
		"auth, re-authenticate":              {&packet.Auth{Reason: packet.ReasonReauthenticate}, true, false},
	}
	for name, tt := range tests {
		check := func(side string, err error, want bool) {
			if want && err == nil {
				return
			}
			if e, ok := errors.AsType[*packet.Error](err); want || !ok || e.Type != tt.p.Type() || !errors.Is(err, packet.ErrProtocol) {
				t.Errorf("%s from a %s: %v, want allowed %t", name, side, err, want)
			}
		}
		check("client", packet.FromClient(tt.p), tt.client)
		check("server", packet.FromServer(tt.p), tt.server)
	}
}
