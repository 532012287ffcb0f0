package packet_test

import (
	"bytes"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"holdfast/broker/packet"
)

var versions = []packet.Version{packet.V31, packet.V311, packet.V5}

// What encodes decodes to the same value, in every version.
func TestRoundTrip(t *testing.T) {
	for _, v := range versions {
		t.Run(v.String(), func(t *testing.T) {
			for name, gen := range generators(v) {
				t.Run(name, rapid.MakeCheck(func(t *rapid.T) {
					want := gen(t)
					before := bytes.Repeat([]byte{0xa5}, rapid.IntRange(0, 3).Draw(t, "before"))
					b, err := want.AppendTo(bytes.Clone(before), v)
					if err != nil {
						t.Fatalf("AppendTo of %s: %v", render(want), err)
					}
					if !bytes.HasPrefix(b, before) {
						t.Fatalf("AppendTo changed what was there before: % x", b)
					}
					frame := b[len(before):]
					if n, err := packet.Frame(frame, len(frame)); n != len(frame) || err != nil {
						t.Fatalf("Frame of %d bytes = %d, %v", len(frame), n, err)
					}
					got, err := packet.Decode(frame, v, nil)
					if err != nil {
						t.Fatalf("Decode(% x), encoded from %s: %v", frame, render(want), err)
					}
					if diff := cmp.Diff(want, got); diff != "" {
						t.Fatalf("decoded differs (-want +got):\n%s", diff)
					}
					if p, ok := want.(*packet.Publish); ok && p.Size(v) != len(frame) {
						t.Fatalf("Size = %d, encoded to %d bytes", p.Size(v), len(frame))
					}
				}))
			}
		})
	}
}

type drawn func(t *rapid.T) packet.Packet

// generators draw valid values in the form that Decode returns them.
func generators(v packet.Version) map[string]drawn {
	v5 := v == packet.V5
	gens := map[string]drawn{
		"CONNECT": func(t *rapid.T) packet.Packet { return drawConnect(t, v) },
		"CONNACK": func(t *rapid.T) packet.Packet { return drawConnack(t, v) },
		"PUBLISH": func(t *rapid.T) packet.Packet { return drawPublish(t, v) },
		"PUBACK": func(t *rapid.T) packet.Packet {
			id, r, p := drawAck(t, v, packet.TypePuback)
			return &packet.Puback{PacketID: id, Reason: r, Properties: p}
		},
		"PUBREC": func(t *rapid.T) packet.Packet {
			id, r, p := drawAck(t, v, packet.TypePubrec)
			return &packet.Pubrec{PacketID: id, Reason: r, Properties: p}
		},
		"PUBREL": func(t *rapid.T) packet.Packet {
			id, r, p := drawAck(t, v, packet.TypePubrel)
			return &packet.Pubrel{PacketID: id, Reason: r, Properties: p}
		},
		"PUBCOMP": func(t *rapid.T) packet.Packet {
			id, r, p := drawAck(t, v, packet.TypePubcomp)
			return &packet.Pubcomp{PacketID: id, Reason: r, Properties: p}
		},
		"SUBSCRIBE": func(t *rapid.T) packet.Packet { return drawSubscribe(t, v) },
		"SUBACK": func(t *rapid.T) packet.Packet {
			p := &packet.Suback{PacketID: drawID(t), Reasons: rapid.SliceOfN(reasonOf(packet.TypeSuback), 1, 20).Draw(t, "reasons")}
			if v5 {
				p.Properties = drawProperties(t, packet.TypeSuback)
				return p
			}
			for i := range p.Reasons {
				p.Reasons[i] = min(p.Reasons[i], packet.ReasonUnspecified)
			}
			return p
		},
		"UNSUBSCRIBE": func(t *rapid.T) packet.Packet {
			p := &packet.Unsubscribe{PacketID: drawID(t), Filters: rapid.SliceOfN(texts(), 1, 5).Draw(t, "filters")}
			if v5 {
				p.Properties = drawProperties(t, packet.TypeUnsubscribe)
			}
			return p
		},
		"UNSUBACK": func(t *rapid.T) packet.Packet {
			p := &packet.Unsuback{PacketID: drawID(t)}
			if v5 {
				p.Reasons = rapid.SliceOfN(reasonOf(packet.TypeUnsuback), 1, 20).Draw(t, "reasons")
				p.Properties = drawProperties(t, packet.TypeUnsuback)
			}
			return p
		},
		"PINGREQ":  func(*rapid.T) packet.Packet { return &packet.Pingreq{} },
		"PINGRESP": func(*rapid.T) packet.Packet { return &packet.Pingresp{} },
		"DISCONNECT": func(t *rapid.T) packet.Packet {
			p := &packet.Disconnect{}
			if v5 {
				p.Reason = reasonOf(packet.TypeDisconnect).Draw(t, "reason")
				p.Properties = drawProperties(t, packet.TypeDisconnect)
			}
			return p
		},
	}
	if v5 {
		gens["AUTH"] = func(t *rapid.T) packet.Packet {
			p := &packet.Auth{Reason: reasonOf(packet.TypeAuth).Draw(t, "reason"), Properties: drawProperties(t, packet.TypeAuth)}
			p.Properties.AuthMethod = "m" + p.Properties.AuthMethod
			return p
		}
	}
	return gens
}

func drawConnect(t *rapid.T, v packet.Version) packet.Packet {
	p := &packet.Connect{
		Version:     v,
		CleanStart:  rapid.Bool().Draw(t, "clean start"),
		KeepAlive:   rapid.Uint16().Draw(t, "keep alive"),
		ClientID:    texts().Draw(t, "client id"),
		HasUsername: rapid.Bool().Draw(t, "has user name"),
		HasPassword: rapid.Bool().Draw(t, "has password"),
	}
	if v < packet.V5 {
		p.HasPassword = p.HasPassword && p.HasUsername
		p.ClientID = "c" + p.ClientID
	}
	if p.HasUsername {
		p.Username = texts().Draw(t, "user name")
	}
	if p.HasPassword {
		p.Password = blobs().Draw(t, "password")
	}
	if rapid.Bool().Draw(t, "has will") {
		p.Will = &packet.Will{
			Topic:   texts().Draw(t, "will topic"),
			Payload: blobs().Draw(t, "will payload"),
			QoS:     byte(rapid.IntRange(0, 2).Draw(t, "will qos")),
			Retain:  rapid.Bool().Draw(t, "will retain"),
		}
	}
	if v == packet.V5 {
		p.Properties = drawProperties(t, packet.TypeConnect)
		if p.Will != nil {
			p.Will.Properties = drawProperties(t, 0)
		}
	}
	return p
}

func drawConnack(t *rapid.T, v packet.Version) packet.Packet {
	p := &packet.Connack{Reason: reasonOf(packet.TypeConnack).Draw(t, "reason")}
	if v == packet.V5 {
		p.Properties = drawProperties(t, packet.TypeConnack)
	} else {
		p.Reason = rapid.SampledFrom([]packet.ReasonCode{
			packet.ReasonSuccess, packet.ReasonUnsupportedProtocolVersion, packet.ReasonClientIDNotValid,
			packet.ReasonServerUnavailable, packet.ReasonBadUserNameOrPassword, packet.ReasonNotAuthorized,
		}).Draw(t, "return code")
	}
	if v != packet.V31 && p.Reason == packet.ReasonSuccess {
		p.SessionPresent = rapid.Bool().Draw(t, "session present")
	}
	return p
}

func drawPublish(t *rapid.T, v packet.Version) packet.Packet {
	p := &packet.Publish{
		QoS:     byte(rapid.IntRange(0, 2).Draw(t, "qos")),
		Retain:  rapid.Bool().Draw(t, "retain"),
		Topic:   []byte("t" + texts().Draw(t, "topic")),
		Payload: blobs().Draw(t, "payload"),
	}
	if p.QoS > 0 {
		p.Dup = rapid.Bool().Draw(t, "dup")
		p.PacketID = drawID(t)
	}
	if v < packet.V5 {
		return p
	}
	if rapid.Bool().Draw(t, "has alias") {
		p.TopicAlias = drawID(t)
		if rapid.Bool().Draw(t, "alias only") {
			p.Topic = nil
		}
	}
	if p.HasExpiry = rapid.Bool().Draw(t, "has expiry"); p.HasExpiry {
		p.MessageExpiry = rapid.Uint32().Draw(t, "expiry")
	}
	p.SubscriptionIDs = rapid.SliceOfN(rapid.Uint32Range(1, packet.MaxSize), 0, 5).Draw(t, "subscription ids")
	var err error
	if p.Properties, err = drawPublishProperties(t).AppendTo(nil); err != nil {
		t.Fatal(err)
	}
	return p
}

func drawPublishProperties(t *rapid.T) packet.PublishProperties {
	p := packet.PublishProperties{
		ContentType:   texts().Draw(t, "content type"),
		ResponseTopic: plainTexts().Draw(t, "response topic"),
		User:          users().Draw(t, "user"),
	}
	if p.HasPayloadFormat = rapid.Bool().Draw(t, "has payload format"); p.HasPayloadFormat {
		p.PayloadFormat = byte(rapid.IntRange(0, 1).Draw(t, "payload format"))
	}
	if rapid.Bool().Draw(t, "has correlation data") {
		p.CorrelationData = blobs().Draw(t, "correlation data")
	}
	return p
}

func drawSubscribe(t *rapid.T, v packet.Version) packet.Packet {
	p := &packet.Subscribe{PacketID: drawID(t)}
	for range rapid.IntRange(1, 5).Draw(t, "filters") {
		f := packet.Filter{Filter: texts().Draw(t, "filter"), QoS: byte(rapid.IntRange(0, 2).Draw(t, "qos"))}
		if v == packet.V5 {
			f.RetainAsPublished = rapid.Bool().Draw(t, "retain as published")
			f.RetainHandling = byte(rapid.IntRange(0, 2).Draw(t, "retain handling"))
			if rapid.Bool().Draw(t, "shared") {
				f.Filter = "$share/g/" + f.Filter
			} else {
				f.NoLocal = rapid.Bool().Draw(t, "no local") && !strings.HasPrefix(f.Filter, "$share/")
			}
		}
		p.Filters = append(p.Filters, f)
	}
	if v == packet.V5 {
		p.Properties = drawProperties(t, packet.TypeSubscribe)
		p.Properties.SubscriptionID = rapid.Uint32Range(0, packet.MaxSize).Draw(t, "subscription id")
	}
	return p
}

func drawAck(t *rapid.T, v packet.Version, typ packet.Type) (id uint16, r packet.ReasonCode, p packet.Properties) {
	id = drawID(t)
	if v == packet.V5 {
		r = reasonOf(typ).Draw(t, "reason")
		p = drawProperties(t, typ)
	}
	return id, r, p
}

func drawID(t *rapid.T) uint16 { return rapid.Uint16Range(1, 65535).Draw(t, "id") }

// reasonOf draws the codes that the package allows; the golden packets say
// which those are.
func reasonOf(typ packet.Type) *rapid.Generator[packet.ReasonCode] {
	var codes []packet.ReasonCode
	for c := range 256 {
		if r := packet.ReasonCode(c); r.In(typ) {
			codes = append(codes, r)
		}
	}
	return rapid.SampledFrom(codes)
}

// drawProperties draws what MQTT 5.0 table 2-4 allows; typ 0 is a will.
func drawProperties(t *rapid.T, typ packet.Type) (p packet.Properties) {
	text := func(name string) string { return texts().Draw(t, name) }
	u32 := func(name string) *uint32 { return rapid.Ptr(rapid.Uint32(), true).Draw(t, name) }
	flag := func(name string) *byte { return rapid.Ptr(rapid.ByteRange(0, 1), true).Draw(t, name) }
	p.User = users().Draw(t, "user")
	switch typ {
	case 0:
		p.PayloadFormat = rapid.ByteRange(0, 1).Draw(t, "payload format")
		p.MessageExpiry = u32("message expiry")
		p.ContentType = text("content type")
		p.ResponseTopic = plainTexts().Draw(t, "response topic")
		p.WillDelay = rapid.Uint32().Draw(t, "will delay")
		if rapid.Bool().Draw(t, "has correlation data") {
			p.CorrelationData = blobs().Draw(t, "correlation data")
		}
	case packet.TypeConnect, packet.TypeConnack:
		p.SessionExpiry = u32("session expiry")
		p.ReceiveMaximum = rapid.Uint16().Draw(t, "receive maximum")
		p.TopicAliasMaximum = rapid.Uint16().Draw(t, "topic alias maximum")
		p.MaximumPacketSize = rapid.Uint32().Draw(t, "maximum packet size")
	case packet.TypeDisconnect:
		p.SessionExpiry = u32("session expiry")
		p.ServerReference = text("server reference")
	default:
	}
	switch typ {
	case packet.TypeConnect:
		p.RequestProblemInfo = flag("request problem information")
		p.RequestResponseInfo = rapid.ByteRange(0, 1).Draw(t, "request response information")
	case packet.TypeConnack:
		p.AssignedClientID = text("assigned client id")
		p.ServerKeepAlive = rapid.Ptr(rapid.Uint16(), true).Draw(t, "server keep alive")
		p.ResponseInfo = text("response information")
		p.ServerReference = text("server reference")
		p.MaximumQoS = flag("maximum qos")
		p.RetainAvailable = flag("retain available")
		p.WildcardAvailable = flag("wildcard available")
		p.SubIDAvailable = flag("subscription id available")
		p.SharedAvailable = flag("shared available")
	default:
	}
	switch typ {
	case packet.TypeConnect, packet.TypeConnack, packet.TypeAuth:
		if p.AuthMethod = text("method"); p.AuthMethod != "" && rapid.Bool().Draw(t, "has data") {
			p.AuthData = blobs().Draw(t, "data")
		}
	default:
	}
	switch typ {
	case 0, packet.TypeConnect, packet.TypeSubscribe, packet.TypeUnsubscribe:
	default:
		p.ReasonString = text("reason string")
	}
	return p
}

func users() *rapid.Generator[[]packet.UserProperty] {
	return rapid.Custom(func(t *rapid.T) []packet.UserProperty {
		var users []packet.UserProperty
		for range rapid.IntRange(0, 4).Draw(t, "n") {
			users = append(users, packet.UserProperty{Key: texts().Draw(t, "key"), Value: texts().Draw(t, "value")})
		}
		return users
	})
}

// texts draws strings that MQTT allows, now and then long ones.
func texts() *rapid.Generator[string] {
	runes := rapid.Rune().Filter(func(r rune) bool { return r != 0 && utf8.ValidRune(r) })
	return rapid.OneOf(
		rapid.StringOfN(runes, 0, 40, 65000),
		rapid.SampledFrom([]string{"a", "a/b", "$share/g/a", "\ufeff", "\U0010ffff"}),
		rapid.Map(rapid.IntRange(0, 65000), func(n int) string { return string(bytes.Repeat([]byte("x"), n)) }),
	)
}

// plainTexts draws strings without wildcards.
func plainTexts() *rapid.Generator[string] {
	return rapid.StringOfN(rapid.RuneFrom([]rune("abc/äß\U0001f600")), 0, 20, -1)
}

// blobs draws bytes, never nil.
func blobs() *rapid.Generator[[]byte] {
	return rapid.Map(rapid.SliceOfN(rapid.Byte(), 0, 300), func(b []byte) []byte {
		if b == nil {
			return []byte{}
		}
		return b
	})
}

// Properties that travel on come back in parts, and in the same bytes.
func TestPublishPropertiesRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := drawPublishProperties(t)
		b, err := want.AppendTo(nil)
		if err != nil {
			t.Fatal(err)
		}
		got, err := packet.ParsePublishProperties(b)
		if err != nil {
			t.Fatalf("ParsePublishProperties(% x): %v", b, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("differs (-want +got):\n%s", diff)
		}
	})
}
