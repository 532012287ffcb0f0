package uplink

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"holdfast/broker/durable"
	"holdfast/broker/packet"
	"holdfast/broker/topic"
	"holdfast/storeforward/uplink/dial"
)

// Values of Options.Protocol.
const (
	ProtocolAuto = "auto"  // 5.0, falling back to 3.1.1
	Protocol5    = "5.0"   // 5.0 only
	Protocol311  = "3.1.1" // 3.1.1 only
)

// Options are the settings of one uplink. The zero value is not usable; start
// from [DefaultOptions].
type Options struct {
	// Options say where the cloud is and how to get there.
	dial.Options
	// SharedSession says that all addresses lead to one cluster that keeps one
	// session for us; otherwise a change between them begins a new one.
	SharedSession bool `toml:"shared_session"`
	// ClientID is the uplink's client id; empty means the gateway's id. Two
	// gateways with one client id throw each other out.
	ClientID string `toml:"client_id"`
	// Username and Password are for the cloud's broker. 3.1.1 has no password
	// without a user name.
	Username string `toml:"username"`
	Password string `toml:"password" secret:"true"`
	// SCRAM logs in by SCRAM-SHA-256 (5.0): the password does not go over the
	// wire, and a cloud that does not know it is not believed.
	SCRAM bool `toml:"scram"`
	// Protocol is "auto" (5.0, and 3.1.1 if the cloud does not speak it;
	// remembered until the restart), "5.0" or "3.1.1".
	Protocol string `toml:"protocol"`

	// KeepAlive is the longest silence before a PINGREQ, whole seconds from
	// 5s to 18h. A link that answers nothing is found dead after at most this
	// and half of it again.
	KeepAlive time.Duration `toml:"keep_alive"`
	// ConnectTimeout bounds one attempt: name lookup, TCP, TLS and CONNACK.
	ConnectTimeout time.Duration `toml:"connect_timeout"`
	// AckTimeout is how long the cloud may acknowledge nothing at all, or
	// pass over one message while acknowledging later ones, before the
	// connection is replaced, which is the only way MQTT has to ask again
	// (MQTT 5.0 §4.4). 0 waits for ever.
	AckTimeout time.Duration `toml:"ack_timeout"`
	// ReconnectMin and ReconnectMax bound the pause between attempts: it
	// grows from the first to the second with decorrelated jitter.
	ReconnectMin time.Duration `toml:"reconnect_min"`
	ReconnectMax time.Duration `toml:"reconnect_max"`
	// ReconnectReset is how long a link must have held before the pause
	// starts at ReconnectMin again.
	ReconnectReset time.Duration `toml:"reconnect_reset"`
	// ReconnectSpread is the most that the first attempt waits when the cloud
	// itself has ended a link that had held for ReconnectReset: a broker that
	// restarts, or a region that comes back, ends thousands at once.
	ReconnectSpread time.Duration `toml:"reconnect_spread"`
	// Confirm is how long a changed configuration of an uplink that was up has
	// to come up; then the last one that did is gone back to. 0 keeps any. The
	// uplink itself does not look at it.
	Confirm time.Duration `toml:"confirm"`
	// StopTimeout bounds the clean stop: "offline" acknowledged, DISCONNECT
	// sent.
	StopTimeout time.Duration `toml:"stop_timeout"`

	// SessionExpiry is how long the cloud keeps the session while the link is
	// down, whole seconds (5.0; in 3.1.1 the broker decides).
	SessionExpiry time.Duration `toml:"session_expiry"`
	// StatusTopic is the cloud's topic of the will and the birth message,
	// with {gateway} standing for the gateway's id, {client_id}, {session} (the
	// number of this start) and {version}; empty means neither. BirthTopic and
	// WillTopic set them apart; what a clean stop says goes where the will goes.
	StatusTopic string `toml:"status_topic"`
	BirthTopic  string `toml:"birth_topic"`
	WillTopic   string `toml:"will_topic"`
	// BirthPayload and WillPayload say what they carry, with {state} (online or
	// offline), {reason} and {time} too. In JSON the values are escaped.
	BirthPayload string `toml:"birth_payload"`
	WillPayload  string `toml:"will_payload"`
	// StatusRetain has the cloud retain both.
	StatusRetain bool `toml:"status_retain"`
	// WillDelay is how long the cloud waits for us before it publishes the
	// will (5.0), whole seconds.
	WillDelay time.Duration `toml:"will_delay"`

	// Window is the most messages on their way to the cloud without an
	// acknowledgement; the cloud's Receive Maximum may lower it (3.1.1: 20).
	Window int `toml:"window"`
	// WindowBytes bounds the same in bytes of topic, payload and properties;
	// one message may always be on its way. Within these bounds the window is
	// what the link is found to hold.
	WindowBytes int `toml:"window_bytes"`
	// ReceiveMaximum is the most QoS 1 and 2 messages the cloud may have on
	// their way to us (5.0; in 3.1.1 reading pauses at this many).
	ReceiveMaximum int `toml:"receive_maximum"`
	// MaximumPacketSize is the largest packet taken from the cloud, bytes.
	MaximumPacketSize int `toml:"maximum_packet_size"`
	// Batch is the most messages read from the store at once.
	Batch int `toml:"batch"`
	// QoS0Queue is the most QoS 0 messages waiting to be written while the
	// link is up; beyond it, and while the link is down, they are dropped and
	// counted.
	QoS0Queue int `toml:"qos0_queue"`
	// TopicAliases is the most topic aliases used towards the cloud (5.0); the
	// cloud's Topic Alias Maximum may lower it. 0 uses none.
	TopicAliases int `toml:"topic_aliases"`

	// DrainRate is the most that goes out of what has waited, in bytes a second
	// of MQTT; what has just been published is not held back. 0 is no bound.
	DrainRate int64 `toml:"drain_rate"`
	// DayBudget and MonthBudget are what the uplink may use, in bytes on the
	// wire both ways, with TLS, and with TCP and IP by estimate; 0 is no bound.
	// They are kept across restarts. A month begins on MonthBegins, 1 to 28.
	DayBudget   int64 `toml:"day_budget"`
	MonthBudget int64 `toml:"month_budget"`
	MonthBegins int   `toml:"month_begins"`
	// From these shares of the budget on batches gather ten times as long;
	// routes with the policy thin send one message of a topic in
	// BudgetThinEvery, and the others are dropped and counted; and only lanes
	// from BudgetLane on send, past the end of the budget too: the rest waits.
	BudgetBatch     float64       `toml:"budget_batch"`
	BudgetThin      float64       `toml:"budget_thin"`
	BudgetThinEvery time.Duration `toml:"budget_thin_every"`
	BudgetAlarms    float64       `toml:"budget_alarms"`
	BudgetLane      int           `toml:"budget_lane"`

	// MaxMessages, MaxBytes and MaxAge bound what waits for the cloud; 0 means
	// the bounds of the store. Routes say what happens when it is full; what
	// is older than MaxAge is dropped and counted unless it has been sent.
	MaxMessages int64         `toml:"max_messages"`
	MaxBytes    int64         `toml:"max_bytes"`
	MaxAge      time.Duration `toml:"max_age"`

	// Routes say which messages go where; without any nothing flows.
	Routes []Route `toml:"route"`

	// Gateway is the gateway's id, from [gateway].
	Gateway string `toml:"-"`
	// Software is the version announced in the birth message.
	Software string `toml:"-"`
	// Epoch names the machine and database whose memory of the cloud session
	// may be believed. When it differs from the one the session began with
	// (restored, salvaged or cloned database), the next connection is a Clean
	// Start.
	Epoch string `toml:"-"`
	// ClockFloor is a time that has certainly passed, such as when this program
	// was built: a clock before it is wrong. Zero is not known.
	ClockFloor time.Time `toml:"-"`
	// Rendering returns what renders readings in a form of [Route.Form]; nil
	// knows none.
	Rendering func(form, template string) (Rendering, error) `toml:"-" json:"-"`
	// OnTrial keeps what no route takes any more until [Uplink.Proven]: those of
	// the configuration before may come back. Whatever is behind it waits as well.
	OnTrial bool `toml:"-" json:"-"`
	// ClockSynchronised says whether days and months can be told; nil is
	// always.
	ClockSynchronised func() bool `toml:"-" json:"-"`
}

// DefaultOptions returns the settings of an uplink that sets nothing but its
// URL and its routes.
func DefaultOptions() Options {
	return Options{
		Options: dial.DefaultOptions(),

		Protocol:        ProtocolAuto,
		KeepAlive:       time.Minute, // 9 MB a month of pings with TLS and TCP, and shorter than most NATs forget
		ConnectTimeout:  20 * time.Second,
		AckTimeout:      time.Minute,
		ReconnectMin:    time.Second,
		ReconnectMax:    2 * time.Minute,
		ReconnectReset:  time.Minute,
		ReconnectSpread: 15 * time.Second,
		Confirm:         2 * time.Minute,
		StopTimeout:     3 * time.Second,

		SessionExpiry: 7 * 24 * time.Hour,
		StatusTopic:   "holdfast/{gateway}/status",
		BirthPayload:  DefaultStatusPayload,
		WillPayload:   DefaultStatusPayload,
		StatusRetain:  true,
		WillDelay:     30 * time.Second,

		Window:            65535, // a cloud that bears less says so
		WindowBytes:       1 << 20,
		ReceiveMaximum:    100,
		MaximumPacketSize: 1 << 20,
		Batch:             100,
		QoS0Queue:         256,
		TopicAliases:      4096, // half a megabyte when all are in use

		MonthBegins: 1, BudgetBatch: 0.5, BudgetThin: 0.75, BudgetThinEvery: time.Minute, BudgetAlarms: 0.9, BudgetLane: 6,
	}
}

// maxStopTimeout is what a stop of the gateway leaves its uplinks.
const maxStopTimeout = 10 * time.Second

// Validate says what is wrong with o, naming the key.
func (o Options) Validate() error {
	var errs []error
	fail := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("uplink.%s: "+format, append([]any{key}, args...)...))
	}
	between := func(key string, v, least, most int) {
		if v < least || v > most {
			fail(key, "%d is outside %d..%d", v, least, most)
		}
	}
	span := func(key string, v, least, most time.Duration) {
		if v < least || v > most {
			fail(key, "%v is outside %v..%v", v, least, most)
		}
	}
	seconds := func(key string, v, least, most time.Duration) {
		span(key, v, least, most)
		if v%time.Second != 0 {
			fail(key, "%v is not whole seconds", v)
		}
	}

	if err := o.Options.Validate(); err != nil {
		errs = append(errs, err)
	}
	if o.Password != "" && o.Username == "" {
		fail("password", "needs a username (MQTT 3.1.1 §3.1.2.9)")
	}
	if o.SCRAM {
		switch {
		case o.Username == "" || o.Password == "":
			fail("scram", "needs a username and a password")
		case o.Protocol == Protocol311:
			fail("scram", "needs protocol \"auto\" or \"5.0\" (MQTT 5.0 §4.12)")
		}
	}
	switch o.Protocol {
	case ProtocolAuto, Protocol5, Protocol311:
	default:
		fail("protocol", "%q is not one of \"auto\", \"5.0\", \"3.1.1\"", o.Protocol)
	}
	if len(o.ClientID) > 65535 || !packet.ValidString(o.ClientID) {
		fail("client_id", "is not a valid MQTT string")
	}
	if len(o.Username) > 65535 || !packet.ValidString(o.Username) {
		fail("username", "is not a valid MQTT string")
	}
	if len(o.Password) > 65535 {
		fail("password", "is longer than 65535 bytes")
	}
	if o.ClientID == "" && o.Gateway == "" {
		fail("client_id", "is empty and there is no gateway id to use instead")
	}

	seconds("keep_alive", o.KeepAlive, 5*time.Second, 18*time.Hour)
	span("connect_timeout", o.ConnectTimeout, time.Second, 10*time.Minute)
	if o.AckTimeout != 0 {
		span("ack_timeout", o.AckTimeout, time.Second, 24*time.Hour)
	}
	span("reconnect_min", o.ReconnectMin, 10*time.Millisecond, time.Hour)
	span("reconnect_max", o.ReconnectMax, o.ReconnectMin, 24*time.Hour)
	span("reconnect_reset", o.ReconnectReset, 0, 24*time.Hour)
	span("reconnect_spread", o.ReconnectSpread, 0, time.Hour)
	if o.Confirm != 0 {
		span("confirm", o.Confirm, 10*time.Second, 24*time.Hour)
	}
	if o.StopTimeout < 0 || o.StopTimeout > maxStopTimeout {
		fail("stop_timeout", "%v is outside 0s..%v: a stop of the gateway waits no longer", o.StopTimeout, maxStopTimeout)
	}
	seconds("session_expiry", o.SessionExpiry, 0, 136*365*24*time.Hour)
	seconds("will_delay", o.WillDelay, 0, 136*365*24*time.Hour)
	errs = append(errs, o.validateStatus()...)
	between("window", o.Window, 1, 65535)
	between("window_bytes", o.WindowBytes, 1024, 1<<30)
	between("receive_maximum", o.ReceiveMaximum, 1, 65535)
	between("maximum_packet_size", o.MaximumPacketSize, 1024, packet.MaxSize)
	between("batch", o.Batch, 1, 1000)
	between("qos0_queue", o.QoS0Queue, 0, 65535)
	for key, v := range map[string]int64{"max_messages": o.MaxMessages, "max_bytes": o.MaxBytes} {
		if v < 0 || v > 1<<50 {
			fail(key, "%d is outside 0..%d", v, int64(1)<<50)
		}
	}
	span("max_age", o.MaxAge, 0, 100*365*24*time.Hour)
	for key, v := range map[string]int64{"drain_rate": o.DrainRate, "day_budget": o.DayBudget, "month_budget": o.MonthBudget} {
		if v < 0 || v > 1<<50 {
			fail(key, "%d is outside 0..%d", v, int64(1)<<50)
		}
	}
	between("month_begins", o.MonthBegins, 1, 28)
	between("budget_lane", o.BudgetLane, 0, durable.Lanes-1)
	span("budget_thin_every", o.BudgetThinEvery, time.Second, 24*time.Hour)
	last := 0.0
	for _, share := range []struct {
		key string
		v   float64
	}{{"budget_batch", o.BudgetBatch}, {"budget_thin", o.BudgetThin}, {"budget_alarms", o.BudgetAlarms}} {
		if !(share.v >= last && share.v <= 1) { // NaN is neither
			fail(share.key, "%v is outside %v..1: each stage begins after the one before", share.v, last)
		}
		last = share.v
	}
	between("topic_aliases", o.TopicAliases, 0, 65535)
	for i := range o.Routes {
		if err := o.Routes[i].validate(o.Gateway); err != nil {
			errs = append(errs, fmt.Errorf("uplink.route[%d].%w", i, err))
		}
	}
	return errors.Join(errs...)
}

func (o Options) clientID() string {
	if o.ClientID != "" {
		return o.ClientID
	}
	return o.Gateway
}

// expand puts the gateway's id into a topic of the configuration.
func expand(topic, gateway string) string { return strings.ReplaceAll(topic, "{gateway}", gateway) }

// validTopic checks a topic of the configuration.
func validTopic(key, name, gateway string) error {
	name = expand(name, gateway)
	if err := topic.ValidName(name); err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	if strings.ContainsAny(name, "{}") {
		return fmt.Errorf("%s: in %q only {gateway} stands for something", key, name)
	}
	return nil
}
