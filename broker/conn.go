package broker

import (
	"container/list"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"time"

	"holdfast/broker/durable"
	"holdfast/broker/packet"
	"holdfast/broker/topic"
)

// readBuffer is what an idle connection keeps for reading, in bytes: a small
// PUBLISH, or a PINGREQ many times over. The Reader borrows more in a burst.
const readBuffer = 256

// batch is after how many packets of one burst the recipients are flushed all
// the same, so that a client that never pauses does not hold up what it sent.
const batch = 64

// conn is one client's connection. Its fields are set during the handshake,
// before any other goroutine sees it, and belong to its reader goroutine
// unless said otherwise.
type conn struct {
	b        *Broker
	nc       net.Conn
	reader   *packet.Reader
	out      output // safe for all goroutines
	line     ackLine
	cork     *cork                // of the loop, or its own
	sock     atomic.Pointer[sock] // its place on a loop, nil without
	listener *Listener
	number   uint64 // no two connections of a broker have the same
	since    time.Time

	version   packet.Version
	session   *session      // nil before the CONNACK
	identity  *Identity     // does not change once there is a session
	silence   time.Duration // 1.5 times the keep alive, 0 for none
	maxPacket int           // the client's maximum packet size, 0 for none
	window    int           // QoS 1 and 2 deliveries it may have unacknowledged
	aliases   []string      // topic alias -> topic name, [0] unused
	given     topic.Aliases // guarded by session.mu
	will      *will
	auth      *authentication // nil if the CONNECT named no method
	normal    bool            // a DISCONNECT without error has come

	hurried  bool          // its address connects too fast: to be refused
	admitted bool          // guarded by Broker.mu; it has one of MaxConnections
	opening  *list.Element // guarded by Broker.mu; its place in handshakes
	place    *place        // where it comes from, nil for nowhere in particular
	pace     *pace         // of what it publishes, nil before the first that counts
	moved    chan struct{} // capacity 1; something left the line. Nil on a loop
	stall    *stall        // of its acknowledgement line, nil while that has room

	abort     atomic.Pointer[context.CancelFunc] // of the handshake's context
	connected atomic.Bool                        // a CONNACK with success has been queued

	cause atomic.Pointer[cause]         // why the connection ends; the first one counts
	quit  atomic.Pointer[chan struct{}] // see quitting
	left  bool                          // guarded by Broker.mu; the session is free of this connection
	gone  chan struct{}                 // guarded by Broker.mu; closed with left set, see goneLocked
}

// closedChan is for those who come too late to wait.
var closedChan = func() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

// quitting is closed with the cause set. Hardly ever somebody waits for that: an
// idle connection has no channel for it.
func (c *conn) quitting() <-chan struct{} {
	for {
		if quit := c.quit.Load(); quit != nil {
			return *quit
		}
		c.quit.CompareAndSwap(nil, new(make(chan struct{})))
	}
}

// goneLocked is closed when the session is free of this connection. Broker.mu is
// held.
func (c *conn) goneLocked() <-chan struct{} {
	switch {
	case c.left:
		return closedChan
	case c.gone == nil:
		c.gone = make(chan struct{})
	}
	return c.gone
}

// nobody is the identity of who has not said who it is.
var nobody Identity

// cause is why a connection ends.
type cause struct {
	reason packet.ReasonCode
	detail string
	silent bool // nothing is sent: the peer is gone, or has said goodbye itself
}

// errEnded is returned by handlers that have ended the connection themselves.
var errEnded = errors.New("connection ended")

func (b *Broker) newConn(nc net.Conn, l *Listener) *conn {
	if p := plain(nc); p != nil && b.opts.loops() > 0 {
		nc = p
	}
	c := &conn{
		b: b, nc: nc, listener: l, number: b.connNumber.Add(1), since: time.Now(), cork: new(cork),
		identity: &nobody,
	}
	c.reader = packet.NewReader(c, readBuffer)
	c.reader.SetMax(b.opts.MaxConnectSize)
	c.reader.SetMaxUserProperties(b.opts.MaxUserProperties)
	c.out.c, c.line.to = c, c
	return c
}

// Read counts what comes in; the packet reader reads through it.
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.nc.Read(p)
	if n > 0 {
		c.b.count.bytesIn.Add(uint64(n))
	}
	return n, err
}

// wrote is called by the flusher after each write.
func (c *conn) wrote(n int, err error) {
	if err == nil {
		c.b.count.bytesOut.Add(uint64(n))
		return
	}
	c.end(packet.ReasonUnspecified, "write: "+err.Error(), true)
}

// drained is called by the flusher when there is room again.
func (c *conn) drained() {
	if s := c.session; s != nil {
		s.proceed(c, nil)
	}
}

// serve is the reader goroutine, from accept to the end, or until a loop takes
// the connection over.
func (c *conn) serve(ctx context.Context) {
	err := c.handshake(ctx)
	if err == nil && c.join() {
		return
	}
	c.moved = make(chan struct{}, 1)
	for err == nil {
		err = c.next()
	}
	c.finish(err)
}

// finish is the end of every connection.
func (c *conn) finish(err error) {
	c.endBy(err)
	c.comeBack()
	c.leave()
	c.b.mu.Lock()
	c.left = true
	if c.gone != nil {
		close(c.gone)
	}
	c.b.mu.Unlock()
	c.cork.flush(&c.b.count)
	c.out.finish()
	if cause := c.cause.Load(); !cause.silent && cause.reason.Failed() {
		linger(c.nc)
	}
	c.nc.Close()
	c.b.removeConn(c)
}

// next reads and handles up to a batch of packets, waiting for the first.
func (c *conn) next() error {
	c.cork.flush(&c.b.count)
	if err := c.awaitLine(); err != nil {
		return err
	}
	if err := c.slowDown(); err != nil {
		return err
	}
	if c.silence > 0 && !c.reader.More() {
		// The keep alive counts packets, not bytes: a deadline for the whole
		// packet (MQTT 5.0 §3.1.2.10 [MQTT-3.1.2-22]).
		if err := c.deadline(time.Now().Add(c.silence)); err != nil {
			return err
		}
	}
	for range batch {
		p, err := c.reader.Next()
		if err != nil {
			return err
		}
		if err := c.take(p); err != nil {
			return err
		}
		if !c.reader.More() || c.overdue() {
			return nil
		}
	}
	return nil
}

// take counts a packet and handles it.
func (c *conn) take(p packet.Packet) error {
	c.cork.count.packetsIn++
	switch p := p.(type) { // what comes most comes from clients
	case *packet.Puback:
		return c.handlePuback(p)
	case *packet.Pubrec:
		return c.handlePubrec(p)
	case *packet.Pubrel:
		return c.handlePubrel(p)
	case *packet.Pubcomp:
		return c.handlePubcomp(p)
	}
	if err := packet.FromClient(p); err != nil {
		return err
	}
	return c.handle(p)
}

// deadline sets the read deadline without undoing the one that end sets to
// wake the reader.
func (c *conn) deadline(t time.Time) error {
	if err := c.nc.SetReadDeadline(t); err != nil {
		return err
	}
	if c.cause.Load() != nil {
		return errEnded
	}
	return nil
}

// handle acts on one packet of a connected client.
func (c *conn) handle(p packet.Packet) error {
	switch p := p.(type) {
	case *packet.Publish:
		return c.handlePublish(p)
	case *packet.Subscribe:
		return c.handleSubscribe(p)
	case *packet.Unsubscribe:
		return c.handleUnsubscribe(p)
	case *packet.Pingreq:
		return c.reply(&packet.Pingresp{})
	case *packet.Disconnect:
		return c.handleDisconnect(p)
	case *packet.Connect:
		// MQTT 5.0 §3.1 [MQTT-3.1.0-2], MQTT 3.1.1 §3.1 [MQTT-3.1.0-2].
		return protocolError(p.Type(), "packet type", "a second CONNECT")
	case *packet.Auth:
		return c.handleAuth(p)
	default:
		return protocolError(p.Type(), "packet type", "comes from servers only")
	}
}

func protocolError(t packet.Type, field, detail string) error {
	return &packet.Error{Reason: packet.ReasonProtocolError, Type: t, Field: field, Detail: detail}
}

// reply queues an answer, to be flushed at the end of the batch.
func (c *conn) reply(p packet.Packet) error { return c.send(c.cork, p) }

// tell queues a packet from any goroutine and flushes. When it cannot, it has
// ended the connection.
func (c *conn) tell(p packet.Packet) { _ = c.send(nil, p) }

// send queues a packet the client waits for. One that is larger than the client
// takes may not be sent, and without it the client would wait for ever.
func (c *conn) send(k *cork, p packet.Packet) error {
	if !c.fits(p) {
		c.end(packet.ReasonPacketTooLarge, p.Type().String()+" is larger than the client takes", false)
		return errEnded
	}
	if !c.out.packet(k, p, c.version) {
		return c.overrun()
	}
	c.countControl(k)
	return nil
}

func (c *conn) countControl(k *cork) {
	if k != nil {
		k.count.controlOut++
	} else {
		c.b.count.controlOut.Add(1)
	}
}

// fits says whether the client takes a packet of that size
// (MQTT 5.0 §3.1.2.11.4 [MQTT-3.1.2-24]).
func (c *conn) fits(p packet.Packet) bool {
	if c.maxPacket == 0 {
		return true
	}
	b, err := p.AppendTo(nil, c.version)
	return err == nil && len(b) <= c.maxPacket
}

// overrun ends a connection whose client does not read.
func (c *conn) overrun() error {
	c.b.tooSlow(c, "the client does not read")
	return errEnded
}

// lineMoved implements acknowledger: reading goes on if it paused.
func (c *conn) lineMoved() {
	if s := c.sock.Load(); s != nil {
		if s.parked.Load() {
			s.loop.send(s, postResume)
		}
		return
	}
	select {
	case c.moved <- struct{}{}:
	default:
	}
}

// hold implements acknowledger.
func (c *conn) hold() { c.out.hold() }

// release implements acknowledger.
func (c *conn) release() { c.out.release() }

// acknowledge implements acknowledger.
func (c *conn) acknowledge(a *ack, k *cork) {
	if a.reason.Failed() && c.version < packet.V5 {
		// 3.x has no way to say no: without the acknowledgement the client
		// keeps the message and sends it again.
		c.line.dead = true
		c.end(a.reason, "message not taken", true)
		return
	}
	t := packet.TypePuback
	if a.qos == 2 {
		t = packet.TypePubrec
	}
	_ = c.acknowledgeWith(k, t, a.packetID, a.reason)
}

// acknowledgeWith queues one of the four acknowledgements. Without a reason it
// is the same in all versions, and there are some for each message.
func (c *conn) acknowledgeWith(k *cork, t packet.Type, id uint16, reason packet.ReasonCode) error {
	const size = 4
	if (reason == packet.ReasonSuccess || c.version < packet.V5 && !reason.Failed()) && (c.maxPacket == 0 || c.maxPacket >= size) {
		first := byte(t) << 4
		if t == packet.TypePubrel {
			first |= 2 // MQTT 5.0 §3.6.1 [MQTT-3.6.1-1]
		}
		if !c.out.brief(k, first, id) {
			return c.overrun()
		}
		c.countControl(k)
		return nil
	}
	var p packet.Packet
	switch t {
	case packet.TypePuback:
		p = &packet.Puback{PacketID: id, Reason: reason}
	case packet.TypePubrec:
		p = &packet.Pubrec{PacketID: id, Reason: reason}
	case packet.TypePubrel:
		p = &packet.Pubrel{PacketID: id, Reason: reason}
	default:
		p = &packet.Pubcomp{PacketID: id, Reason: reason}
	}
	return c.send(k, p)
}

// storeFailed ends a connection whose request could not be made durable; it is
// not answered, and the client will try again. Safe for all goroutines.
func (c *conn) storeFailed(err error) {
	c.b.count.storeErrors.Add(1)
	if errors.Is(err, durable.ErrClosed) {
		return // the gateway stops, and says so itself
	}
	c.b.log.Error("session not stored", "remote", c.remote(), "err", err)
	c.end(packet.ReasonImplementationSpecific, "the session could not be stored", false)
}

// end ends the connection, from any goroutine: the client is told why if it
// can be told, what waits for it is written within closeGrace, and the reader
// wakes up. Only the first call counts. It waits for nothing.
func (c *conn) end(reason packet.ReasonCode, detail string, silent bool) {
	if !c.cause.CompareAndSwap(nil, &cause{reason, detail, silent}) {
		return
	}
	_ = c.nc.SetWriteDeadline(time.Now().Add(closeGrace))
	// Before the CONNACK no DISCONNECT may be sent (MQTT 5.0 §3.14
	// [MQTT-3.14.0-1]).
	if !silent && c.connected.Load() && c.version == packet.V5 {
		c.out.seal(c.goodbye(reason, detail), packet.V5)
		c.b.count.controlOut.Add(1)
	} else {
		c.out.seal(nil, 0) // the version may not be known yet
	}
	if quit := c.quit.Swap(&closedChan); quit != nil {
		close(*quit)
	}
	if abort := c.abort.Load(); abort != nil {
		(*abort)() // an authentication that waits for its turn
	}
	_ = c.nc.SetReadDeadline(time.Unix(1, 0))
	if s := c.sock.Load(); s != nil {
		s.loop.send(s, postEnd)
	}
}

// goodbye is the DISCONNECT with that reason; nil if the client takes none.
func (c *conn) goodbye(reason packet.ReasonCode, detail string) packet.Packet {
	p := &packet.Disconnect{Reason: reason}
	p.Properties.ReasonString = detail
	p.Properties.ServerReference = c.reference(reason)
	if _, err := p.AppendTo(nil, c.version); err != nil {
		// Not every code may be in a DISCONNECT (MQTT 5.0 table 3-10): it is
		// that of a second CONNECT, which is wrong for being one.
		p.Reason = packet.ReasonProtocolError
	}
	if !c.fits(p) {
		p.Properties = packet.Properties{} // MQTT 5.0 §3.14.2.2.3 [MQTT-3.14.2-3]
	}
	if !c.fits(p) {
		return nil
	}
	return p
}

// endBy ends the connection for the error its reader met.
func (c *conn) endBy(err error) {
	var wire *packet.Error
	switch {
	case errors.Is(err, errEnded):
		c.end(packet.ReasonUnspecified, "", true)
	case errors.As(err, &wire):
		c.b.count.protocolErrors.Add(1)
		c.end(wire.Reason, wire.Error(), false)
	case errors.Is(err, os.ErrDeadlineExceeded):
		c.end(packet.ReasonKeepAliveTimeout, "silent for too long", false)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		c.end(packet.ReasonUnspecified, "the client closed the connection", true)
	default:
		c.end(packet.ReasonUnspecified, "read: "+err.Error(), true)
	}
}

// remote is the peer's address for logs.
func (c *conn) remote() string {
	if a := c.nc.RemoteAddr(); a != nil {
		return a.String()
	}
	return ""
}
