package uplink

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/broker/message"
	"holdfast/broker/packet"
	"holdfast/storeforward/pack"
)

// batching makes the first route one with batches of at most four.
func withBatches(o *Options) {
	r := &o.Routes[0]
	r.Batch, r.BatchMessages = pack.FormatCBOR, 4
}

// batch returns the payloads in the next PUBLISH, which must be a batch.
func (p *peer) batch() (payloads string, q *packet.Publish) {
	p.t.Helper()
	q = p.publish()
	if q.QoS != 1 || q.Retain || q.Dup {
		p.t.Fatalf("got %s, want a batch", show(q))
	}
	return members(p.t, q), q
}

func members(t testing.TB, q *packet.Publish) (payloads string) {
	t.Helper()
	err := pack.Unpack(q.Payload, 1<<20, func(r pack.Record) error {
		if !strings.HasPrefix(r.Topic, "site/s/") {
			t.Errorf("a member's topic is %q", r.Topic)
		}
		payloads += string(r.Payload)
		return nil
	})
	if err != nil {
		t.Fatalf("%s: %v", show(q), err)
	}
	return payloads
}

func (p *peer) puback(q *packet.Publish) { p.send(&packet.Puback{PacketID: q.PacketID}) }

func TestBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, withBatches)
		p := r.cloud.welcome(t, packet.Connack{})
		p.subscribed()
		began := time.Now()
		var safe []chan struct{}
		for i := range 6 {
			safe = append(safe, r.put("s/"+strconv.Itoa(i%2), strconv.Itoa(i), 1))
		}
		got, first := p.batch()
		if d := time.Since(began); got != "0123" || d > time.Millisecond {
			t.Errorf("first batch has %q after %v, want 0123 at once", got, d)
		}
		if props, err := packet.ParsePublishProperties(first.Properties); err != nil || string(first.Topic) != "holdfast/gw/batch" ||
			props.ContentType != "application/cbor" || len(props.User) != 0 {
			t.Errorf("batch that zstd makes larger is %s with %+v, %v", show(first), props, err)
		}
		got, second := p.batch()
		if d := time.Since(began); got != "45" || d < DefaultBatchDelay || d > 2*DefaultBatchDelay {
			t.Errorf("second batch has %q after %v, want 45 after %v", got, d, DefaultBatchDelay)
		}
		p.puback(first)
		p.quiet()
		if r.backlog() != 2 {
			t.Errorf("backlog is %d, want 2", r.backlog())
		}
		p.puback(second)
		for _, s := range safe {
			<-s
		}
		st := r.up.Status()
		if st.Acked != 6 || st.MessagesOut != 1+6 || st.Batches != 2 || st.Batched != 6 || st.Backlog != 0 || st.InFlight != 0 {
			t.Errorf("status is %+v", st)
		}
		if w := r.store.Status().Written; w != 0 {
			t.Errorf("%d messages written, want none: the link is well", w)
		}
	})
}

// The saving that the status shows is that of the bytes in the packets.
func TestBatchesSave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) { withBatches(o); o.Routes[0].BatchMessages = 0 })
		for i := range 1000 {
			r.put("s/"+strings.Repeat("x", 34)+strconv.Itoa(i%4), fmt.Sprintf(`{"value":%d,"time":"2026-05-01T10:00:00.%03dZ","quality":"good"}`, 1000+i*7%90, i), 1)
		}
		p := r.cloud.welcome(t, packet.Connack{})
		p.subscribed()
		n := 0
		for range 2 {
			_, q := p.batch()
			if props, err := packet.ParsePublishProperties(q.Properties); err != nil || len(props.User) != 1 || props.User[0] != (packet.UserProperty{Key: "content-encoding", Value: "zstd"}) {
				t.Errorf("batch has %+v, %v", props, err)
			}
			n += len(q.Payload)
			p.puback(q)
		}
		p.quiet()
		st := r.up.Status()
		if st.Backlog != 0 || st.BatchBytes != uint64(n) || st.BatchSaving < 0.85 {
			t.Errorf("backlog %d, %d bytes sent as batches, status says %d, saving %.2f", st.Backlog, n, st.BatchBytes, st.BatchSaving)
		}
	})
}

// What cannot be in a batch goes alone, at its place.
func TestAloneAmongBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, withBatches)
		p := r.cloud.welcome(t, packet.Connack{})
		p.subscribed()
		r.put("s/a", "0", 1)
		r.put("s/a", "1", 1)
		r.putMessage(&message.Message{Topic: "s/a", Payload: []byte("2"), QoS: 1, Retain: true, Received: time.Now()})
		r.put("s/a", "3", 1)
		r.put("s/a", "x", 2)
		var got []string
		for open := 4; open > 0; {
			next := p.next()
			if rel, ok := next.(*packet.Pubrel); ok {
				p.send(&packet.Pubcomp{PacketID: rel.PacketID})
				open--
				continue
			}
			switch q := next.(*packet.Publish); {
			case q.QoS == 2:
				p.send(&packet.Pubrec{PacketID: q.PacketID})
				continue
			case string(q.Topic) == "holdfast/gw/batch":
				got = append(got, "batch "+members(t, q))
				p.puback(q)
			default:
				got = append(got, fmt.Sprintf("%s retain %v", q.Payload, q.Retain))
				p.puback(q)
			}
			open--
		}
		if want := []string{"batch 01", "2 retain true", "3 retain false"}; fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("got %q, want %q", got, want)
		}
		p.quiet()
		if n := r.backlog(); n != 0 {
			t.Errorf("backlog is %d", n)
		}
	})
}

// Whatever happens to the connection or the session, no member of a batch is lost,
// and a batch the cloud may have is sent again as it was.
func TestBatchAcrossConnections(t *testing.T) {
	tests := map[string]struct {
		again func(r *rig, p *peer)
		ack   packet.Connack
		same  bool // the same packet with DUP
		dups  uint64
	}{
		"session kept": {func(_ *rig, p *peer) { p.cut() }, packet.Connack{SessionPresent: true}, true, 4},
		"session lost": {func(_ *rig, p *peer) { p.cut() }, packet.Connack{}, false, 4},
		"restart":      {func(r *rig, p *peer) { p.cut(); r.restart(nil) }, packet.Connack{SessionPresent: true}, false, 0},
		"a smaller packet": {
			func(_ *rig, p *peer) { p.cut() },
			packet.Connack{SessionPresent: true, Properties: packet.Properties{MaximumPacketSize: 300}},
			false, 4,
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, func(o *Options) {
					withBatches(o)
					o.Routes[0].Compression = pack.CompressionNone
				})
				p := r.cloud.welcome(t, packet.Connack{})
				p.subscribed()
				for i := range 6 {
					r.put("s/a", strconv.Itoa(i)+strings.Repeat(".", 100), 1)
				}
				_, first := p.batch()
				p.quiet()
				test.again(r, p)
				p = r.cloud.welcome(t, test.ack)
				var got string
				for n := 0; n < 6; {
					q, ok := p.next().(*packet.Publish)
					if !ok {
						p.send(&packet.Suback{PacketID: 2, Reasons: []packet.ReasonCode{2}})
						continue
					}
					if n == 0 {
						if q.Dup != test.same || test.same && (!bytes.Equal(q.Payload, first.Payload) || q.PacketID != first.PacketID) {
							t.Errorf("got %s after %s", show(q), show(first))
						}
					}
					payloads := string(q.Payload)
					if string(q.Topic) != "site/s/a" && (len(q.Topic) > 0 || q.Payload[0] == 0xd9) {
						payloads = members(t, q)
					}
					n += strings.Count(payloads, strings.Repeat(".", 100))
					got += strings.ReplaceAll(payloads, ".", "")
					p.puback(q)
				}
				if got != "012345" {
					t.Errorf("got %q, want 012345", got)
				}
				synctest.Wait()
				if st := r.up.Status(); st.Backlog != 0 || st.Duplicates != test.dups {
					t.Errorf("backlog %d, %d possible duplicates, want 0 and %d", st.Backlog, st.Duplicates, test.dups)
				}
			})
		})
	}
}

func TestBatchRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, withBatches)
		p := r.cloud.welcome(t, packet.Connack{})
		p.subscribed()
		for i := range 9 {
			r.put("s/a", strconv.Itoa(i), 1)
		}
		got, q := p.batch()
		p.refuse(1, q.PacketID, packet.ReasonQuotaExceeded) // for now
		_, second := p.batch()
		p.refuse(1, second.PacketID, packet.ReasonNotAuthorized) // for good
		again, q := p.batch()
		if again != got {
			t.Errorf("refused %q, then came %q", got, again)
		}
		p.puback(q)
		// The last one is alone, and waited behind its batch.
		p.puback(p.expectPublish("8", 1, false))
		p.quiet()
		st := r.up.Status()
		if st.Refused != 4 || st.Acked != 5 || st.Backlog != 0 {
			t.Errorf("status is %+v", st)
		}
		if n := r.store.Status().Queues[0].DeadLetters; n != 4 {
			t.Errorf("%d dead letters, want 4", n)
		}
	})
}

// A batch is never larger than what the cloud takes; a message that is too large
// alone is set aside.
func TestBatchFitsTheCloud(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const most = 400
		r := newRig(t, func(o *Options) { withBatches(o); o.Routes[0].BatchMessages = 100 })
		noise := func(n int) string {
			b := make([]byte, n)
			rand.Read(b)
			return fmt.Sprintf("%x", b)
		}
		want := ""
		for i := range 20 {
			payload := fmt.Sprintf("<%d %s>", i, noise(30))
			if i == 7 {
				payload = noise(most)
			} else {
				want += payload
			}
			r.put("s/a", payload, 1)
		}
		p := r.cloud.welcome(t, packet.Connack{Properties: packet.Properties{MaximumPacketSize: most}})
		p.subscribed()
		got := ""
		for len(got) < len(want) {
			q := p.publish()
			if n := q.Size(packet.V5); n > most {
				t.Errorf("a packet of %d bytes", n)
			}
			if string(q.Topic) == "site/s/a" {
				got += string(q.Payload)
			} else {
				got += members(t, q)
			}
			p.puback(q)
		}
		if got != want {
			t.Errorf("got  %q\nwant %q", got, want)
		}
		p.quiet()
		if st := r.up.Status(); st.Dropped[dropTooLarge] != 1 || st.Backlog != 0 {
			t.Errorf("dropped %v, backlog %d", st.Dropped, st.Backlog)
		}
	})
}

// 3.1.1 has no properties: the topic tells what a batch is.
func TestBatchTopicOf311(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) {
			withBatches(o)
			o.Protocol, o.Routes[0].Batch, o.Routes[0].Compression = Protocol311, pack.FormatJSONLines, pack.CompressionGzip
		})
		r.cloud.acceptWith(t, packet.Connack{}).gone() // ends a session there may be
		p := r.cloud.welcome(t, packet.Connack{})
		p.subscribed()
		r.put("s/a", "0", 1)
		r.put("s/a", "1", 1)
		got, q := p.batch()
		if string(q.Topic) != "holdfast/gw/batch/jsonl.gz" || got != "01" {
			t.Errorf("got %s with %q", show(q), got)
		}
		p.puback(q)
		p.quiet()
	})
}
