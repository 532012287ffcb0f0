package sparkplug

import (
	"errors"
	"slices"
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

	offered   []durable.Delivery
	out       []value
	held      int // messages taken from the queue and not confirmed
	heldBytes int // of them

	// QoS 0 has no acknowledgement. What has been sent is safe when the answer
	// to a later PINGREQ has come: by then the server has read it.
	unconfirmed []*inHand
	pinged      int // how many of them the PINGREQ under way covers
	pinging     bool
	lastPing    time.Time
	confirmed   []durable.Seq // to be told to the store
}

// inHand is a message of the queue on its way.
type inHand struct {
	seq   durable.Seq
	bytes int
	left  int // values that have not been sent
}

const (
	// maxHeld is how many messages of the queue may be on their way: one
	// round trip's worth on a slow link, some 100 kB.
	maxHeld = 2000
	// maxHeldBytes bounds them, too: a message may carry many values.
	maxHeldBytes = 1 << 20
	// maxAhead is how many values may be in line for the next message that the
	// connection takes, before what comes ahead of the queue is left to it.
	maxAhead = 1000
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
	if !s.born || s.held >= maxHeld || s.heldBytes >= maxHeldBytes {
		s.live = false
		return false
	}
	s.holdLocked(d)
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

func (s *session) holdLocked(d durable.Delivery) {
	s.held++
	s.heldBytes += d.Message.Size()
}

// observeLocked takes a reading ahead of the queue; queued says that it is there
// too.
func (s *session) observeLocked(r Reading, queued bool, now time.Time) {
	x := &s.n.model
	crowded := len(s.out) >= maxAhead
	if d := x.devices[r.Device]; d != nil {
		if d.dead(&r) {
			return
		}
		crowded = crowded || len(d.waiting) >= maxAhead
	}
	if crowded && queued {
		return
	}
	m := x.metric(&r)
	if m == nil || m.refused || m.device.refused {
		if !queued {
			s.refuseLocked(&r)
		}
		return
	}
	newer := r.Time.After(m.told) || m.told.After(now.Add(ahead))
	if !newer && queued {
		return
	}
	if x.note(&r, now) == nil {
		if !queued {
			s.refuseLocked(&r)
		}
		return
	}
	if m.at.Equal(r.Time) {
		m.unseen = queued
	}
	v := value{metric: m, value: r.Value, good: r.Good, at: r.Time}
	switch {
	case crowded:
		s.n.status.Dropped++
		s.n.warnLocked("values of QoS 0 dropped: the host's broker does not take them fast enough", "device", r.Device)
	case !m.born || !m.device.born:
		s.wantLocked(m.device)
		if !queued {
			m.device.waiting = append(m.device.waiting, v)
		} // else the birth carries it
	case queued:
		m.tell(v.at, v.value, v.good)
		m.unseen = false
		s.out = append(s.out, v)
		x.show(m, v.sample())
	default:
		if newer {
			m.told = time.Time{}
		}
		s.sendLocked(v, false)
	}
}

func (s *session) refuseLocked(r *Reading) {
	s.n.status.Refused++
	s.n.warnLocked("value refused: too many metrics, or more than a packet of the host's broker can hold", "device", r.Device, "metric", r.Metric)
}

// takeLocked takes one message of the queue; backlog says that it was read from
// the store.
func (s *session) takeLocked(d durable.Delivery, backlog bool) {
	rs := s.n.site.Readings(d.Message)
	if len(rs) == 0 {
		s.n.status.Skipped++
	}
	of := &inHand{seq: d.Seq, bytes: d.Message.Size(), left: len(rs) + 1}
	for i := range rs {
		s.takeReadingLocked(&rs[i], of, backlog)
	}
	s.sentLocked(of)
}

// sentLocked takes note that a value of the message, or what came in its place, is
// before the next PINGREQ.
func (s *session) sentLocked(of *inHand) {
	if of == nil {
		return
	}
	if of.left--; of.left == 0 {
		s.unconfirmed = append(s.unconfirmed, of)
	}
}

func (s *session) takeReadingLocked(r *Reading, of *inHand, backlog bool) {
	m := s.n.model.note(r, time.Time{})
	switch {
	case m == nil || m.refused || m.device.refused:
		s.refuseLocked(r)
		s.sentLocked(of)
		return
	case m.device.dead(r):
		s.sentLocked(of)
		return
	}
	v := value{metric: m, value: r.Value, good: r.Good, at: r.Time, of: of}
	if !m.born || !m.device.born {
		s.wantLocked(m.device)
		m.device.waiting = append(m.device.waiting, v)
		return
	}
	s.sendLocked(v, backlog)
}

// sendLocked puts a value in line, unless the host has had it.
func (s *session) sendLocked(v value, backlog bool) {
	m := v.metric
	if s.n.model.wasShown(m, v.sample()) || v.at.Equal(m.told) && v.sample() == m.current {
		// What the host was shown may still be in line: this waits behind it.
		v.silent = true
		s.out = append(s.out, v)
		return
	}
	v.historical = v.historical || v.at.Before(m.told) || backlog && v.at.Before(s.bornAt)
	if !v.historical {
		m.tell(v.at, v.value, v.good)
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
	case s.full:
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

// birthLocked tells the host of the node (§6.4.19); the births of the devices
// follow.
func (s *session) birthLocked(now time.Time) error {
	p := &Payload{Timestamp: now, Metrics: append([]Metric{
		{Name: metricBirthNumber, Timestamp: now, Type: Int64, Value: s.number},
		{Name: metricRebirth, Timestamp: now, Type: Boolean, Value: false},
	}, s.n.site.About()...)}
	for i := range p.Metrics {
		p.Metrics[i].Timestamp = now
	}
	s.seq = 0
	switch err := s.publishLocked("NBIRTH", "", p); {
	case s.full || err != nil:
		return err
	}
	s.born, s.bornAt, s.rebirth = true, now, false
	s.n.status.NodeBirths++
	for _, d := range s.n.model.order {
		if d.born {
			d.born, d.want = false, now.Add(-s.n.opts.Birth)
		}
	}
	return nil
}

// devicesLocked brings births of devices up to date.
func (s *session) devicesLocked(now time.Time, next *time.Time) error {
	for _, d := range s.n.model.order {
		if s.full || !s.born {
			return nil
		}
		switch due := d.want.Add(s.n.opts.Birth); {
		case d.refused:
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
	}
	told := s.fit("DBIRTH", d.name, p)
	if told < len(d.order) {
		s.n.warnLocked("birth is larger than the host's broker takes", "device", d.name, "metrics", len(d.order), "told", told)
	}
	if told > 0 {
		p.Metrics = p.Metrics[:told]
		// [tck-id-operational-behavior-data-publish-dbirth-order]
		slices.SortStableFunc(p.Metrics, func(a, b Metric) int { return a.Timestamp.Compare(b.Timestamp) })
		if err := s.publishLocked("DBIRTH", d.name, p); s.full || err != nil {
			return err
		}
		s.n.status.Births++
	}
	d.born, d.want, d.refused = told > 0, time.Time{}, told == 0
	for i, m := range d.order {
		m.born, m.refused, m.fine = i < told, i >= told, m.good
		m.tell(m.at, m.value, m.good)
		if m.unseen && m.born {
			s.n.model.show(m, m.current)
		}
		m.unseen = false
	}
	// What was in line before the birth comes after it, and is older.
	line, waiting := s.out, d.waiting
	s.out, d.waiting = nil, nil
	for _, v := range line {
		switch {
		case v.metric.device != d || v.silent && !v.metric.refused:
			s.out = append(s.out, v)
		case v.of == nil && v.sample() == v.metric.current: // it is the birth's
		default:
			s.bornLocked(v)
		}
	}
	for _, v := range waiting {
		s.bornLocked(v)
	}
	return nil
}

// bornLocked puts a value in line behind the birth of its metric, which has told a
// newer one, or this.
func (s *session) bornLocked(v value) {
	if v.metric.refused {
		s.refuseLocked(&Reading{Device: v.metric.device.name, Metric: v.metric.name})
		s.sentLocked(v.of)
		return
	}
	v.historical = !v.at.After(v.metric.told)
	s.sendLocked(v, true)
}

// fit returns how many metrics of the payload have room in a packet that the server
// takes.
func (s *session) fit(kind, device string, p *Payload) int {
	const header = 64 // of the packet and the payload, with room to spare
	room := int(s.conn.Limits().MaximumPacketSize) - header - len(s.n.topic(kind)) - len(device)
	for i := range p.Metrics {
		if room -= len(p.Metrics[i].append(nil)) + 5; room < 0 {
			return i
		}
	}
	return len(p.Metrics)
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
			if err := s.publishLocked("DDEATH", d.name, &Payload{Timestamp: now}); s.full || err != nil {
				return err
			}
			d.born = false
			s.n.status.Deaths++
		}
		if d.removed && !d.born && len(d.waiting) == 0 {
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
	most := maxHeld
	for s.born && len(s.out) > 0 && !s.full {
		taken, left := s.cutLocked(most)
		p := &Payload{Timestamp: now}
		fine := make([]bool, len(taken))
		for i := range taken {
			m := taken[i].metric
			fine[i] = m.fine
			if !taken[i].silent {
				p.Metrics = append(p.Metrics, taken[i].data(s.n.opts.Aliases))
				m.fine = taken[i].good
			}
		}
		if len(p.Metrics) > 0 {
			err := s.publishLocked("DDATA", taken[0].metric.device.name, p)
			if s.full || err != nil {
				for i, v := range slices.Backward(taken) {
					v.metric.fine = fine[i]
				}
			}
			switch {
			case errors.Is(err, client.ErrTooLarge) && len(taken) > 1:
				most = len(taken) / 2
				continue
			case errors.Is(err, client.ErrTooLarge):
				s.refuseLocked(&Reading{Device: taken[0].metric.device.name, Metric: taken[0].metric.name})
				taken[0].silent = true
			case s.full || err != nil:
				return err
			}
		}
		most = maxHeld
		for _, v := range taken {
			switch {
			case v.silent:
			case v.historical:
				s.n.status.Historical++
			default:
				s.n.status.Live++
			}
			s.sentLocked(v.of)
		}
		s.out = left
	}
	return nil
}

// cutLocked parts what is in line: the next values of the first one's device, as
// many as one message is to carry, and the rest.
func (s *session) cutLocked(most int) (taken, left []value) {
	d, size := s.out[0].metric.device, 0
	for _, v := range s.out {
		if v.metric.device != d || size > dataBytes || len(taken) >= most {
			left = append(left, v)
			continue
		}
		if !v.silent {
			size += 24 + len(v.metric.name)
			if text, ok := v.value.(string); ok {
				size += len(text)
			}
		}
		taken = append(taken, v)
	}
	return taken, left
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
	for _, of := range s.unconfirmed[:s.pinged] {
		s.confirmed = append(s.confirmed, of.seq)
		s.heldBytes -= of.bytes
	}
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
// not retained, with the next number (§6.4.3). When the connection has no room for
// it now, full is set and nothing has happened.
func (s *session) publishLocked(kind, device string, p *Payload) error {
	p.Seq, p.HasSeq = s.seq, true
	topic := s.n.topic(kind)
	if device != "" {
		topic += "/" + device
	}
	switch err := s.conn.Queue(&packet.Publish{Topic: []byte(topic), Payload: p.Append(nil)}); {
	case errors.Is(err, client.ErrOutputFull):
		s.full = true
		return nil
	case err != nil:
		return err
	}
	s.seq = (s.seq + 1) % 256
	return nil
}

func (n *Node) topic(kind string) string {
	return Namespace + "/" + n.opts.Group + "/" + kind + "/" + n.opts.node()
}
