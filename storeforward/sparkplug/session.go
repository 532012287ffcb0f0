package sparkplug

import (
	"errors"
	"time"

	"holdfast/broker/client"
	"holdfast/broker/durable"
	"holdfast/broker/packet"
)

// session is one connection. All fields are guarded by Node.mu.
type session struct {
	n    *Node
	conn *client.Conn

	subscribed bool
	host       bool      // the primary host is online, or there is none
	hostSince  int64     // timestamp of its STATE
	born       bool      // NBIRTH has gone out
	bornAt     time.Time // the last NBIRTH
	rebirth    bool      // the host has asked for another
	seq        uint64
	number     uint64 // bdSeq
	full       bool   // the connection takes no more for now
	live       bool   // the queue has nothing that was not offered

	offered []durable.Delivery
	out     []value
	held    int // messages taken from the queue and not confirmed

	// QoS 0 has no acknowledgement. What has been sent is safe when the answer
	// to a later PINGREQ has come: by then the server has read it.
	unconfirmed []durable.Seq
	pinged      int // how many of them the PINGREQ under way covers
	pinging     bool
	lastPing    time.Time
	confirmed   []durable.Seq // to be told to the store
}

const (
	// maxHeld is how many messages of the queue may be on their way: one
	// round trip's worth on a slow link, some 100 kB.
	maxHeld = 2000
	// readBytes bounds what is read from the queue at once.
	readBytes = 256 << 10
	// dataBytes bounds the values put into one DDATA.
	dataBytes = 8 << 10
	// pingEvery is the least time between PINGREQs while data flows: each
	// costs some 100 bytes of TCP.
	pingEvery = 500 * time.Millisecond
)

// Offer takes what has just been published (durable.Recipient).
func (s *session) Offer(d durable.Delivery) bool {
	s.n.mu.Lock()
	defer s.n.mu.Unlock()
	if !s.born || s.held >= maxHeld {
		s.live = false
		return false
	}
	s.held++
	s.offered = append(s.offered, d)
	s.n.wakeUp()
	return true
}

// Reserve refuses: a node takes nothing at QoS 2.
func (s *session) Reserve() (packetID uint16, ok bool) { return 0, false }

// Unreserve has nothing to give back.
func (s *session) Unreserve(uint16) {}

// Wake says that there is something to read.
func (s *session) Wake(byte) {
	s.n.mu.Lock()
	defer s.n.mu.Unlock()
	s.live = false
	s.n.wakeUp()
}

// observeLocked takes a reading ahead of the queue; queued says that it is there
// too.
func (s *session) observeLocked(r Reading, queued bool) {
	x := &s.n.model
	m := x.metric(&r)
	if m == nil || !r.Time.After(m.told) || m.device.dead(&r) {
		return // the queue's, or too late
	}
	x.note(r)
	if m.at.Equal(r.Time) {
		m.unseen = queued
	}
	if !m.born || !m.device.born {
		s.wantLocked(m.device)
		return // the birth carries it
	}
	s.out = append(s.out, value{metric: m, value: r.Value, good: r.Good, at: r.Time})
	m.told, m.unseen = r.Time, false
	if queued {
		x.show(m, r.Time)
	}
}

// takeLocked takes one message of the queue; backlog says that it was read from
// the store.
func (s *session) takeLocked(d durable.Delivery, backlog bool) {
	r, ok := s.n.site.Reading(d.Message)
	if !ok {
		s.n.status.Skipped++
		s.unconfirmed = append(s.unconfirmed, d.Seq)
		return
	}
	x := &s.n.model
	m := x.note(r)
	if m == nil {
		s.n.status.Refused++
		s.unconfirmed = append(s.unconfirmed, d.Seq)
		return
	}
	if m.device.dead(&r) {
		s.unconfirmed = append(s.unconfirmed, d.Seq)
		return
	}
	v := value{metric: m, value: r.Value, good: r.Good, at: r.Time, seq: uint64(d.Seq)}
	if !m.born || !m.device.born {
		s.wantLocked(m.device)
		m.device.waiting = append(m.device.waiting, v)
		return
	}
	s.sendLocked(v, backlog)
}

// sendLocked puts a value of the queue in line, unless the host has had it.
func (s *session) sendLocked(v value, backlog bool) {
	m := v.metric
	if v.at.Equal(m.told) || s.n.model.wasShown(m, v.at) {
		s.unconfirmed = append(s.unconfirmed, durable.Seq(v.seq))
		return
	}
	v.historical = v.at.Before(m.told) || backlog && v.at.Before(s.bornAt)
	if !v.historical {
		m.told = v.at
	}
	s.out = append(s.out, v)
}

func (s *session) wantLocked(d *device) {
	if d.want.IsZero() {
		d.want = time.Now()
	}
}

// workLocked sends what can be sent and returns when there is more to do.
func (s *session) workLocked(now time.Time) (next time.Time, err error) {
	next = now.Add(time.Hour)
	if !s.subscribed || !s.host {
		return next, nil
	}
	switch due := s.bornAt.Add(s.n.opts.Birth); {
	case !s.born, s.rebirth && !due.After(now):
		if err := s.birthLocked(now); err != nil {
			return next, err
		}
	case s.rebirth:
		next = due
	}
	offered := s.offered
	s.offered = nil
	for _, d := range offered {
		s.takeLocked(d, false)
	}
	if err := s.devicesLocked(now, &next); err != nil {
		return next, err
	}
	if err := s.flushLocked(now); err != nil {
		return next, err
	}
	return s.pingLocked(now, next)
}

// birthLocked tells the host everything (§6.4.19, §6.4.20).
func (s *session) birthLocked(now time.Time) error {
	s.born, s.bornAt, s.rebirth, s.seq = true, now, false, 0
	p := &Payload{Timestamp: now, Metrics: []Metric{
		{Name: metricBirthNumber, Timestamp: now, Type: Int64, Value: s.number},
		{Name: metricRebirth, Timestamp: now, Type: Boolean, Value: false},
	}}
	s.n.status.NodeBirths++
	if err := s.publishLocked("NBIRTH", "", p); err != nil {
		return err
	}
	for _, d := range s.n.model.order {
		if !d.born {
			continue
		}
		if err := s.deviceBirthLocked(d, now); err != nil {
			return err
		}
	}
	return nil
}

// devicesLocked brings births and deaths of devices up to date.
func (s *session) devicesLocked(now time.Time, next *time.Time) error {
	for _, d := range s.n.model.order {
		switch due := d.want.Add(s.n.opts.Birth); {
		case d.want.IsZero() && !d.born && !d.offline && len(d.order) > 0:
			// Known from before, or back again.
			if err := s.deviceBirthLocked(d, now); err != nil {
				return err
			}
		case !d.want.IsZero() && (!due.After(now) || len(d.waiting) >= maxHeld/4):
			if err := s.deviceBirthLocked(d, now); err != nil {
				return err
			}
		case !d.want.IsZero() && due.Before(*next):
			*next = due
		}
	}
	return nil
}

// deviceBirthLocked tells the host all metrics of a device.
func (s *session) deviceBirthLocked(d *device, now time.Time) error {
	p := &Payload{Timestamp: now}
	for _, m := range d.order {
		p.Metrics = append(p.Metrics, m.birth(s.n.opts.Aliases))
		m.born, m.told, m.fine = true, m.at, m.good
		if m.unseen {
			s.n.model.show(m, m.at)
			m.unseen = false
		}
	}
	d.born, d.want = true, time.Time{}
	s.n.status.Births++
	if err := s.publishLocked("DBIRTH", d.name, p); err != nil {
		return err
	}
	// What was in line before the birth comes after it, and is older.
	line := s.out
	s.out = nil
	for _, v := range line {
		switch {
		case v.metric.device != d || v.at.After(v.metric.told):
		case v.seq != 0:
			s.sendLocked(v, true)
			continue
		case v.at.Equal(v.metric.told):
			continue // it is the birth's
		default:
			v.historical = true
		}
		s.out = append(s.out, v)
	}
	waiting := d.waiting
	d.waiting = nil
	for _, v := range waiting {
		s.sendLocked(v, true)
	}
	return nil
}

// buryLocked tells the host of the devices that cannot be reached, once all that
// they have measured is on its way.
func (s *session) buryLocked(now time.Time) error {
	if !s.live || len(s.out) > 0 || len(s.offered) > 0 || !s.born {
		return nil
	}
	var gone []*device
	for _, d := range s.n.model.order {
		if d.offline && d.born && len(d.waiting) == 0 {
			d.born = false
			s.n.status.Deaths++
			if err := s.publishLocked("DDEATH", d.name, &Payload{Timestamp: now}); err != nil {
				return err
			}
		}
		if d.removed && !d.born {
			gone = append(gone, d)
		}
	}
	for _, d := range gone {
		s.n.model.forget(d)
	}
	return nil
}

// flushLocked sends the values in line: those of one device together, each
// device's in their order.
func (s *session) flushLocked(now time.Time) error {
	if !s.born {
		return nil
	}
	for len(s.out) > 0 && !s.full {
		d := s.out[0].metric.device
		p := &Payload{Timestamp: now}
		var taken, left []value
		size := 0
		for _, v := range s.out {
			if v.metric.device != d || size > dataBytes {
				left = append(left, v)
				continue
			}
			data := v.data(s.n.opts.Aliases)
			size += 24 + len(data.Name)
			if text, ok := v.value.(string); ok {
				size += len(text)
			}
			p.Metrics = append(p.Metrics, data)
			v.metric.fine = v.good
			taken = append(taken, v)
		}
		switch err := s.publishLocked("DDATA", d.name, p); {
		case errors.Is(err, client.ErrOutputFull):
			s.full = true
			return nil
		case errors.Is(err, client.ErrTooLarge):
			s.n.status.Refused += uint64(len(taken))
			s.n.log.Warn("values are larger than the host's broker takes", "device", d.name, "values", len(taken))
		case err != nil:
			return err
		}
		for _, v := range taken {
			if v.seq != 0 {
				s.unconfirmed = append(s.unconfirmed, durable.Seq(v.seq))
			}
			if v.historical {
				s.n.status.Historical++
			} else {
				s.n.status.Live++
			}
		}
		s.out = left
	}
	return nil
}

// pingLocked asks for the confirmation of what has been sent.
func (s *session) pingLocked(now, next time.Time) (time.Time, error) {
	if s.pinging || len(s.unconfirmed) == 0 {
		return next, nil
	}
	if due := s.lastPing.Add(pingEvery); due.After(now) {
		if due.Before(next) {
			next = due
		}
		return next, nil
	}
	s.pinging, s.pinged, s.lastPing = true, len(s.unconfirmed), now
	return next, s.conn.Ping(s.ponged)
}

// ponged takes what the PINGREQ has covered as delivered.
func (s *session) ponged() {
	s.n.mu.Lock()
	defer s.n.mu.Unlock()
	s.confirmed = append(s.confirmed, s.unconfirmed[:s.pinged]...)
	s.unconfirmed = s.unconfirmed[s.pinged:]
	s.n.status.Confirmed += uint64(s.pinged)
	s.held -= s.pinged
	s.pinging, s.pinged = false, 0
	s.n.wakeUp()
}

// Names of the node's own metrics (§6.4.19, §6.4.25).
const (
	metricBirthNumber = "bdSeq"
	metricRebirth     = "Node Control/Rebirth"
)

// publishLocked sends a message of the node or, with its name, of a device: QoS 0,
// not retained, with the next number (§6.4.3).
func (s *session) publishLocked(kind, device string, p *Payload) error {
	p.Seq, p.HasSeq = s.seq, true
	topic := s.n.topic(kind)
	if device != "" {
		topic += "/" + device
	}
	if err := s.conn.Queue(&packet.Publish{Topic: []byte(topic), Payload: p.Append(nil)}); err != nil {
		return err
	}
	s.seq = (s.seq + 1) % 256
	return nil
}

func (n *Node) topic(kind string) string {
	return Namespace + "/" + n.opts.Group + "/" + kind + "/" + n.opts.node()
}
