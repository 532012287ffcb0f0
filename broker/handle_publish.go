package broker

import (
	"errors"
	"sync"
	"time"
	"unicode/utf8"

	"holdfast/broker/durable"
	"holdfast/broker/message"
	"holdfast/broker/packet"
	"holdfast/broker/topic"
)

// inbound is one QoS 2 packet id of a client, from its PUBLISH to its PUBREL
// (MQTT 5.0 §4.3.3). Guarded by session.mu.
type inbound struct {
	state inState
	// conn is the connection on which it takes a place of the receive
	// maximum.
	conn uint64
	// joined are the acknowledgements of the same PUBLISH sent again while it
	// was being committed, each with the line it stands in.
	joined *[]joinedAck
}

type joinedAck struct {
	line *ackLine
	ack  *ack
}

// inState is how far an inbound QoS 2 message has come.
type inState byte

const (
	inCommitting inState = iota // PUBREC follows
	inReceived                  // PUBREC sent, or about to be
	inReleasing                 // PUBREL came; PUBCOMP follows
)

// handlePublish takes a client's message (MQTT 5.0 §3.3).
func (c *conn) handlePublish(p *packet.Publish) error {
	b := c.b
	c.cork.count.messagesIn++
	c.cork.count.payloadIn += uint64(len(p.Payload))
	if err := c.pay(p.Type(), 1); err != nil {
		return err
	}
	if err := c.resolveAlias(p); err != nil {
		return err
	}
	plan := b.lookupAt(c.cork.plans, p.Topic)
	if plan == nil {
		// Only names that were valid have a plan.
		if err := topic.ValidName(p.Topic); err != nil {
			return &packet.Error{
				Reason: packet.ReasonTopicNameInvalid, Type: p.Type(), Field: "topic name",
				Detail: "it has wildcards, or is no topic name", // [MQTT-3.3.2-2]
			}
		}
		name := string(p.Topic)
		if b.opts.tooLong(name) {
			return c.answer(p, packet.ReasonTopicNameInvalid)
		}
		plan = b.planFor(name)
	}
	if plan.reserved || !c.mayPublish(plan.topic) {
		return c.deny(p)
	}
	if b.opts.CheckPayloadFormat && !formatted(p) {
		return c.answer(p, packet.ReasonPayloadFormatInvalid)
	}
	if plan.passing && !p.Retain && (p.QoS == 0 || c.line.length() == 0) {
		return c.pass(p, plan)
	}
	switch p.QoS {
	case 0:
		return c.publishAtMostOnce(p, plan)
	case 1:
		return c.publishAtLeastOnce(p, plan)
	default:
		return c.publishExactlyOnce(p, plan)
	}
}

// resolveAlias puts the topic name in place of an alias, and remembers one
// that is set (MQTT 5.0 §3.3.2.3.4).
func (c *conn) resolveAlias(p *packet.Publish) error {
	if p.TopicAlias == 0 {
		return nil
	}
	n := int(p.TopicAlias)
	if n > c.b.opts.MaxTopicAliases { // [MQTT-3.3.2-9]
		return &packet.Error{
			Reason: packet.ReasonTopicAliasInvalid, Type: p.Type(), Field: "topic alias",
			Detail: "larger than the topic alias maximum of the CONNACK",
		}
	}
	if len(p.Topic) > 0 {
		if len(p.Topic) > c.b.opts.MaxTopicSize {
			return nil // it is refused, and not to be kept
		}
		for len(c.aliases) <= n {
			c.aliases = append(c.aliases, "")
		}
		if c.aliases[n] != string(p.Topic) {
			c.aliases[n] = string(p.Topic)
		}
		return nil
	}
	if n >= len(c.aliases) || c.aliases[n] == "" {
		return protocolError(p.Type(), "topic alias", "was never set on this connection") // MQTT 5.0 §3.3.2.3.4
	}
	p.Topic = append(p.Topic, c.aliases[n]...)
	return nil
}

// formatted says whether the payload is what its format indicator says
// (MQTT 5.0 §3.3.2.3.2).
func formatted(p *packet.Publish) bool {
	if len(p.Properties) == 0 || utf8.Valid(p.Payload) {
		return true
	}
	says, err := packet.ParsePublishProperties(p.Properties)
	return err == nil && says.PayloadFormat == 0
}

// message copies a PUBLISH out of the reader's buffer: payload and properties
// in one piece.
func (c *conn) message(p *packet.Publish, plan *plan) *message.Message {
	return kept(&message.Message{
		Topic: plan.topic, Payload: p.Payload, Properties: p.Properties, QoS: p.QoS, Retain: p.Retain,
		HasExpiry: p.HasExpiry, Expiry: p.MessageExpiry, Received: c.now(), From: c.session.clientID,
	})
}

// kept is a copy of a lent message, in one piece if it is small.
func kept(lent *message.Message) *message.Message {
	var m *message.Message
	var piece []byte
	if size := len(lent.Payload) + len(lent.Properties); size <= smallMessage {
		small := new(struct {
			message.Message
			piece [smallMessage]byte
		})
		m, piece = &small.Message, small.piece[:size:size]
	} else {
		m, piece = new(message.Message), make([]byte, size)
	}
	*m = *lent
	n := copy(piece, lent.Payload)
	m.Payload = piece[:n:n]
	if len(lent.Properties) > 0 {
		copy(piece[n:], lent.Properties)
		m.Properties = piece[n:]
	}
	return m
}

// smallMessage is up to how many bytes of payload and properties lie beside the
// message itself: readings have 20 to 100.
const smallMessage = 104

// now is the time; on a loop that of its turn.
func (c *conn) now() time.Time {
	if s := c.sock.Load(); s != nil {
		return s.loop.time
	}
	return time.Now()
}

// pass hands a message to clients that are connected, where nobody else wants
// it, and acknowledges it. It is route for what most messages of most gateways
// are: nothing has to be safe, so nobody waits, nothing is left behind, and
// nothing is copied but into the buffers of the sockets.
func (c *conn) pass(p *packet.Publish, plan *plan) error {
	limit := c.receiveMaximum()
	switch p.QoS {
	case 1:
		if int(c.line.unacked.Load()) >= limit {
			return errReceiveMaximum()
		}
	case 2:
		if c.session.queue != 0 || !c.session.claimReceived(p.PacketID, c.number, c.b.opts.MaxUnreleased) {
			return c.publishExactlyOnce(p, plan)
		}
		if int(c.line.unacked.Add(1)) > limit {
			return errReceiveMaximum() // and with the connection the session ends
		}
	}
	m := &c.cork.lent
	*m = message.Message{
		Topic: plan.topic, Payload: p.Payload, Properties: p.Properties, QoS: p.QoS,
		HasExpiry: p.HasExpiry, Expiry: p.MessageExpiry, Received: c.now(), From: c.session.clientID,
	}
	f := frames{m: m, lent: true, expiry: m.Expiry, single: len(plan.sessions) == 1}
	for i := range plan.sessions {
		t := &plan.sessions[i]
		how := form{qos: min(t.qos, p.QoS), subIDs: t.ids}
		if t.noLocal && m.From == t.s.clientID {
			g, ok := t.granted(m.From)
			if !ok {
				continue
			}
			how.qos, how.subIDs = min(g.qos, p.QoS), g.ids
		}
		t.s.deliver(&f, &how, c.cork)
	}
	m.Payload, m.Properties = nil, nil
	f.park.letGo()
	if p.QoS == 0 {
		return nil
	}
	reason := packet.ReasonSuccess
	if len(plan.sessions) == 0 {
		reason = packet.ReasonNoMatchingSubscribers // MQTT 5.0 §3.4.2.1
	}
	if p.QoS == 1 {
		return c.acknowledgeWith(c.cork, packet.TypePuback, p.PacketID, reason)
	}
	return c.acknowledgeWith(c.cork, packet.TypePubrec, p.PacketID, reason)
}

func (c *conn) publishAtMostOnce(p *packet.Publish, plan *plan) error {
	j := borrowPublication()
	j.plan, j.from, j.cork = plan, durable.Origin{Queue: c.session.queue}, c.cork
	if p.Retain {
		j.m = c.message(p, plan)
	} else {
		j.lent = true
		j.message = message.Message{
			Topic: plan.topic, Payload: p.Payload, Properties: p.Properties,
			HasExpiry: p.HasExpiry, Expiry: p.MessageExpiry, Received: c.now(), From: c.session.clientID,
		}
		j.m = &j.message
	}
	if err := c.b.route(&j.job); err != nil {
		c.b.count.refused.Add(1)
		c.b.sayRefused(&j.job, err)
	}
	j.giveBack() // nothing of it is kept: there is no acknowledgement to wait for
	return nil
}

// publication is a client's message on its way through route, and its
// acknowledgement, used again once nobody refers to it.
type publication struct {
	job
	message message.Message // of QoS 0, lent
	place   ack             // in the acknowledgement line
	c       *conn
	left    bool // the line has been left before route returned
	// finished is finish as a func value, made once.
	finished func(error)
}

var publications = sync.Pool{New: func() any {
	p := new(publication)
	p.finished = p.finish
	return p
}}

func borrowPublication() *publication {
	p, _ := publications.Get().(*publication)
	return p
}

// giveBack lets another message use it.
func (p *publication) giveBack() {
	*p = publication{finished: p.finished}
	publications.Put(p)
}

// finish is the job's done.
func (p *publication) finish(err error) {
	left := p.c.line.finish(&p.place, p.c.b.answerTo(&p.job, err), p.c.corkOf(&p.job))
	if p.inline {
		p.left = left // else route may still be at work elsewhere
	}
}

func (c *conn) publishAtLeastOnce(p *packet.Publish, plan *plan) error {
	if c.overdue() {
		return c.overfull(p)
	}
	j := borrowPublication()
	j.place = ack{packetID: p.PacketID, qos: 1, counted: true, size: int32(len(p.Payload) + len(p.Properties))}
	if err := c.push(&j.place); err != nil {
		return err
	}
	j.c, j.m, j.plan, j.from, j.cork = c, c.message(p, plan), plan, durable.Origin{Queue: c.session.queue}, c.cork
	j.ack, j.done = &j.place, j.finished
	if err := c.b.route(&j.job); err != nil {
		c.b.sayRefused(&j.job, err)
		j.inline = true
		j.finish(err)
	}
	if j.inline && j.left {
		j.giveBack()
	}
	return nil
}

// publishExactlyOnce claims the packet id before anything else happens: the
// same PUBLISH sent again joins the wait for its commit, or is acknowledged
// again, but never goes onward twice (MQTT 5.0 §4.3.3 [MQTT-4.3.3-10]).
func (c *conn) publishExactlyOnce(p *packet.Publish, plan *plan) error {
	s, id := c.session, p.PacketID
	became, again, counted := s.claim(id, c.number, c.b.opts.MaxUnreleased)
	if !became {
		return c.answer(p, packet.ReasonQuotaExceeded)
	}
	if !again && c.overdue() {
		s.committed(id, errEnded)
		return c.overfull(p)
	}
	a := &ack{packetID: id, qos: 2, counted: counted, size: int32(len(p.Payload) + len(p.Properties))}
	if err := c.push(a); err != nil {
		if !again {
			s.committed(id, err)
		}
		return err
	}
	if again {
		if reason, known := s.join(id, joinedAck{&c.line, a}); known {
			c.line.finish(a, reason, c.cork)
		}
		return nil
	}
	j := &job{m: c.message(p, plan), plan: plan, ack: a, cork: c.cork}
	if s.queue != 0 {
		j.from = durable.Origin{Queue: s.queue, PacketID: id}
	}
	j.done = func(err error) {
		joined := s.committed(id, err)
		reason := c.b.answerTo(j, err)
		c.line.finish(a, reason, c.corkOf(j))
		for _, x := range joined {
			x.line.finish(x.ack, reason, nil)
		}
	}
	if err := c.b.route(j); err != nil {
		c.b.sayRefused(j, err)
		j.inline = true
		j.ack.onward = nil
		j.done(err)
	}
	return nil
}

// claim takes an inbound packet id for a PUBLISH, or finds that it is taken.
// counted says that it takes a place of that connection's receive maximum. Not
// ok: as many as there may be have been taken.
func (s *session) claim(id uint16, conn uint64, limit int) (ok, again, counted bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	again = s.in.has(id)
	if !again && s.in.len() >= limit {
		return false, false, false
	}
	in := s.in.put(id)
	counted = in.conn != conn
	in.conn = conn
	return true, again, counted
}

// claimReceived takes an inbound packet id for a PUBLISH that has nothing to
// wait for. False: claim has to look at it.
func (s *session) claimReceived(id uint16, conn uint64, limit int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.in.len() >= limit || s.in.has(id) {
		return false
	}
	*s.in.put(id) = inbound{state: inReceived, conn: conn}
	return true
}

// join lets the acknowledgement of a PUBLISH that was sent again wait for the
// commit of the first, or says what it is if that is known.
func (s *session) join(id uint16, a joinedAck) (reason packet.ReasonCode, known bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	in := s.in.get(id)
	if in == nil { // it failed just now
		return packet.ReasonQuotaExceeded, true
	}
	switch in.state {
	case inCommitting:
		if in.joined == nil {
			in.joined = new([]joinedAck)
		}
		*in.joined = append(*in.joined, a)
		return 0, false
	case inReleasing:
		// The client has released it, so this is another message under an id
		// that is not free before our PUBCOMP.
		return packet.ReasonPacketIDInUse, true
	case inReceived:
	}
	return packet.ReasonSuccess, true
}

// committed records that an inbound QoS 2 message is safe, or withdraws its
// claim, and returns who waits for it besides the first.
func (s *session) committed(id uint16, err error) []joinedAck {
	s.mu.Lock()
	defer s.mu.Unlock()
	in := s.in.get(id)
	if in == nil {
		return nil // never: while it is being committed it goes only here
	}
	var joined []joinedAck
	if in.joined != nil {
		joined, in.joined = *in.joined, nil
	}
	if err == nil {
		in.state = inReceived
	} else {
		s.in.remove(id)
	}
	return joined
}

// corkOf is the reader's cork while the reader itself calls, else nil.
func (c *conn) corkOf(j *job) *cork {
	if j.inline {
		return c.cork
	}
	return nil
}

// answerTo turns what became of a message into the reason code of its
// acknowledgement.
func (b *Broker) answerTo(j *job, err error) packet.ReasonCode {
	switch {
	case err == nil && j.matched || err == nil && j.m.Retain:
		return packet.ReasonSuccess
	case err == nil:
		return packet.ReasonNoMatchingSubscribers // MQTT 5.0 §3.4.2.1
	}
	b.count.refused.Add(1)
	if errors.Is(err, durable.ErrFull) {
		return packet.ReasonQuotaExceeded
	}
	b.count.storeErrors.Add(1)
	return packet.ReasonImplementationSpecific
}

// sayRefused logs that a client's message was not taken. It is called by the reader,
// with no lock held.
func (b *Broker) sayRefused(j *job, err error) {
	b.log.Warn("message not taken", "client_id", j.m.From, "topic", j.m.Topic, "qos", j.m.QoS, "bytes", len(j.m.Payload), "err", err)
}

// answer refuses a message that can be told so; at QoS 0 it is counted only.
func (c *conn) answer(p *packet.Publish, reason packet.ReasonCode) error {
	c.b.count.refused.Add(1)
	if p.QoS == 0 {
		return nil
	}
	a := &ack{packetID: p.PacketID, qos: p.QoS, counted: true}
	if p.QoS == 2 {
		s := c.session
		s.mu.Lock()
		claimed := s.in.has(p.PacketID)
		s.mu.Unlock()
		if claimed {
			// Rights were taken away between a PUBLISH and its resend.
			reason = packet.ReasonPacketIDInUse
			a.counted = false
		}
	}
	if err := c.push(a); err != nil {
		return err
	}
	c.line.finish(a, reason, c.cork)
	return nil
}

// deny refuses a message its publisher has no right to. 3.x has no word for
// that but a positive acknowledgement, or to close the connection, which the
// client would only open again for the same message (MQTT 3.1.1 §3.3.5
// [MQTT-3.3.5-2]).
func (c *conn) deny(p *packet.Publish) error {
	c.b.count.denied.Add(1)
	c.b.log.Debug("publish denied", "client_id", c.session.clientID, "topic", string(p.Topic), "qos", p.QoS)
	if c.version >= packet.V5 {
		return c.answer(p, packet.ReasonNotAuthorized)
	}
	if p.QoS == 0 {
		return nil
	}
	// After a PUBREC the client sends a PUBREL, which finds no packet id and
	// gets its PUBCOMP all the same.
	a := &ack{packetID: p.PacketID, qos: p.QoS}
	if err := c.push(a); err != nil {
		return err
	}
	c.line.finish(a, packet.ReasonSuccess, c.cork)
	return nil
}

func (c *conn) mayPublish(name string) bool {
	a := c.b.opts.Auth
	return a == nil || a.Authorize(*c.identity, ActionPublish, name)
}

// push gives a PUBLISH its place in the acknowledgement line. Only 5.0 clients
// know a receive maximum; the others are slowed down by mayRead.
func (c *conn) push(a *ack) error {
	if c.line.push(a, c.receiveMaximum()) {
		return nil
	}
	return errReceiveMaximum()
}

func (c *conn) receiveMaximum() int {
	if c.version < packet.V5 {
		return 1 << 30
	}
	return c.b.opts.ReceiveMaximum
}

func errReceiveMaximum() error {
	return &packet.Error{
		Reason: packet.ReasonReceiveMaximumExceeded, Type: packet.TypePublish, Field: "receive maximum",
		Detail: "more publications unacknowledged than the CONNACK allowed",
	}
}
