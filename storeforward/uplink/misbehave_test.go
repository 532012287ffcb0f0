package uplink

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/broker/packet"
)

// A cloud that breaks the protocol while messages are on their way is told how,
// and left; over the next connection they arrive, and the gateway goes on.
func TestCloudBreaksTheProtocol(t *testing.T) {
	tests := map[string]struct {
		do func(p *peer)
		// say is what it is told; 0 when it said goodbye itself.
		say packet.ReasonCode
		// why is part of what the operator reads.
		why string
	}{
		"an alias above our maximum": {
			do: func(p *peer) {
				p.send(&packet.Publish{QoS: 1, PacketID: 1, Topic: []byte("site/cmd/x"), TopicAlias: 1})
			},
			say: packet.ReasonTopicAliasInvalid, why: "alias",
		},
		"an alias that stands for nothing": {
			do:  func(p *peer) { p.send(&packet.Publish{QoS: 1, PacketID: 1, TopicAlias: 7}) },
			say: packet.ReasonTopicAliasInvalid, why: "alias",
		},
		"a packet above our maximum": {
			do: func(p *peer) {
				// It is refused by its header, and not read to its end.
				p.write(0x32, 0x80, 0x80, 0x80, 0x01)
			},
			say: packet.ReasonPacketTooLarge, why: "too large",
		},
		"QoS 3": {
			do:  func(p *peer) { p.write(0x36, 0x05, 0x00, 0x01, 'x', 0x00, 0x01) },
			say: packet.ReasonMalformedPacket, why: "malformed",
		},
		"a second CONNACK": {
			do:  func(p *peer) { p.send(&packet.Connack{}) },
			say: packet.ReasonProtocolError, why: "CONNACK",
		},
		"a packet of clients": {
			do:  func(p *peer) { p.write(0xC0, 0x00) }, // PINGREQ
			say: packet.ReasonProtocolError, why: "PINGREQ",
		},
		"a DISCONNECT": {
			do:  func(p *peer) { p.send(&packet.Disconnect{Reason: packet.ReasonServerShuttingDown}) },
			why: "shutting down",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, func(o *Options) { o.ReceiveMaximum = 10 })
				p := r.cloud.welcome(t, packet.Connack{})
				p.subscribed()
				r.local.set(nil, true) // so that nothing is acknowledged
				one, two := r.put("s/a", "1", 1), r.put("s/b", "2", 2)
				p.expectPublish("1", 1, false)
				p.expectPublish("2", 2, false)
				tt.do(p)
				if tt.say != 0 {
					if bye := expect[*packet.Disconnect](p); bye.Reason != tt.say {
						t.Errorf("it is told %v, want %v", bye.Reason, tt.say)
					}
				}
				p.gone()
				synctest.Wait()
				if st := r.up.Status(); !strings.Contains(strings.ToLower(st.Reason), strings.ToLower(tt.why)) {
					t.Errorf("state %s because of %q, want %q in it", st.State, st.Reason, tt.why)
				}
				r.local.set(nil, false)
				p = r.cloud.welcome(t, packet.Connack{SessionPresent: true})
				q := p.expectPublish("1", 1, true)
				p.send(&packet.Puback{PacketID: q.PacketID})
				q = p.expectPublish("2", 2, true)
				p.send(&packet.Pubrec{PacketID: q.PacketID})
				p.send(&packet.Pubcomp{PacketID: expect[*packet.Pubrel](p).PacketID})
				<-one
				<-two
				pass(time.Second)
				if st := r.up.Status(); st.State != StateUp || st.Backlog != 0 || st.InFlight != 0 {
					t.Errorf("state %s, backlog %d, in flight %d", st.State, st.Backlog, st.InFlight)
				}
			})
		})
	}
}

// A cloud that sends more than our Receive Maximum waits, as one of 3.1.1 does,
// which has none: nothing is lost, and no more is kept than was said.
func TestMoreThanOurReceiveMaximum(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) { o.ReceiveMaximum = 3 })
		p := r.cloud.welcome(t, packet.Connack{})
		p.subscribed()
		r.local.set(nil, true)
		go func() {
			for id := uint16(1); id <= 6; id++ {
				p.send(&packet.Publish{QoS: 1, PacketID: id, Topic: []byte("site/cmd/x")})
			}
		}()
		p.quiet()
		if n := len(r.local.messages()); n != 3 {
			t.Errorf("%d taken at once, want 3", n)
		}
		for i := range 6 {
			synctest.Wait()
			r.local.release(i, nil)
			if ack := expect[*packet.Puback](p); ack.PacketID != uint16(i+1) {
				t.Errorf("answered is %d, want %d", ack.PacketID, i+1)
			}
		}
	})
}

// write sends bytes as they are.
func (p *peer) write(b ...byte) {
	p.t.Helper()
	if _, err := p.nc.Write(b); err != nil {
		p.t.Errorf("write % x: %v", b, err)
	}
}

// A CONNECT that is refused is tried again with patience, and the reason shown.
func TestConnackRefusals(t *testing.T) {
	for reason, why := range map[packet.ReasonCode]string{
		packet.ReasonQuotaExceeded:          "quota exceeded",
		packet.ReasonConnectionRateExceeded: "connection rate exceeded",
		packet.ReasonServerUnavailable:      "server unavailable",
	} {
		t.Run(why, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, nil)
				safe := r.put("s/a", "1", 1)
				p := r.cloud.acceptWith(t, packet.Connack{Reason: reason})
				p.gone()
				synctest.Wait()
				if st := r.up.Status(); st.State == StateUp || !strings.Contains(st.Reason, why) {
					t.Errorf("state %s because of %q, want %q in it", st.State, st.Reason, why)
				}
				p = r.cloud.welcome(t, packet.Connack{})
				p.subscribed()
				p.send(&packet.Puback{PacketID: p.expectPublish("1", 1, false).PacketID})
				<-safe
				pass(time.Second)
				if st := r.up.Status(); st.State != StateUp || st.Backlog != 0 || st.ConnectFailures == 0 {
					t.Errorf("state %s, backlog %d, %d failures", st.State, st.Backlog, st.ConnectFailures)
				}
			})
		})
	}
}
