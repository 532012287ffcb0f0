package uplink

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	"holdfast/broker/packet"
	"holdfast/storeforward/pack"
)

// brackets renders what begins with an r.
type brackets struct{ form string }

func (b brackets) Render(local, remote string, payload []byte) ([]byte, bool) {
	if payload[0] != 'r' {
		return nil, false
	}
	return fmt.Appendf(nil, "<%s %s %s %s>", b.form, local, remote, payload), true
}

func (b brackets) Pack(out []byte, records []pack.Record) []byte {
	for _, r := range records {
		out = fmt.Appendf(out, "[%s %s %s %s]", b.form, r.Local, r.Topic, r.Payload)
	}
	return out
}

func withRendering(change func(*Route)) func(*Options) {
	return func(o *Options) {
		o.Rendering = func(form, template string) (Rendering, error) {
			if form == "none" {
				return nil, fmt.Errorf("render: there is no %q", form)
			}
			return brackets{form + template}, nil
		}
		change(&o.Routes[0])
	}
}

// Readings are rendered on their way out; what is none goes as it is.
func TestRoutesRender(t *testing.T) {
	tests := map[string]struct {
		change func(*Route)
		want   []string
	}{
		"each":          {func(r *Route) { r.Render, r.Template = "x", "y" }, []string{"<xy s/a site/s/a r1>", "n2", "<xy s/a site/s/a r3>"}},
		"in batches":    {func(r *Route) { r.Render, r.Batch, r.BatchMessages = "x", pack.FormatJSONLines, 2 }, []string{"<x s/a site/s/a r1> n2", "<x s/a site/s/a r3>"}},
		"in own packs":  {func(r *Route) { r.Batch, r.BatchMessages = pack.FormatSenML, 2 }, []string{"[senml s/a site/s/a r1][senml s/a site/s/a n2]", "<senml s/a site/s/a r3>"}},
		"as they are":   {func(*Route) {}, []string{"r1", "n2", "r3"}},
		"in plain ones": {func(r *Route) { r.Batch, r.BatchMessages = pack.FormatCBOR, 3 }, []string{"r1 n2 r3"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, withRendering(tt.change))
				p := r.cloud.welcome(t, packet.Connack{})
				p.subscribed()
				for _, payload := range []string{"r1", "n2", "r3"} {
					r.put("s/a", payload, 1)
				}
				for _, want := range tt.want {
					q := p.publish()
					got := string(q.Payload)
					if string(q.Topic) == "holdfast/gw/batch" {
						b, err := pack.Decompress(q.Payload, 1<<20)
						if err != nil {
							t.Fatal(err)
						}
						if got = string(b); got[0] != '[' || !strings.HasPrefix(got, "[senml ") {
							var members []string
							if err := pack.Read(b, func(r pack.Record) error { members = append(members, string(r.Payload)); return nil }); err != nil {
								t.Fatal(err)
							}
							got = strings.Join(members, " ")
						}
					}
					if got != want {
						t.Errorf("got %q, want %q", got, want)
					}
					p.puback(q)
				}
				p.quiet()
				wantNot := uint64(0)
				if o := r.up.opts.Routes[0]; o.Render != "" {
					wantNot = 1
				}
				if got := r.up.Status().NotRendered; got != wantNot {
					t.Errorf("NotRendered = %d, want %d", got, wantNot)
				}
			})
		})
	}
}
