package packet_test

import (
	"bytes"
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"holdfast/broker/packet"
)

// A Reader, which uses values again and has a short way for plain packets,
// reads from a stream what Decode reads from each packet alone.
func TestReaderReadsAsDecode(t *testing.T) {
	for _, v := range versions {
		t.Run(v.String(), rapid.MakeCheck(func(t *rapid.T) {
			gens := generators(v)
			names := slices.Sorted(maps.Keys(gens))
			plain := []string{"PUBACK", "PUBREC", "PUBREL", "PUBCOMP", "PUBLISH"}
			var stream []byte
			for range rapid.IntRange(1, 8).Draw(t, "packets") {
				name := rapid.OneOf(rapid.SampledFrom(plain), rapid.SampledFrom(names)).Draw(t, "name")
				if name == "CONNECT" {
					continue // it changes the version
				}
				b, err := gens[name](t).AppendTo(nil, v)
				if err != nil {
					t.Fatal(err)
				}
				if name == "PUBLISH" && rapid.Bool().Draw(t, "plain") {
					b = plainPublish(t, v)
				}
				if rapid.IntRange(0, 5).Draw(t, "damage") == 0 {
					b[rapid.IntRange(0, min(12, len(b)-1)).Draw(t, "at")] = rapid.Byte().Draw(t, "byte")
				}
				stream = append(stream, b...)
			}
			limit := rapid.SampledFrom([]int{0, 0, 3, 60}).Draw(t, "limit")
			r := packet.NewReader(bytes.NewReader(stream), 0)
			r.SetVersion(v)
			r.SetMax(limit)
			for len(stream) > 0 {
				got, err := r.Next()
				n, wrong := packet.Frame(stream, limit)
				var want packet.Packet
				if wrong == nil && n > 0 && n <= len(stream) && packet.Type(stream[0]>>4) != packet.TypeConnect {
					want, wrong = packet.Decode(stream[:n], v, nil)
				}
				if want == nil {
					if err == nil && packet.Type(stream[0]>>4) != packet.TypeConnect {
						t.Fatalf("Next = %s, but Decode(% x) says %v", render(got), stream, wrong)
					}
					return
				}
				if err != nil {
					t.Fatalf("Next: %v, but Decode(% x) = %s", err, stream[:n], render(want))
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Fatalf("read from % x (-decoded +read):\n%s", stream[:n], diff)
				}
				stream = stream[n:]
			}
		}))
	}
}

// plainPublish draws what the short way is for, and what is nearly that.
func plainPublish(t *rapid.T, v packet.Version) []byte {
	p := &packet.Publish{
		QoS:     rapid.ByteMax(2).Draw(t, "qos"),
		Retain:  rapid.Bool().Draw(t, "retain"),
		Topic:   []byte(rapid.StringN(1, 20, 40).Filter(func(s string) bool { return packet.ValidString(s) }).Draw(t, "topic")),
		Payload: rapid.SliceOfN(rapid.Byte(), 0, 200).Draw(t, "payload"),
	}
	if p.QoS > 0 {
		p.PacketID = rapid.Uint16Min(1).Draw(t, "id")
		p.Dup = rapid.Bool().Draw(t, "dup")
	}
	b, err := p.AppendTo(nil, v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// What is forwarded is what the PUBLISH with the same fields is in wire form.
func TestForwardIsPublish(t *testing.T) {
	for _, v := range versions {
		t.Run(v.String(), rapid.MakeCheck(func(t *rapid.T) {
			p, ok := drawPublish(t, v).(*packet.Publish)
			if !ok || len(p.Topic) == 0 {
				return
			}
			p.TopicAlias, p.SubscriptionIDs = 0, nil
			want, err := p.AppendTo([]byte("before"), v)
			if err != nil {
				t.Fatal(err)
			}
			h := packet.Header{
				Dup: p.Dup, Retain: p.Retain, QoS: p.QoS, PacketID: p.PacketID, HasExpiry: p.HasExpiry, Expiry: p.MessageExpiry,
			}
			got := h.AppendForward([]byte("before"), v, string(p.Topic), p.Properties, p.Payload)
			if !bytes.Equal(got, want) {
				t.Fatalf("AppendForward of %s = % x, want % x", render(p), got, want)
			}
			if n := h.ForwardSize(v, string(p.Topic), p.Properties, p.Payload); n != len(want)-len("before") {
				t.Fatalf("ForwardSize of %s = %d, want %d", render(p), n, len(want)-len("before"))
			}
		}))
	}
}
