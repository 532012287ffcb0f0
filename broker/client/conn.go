package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"holdfast/broker/packet"
	"holdfast/broker/topic"
)

// readBuffer is the size of the read buffer, in bytes; larger packets make it
// grow. Four frames of Ethernet.
const readBuffer = 6 << 10

// lastWords is how long a connection that is over may take for its end: to
// write a DISCONNECT and see the server close, or to read the server's reason
// after a write has failed.
const lastWords = time.Second

// Conn is one connection to a server, after CONNACK. Its user calls [Conn.Run]
// once, answers the packets that come (QoS 1 and 2 acknowledgements are the
// user's), and ends it with Close, Abort or Run's context. Queue, Flush, Close,
// Abort and the getters may be called from any goroutine.
type Conn struct {
	nc      net.Conn
	meter   *meter
	opts    Options
	connack *packet.Connack
	limits  Limits
	reader  *packet.Reader // the read loop's
	aliases [][]byte       // the read loop's; topics by alias-1
	out     *output
	ended   chan struct{} // closed when the connection is over
	wrote   chan struct{} // closed when Run's writer is done
	pings   pings
	handled func() // see Handled

	mu      sync.Mutex
	err     error             // guarded by mu until ended is closed; why it is over
	running bool              // guarded by mu; Run has been called
	again   *reauthentication // guarded by mu; nil when none is under way
}

func newConn(nc net.Conn, m *meter, o *Options, ack *packet.Connack) *Conn {
	c := &Conn{
		nc: nc, meter: m, opts: *o, connack: ack, limits: limitsOf(o, ack),
		reader: packet.NewReader(nc, readBuffer),
		ended:  make(chan struct{}),
		wrote:  make(chan struct{}),
	}
	c.reader.SetVersion(o.Version)
	c.reader.SetMax(int(o.MaximumPacketSize))
	c.out = newOutput()
	return c
}

// Connack is the server's answer to CONNECT.
func (c *Conn) Connack() *packet.Connack { return c.connack }

// SessionPresent says that the server had a session for us (MQTT 5.0
// §3.2.2.1.1).
func (c *Conn) SessionPresent() bool { return c.connack.SessionPresent }

// Version is the protocol version in use.
func (c *Conn) Version() packet.Version { return c.opts.Version }

// Limits are what the two sides agreed on.
func (c *Conn) Limits() Limits { return c.limits }

// RemoteAddr is the server's address.
func (c *Conn) RemoteAddr() net.Addr { return c.nc.RemoteAddr() }

// BytesIn and BytesOut count what went over the connection since it was opened,
// TLS included, TCP and IP not. A connection of [Options.Dial] that brings TLS
// of its own may have a method Wire that knows better.
func (c *Conn) BytesIn() uint64 {
	in, _ := c.meter.wire()
	return in
}

// Segments is an estimate of the TCP segments with data, in both directions:
// what was written or read at once fills them one after the other.
func (c *Conn) Segments() uint64 { return c.meter.segments.Load() }

// BytesOut counts the other direction, see [Conn.BytesIn].
func (c *Conn) BytesOut() uint64 {
	_, out := c.meter.wire()
	return out
}

// Run reads packets and calls handler for each until the connection is over,
// and returns why, never nil: [*DisconnectError], [ErrKeepAlive], [ErrClosed]
// after Close or Abort, a [*packet.Error] when the server broke the protocol,
// the handler's error, the cause of ctx, or that of the network.
//
// The handler gets PUBLISH with its topic filled in where an alias stood for
// it, PUBACK, PUBREC, PUBREL, PUBCOMP, SUBACK and UNSUBACK; other packets are
// Run's affair. Packets and their slices are valid during the call only. What
// the handler queues goes out together when no further packet is waiting in
// the read buffer, without a Flush. [ErrClosed] from the handler is let pass:
// Close does not wait for the last answers. A *packet.Error from the handler is told to
// a 5.0 server as the reason of a DISCONNECT, other errors are not told.
//
// When Run returns, the connection is closed and its goroutines have ended.
// A second call returns [ErrClosed].
func (c *Conn) Run(ctx context.Context, handler func(packet.Packet) error) error {
	if !c.start() {
		return ErrClosed
	}
	stop := context.AfterFunc(ctx, func() { c.fail(context.Cause(ctx)) })
	defer stop()
	var wg sync.WaitGroup
	wg.Go(c.write)
	if c.limits.KeepAlive > 0 {
		wg.Go(c.keepAlive)
	}
	err := c.read(handler)
	if wrong, ok := errors.AsType[*packet.Error](err); ok && c.opts.Version == packet.V5 {
		c.complain(ctx, wrong.Reason)
	}
	c.fail(err)
	wg.Wait()
	return c.err // not written again
}

// Handled has fn called after the handler, from Run's goroutine, whenever no
// further packet is waiting in the read buffer, and when nothing more will be read:
// what many packets ask for can be done at once then. Handled is called before Run.
func (c *Conn) Handled(fn func()) { c.handled = fn }

// complain tells the server what it did wrong, if it listens (MQTT 5.0
// §4.13.1), and swallows what it is still sending: a socket that is closed with
// something unread in it is reset, and the DISCONNECT may be lost.
func (c *Conn) complain(ctx context.Context, reason packet.ReasonCode) {
	ctx, cancel := context.WithTimeout(ctx, lastWords)
	defer cancel()
	if c.goodbye(ctx, reason) == nil {
		_ = c.nc.SetReadDeadline(time.Now().Add(lastWords))
		_, _ = io.Copy(io.Discard, c.nc)
	}
}

func (c *Conn) start() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.running || c.err != nil {
		return false
	}
	c.running = true
	return true
}

// fail ends the connection for a reason, unless it is over already.
func (c *Conn) fail(err error) {
	c.mu.Lock()
	first := c.err == nil
	if first {
		c.err = err
	}
	c.mu.Unlock()
	if first {
		close(c.ended)
		c.nc.Close()
		c.out.close()
	}
}

// Abort ends the connection at once and without a DISCONNECT: the server
// publishes the will.
func (c *Conn) Abort() { c.fail(ErrClosed) }

// Close sends what is queued and a DISCONNECT, waits until it is written and, at
// most a second, until the server has closed, and ends the connection. It gives
// up when ctx ends. reason is [packet.ReasonSuccess] or, to have the will
// published, [packet.ReasonDisconnectWithWill]; a 3.1.1 server gets no
// DISCONNECT for the latter (MQTT 5.0 §3.14.2.1, MQTT 3.1.1 §3.14.4). The error
// says that the server has not got it.
func (c *Conn) Close(ctx context.Context, reason packet.ReasonCode) error {
	err := c.goodbye(ctx, reason)
	if err == nil {
		// The read loop goes on until the server has closed, as it has to
		// after a DISCONNECT (MQTT 5.0 §3.14.4 [MQTT-3.14.4-3]); see complain
		// for why that matters.
		timer := time.NewTimer(lastWords)
		defer timer.Stop()
		select {
		case <-c.ended:
		case <-timer.C:
		case <-ctx.Done():
		}
	}
	c.fail(ErrClosed)
	return err
}

// goodbye queues a DISCONNECT and returns when it is written.
func (c *Conn) goodbye(ctx context.Context, reason packet.ReasonCode) error {
	if c.opts.Version == packet.V5 || reason == packet.ReasonSuccess {
		if err := c.Queue(&packet.Disconnect{Reason: reason}); err != nil {
			return err
		}
	}
	written := c.out.finish()
	if c.start() { // there is no Run, and there will be none
		stop := context.AfterFunc(ctx, func() { c.fail(context.Cause(ctx)) })
		defer stop()
		defer c.fail(ErrClosed)
		return c.writeQueued()
	}
	select {
	case <-written:
		return nil
	case <-c.ended:
		<-c.wrote
		if c.out.allWritten() { // the server was quick to close
			return nil
		}
		return ErrClosed
	case <-ctx.Done():
		return fmt.Errorf("write DISCONNECT: %w", context.Cause(ctx))
	}
}

// read is the read loop.
func (c *Conn) read(handler func(packet.Packet) error) error {
	if c.handled != nil {
		defer c.handled() // before what takes time, as telling the server what it did wrong
	}
	for {
		p, err := c.reader.Next()
		if err != nil {
			return c.readFailed(err)
		}
		err = c.receive(p, handler)
		if err != nil && !errors.Is(err, ErrClosed) { // what comes during Close cannot be answered
			return err
		}
		if !c.reader.More() {
			if c.handled != nil {
				c.handled()
			}
			c.Flush()
		}
	}
}

// readFailed finds the better reason: what was written may have failed first.
func (c *Conn) readFailed(err error) error {
	if werr := c.out.failure(); werr != nil {
		return werr
	}
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("server closed the connection: %w", err)
	}
	return fmt.Errorf("read from the server: %w", err)
}

// receive checks one packet and hands it on.
func (c *Conn) receive(p packet.Packet, handler func(packet.Packet) error) error {
	switch p := p.(type) {
	case *packet.Publish:
		if err := c.checkPublish(p); err != nil {
			return err
		}
	case *packet.Puback, *packet.Pubrec, *packet.Pubrel, *packet.Pubcomp, *packet.Suback, *packet.Unsuback:
	case *packet.Pingresp:
		if trip := c.out.answered(time.Now()); trip > 0 && c.opts.Pinged != nil {
			c.opts.Pinged(trip)
		}
		c.ponged()
		return nil // that something came is all that counts, see keepAlive
	case *packet.Auth:
		return c.receiveAuth(p)
	case *packet.Disconnect:
		if c.opts.Version == packet.V5 {
			return &DisconnectError{
				Reason:       p.Reason,
				ReasonString: p.Properties.ReasonString, ServerReference: p.Properties.ServerReference,
			}
		}
		return unexpected(p)
	default:
		return unexpected(p)
	}
	return handler(p)
}

// unexpected is the answer to what a server must not send.
func unexpected(p packet.Packet) error {
	return &packet.Error{
		Reason: packet.ReasonProtocolError, Type: p.Type(),
		Field: "packet type", Detail: "not for a server to send now",
	}
}

// checkPublish refuses what cannot be understood.
//
// ! More messages at once than our Receive Maximum are let pass, where MQTT 5.0
// §3.3.4 [MQTT-3.3.4-9] would have us disconnect with 0x93: Mosquitto 2.0.11
// sends a whole window for every PUBCOMP (its issue 2301). There are never more
// than there are packet ids.
func (c *Conn) checkPublish(p *packet.Publish) error {
	if p.TopicAlias != 0 {
		if err := c.resolve(p); err != nil {
			return err
		}
	}
	if err := topic.ValidName(p.Topic); err != nil {
		return refusePublish(packet.ReasonTopicNameInvalid, "topic name", "%v", err)
	}
	return nil
}

// resolve puts the topic in that an alias stands for (MQTT 5.0 §3.3.2.3.4).
func (c *Conn) resolve(p *packet.Publish) error {
	i := int(p.TopicAlias) - 1
	if i >= int(c.opts.TopicAliasMaximum) {
		return refusePublish(packet.ReasonTopicAliasInvalid, "topic alias", "%d is more than %d", p.TopicAlias, c.opts.TopicAliasMaximum)
	}
	if c.aliases == nil {
		c.aliases = make([][]byte, c.opts.TopicAliasMaximum)
	}
	if len(p.Topic) != 0 {
		c.aliases[i] = append(c.aliases[i][:0], p.Topic...)
		return nil
	}
	if len(c.aliases[i]) == 0 {
		return refusePublish(packet.ReasonTopicAliasInvalid, "topic alias", "%d stands for nothing", p.TopicAlias)
	}
	p.Topic = c.aliases[i]
	return nil
}

func refusePublish(reason packet.ReasonCode, field, format string, args ...any) error {
	return &packet.Error{Reason: reason, Type: packet.TypePublish, Field: field, Detail: fmt.Sprintf(format, args...)}
}

// meter counts the bytes of a connection and knows when some last came.
type meter struct {
	net.Conn
	in, out  atomic.Uint64
	segments atomic.Uint64
	start    time.Time
	lastRead atomic.Int64 // nanoseconds after start
}

func newMeter(nc net.Conn) *meter { return &meter{Conn: nc, start: time.Now()} }

func (m *meter) Read(b []byte) (int, error) {
	n, err := m.Conn.Read(b)
	if n > 0 {
		m.in.Add(uint64(n))
		m.segments.Add(segmentsOf(n))
		m.lastRead.Store(int64(time.Since(m.start)))
	}
	return n, err
}

func (m *meter) Write(b []byte) (int, error) {
	n, err := m.Conn.Write(b)
	m.out.Add(uint64(n))
	m.segments.Add(segmentsOf(n))
	return n, err
}

// segmentsOf is how many TCP segments so many bytes take on Ethernet.
func segmentsOf(n int) uint64 {
	const payload = 1448 // 1500 less IPv4, TCP and its timestamps
	return uint64((n + payload - 1) / payload)
}

// wire is what went over the wire, of a connection that knows it.
func (m *meter) wire() (in, out uint64) {
	if below, ok := m.Conn.(interface{ Wire() (in, out uint64) }); ok {
		return below.Wire()
	}
	return m.in.Load(), m.out.Load()
}

func (m *meter) heard() time.Time { return m.start.Add(time.Duration(m.lastRead.Load())) }
