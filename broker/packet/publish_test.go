package packet_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"holdfast/broker/packet"
)

// interleaved has properties that travel on around one that does not.
func interleaved(tb testing.TB) []byte {
	tb.Helper()
	return readGolden(tb, "testdata/publish/v5_properties_interleaved.pkt").frame
}

func TestDecodePublishDoesNotAllocate(t *testing.T) {
	p := publishOf(256)
	p.TopicAlias, p.HasExpiry, p.MessageExpiry = 3, true, 60
	p.SubscriptionIDs = []uint32{1, 300}
	p.Properties = encodeProperties(t, packet.PublishProperties{
		HasPayloadFormat: true, PayloadFormat: 1, ContentType: "application/json", ResponseTopic: "r",
		CorrelationData: []byte{1}, User: []packet.UserProperty{{Key: "k", Value: "v"}, {Key: "k", Value: "w"}},
	})
	tests := map[string]struct {
		frame []byte
		v     packet.Version
	}{
		"3.1":                          {encode(t, packet.V31, p), packet.V31},
		"3.1.1":                        {encode(t, packet.V311, p), packet.V311},
		"5.0 with all properties":      {encode(t, packet.V5, p), packet.V5},
		"5.0 with a gap in the middle": {interleaved(t), packet.V5},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var pub packet.Publish
			got := testing.AllocsPerRun(100, func() {
				if _, err := packet.Decode(tt.frame, tt.v, &pub); err != nil {
					t.Fatal(err)
				}
			})
			if got != 0 {
				t.Errorf("Decode allocates %v times", got)
			}
		})
	}
}

func TestDecodePublishPointsIntoFrame(t *testing.T) {
	within := func(part, whole []byte) bool {
		i := bytes.Index(whole, part)
		return len(part) > 0 && i >= 0 && &whole[i] == &part[0]
	}
	frame := readGolden(t, "testdata/publish/v5_all_properties.pkt").frame
	var pub packet.Publish
	if _, err := packet.Decode(frame, packet.V5, &pub); err != nil {
		t.Fatal(err)
	}
	if !within(pub.Topic, frame) || !within(pub.Properties, frame) || !within(pub.Payload, frame) {
		t.Error("topic, properties or payload were copied")
	}
	if cap(pub.Properties) != len(pub.Properties) {
		t.Errorf("appending to the properties would write over %d bytes of the frame", cap(pub.Properties)-len(pub.Properties))
	}
	frame = interleaved(t)
	before := bytes.Clone(frame)
	if _, err := packet.Decode(frame, packet.V5, &pub); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(frame, before) {
		t.Errorf("Decode changed the frame to % x, was % x", frame, before)
	}
}

// A Publish that is used again shows nothing of the packet before.
func TestDecodePublishForgetsThePacketBefore(t *testing.T) {
	var pub packet.Publish
	frames := [][]byte{interleaved(t), {0x30, 0x04, 0, 1, 'a', 0}, readGolden(t, "testdata/publish/v5_all_properties.pkt").frame, {0x30, 0x04, 0, 1, 'b', 0}}
	for _, frame := range frames {
		want, err := packet.Decode(frame, packet.V5, nil)
		if err != nil {
			t.Fatal(err)
		}
		got, err := packet.Decode(frame, packet.V5, &pub)
		if err != nil {
			t.Fatal(err)
		}
		if got != packet.Packet(&pub) {
			t.Errorf("Decode returns %p, want %p", got, &pub)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("% x (-fresh +reused):\n%s", frame, diff)
		}
	}
}

func TestPublishEqual(t *testing.T) {
	full := func() *packet.Publish {
		return &packet.Publish{
			Dup: true, QoS: 1, Retain: true, PacketID: 1, Topic: []byte("a"), TopicAlias: 1, HasExpiry: true, MessageExpiry: 1,
			SubscriptionIDs: []uint32{1}, Properties: []byte{1, 0}, Payload: []byte("p"),
		}
	}
	changes := map[string]func(p *packet.Publish){
		"dup":              func(p *packet.Publish) { p.Dup = false },
		"qos":              func(p *packet.Publish) { p.QoS = 2 },
		"retain":           func(p *packet.Publish) { p.Retain = false },
		"packet id":        func(p *packet.Publish) { p.PacketID = 2 },
		"topic":            func(p *packet.Publish) { p.Topic = []byte("b") },
		"alias":            func(p *packet.Publish) { p.TopicAlias = 2 },
		"has expiry":       func(p *packet.Publish) { p.HasExpiry = false },
		"expiry":           func(p *packet.Publish) { p.MessageExpiry = 2 },
		"subscription ids": func(p *packet.Publish) { p.SubscriptionIDs = nil },
		"properties":       func(p *packet.Publish) { p.Properties = nil },
		"payload":          func(p *packet.Publish) { p.Payload = nil },
	}
	if !full().Equal(full()) {
		t.Error("equal values are not Equal")
	}
	for name, change := range changes {
		p := full()
		if change(p); p.Equal(full()) || full().Equal(p) {
			t.Errorf("values that differ in %s are Equal", name)
		}
	}
	if full().Equal(nil) || !(*packet.Publish)(nil).Equal(nil) {
		t.Error("nil is Equal to a value, or not to nil")
	}
	if !(&packet.Publish{Payload: []byte{}}).Equal(&packet.Publish{}) {
		t.Error("an empty payload is not Equal to none")
	}
}

// A header in front of what many packets share makes the same packet.
func TestPublishHeaderInFrontOfSharedTail(t *testing.T) {
	for _, v := range versions {
		for _, qos := range []byte{0, 2} {
			p := publishOf(20)
			p.QoS, p.Retain = qos, true
			p.HasExpiry, p.MessageExpiry = true, 5
			p.Properties = encodeProperties(t, packet.PublishProperties{ContentType: "x"})
			want := encode(t, v, p)
			got, idAt, err := p.AppendHeaderTo([]byte("before"), v)
			if err != nil {
				t.Fatal(err)
			}
			if (idAt == 0) != (qos == 0) || idAt > 0 && !bytes.Equal(got[idAt:idAt+2], []byte{0, 1}) {
				t.Errorf("MQTT %s QoS %d: packet identifier is said to be at %d of % x", v, qos, idAt, got)
			}
			if v == packet.V5 {
				got = append(got, p.Properties...)
			}
			got = append(got, p.Payload...)
			if !bytes.Equal(got, append([]byte("before"), want...)) {
				t.Errorf("MQTT %s QoS %d: header and tail are % x, want % x", v, qos, got, want)
			}
		}
	}
}

func TestSharedMakesTheSamePacket(t *testing.T) {
	for _, v := range versions {
		p := publishOf(20)
		p.HasExpiry, p.MessageExpiry = true, 5
		p.SubscriptionIDs = []uint32{7}
		p.Properties = encodeProperties(t, packet.PublishProperties{ContentType: "x"})
		shared, err := p.Share(v)
		if err != nil {
			t.Fatal(err)
		}
		for _, to := range []struct {
			dup, retain bool
			qos         byte
			id          uint16
		}{{qos: 1, id: 9}, {qos: 2, id: 65535, retain: true}, {qos: 1, id: 1, dup: true}} {
			p.Dup, p.QoS, p.Retain, p.PacketID = to.dup, to.qos, to.retain, to.id
			want := encode(t, v, p)
			got, err := shared.AppendTo([]byte("before"), to.dup, to.qos, to.retain, to.id)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, append([]byte("before"), want...)) {
				t.Errorf("MQTT %s, %+v: % x, want % x", v, to, got, want)
			}
			if shared.Size() != len(want) {
				t.Errorf("Size = %d, want %d", shared.Size(), len(want))
			}
		}
		if _, err := shared.AppendTo(nil, false, 1, false, 0); !errors.Is(err, packet.ErrProtocol) {
			t.Errorf("packet identifier 0: %v, want %v", err, packet.ErrProtocol)
		}
		for _, qos := range []byte{0, 3} {
			if b, err := shared.AppendTo([]byte("b"), false, qos, false, 1); err == nil || string(b) != "b" {
				t.Errorf("QoS %d from what was shared for QoS 1: %q, %v", qos, b, err)
			}
		}
	}
	p := publishOf(20)
	p.QoS, p.PacketID = 0, 0
	shared, err := p.Share(packet.V5)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := shared.AppendTo(nil, true, 0, false, 0); err != nil || !bytes.Equal(got, encode(t, packet.V5, p)) {
		t.Errorf("QoS 0: % x, %v", got, err)
	}
	if _, err := shared.AppendTo(nil, false, 1, false, 1); err == nil {
		t.Error("QoS 1 from what was shared for QoS 0")
	}
	if _, err := (packet.Shared{}).AppendTo(nil, false, 0, false, 0); err == nil {
		t.Error("the zero value makes a packet")
	}
	if _, err := (&packet.Publish{}).Share(packet.V5); !errors.Is(err, packet.ErrProtocol) {
		t.Errorf("sharing without a topic: %v, want %v", err, packet.ErrProtocol)
	}
}

func TestEncodingDoesNotAllocateWhereThereIsRoom(t *testing.T) {
	p := publishOf(256)
	p.Properties = encodeProperties(t, packet.PublishProperties{ContentType: "x"})
	shared, err := p.Share(packet.V5)
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 0, p.Size(packet.V5)) // exactly
	tests := map[string]func() error{
		"PUBLISH": func() error { _, err := p.AppendTo(buf, packet.V5); return err },
		"shared":  func() error { _, err := shared.AppendTo(buf, false, 1, false, 2); return err },
		"PUBACK": func() error {
			_, err := (&packet.Puback{PacketID: 1, Reason: 0x10}).AppendTo(buf, packet.V5)
			return err
		},
	}
	long := &packet.Suback{PacketID: 1, Reasons: make([]packet.ReasonCode, 200)}
	exact := make([]byte, 0, len(encode(t, packet.V5, long)))
	tests["SUBACK with a length of two bytes"] = func() error { _, err := long.AppendTo(exact, packet.V5); return err }
	for name, f := range tests {
		got := testing.AllocsPerRun(100, func() {
			if err := f(); err != nil {
				t.Fatal(err)
			}
		})
		if got != 0 {
			t.Errorf("%s: AppendTo allocates %v times", name, got)
		}
	}
}

func TestParsePublishPropertiesRefuses(t *testing.T) {
	tests := map[string]struct {
		in   []byte
		want error
	}{
		"topic alias, which ends here":             {[]byte{0x23, 0, 1}, packet.ErrMalformed},
		"message expiry interval, which ends here": {[]byte{0x02, 0, 0, 0, 1}, packet.ErrMalformed},
		"subscription identifier, which ends here": {[]byte{0x0b, 1}, packet.ErrMalformed},
		"subscription identifier in front":         {[]byte{0x0b, 1, 1}, packet.ErrMalformed},
		"property of CONNECT":                      {[]byte{0x21, 0, 1}, packet.ErrMalformed},
		"content type twice":                       {[]byte{0x03, 0, 0, 0x03, 0, 0}, packet.ErrProtocol},
		"payload format indicator 2":               {[]byte{0x01, 2}, packet.ErrProtocol},
		"cut off":                                  {[]byte{0x03, 0, 5, 'a'}, packet.ErrMalformed},
	}
	for name, tt := range tests {
		got, err := packet.ParsePublishProperties(tt.in)
		if !errors.Is(err, tt.want) || !cmp.Equal(got, packet.PublishProperties{}) {
			t.Errorf("%s: ParsePublishProperties(% x) = %+v, %v, want %v", name, tt.in, got, err, tt.want)
		}
	}
}

func TestWillPropertiesTravelOn(t *testing.T) {
	w := packet.Will{Properties: packet.Properties{
		PayloadFormat: 1, ContentType: "c", ResponseTopic: "r", CorrelationData: []byte{1}, WillDelay: 3, MessageExpiry: new(uint32(4)),
		User: []packet.UserProperty{{Key: "k", Value: "v"}},
	}}
	want := packet.PublishProperties{
		HasPayloadFormat: true, PayloadFormat: 1, ContentType: "c", ResponseTopic: "r", CorrelationData: []byte{1},
		User: []packet.UserProperty{{Key: "k", Value: "v"}},
	}
	if diff := cmp.Diff(want, w.PublishProperties()); diff != "" {
		t.Errorf("PublishProperties (-want +got):\n%s", diff)
	}
}
