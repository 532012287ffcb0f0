package broker

import (
	"sync/atomic"
	"time"
)

// counters are what a broker counts; each only grows, save subscriptions.
type counters struct {
	bytesIn, bytesOut       atomic.Uint64
	packetsIn               atomic.Uint64
	controlOut              atomic.Uint64 // packets to clients that are no PUBLISH
	payloadIn, payloadOut   atomic.Uint64
	accepted                atomic.Uint64
	acceptErrors            atomic.Uint64
	acceptFailed            atomic.Int64 // when last, in ns since 1970
	messagesIn, messagesOut atomic.Uint64
	published               atomic.Uint64
	connects                atomic.Uint64
	connectsRefused         atomic.Uint64
	redirected              atomic.Uint64
	takeovers               atomic.Uint64
	sessionsExpired         atomic.Uint64
	sessionsEnded           atomic.Uint64
	wills                   atomic.Uint64
	subscriptions           atomic.Int64
	sharedSubscriptions     atomic.Int64
	subscriptionBytes       atomic.Int64

	handshakesGivenUp    atomic.Uint64
	connectsTooFast      atomic.Uint64
	clientIDsRefused     atomic.Uint64
	publishesTooFast     atomic.Uint64
	subscriptionsRefused atomic.Uint64

	withheld atomic.Uint64

	denied          atomic.Uint64
	refused         atomic.Uint64
	retainedRefused atomic.Uint64
	retainedExpired atomic.Uint64
	refusedByClient atomic.Uint64
	unknownAcks     atomic.Uint64
	protocolErrors  atomic.Uint64
	storeErrors     atomic.Uint64

	sessionsUnstored atomic.Uint64

	tooSlow          atomic.Uint64
	droppedSlow      atomic.Uint64
	droppedQueueFull atomic.Uint64
	droppedTooLarge  atomic.Uint64
	droppedExpired   atomic.Uint64
	droppedDenied    atomic.Uint64

	inboxTaken   atomic.Uint64
	inboxDropped atomic.Uint64
}

// tally is what a reader goroutine has counted and not yet added to the
// counters: those of every packet are added once for many.
type tally struct {
	packetsIn, controlOut   uint64
	messagesIn, messagesOut uint64
	payloadIn, payloadOut   uint64
}

func (t *tally) addTo(n *counters) {
	if *t == (tally{}) {
		return
	}
	n.packetsIn.Add(t.packetsIn)
	n.controlOut.Add(t.controlOut)
	n.messagesIn.Add(t.messagesIn)
	n.messagesOut.Add(t.messagesOut)
	n.payloadIn.Add(t.payloadIn)
	n.payloadOut.Add(t.payloadOut)
	*t = tally{}
}

// Status is a snapshot of the broker. Counters start at 0 with the process.
type Status struct {
	Uptime        time.Duration `json:"uptime_ns"`
	Connections   int           `json:"connections"` // those in their handshake included
	Clients       int           `json:"clients"`     // sessions with a connection
	Sessions      int           `json:"sessions"`    // online and offline
	Subscriptions int64         `json:"subscriptions"`
	Retained      int           `json:"retained"`
	RetainedBytes int           `json:"retained_bytes"`
	PendingWills  int           `json:"pending_wills"`
	// SharedSubscriptions are those of Subscriptions that are members of a
	// shared group.
	SharedSubscriptions int64 `json:"shared_subscriptions"`
	Inflight            int   `json:"inflight"` // deliveries of QoS 1 and 2 sent and not finished
	// StoredMessages and StoredBytes are retained messages, deliveries that
	// wait in RAM for their clients, and those that wait in the store.
	StoredMessages int64 `json:"stored_messages"`
	StoredBytes    int64 `json:"stored_bytes"`

	BytesIn     uint64 `json:"bytes_in"`
	BytesOut    uint64 `json:"bytes_out"`
	PacketsIn   uint64 `json:"packets_in"`
	PacketsOut  uint64 `json:"packets_out"`
	PayloadIn   uint64 `json:"payload_in"`   // bytes of payload in PUBLISH packets from clients
	PayloadOut  uint64 `json:"payload_out"`  // and to clients
	MessagesIn  uint64 `json:"messages_in"`  // PUBLISH packets from clients
	MessagesOut uint64 `json:"messages_out"` // PUBLISH packets to clients
	Published   uint64 `json:"published"`    // by adapters, uplinks and the gateway itself

	Accepted             uint64 `json:"accepted"`              // sockets, whatever became of them
	AcceptErrors         uint64 `json:"accept_errors"`         // connections that could not be accepted: no file descriptors left
	AcceptFailing        bool   `json:"accept_failing"`        // the latest of these was a moment ago
	Handshakes           int    `json:"handshakes"`            // connections whose client has not yet been let in
	HandshakesGivenUp    uint64 `json:"handshakes_given_up"`   // for max_handshakes
	ConnectsTooFast      uint64 `json:"connects_too_fast"`     // of those refused, for a connect rate
	ClientIDsRefused     uint64 `json:"client_ids_refused"`    // of those refused, for the session of another user
	PublishesTooFast     uint64 `json:"publishes_too_fast"`    // packets above max_publish_rate
	SubscriptionsRefused uint64 `json:"subscriptions_refused"` // for max_subscriptions and its like

	Connects        uint64 `json:"connects"`
	ConnectsRefused uint64 `json:"connects_refused"`
	Redirected      uint64 `json:"redirected"` // sent to another server, at their CONNECT or later
	Takeovers       uint64 `json:"takeovers"`
	SessionsExpired uint64 `json:"sessions_expired"`
	SessionsEnded   uint64 `json:"sessions_ended"` // by operators
	Wills           uint64 `json:"wills"`          // published
	// SessionsUnstored were to outlive their connections, and did not because the
	// disk was full or failed; their clients were told.
	SessionsUnstored uint64 `json:"sessions_unstored"`

	ReadingPaused   uint64 `json:"reading_paused"`    // times that a client had max_unacknowledged_bytes waiting
	Denied          uint64 `json:"denied"`            // no right to the topic
	Refused         uint64 `json:"refused"`           // publications not taken
	RetainedRefused uint64 `json:"retained_refused"`  // of those, for max_retained or max_retained_bytes
	RetainedExpired uint64 `json:"retained_expired"`  // retained messages whose time was over
	RefusedByClient uint64 `json:"refused_by_client"` // deliveries answered with 0x80 or above
	UnknownAcks     uint64 `json:"unknown_acks"`      // acknowledgements of nothing we sent
	ProtocolErrors  uint64 `json:"protocol_errors"`   // malformed and forbidden packets
	StoreErrors     uint64 `json:"store_errors"`

	TooSlow          uint64 `json:"too_slow"`           // clients disconnected for not taking what is sent to them
	Stuck            int    `json:"stuck"`              // clients that acknowledge nothing since messages for them are refused
	DroppedSlow      uint64 `json:"dropped_slow"`       // QoS 0 for clients that do not read fast enough
	DroppedQueueFull uint64 `json:"dropped_queue_full"` // QoS 1 and 2 beyond max_queued, session ended
	DroppedTooLarge  uint64 `json:"dropped_too_large"`  // larger than the client takes
	DroppedExpired   uint64 `json:"dropped_expired"`    // message expiry
	DroppedDenied    uint64 `json:"dropped_denied"`     // queued before the right to it was taken away

	InboxTaken   uint64 `json:"inbox_taken"`   // messages for the gateway itself, such as commands to devices: queued,
	InboxDropped uint64 `json:"inbox_dropped"` // and not, or not any more: too large, too many at once, or too late
}

// Status returns a snapshot.
func (b *Broker) Status() Status {
	n := &b.count
	st := Status{
		Subscriptions: n.subscriptions.Load(),
		BytesIn:       n.bytesIn.Load(), BytesOut: n.bytesOut.Load(), PacketsIn: n.packetsIn.Load(),
		PacketsOut: n.controlOut.Load() + n.messagesOut.Load(), PayloadIn: n.payloadIn.Load(), PayloadOut: n.payloadOut.Load(),
		SharedSubscriptions: n.sharedSubscriptions.Load(), Accepted: n.accepted.Load(),
		MessagesIn: n.messagesIn.Load(), MessagesOut: n.messagesOut.Load(), Published: n.published.Load(),
		Connects: n.connects.Load(), ConnectsRefused: n.connectsRefused.Load(), Takeovers: n.takeovers.Load(),
		SessionsExpired: n.sessionsExpired.Load(), Wills: n.wills.Load(),
		Denied: n.denied.Load(), Refused: n.refused.Load(), RetainedRefused: n.retainedRefused.Load(),
		RetainedExpired: n.retainedExpired.Load(), RefusedByClient: n.refusedByClient.Load(),
		UnknownAcks: n.unknownAcks.Load(), ProtocolErrors: n.protocolErrors.Load(), StoreErrors: n.storeErrors.Load(),
		DroppedSlow: n.droppedSlow.Load(), DroppedQueueFull: n.droppedQueueFull.Load(),
		DroppedTooLarge: n.droppedTooLarge.Load(), DroppedExpired: n.droppedExpired.Load(),
		DroppedDenied: n.droppedDenied.Load(),
	}
	st.HandshakesGivenUp, st.ConnectsTooFast = n.handshakesGivenUp.Load(), n.connectsTooFast.Load()
	st.SessionsUnstored = n.sessionsUnstored.Load()
	st.AcceptErrors = n.acceptErrors.Load()
	st.AcceptFailing = st.AcceptErrors > 0 && time.Since(time.Unix(0, n.acceptFailed.Load())) < 10*acceptRetry
	st.TooSlow, st.SessionsEnded = n.tooSlow.Load(), n.sessionsEnded.Load()
	st.Redirected = n.redirected.Load()
	st.InboxTaken, st.InboxDropped = n.inboxTaken.Load(), n.inboxDropped.Load()
	st.ReadingPaused = n.withheld.Load()
	st.ClientIDsRefused = n.clientIDsRefused.Load()
	st.PublishesTooFast, st.SubscriptionsRefused = n.publishesTooFast.Load(), n.subscriptionsRefused.Load()
	st.Retained, st.RetainedBytes = b.retained.size()
	st.StoredMessages, st.StoredBytes = int64(st.Retained), int64(st.RetainedBytes)
	if b.opts.Stored != nil {
		messages, bytes := b.opts.Stored()
		st.StoredMessages += messages
		st.StoredBytes += bytes
	}
	for _, s := range b.online(&st) {
		s.mu.Lock()
		if s.conn != nil {
			st.Inflight += s.inflight
			if s.stuckLocked() {
				st.Stuck++
			}
		}
		st.StoredMessages += int64(s.pending.count)
		st.StoredBytes += int64(s.pending.bytes)
		s.mu.Unlock()
	}
	return st
}

// online fills in what Broker.mu guards, and returns the sessions with a
// connection.
func (b *Broker) online(st *Status) []*session {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.state == stateStarted {
		st.Uptime = time.Since(b.begun)
	}
	st.Handshakes = b.handshakes.waiting.Len()
	st.Connections, st.Sessions, st.PendingWills = len(b.conns), len(b.sessions), len(b.wills)
	var all []*session
	for _, s := range b.sessions {
		if s.owner != nil {
			all = append(all, s)
		}
	}
	st.Clients = len(all)
	return all
}
