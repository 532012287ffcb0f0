package broker

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"
	"unicode/utf8"

	"holdfast/broker/durable"
	"holdfast/broker/packet"
	"holdfast/broker/topic"
)

// handshake reads the CONNECT and answers it (MQTT 5.0 §3.1, §3.2). When it
// returns nil the connection has its session.
func (c *conn) handshake(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.b.opts.ConnectTimeout)
	c.abort.Store(&cancel)
	defer func() {
		c.abort.Store(nil) // an idle connection keeps no context
		cancel()
	}()
	if err := c.deadline(time.Now().Add(c.b.opts.ConnectTimeout)); err != nil {
		return err
	}
	p, err := c.reader.Next()
	if err != nil {
		return c.refuseMalformed(err)
	}
	c.b.count.packetsIn.Add(1)
	connect, ok := p.(*packet.Connect)
	if !ok {
		c.b.count.protocolErrors.Add(1)
		c.end(packet.ReasonProtocolError, "the first packet is no CONNECT", false) // [MQTT-3.1.0-1]
		return errEnded
	}
	c.version = connect.Version
	c.maxPacket = int(min(connect.Properties.MaximumPacketSize, math.MaxInt32))
	x := &connecting{c: c, p: connect}
	if reason := x.check(ctx); reason.Failed() {
		if x.err != nil {
			return x.err
		}
		return c.refuse(reason)
	}
	if reason, err := x.takeSession(); err != nil {
		c.b.log.Error("session not stored", "client_id", x.clientID, "err", err)
		c.b.count.storeErrors.Add(1)
		return c.refuse(reason)
	} else if reason.Failed() {
		return c.refuse(reason)
	}
	return x.accept()
}

// refuseMalformed answers a CONNECT that could not be read, if its version
// could (MQTT 5.0 §3.1.4 [MQTT-3.1.4-1]). 3.x has a code for few of the reasons
// and closes for the others.
func (c *conn) refuseMalformed(err error) error {
	var wire *packet.Error
	if !errors.As(err, &wire) {
		c.end(packet.ReasonUnspecified, "no CONNECT: "+err.Error(), true)
		return errEnded
	}
	c.b.count.protocolErrors.Add(1)
	c.version = wire.Version
	if wire.Reason == packet.ReasonUnsupportedProtocolVersion {
		// In the form every client can read: two bytes, code 1
		// (MQTT 3.1.1 §3.1.2.2 [MQTT-3.1.2-2]).
		c.version = packet.V311
	}
	if c.version == packet.V5 || wire.Reason == packet.ReasonUnsupportedProtocolVersion ||
		c.version != 0 && wire.Reason == packet.ReasonClientIDNotValid {
		return c.refuse(wire.Reason)
	}
	c.end(wire.Reason, wire.Error(), false)
	return errEnded
}

// refuse answers a CONNECT with a failure and ends the connection.
func (c *conn) refuse(reason packet.ReasonCode) error {
	c.b.count.connectsRefused.Add(1)
	c.b.log.Warn("client refused", "remote", c.remote(), "listener", c.listener.Name, "reason", reason.String())
	if c.version == packet.V5 || hasReturnCode(reason) {
		ack := &packet.Connack{Reason: reason}
		if _, err := ack.AppendTo(nil, c.version); err != nil {
			// Not every code may be in a CONNACK (MQTT 5.0 table 3-1).
			ack.Reason = packet.ReasonUnspecified
		}
		ack.Properties.ServerReference = c.reference(reason)
		if !c.fits(ack) {
			ack.Properties = packet.Properties{}
		}
		if c.fits(ack) {
			c.out.packet(nil, ack, c.version)
			c.b.count.controlOut.Add(1)
		}
	}
	c.end(reason, "connect refused", false)
	return errEnded
}

// hasReturnCode says whether 3.x can say it; else the connection is closed
// without a word (MQTT 3.1.1 §3.2.2.3).
func hasReturnCode(r packet.ReasonCode) bool {
	switch r {
	case packet.ReasonTopicNameInvalid, packet.ReasonMalformedPacket, packet.ReasonProtocolError:
		return false
	default:
		return true
	}
}

// connecting is a CONNECT on its way to a CONNACK.
type connecting struct {
	c        *conn
	p        *packet.Connect
	clientID string
	assigned bool
	expiry   uint32 // seconds, as granted
	will     *will
	session  *session
	present  bool // session present
	authData []byte
	err      error // why there is nobody to answer any more
}

// check applies everything that can be said without the client's session.
func (x *connecting) check(ctx context.Context) packet.ReasonCode {
	c, p := x.c, x.p
	x.clientID = p.ClientID
	switch {
	case x.clientID == "":
		// MQTT 5.0 §3.1.3.1 [MQTT-3.1.3-6], MQTT 3.1.1 §3.1.3.1
		// [MQTT-3.1.3-6]; with clean session 0 the codec has refused it.
		x.clientID, x.assigned = "holdfast-"+rand.Text(), true
	case p.Version == packet.V31 && utf8.RuneCountInString(x.clientID) > 23:
		return packet.ReasonClientIDNotValid // MQTT 3.1 §3.1
	}
	// Messages of a client that is called as an uplink would pass for the cloud's.
	if len(x.clientID) > c.b.opts.MaxClientIDSize || c.b.isRecipient(x.clientID) {
		return packet.ReasonClientIDNotValid
	}
	if c.hurried {
		return packet.ReasonConnectionRateExceeded
	}
	if c.b.full() {
		return c.b.noRoom()
	}
	if reason := x.authenticate(ctx); reason.Failed() {
		return reason
	}
	if !c.b.rates.take(c.b.rates.client(*c.identity), c.b.opts.MaxConnectRatePerClient) {
		c.b.count.connectsTooFast.Add(1)
		return packet.ReasonConnectionRateExceeded
	}
	if reason := c.elsewhere(); reason.Failed() {
		c.b.count.redirected.Add(1)
		return reason
	}
	if !c.b.admit(c) {
		return c.b.noRoom()
	}
	x.expiry = x.sessionExpiry()
	if !c.fits(x.connack()) {
		// It cannot be told what it has to know (MQTT 5.0 §3.1.2.11.4
		// [MQTT-3.1.2-24]).
		return packet.ReasonImplementationSpecific
	}
	return x.checkWill()
}

func (x *connecting) authenticate(ctx context.Context) packet.ReasonCode {
	c, p := x.c, x.p
	info := ConnInfo{
		Listener: c.listener.Name, Remote: c.nc.RemoteAddr(), Version: p.Version, ClientID: x.clientID,
		HasUsername: p.HasUsername, Username: p.Username, HasPassword: p.HasPassword, Password: p.Password,
		Anonymous: c.listener.allowsAnonymous(c.nc.RemoteAddr()),
	}
	info.Certificate, info.AlternativeNames = certificateNames(c.nc)
	if peer, ok := c.nc.(interface{ PeerIdentity() string }); ok {
		info.Peer = peer.PeerIdentity()
	}
	c.identity = &Identity{ClientID: x.clientID, Listener: c.listener.Name}
	if p.Properties.AuthMethod != "" {
		return x.exchange(ctx, info)
	}
	nameless := !p.HasUsername && !p.HasPassword && info.Certificate == "" && len(info.AlternativeNames) == 0 && info.Peer == ""
	if (nameless || c.b.opts.Auth == nil) && !info.Anonymous {
		return packet.ReasonNotAuthorized
	}
	if c.b.opts.Auth == nil {
		return packet.ReasonSuccess
	}
	id, reason := c.b.opts.Auth.Authenticate(ctx, info)
	id.ClientID, id.Listener = x.clientID, c.listener.Name
	c.identity = &id
	return reason
}

// certificateNames are the names in a verified client certificate, of a
// *tls.Conn or of something that runs over one. The handshake is over: the
// CONNECT has come through it.
func certificateNames(nc any) (commonName string, alternative []string) {
	t, ok := nc.(interface{ ConnectionState() tls.ConnectionState })
	if !ok {
		return "", nil
	}
	state := t.ConnectionState()
	if len(state.VerifiedChains) == 0 {
		return "", nil
	}
	leaf := state.VerifiedChains[0][0]
	alternative = slices.Concat(leaf.DNSNames, leaf.EmailAddresses)
	for _, u := range leaf.URIs {
		alternative = append(alternative, u.String())
	}
	return leaf.Subject.CommonName, alternative
}

// sessionExpiry is how long the session outlives the connection, in seconds.
func (x *connecting) sessionExpiry() uint32 {
	asked := uint32(0)
	switch {
	case x.p.Version == packet.V5 && x.p.Properties.SessionExpiry != nil:
		asked = *x.p.Properties.SessionExpiry
	case x.p.Version < packet.V5 && !x.p.CleanStart:
		asked = durable.SessionExpiryNever // MQTT 5.0 §3.1.2.11.2
	}
	return x.c.b.opts.boundExpiry(asked)
}

func (x *connecting) checkWill() packet.ReasonCode {
	w := x.p.Will
	if w == nil {
		return packet.ReasonSuccess
	}
	o := &x.c.b.opts
	if topic.ValidName(w.Topic) != nil || o.tooLong(w.Topic) {
		return packet.ReasonTopicNameInvalid
	}
	if reserved(w.Topic) || !x.c.mayPublish(w.Topic) {
		x.c.b.count.denied.Add(1)
		return packet.ReasonNotAuthorized
	}
	if o.CheckPayloadFormat && w.Properties.PayloadFormat == 1 && !utf8.Valid(w.Payload) {
		return packet.ReasonPayloadFormatInvalid // MQTT 5.0 §3.1.3.2.3
	}
	made, err := newWill(w, x.clientID)
	if err != nil {
		return packet.ReasonMalformedPacket
	}
	if made.m.Size() > o.MaxWillSize {
		return packet.ReasonQuotaExceeded
	}
	made.identity = *x.c.identity
	x.will = made
	return packet.ReasonSuccess
}

// takeSession takes the client id from whoever has it, finds or makes the
// session, and waits until all that is durable. An error comes with the reason
// to answer; the client id is free again then.
func (x *connecting) takeSession() (packet.ReasonCode, error) {
	b := x.c.b
	old, former, reason := x.claim()
	if reason.Failed() {
		return reason, nil
	}
	s := x.session
	var waits storeWaits
	if former != nil && !x.present {
		// Clean Start ends the old session, and with it the wait of its will
		// (MQTT 5.0 §3.1.2.4 [MQTT-3.1.2-4], §3.1.3.2.2).
		b.endSessionDone(former, waits.add(former.queue != 0))
	}
	forget := false
	if old != nil {
		if !x.present && !old.restart {
			b.fireWill(x.clientID, old.will)
		} else {
			forget = old.will.stored // MQTT 5.0 §3.1.3.2.2 [MQTT-3.1.3-9]
		}
	}
	switch {
	case x.present:
		b.store.UpdateSession(s.queue, x.expiry, true, waits.add(true))
		b.store.SetUser(s.queue, x.c.identity.Name, waits.add(true))
	case x.expiry > 0:
		s.queue = b.store.CreateSession(x.clientID, x.expiry, waits.add(true))
		b.store.SetUser(s.queue, x.c.identity.Name, waits.add(true))
	}
	if x.will != nil && x.will.stored {
		m := *x.will.m
		m.Received = time.Now()
		b.store.SetWill(durable.Will{ClientID: x.clientID, User: x.c.identity.Name, Delay: x.will.delay, Message: &m}, waits.add(true))
	} else if forget {
		b.store.ClearWill(x.clientID, waits.add(true))
	}
	if err := waits.wait(); err != nil {
		if x.keepInMemory(err) {
			return packet.ReasonSuccess, nil
		}
		x.giveBack()
		if errors.Is(err, durable.ErrFull) {
			return packet.ReasonQuotaExceeded, err
		}
		return packet.ReasonServerUnavailable, err
	}
	return packet.ReasonSuccess, nil
}

// claim makes the connection the owner of its client id, after the one that
// has it is gone (MQTT 5.0 §3.1.4 [MQTT-3.1.4-3]).
func (x *connecting) claim() (old *pendingWill, former *session, reason packet.ReasonCode) {
	c, b := x.c, x.c.b
	b.mu.Lock()
	defer b.mu.Unlock()
	var open *session // that this client may take over
	for {
		if b.closing {
			return nil, nil, packet.ReasonServerUnavailable // 0x8B is not for CONNACK
		}
		var wait <-chan struct{} = b.busy[x.clientID]
		former = b.sessions[x.clientID]
		if former != nil && former != open {
			holder := former.holder
			b.mu.Unlock()
			mine := b.mayTakeOver(*c.identity, *holder)
			b.mu.Lock()
			if !mine {
				b.count.clientIDsRefused.Add(1)
				return nil, nil, packet.ReasonNotAuthorized
			}
			open = former
			continue
		}
		if wait == nil && (former == nil || former.owner == nil) {
			break
		}
		var owner *conn
		if wait == nil {
			owner = former.owner
			wait = owner.goneLocked()
		}
		b.mu.Unlock()
		if owner != nil {
			b.count.takeovers.Add(1)
			owner.end(packet.ReasonSessionTakenOver, "another connection took the client id", false)
		}
		select {
		case <-wait:
		case <-c.quitting():
		}
		b.mu.Lock()
		if c.cause.Load() != nil {
			return nil, nil, packet.ReasonServerBusy // we are being closed ourselves
		}
	}
	if former == nil && x.expiry > 0 && len(b.sessions) >= b.opts.MaxSessions {
		return nil, nil, packet.ReasonQuotaExceeded
	}
	x.present = former != nil && !x.p.CleanStart
	x.session = former
	if !x.present {
		x.session = b.newSession(x.clientID)
		b.sessions[x.clientID] = x.session
	}
	x.session.owner, x.session.holder = c, c.identity
	if former != nil {
		b.clock.cancel(former.expire)
		former.expire = nil
	}
	return b.takeWillLocked(x.clientID), former, packet.ReasonSuccess
}

// mayTakeOver says whether a client may have the session of another's client id:
// its own user's, or that of nobody. To throw a client out, to be given what
// waits for it or to end its session is no right of other users, and the client
// id is nothing that they could not guess.
func (b *Broker) mayTakeOver(id, holder Identity) bool {
	return b.opts.Auth == nil || holder.Name == "" || holder.Name == id.Name || !b.opts.Auth.Exists(holder)
}

// keepInMemory lets a client in whose session could not be made because the disk
// is full or fails: it is told that the session ends with the connection, and all
// that needs no disk works. Only 5.0 can say so (MQTT 5.0 §3.2.2.3.2), and a will
// that has to be durable before the CONNACK stays a reason to refuse.
func (x *connecting) keepInMemory(err error) bool {
	c := x.c
	if x.present || x.expiry == 0 || c.version != packet.V5 || x.will != nil && x.will.stored || !errors.Is(err, durable.ErrFull) {
		return false
	}
	asked := x.expiry
	x.expiry = 0
	if !c.fits(x.connack()) {
		x.expiry = asked
		return false
	}
	x.session.queue = 0 // the store has forgotten it
	c.b.count.sessionsUnstored.Add(1)
	c.b.log.Warn("session ends with its connection", "client_id", x.clientID, "remote", c.remote(), "asked_seconds", asked, "err", err)
	return true
}

// giveBack undoes takeSession after the store failed.
func (x *connecting) giveBack() {
	b, s := x.c.b, x.session
	if x.will != nil && x.will.stored {
		b.store.ClearWill(x.clientID, nil)
	}
	if !x.present {
		b.endSession(s)
	} else {
		b.store.UpdateSession(s.queue, x.expiry, false, nil)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	s.owner = nil
	if !x.present {
		delete(b.sessions, x.clientID)
		return
	}
	b.expireLaterLocked(s, x.expiry, time.Duration(x.expiry)*time.Second)
}

// storeWaits waits for several changes to be durable.
type storeWaits struct {
	wg sync.WaitGroup

	mu  sync.Mutex
	err error // guarded by mu; the first
}

// add returns a done callback to wait for; nil if nothing will call it.
func (w *storeWaits) add(will bool) func(error) {
	if !will {
		return nil
	}
	w.wg.Add(1)
	return func(err error) {
		w.mu.Lock()
		if w.err == nil {
			w.err = err
		}
		w.mu.Unlock()
		w.wg.Done()
	}
}

func (w *storeWaits) wait() error {
	w.wg.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

// accept settles the connection's parameters, sends the CONNACK and lets the
// session begin to send.
func (x *connecting) accept() error {
	c, p, o := x.c, x.p, &x.c.b.opts
	c.session, c.will = x.session, x.will
	// Before anybody can see the connection end: a takeover right behind the
	// CONNACK must find the session's lifetime, or it would end the session. And
	// what is published behind the CONNACK finds the rights of the new owner.
	x.session.mu.Lock()
	x.session.expiry = x.expiry
	regranted := *x.session.identity != *c.identity && len(x.session.subs) > 0
	x.session.identity = c.identity
	x.session.mu.Unlock()
	if regranted {
		c.b.Reauthorize() // plans were made with the rights of another
	}
	c.window = o.MaxInflight
	if n := p.Properties.ReceiveMaximum; n > 0 {
		c.window = min(c.window, int(n))
	}
	c.given = topic.NewAliases(min(int(p.Properties.TopicAliasMaximum), o.MaxTopicAliases))
	c.reader.SetMax(o.MaxPacketSize)

	ack := x.connack()
	keepAlive := p.KeepAlive
	if limit := ack.Properties.ServerKeepAlive; limit != nil {
		keepAlive = *limit
	}
	c.silence = time.Duration(keepAlive) * time.Second * 3 / 2
	if err := c.deadline(time.Time{}); err != nil {
		return err
	}
	c.hook()
	// Held back until connected says so: whoever ends the connection as soon as
	// the client knows of it has to send a DISCONNECT.
	if !c.out.packet(c.cork, ack, c.version) {
		return fmt.Errorf("send CONNACK: %w", errEnded)
	}
	c.b.count.controlOut.Add(1)
	c.connected.Store(true)
	c.cork.flush(&c.b.count)
	if c.cause.Load() != nil {
		return errEnded
	}
	c.b.count.connects.Add(1)
	c.b.log.Info("client connected", "client_id", x.clientID, "remote", c.remote(), "listener", c.listener.Name,
		"version", c.version.String(), "user", c.identity.Name, "session_present", x.present)
	x.session.attach(c)
	return nil
}

// connack is the CONNACK of a client that is let in.
func (x *connecting) connack() *packet.Connack {
	ack := &packet.Connack{SessionPresent: x.present}
	if x.p.Version == packet.V5 {
		x.promise(&ack.Properties)
	}
	return ack
}

// promise fills in what a CONNACK tells a 5.0 client (MQTT 5.0 §3.2.2.3).
func (x *connecting) promise(to *packet.Properties) {
	o := &x.c.b.opts
	if limit := uint16(o.MaxKeepAlive / time.Second); limit > 0 && (x.p.KeepAlive == 0 || x.p.KeepAlive > limit) {
		to.ServerKeepAlive = &limit
	}
	if asked := x.p.Properties.SessionExpiry; asked != nil && *asked != x.expiry {
		to.SessionExpiry = &x.expiry
	}
	if o.ReceiveMaximum < 65535 {
		to.ReceiveMaximum = uint16(o.ReceiveMaximum)
	}
	to.MaximumPacketSize = uint32(o.MaxPacketSize)
	to.TopicAliasMaximum = uint16(o.MaxTopicAliases)
	if x.assigned {
		to.AssignedClientID = x.clientID
	}
	// [MQTT-4.12.0-5]; no method, no data: [MQTT-4.12.0-6].
	to.AuthMethod, to.AuthData = x.p.Properties.AuthMethod, x.authData
	if x.p.Properties.RequestResponseInfo == 1 { // [MQTT-3.1.2-28]
		to.ResponseInfo = o.ResponseInformation
	}
}
