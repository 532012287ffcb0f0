package uplink

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"holdfast/broker/durable"
	"holdfast/broker/message"
	"holdfast/broker/packet"
	"holdfast/storeforward/pack"
)

// What a route gathers when it does not say how much.
const (
	DefaultBatchTopic    = "holdfast/{gateway}/batch"
	DefaultBatchMessages = 500
	DefaultBatchBytes    = 64 << 10
	// DefaultBatchDelay is half of the store's commit window: what has been
	// acknowledged in that is not written to flash.
	DefaultBatchDelay = 250 * time.Millisecond
)

// batching is how a route puts many messages into one.
type batching struct {
	format      pack.Format
	compression pack.Compression
	topic       string
	properties  []byte    // MQTT 5.0
	suffix      string    // of the topic in 3.1.1, which has no properties
	plain       *batching // the same for what compressing would make no smaller
	messages    int
	bytes       int
	delay       time.Duration
}

func (r *Route) batching(gateway string) *batching {
	if r.Batch == "" {
		return nil
	}
	b := &batching{
		format: r.Batch, compression: cmp.Or(r.Compression, pack.CompressionZstd),
		topic:    expand(cmp.Or(r.BatchTopic, DefaultBatchTopic), gateway),
		messages: cmp.Or(r.BatchMessages, DefaultBatchMessages), bytes: cmp.Or(r.BatchBytes, DefaultBatchBytes),
		delay: cmp.Or(r.BatchDelay, DefaultBatchDelay),
	}
	b.describe()
	b.plain = new(*b)
	b.plain.compression = pack.CompressionNone
	b.plain.describe()
	return b
}

// describe sets what tells the other side how a batch is made.
func (b *batching) describe() {
	b.suffix, b.properties = "/"+pack.Suffix(b.format, b.compression), nil
	p := packet.PublishProperties{ContentType: b.format.ContentType()}
	if b.compression != pack.CompressionNone {
		p.User = []packet.UserProperty{{Key: pack.EncodingProperty, Value: string(b.compression)}}
	}
	if properties, err := p.AppendTo(nil); err == nil { // of short constants
		b.properties = properties
	}
}

// validateBatch checks the keys of batching.
func (r *Route) validateBatch(gateway string) error {
	if r.Batch == "" {
		return nil
	}
	switch {
	case !r.Batch.Foreign() && !slices.Contains(pack.Formats, r.Batch):
		return fmt.Errorf("batch: %q is not one of %q", r.Batch, slices.Concat(pack.Formats, pack.ForeignFormats))
	case r.Direction != DirectionOut:
		return errors.New("batch: is for direction \"out\" only; the other side takes batches apart with holdfast unpack")
	case r.Batch.Foreign() && r.Render != "" && r.Render != string(r.Batch):
		return fmt.Errorf("render: %q contradicts batch = %q, in whose form all readings of the route go", r.Render, r.Batch)
	case r.QoS != nil && *r.QoS == 0:
		return errors.New("batch: needs acknowledgements; set qos to 1 or 2")
	case r.Compression != "" && !slices.Contains(pack.Compressions, r.Compression):
		return fmt.Errorf("compression: %q is not one of %q", r.Compression, pack.Compressions)
	case r.BatchMessages < 0 || r.BatchMessages > 10_000:
		return fmt.Errorf("batch_messages: %d is outside 1..10000", r.BatchMessages)
	case r.BatchBytes < 0 || r.BatchBytes > 1<<20:
		return fmt.Errorf("batch_bytes: %d is outside 1..%d", r.BatchBytes, 1<<20)
	case r.BatchDelay < 0 || r.BatchDelay > time.Hour:
		return fmt.Errorf("batch_delay: %v is outside 0s..%v", r.BatchDelay, time.Hour)
	}
	return validTopic("batch_topic", cmp.Or(r.BatchTopic, DefaultBatchTopic), gateway)
}

// batch gathers the messages of one route and lane for as long as a connection lasts: what
// is not sent with it is read from the store again. All QoS 1 messages of the
// route pass through it, so that they keep their order; one with RETAIN, which no
// batch can carry, goes alone.
type batch struct {
	way     *way
	lane    *lane
	waiting []durable.Delivery
	bytes   int
	alone   int // of waiting: cannot be in a batch
	since   time.Time
}

func (b *batch) single(d *durable.Delivery) bool { return d.Retain && !b.way.strip }

// batchedLocked says that the delivery goes by a batch.
func (ln *lane) batchedLocked(d *durable.Delivery) bool {
	if d.QoS != 1 || !ln.l.u.out.batch() {
		return false
	}
	way, _ := ln.l.u.carries(d.Message.Topic)
	return way != nil && way.batch != nil
}

// joinLocked takes a delivery into the batch of its route; false when it goes by
// none, or the batch is full.
func (l *link) joinLocked(ln *lane, d *durable.Delivery, now time.Time) bool {
	if !ln.batchedLocked(d) {
		return false
	}
	b := l.batchOf(ln, d)
	// One on its way together, one filling up meanwhile.
	if len(b.waiting) >= 2*b.way.batch.messages || b.bytes >= 2*b.way.batch.bytes {
		return false
	}
	if len(b.waiting) == 0 {
		b.since = now
	}
	b.waiting = append(b.waiting, *d)
	b.bytes += d.Message.Size()
	if b.single(d) {
		b.alone++
	}
	return true
}

// batchOf returns the batch of a route and a lane, which may be one that the route
// had before. They are in the order of the lanes.
func (l *link) batchOf(ln *lane, d *durable.Delivery) *batch {
	way, _ := l.u.carries(d.Message.Topic)
	for _, b := range l.batches {
		if b.way == way && b.lane == ln {
			return b
		}
	}
	b := &batch{way: way, lane: ln}
	l.batches = append(l.batches, b)
	slices.SortStableFunc(l.batches, func(a, b *batch) int { return cmp.Compare(a.lane.index, b.lane.index) })
	return b
}

// dueAt is when the batch goes out, full or not.
func (b *batch) dueAt(now time.Time) (at time.Time, waiting bool) {
	switch {
	case len(b.waiting) == 0:
		return time.Time{}, false
	case len(b.waiting) >= b.way.batch.messages, b.bytes >= b.way.batch.bytes, b.alone > 0:
		return now, true
	case b.lane.l.u.budget.stage >= budgetBatch:
		return b.since.Add(moreBatching * b.way.batch.delay), true
	default:
		return b.since.Add(b.way.batch.delay), true
	}
}

// pack makes messages of the batches that are due. Compressing takes a while and
// is done without the lock; only the writer takes from a batch, so that what
// comes meanwhile stays behind.
func (l *link) pack() {
	for {
		l.u.mu.Lock()
		b, ds := l.dueLocked(time.Now())
		l.unlock()
		if b == nil {
			return
		}
		fs, err := l.u.packed(b.way, ds, l.payloadRoom(b.way))
		l.u.mu.Lock()
		for _, f := range fs {
			var ok bool
			if f.id, ok = l.sess.ids.Take(); !ok {
				err = errors.Join(err, errors.New("no packet id is left"))
				break
			}
			f.lane, f.waited = b.lane.index, l.hasWaited(ds[0].Message)
			l.sess.add(f)
			b.lane.ready[1] = append(b.lane.ready[1], f)
		}
		if err != nil {
			l.failLocked(fmt.Errorf("batch: %w", err))
		}
		l.unlock()
		if err != nil {
			return
		}
	}
}

// dueLocked takes what is to go out together from the first batch that is due.
func (l *link) dueLocked(now time.Time) (*batch, []durable.Delivery) {
	if l.err != nil || l.leaving {
		return nil, nil
	}
	for _, b := range l.batches {
		for {
			at, waiting := b.dueAt(now)
			if !waiting || at.After(now) || !l.roomLocked(0) || b.lane.restrictedLocked() {
				break
			}
			if l.hasWaited(b.waiting[0].Message) && l.pace.waits(now) > 0 {
				break
			}
			if ds := l.takeBatchLocked(b, now); len(ds) > 0 {
				return b, ds
			} // all of them were dropped
		}
	}
	return nil, nil
}

func (l *link) takeBatchLocked(b *batch, now time.Time) []durable.Delivery {
	n, bytes := 0, 0
	for n < len(b.waiting) && n < b.way.batch.messages && (n == 0 || bytes < b.way.batch.bytes) {
		d := &b.waiting[n]
		if b.single(d) && n > 0 {
			break
		}
		bytes += d.Message.Size()
		n++
		if b.single(d) {
			b.alone--
			break
		}
	}
	ds := slices.Clone(b.waiting[:n])
	b.waiting = slices.Delete(b.waiting, 0, n)
	b.bytes -= bytes
	b.since = now
	return slices.DeleteFunc(ds, func(d durable.Delivery) bool { return b.lane.hopelessLocked(&d, now) })
}

// payloadRoom is the largest payload of a batch that the cloud takes.
func (l *link) payloadRoom(w *way) int {
	p := packet.Publish{QoS: 1, PacketID: 1, TopicAlias: 1, Topic: []byte(w.batch.topic), Properties: w.batch.properties}
	if l.v != packet.V5 {
		p.TopicAlias, p.Topic = 0, []byte(w.batch.topic+w.batch.suffix)
	}
	return int(l.limits.MaximumPacketSize) - p.Size(l.v) - 3 // the length takes up to three bytes more
}

// packed makes one message of ds, or several where one would be larger than the
// cloud takes. What is alone goes as it is.
func (u *Uplink) packed(w *way, ds []durable.Delivery, most int) ([]*flight, error) {
	if len(ds) == 1 {
		d := &ds[0]
		return []*flight{{seq: d.Seq, msg: d.Message, qos: 1, retain: d.Retain, state: flightReady, with: w.batch}}, nil
	}
	p, err := u.packer(w)
	if err != nil {
		return nil, err
	}
	now, before, foreign := time.Now(), 0, uint64(0)
	records := make([]pack.Record, len(ds))
	seqs := make([]durable.Seq, len(ds))
	for i := range ds {
		m := ds[i].Message
		before += m.Size()
		seqs[i] = ds[i].Seq
		_, remote := w.carry(m.Topic)
		left, limited, _ := w.remaining(m, now)
		payload := m.Payload
		if !w.batch.format.Foreign() {
			var odd bool
			if payload, odd = w.rendered(m, remote); odd {
				foreign++
			}
		}
		records[i] = pack.Record{
			Topic: remote, Local: m.Topic, Time: m.Received, Payload: payload, QoS: m.QoS,
			HasExpiry: limited, Expiry: max(left, 1), Properties: propertiesOut(m),
		}
		if !limited {
			records[i].Expiry = 0
		}
	}
	payload, how, err := p.Pack(records)
	if err != nil {
		return nil, err
	}
	if len(payload) > most {
		first, err := u.packed(w, ds[:len(ds)/2], most)
		if err != nil {
			return nil, err
		}
		second, err := u.packed(w, ds[len(ds)/2:], most)
		return append(first, second...), err
	}
	u.mu.Lock()
	u.status.Batches++
	u.status.NotRendered += foreign
	u.status.Batched += uint64(len(ds))
	u.status.BatchedBytes += uint64(before)
	u.status.BatchBytes += uint64(len(payload))
	u.mu.Unlock()
	with := w.batch
	if how != with.compression {
		with = with.plain
	}
	m := &message.Message{Topic: with.topic, Payload: payload, Properties: with.properties, QoS: 1, Received: now}
	return []*flight{{seq: seqs[0], members: seqs, msg: m, qos: 1, state: flightReady, with: with}}, nil
}

// packer returns the packer for a way of batching, made at its first use; of Run's
// goroutine.
func (u *Uplink) packer(w *way) (*pack.Packer, error) {
	b := w.batch
	key := pack.Suffix(b.format, b.compression)
	p := u.packers[key]
	if p == nil {
		var err error
		if b.format.Foreign() {
			p, err = pack.NewPackerOf(b.format, b.compression, w.render.Pack)
		} else {
			p, err = pack.NewPacker(b.format, b.compression)
		}
		if err != nil {
			return nil, err
		}
		u.packers[key] = p
	}
	return p, nil
}

// disbandLocked gives up batches of earlier connections that are larger than
// this cloud takes: their members are read again. Those that were sent may come
// twice.
func (l *link) disbandLocked() {
	for _, f := range l.sess.flights {
		if f.members == nil || len(f.msg.Payload) <= l.payloadRoom(&way{batch: f.with}) {
			continue
		}
		if f.sent {
			l.u.status.Duplicates += uint64(len(f.members))
		}
		l.sess.remove(f)
	}
}
