package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"holdfast/broker/message"
	"holdfast/broker/packet"
	"holdfast/broker/topic"
)

// Message is a message from the server.
type Message struct {
	*message.Message // QoS is that of the delivery
	// Dup says that the server may have sent it before (MQTT 5.0 §3.3.1.1).
	Dup bool
	// SubscriptionIDs are those of the matching subscriptions, if they had any.
	SubscriptionIDs []uint32
}

// Client is a connection that acknowledges by itself. Its methods may be called
// from any goroutine. The connection ends by Disconnect, Abort, or by itself;
// it is not opened again.
type Client struct {
	conn      *Conn
	session   *Session
	ownsIt    bool // the session ends with the connection
	onMessage func(Message)
	done      chan struct{}
	err       error // before done is closed: the run goroutine's

	mu       sync.Mutex
	requests map[uint16]*request // guarded by mu; nil after the end
}

// request is a SUBSCRIBE or UNSUBSCRIBE without its answer.
type request struct {
	answer  packet.Type
	filters int
	reasons chan []packet.ReasonCode // of 1; closed without a value at the end
}

// Connect dials (see [Dial]) and goes on with o.Session if there is one.
// onMessage is called for every message, in the order they come and before they
// are acknowledged, QoS 2 once; from one goroutine, which reads nothing
// meanwhile. It may call PublishAsync but not what waits for the server. nil
// lets messages pass.
func Connect(ctx context.Context, o Options, onMessage func(Message)) (*Client, error) {
	return connect(ctx, o, onMessage, func(o Options) (*Conn, error) { return Dial(ctx, o) })
}

func connect(ctx context.Context, o Options, onMessage func(Message), open func(Options) (*Conn, error)) (*Client, error) {
	c := &Client{
		session: o.Session, ownsIt: o.Session == nil, onMessage: onMessage,
		done: make(chan struct{}), requests: make(map[uint16]*request),
	}
	if c.ownsIt {
		c.session = new(Session)
	}
	o.Drained = c.session.pump
	var err error
	if c.conn, err = open(o); err != nil {
		return nil, err
	}
	if err := c.session.attach(c.conn); err != nil {
		return nil, errors.Join(err, c.conn.Close(ctx, packet.ReasonSuccess))
	}
	go c.run(context.WithoutCancel(ctx))
	return c, nil
}

// run lives as long as the connection; Disconnect and Abort wait for done.
func (c *Client) run(ctx context.Context) {
	defer close(c.done)
	c.err = c.conn.Run(ctx, c.handle)
	c.session.detach()
	c.mu.Lock()
	requests := c.requests
	c.requests = nil
	c.mu.Unlock()
	for id, r := range requests {
		close(r.reasons)
		c.session.freeID(id)
	}
	if c.ownsIt {
		c.session.end(c.err, c.err)
	}
}

// Conn is the connection underneath, for its limits, version and counters.
func (c *Client) Conn() *Conn { return c.conn }

// Done is closed when the connection is over.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err is why the connection is over, [ErrClosed] after Disconnect or Abort (see
// [Conn.Run]); nil before.
func (c *Client) Err() error {
	select {
	case <-c.done:
		return c.err
	default:
		return nil
	}
}

// Disconnect sends what is queued and a DISCONNECT, and waits until the
// connection is over or ctx ends; it does not wait for acknowledgements. The
// error says that the server has not got the DISCONNECT.
func (c *Client) Disconnect(ctx context.Context) error {
	err := c.conn.Close(ctx, packet.ReasonSuccess)
	<-c.done
	return err
}

// Abort ends the connection at once, as if it had broken: the server publishes
// the will. It must not be called from onMessage or a done.
func (c *Client) Abort() {
	c.conn.Abort()
	<-c.done
}

// Publish sends m and waits for the server to acknowledge it: PUBACK or
// PUBCOMP, for QoS 0 nothing. A refusal is a [*RefusedError]. When the
// connection or ctx ends before, the message is lost together with a session of
// the client's own; one from [Options.Session] keeps it and the next client
// sends it again, so it must not be published once more.
func (c *Client) Publish(ctx context.Context, m *message.Message) error {
	result := make(chan error, 1)
	c.PublishAsync(m, func(err error) { result <- err })
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
		return fmt.Errorf("publish to %q: %w", m.Topic, context.Cause(ctx))
	case <-c.done:
	}
	select {
	case err := <-result: // both may have come
		return err
	default:
		return fmt.Errorf("publish to %q: %w", m.Topic, c.err)
	}
}

// PublishAsync sends m, as soon as the server's Receive Maximum allows. done is
// called once, in the order of acknowledgement and from any goroutine, this one
// included: with nil when the server has the message (QoS 0: when it is queued),
// else with the reason; with the session's client after next if need be, see
// [Options.Session]. It must not block. m belongs to the client until then; if it has an expiry, that
// counts from m.Received.
func (c *Client) PublishAsync(m *message.Message, done func(error)) {
	err := c.check(m)
	switch {
	case err != nil:
	case m.QoS > 0:
		c.session.add(m, done)
		c.conn.Flush()
		return
	default:
		var p packet.Publish
		if !PublishOf(&p, m, time.Now()) {
			err = ErrExpired
			break
		}
		if err = c.conn.Queue(&p); err == nil {
			c.conn.Flush()
		}
	}
	if err != nil {
		err = fmt.Errorf("publish to %q: %w", m.Topic, err)
	}
	if done != nil {
		done(err)
	}
}

// check refuses what the server would have to.
func (c *Client) check(m *message.Message) error {
	if err := topic.ValidName(m.Topic); err != nil {
		return err
	}
	switch l := c.conn.limits; {
	case m.QoS > 2:
		return fmt.Errorf("QoS %d", m.QoS)
	case m.QoS > l.MaximumQoS: // MQTT 5.0 §3.2.2.3.4 [MQTT-3.2.2-11]
		return &RefusedError{Topic: m.Topic, Reason: packet.ReasonQoSNotSupported}
	case m.Retain && !l.Retain: // MQTT 5.0 §3.2.2.3.5 [MQTT-3.2.2-14]
		return &RefusedError{Topic: m.Topic, Reason: packet.ReasonRetainNotSupported}
	}
	return nil
}

// Subscribe asks for topics and returns the server's answer to each filter: the
// QoS granted, or a failure (MQTT 5.0 §3.9.3). The error says that there was no
// answer.
func (c *Client) Subscribe(ctx context.Context, filters []packet.Filter) ([]packet.ReasonCode, error) {
	for _, f := range filters {
		if err := topic.ValidFilter(f.Filter); err != nil {
			return nil, fmt.Errorf("subscribe to %q: %w", f.Filter, err)
		}
	}
	return c.request(ctx, packet.TypeSuback, len(filters), func(id uint16) packet.Packet {
		return &packet.Subscribe{PacketID: id, Filters: filters}
	})
}

// Unsubscribe gives topics back and returns the server's answer to each; 3.1.1
// has none and success stands for it (MQTT 5.0 §3.11.3).
func (c *Client) Unsubscribe(ctx context.Context, filters []string) ([]packet.ReasonCode, error) {
	return c.request(ctx, packet.TypeUnsuback, len(filters), func(id uint16) packet.Packet {
		return &packet.Unsubscribe{PacketID: id, Filters: filters}
	})
}

func (c *Client) request(ctx context.Context, answer packet.Type, filters int, p func(id uint16) packet.Packet) ([]packet.ReasonCode, error) {
	r := &request{answer: answer, filters: filters, reasons: make(chan []packet.ReasonCode, 1)}
	id, err := c.enlist(r)
	if err != nil {
		return nil, err
	}
	if err := c.conn.Queue(p(id)); err != nil {
		c.strike(id)
		return nil, err
	}
	c.conn.Flush()
	select {
	case reasons, ok := <-r.reasons:
		if !ok {
			<-c.done
			return nil, fmt.Errorf("wait for %s: %w", answer, c.err)
		}
		return reasons, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for %s: %w", answer, context.Cause(ctx))
	}
}

func (c *Client) enlist(r *request) (id uint16, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.requests == nil {
		return 0, ErrClosed
	}
	id, ok := c.session.takeID()
	if !ok {
		return 0, fmt.Errorf("no packet id is free: %w", ErrOutputFull)
	}
	c.requests[id] = r
	return id, nil
}

// strike takes a request off the list; nil when there is none.
func (c *Client) strike(id uint16) *request {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.requests[id]
	if r != nil {
		delete(c.requests, id)
		c.session.freeID(id)
	}
	return r
}

// handle is the handler of [Conn.Run].
func (c *Client) handle(p packet.Packet) error {
	switch p := p.(type) {
	case *packet.Publish:
		return c.received(p)
	case *packet.Pubrel:
		return c.conn.Queue(&packet.Pubcomp{PacketID: p.PacketID, Reason: c.session.release(p.PacketID)})
	case *packet.Puback:
		return c.session.acknowledged(packet.TypePuback, p.PacketID, p.Reason, p.Properties.ReasonString)
	case *packet.Pubrec:
		return c.session.acknowledged(packet.TypePubrec, p.PacketID, p.Reason, p.Properties.ReasonString)
	case *packet.Pubcomp:
		return c.session.acknowledged(packet.TypePubcomp, p.PacketID, p.Reason, p.Properties.ReasonString)
	case *packet.Suback:
		return c.answered(packet.TypeSuback, p.PacketID, p.Reasons)
	case *packet.Unsuback:
		return c.answered(packet.TypeUnsuback, p.PacketID, p.Reasons)
	default:
		return unexpected(p)
	}
}

func (c *Client) received(p *packet.Publish) error {
	if p.QoS < 2 || c.session.firstSeen(p.PacketID) {
		if c.onMessage != nil {
			c.onMessage(Message{MessageOf(p, time.Now()), p.Dup, slices.Clone(p.SubscriptionIDs)})
		}
	}
	switch p.QoS {
	case 1:
		return c.conn.Queue(&packet.Puback{PacketID: p.PacketID})
	case 2:
		return c.conn.Queue(&packet.Pubrec{PacketID: p.PacketID})
	default:
		return nil
	}
}

func (c *Client) answered(t packet.Type, id uint16, reasons []packet.ReasonCode) error {
	r := c.strike(id)
	if r == nil {
		return nil // the caller's ctx may not have waited for the id's last use
	}
	reasons = slices.Clone(reasons)
	if t == packet.TypeUnsuback && c.conn.Version() != packet.V5 {
		reasons = make([]packet.ReasonCode, r.filters)
	}
	if t != r.answer || len(reasons) != r.filters {
		close(r.reasons)
		return &packet.Error{
			Reason: packet.ReasonProtocolError, Type: t,
			Field: "reason codes", Detail: fmt.Sprintf("%d are no answer to %d filters", len(reasons), r.filters),
		}
	}
	r.reasons <- reasons
	return nil
}
