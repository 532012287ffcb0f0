package uplink

import (
	"fmt"

	"holdfast/broker/message"
	"holdfast/storeforward/pack"
)

// Rendering writes readings in another form than the one they are stored in. Its
// methods are called from any goroutine, Render under the uplink's lock: they wait
// for nothing. They may not change what they are given.
type Rendering interface {
	// Render returns what the payload of a message becomes; local and remote are
	// its topics here and at the cloud. False: it is no reading.
	Render(local, remote string, payload []byte) ([]byte, bool)
	// Pack appends a batch of a format that package pack does not write. It has
	// every record in it.
	Pack(b []byte, records []pack.Record) []byte
}

// Form is the form in which readings of the route go to the cloud; empty for as they
// are.
func (r *Route) Form() string {
	if r.Batch.Foreign() {
		return string(r.Batch)
	}
	return r.Render
}

// useRenderings gives the ways out what renders their readings.
func (u *Uplink) useRenderings() error {
	n := 0 // of the ways out
	for i := range u.opts.Routes {
		r := &u.opts.Routes[i]
		if r.Direction == DirectionIn {
			continue
		}
		if form := r.Form(); form != "" {
			if u.opts.Rendering == nil {
				return fmt.Errorf("route[%d].render: nothing here renders %q", i, form)
			}
			rendering, err := u.opts.Rendering(form, r.Template)
			if err != nil {
				return fmt.Errorf("route[%d].%w", i, err)
			}
			u.out[n].render = rendering
		}
		n++
	}
	return nil
}

// rendered is the payload with which m goes out by w, and whether it was left as it
// is because it is no reading.
func (w *way) rendered(m *message.Message, remote string) (payload []byte, foreign bool) {
	if w == nil || w.render == nil {
		return m.Payload, false
	}
	if p, ok := w.render.Render(m.Topic, remote, m.Payload); ok {
		return p, false
	}
	return m.Payload, true
}
