package broker

import (
	"fmt"
	"time"
)

// Options bound what the clients of a broker may take from the machine. Every
// number has a reason: it is what a small board can give to one client without
// the others noticing.
type Options struct {
	// MaxConnections is how many clients may be connected at once, all
	// listeners together; one more is answered with 0x89 server busy.
	MaxConnections int `toml:"max_connections"`
	// MaxConnectionsPerAddress is how many of them may come from one IPv4
	// address or one IPv6 /64, this machine's own excepted; one more is closed
	// unheard. 0 sets no bound.
	MaxConnectionsPerAddress int `toml:"max_connections_per_address"`
	// MaxHandshakes is how many connections may be in their handshake, from
	// accepting to a client that has proved who it is; one more, and the oldest
	// of the address that has most of them is closed. They come on top of
	// MaxConnections, so that strangers take no place of clients.
	MaxHandshakes int `toml:"max_handshakes"`
	// MaxConnectRatePerAddress is how many connections a second one address
	// (as above) may open, ten seconds' worth at once; one more is refused with
	// 0x9F, and closed unheard if that does not help. 0 sets no bound.
	MaxConnectRatePerAddress int `toml:"max_connect_rate_per_address"`
	// MaxConnectRatePerClient is how often a second one user's client id may
	// connect, ten seconds' worth at once; once more is refused with 0x9F. Two
	// devices of one client id throw each other out for ever otherwise. 0 sets
	// no bound.
	MaxConnectRatePerClient int `toml:"max_connect_rate_per_client"`
	// MaxSessions is how many sessions may exist, connected or kept for their
	// clients; one more persistent one is refused with 0x97.
	MaxSessions int `toml:"max_sessions"`
	// ConnectTimeout is the time from accepting a connection to its complete
	// CONNECT packet, TLS handshake and authentication included.
	ConnectTimeout time.Duration `toml:"connect_timeout"`
	// MaxKeepAlive is the longest keep alive a client may ask for; MQTT 5.0
	// clients asking for more, or for none, are told this one (server keep
	// alive, MQTT 5.0 §3.2.2.3.14). 0 leaves the choice to the client.
	MaxKeepAlive time.Duration `toml:"max_keep_alive"`
	// MaxSessionExpiry bounds how long a session outlives its connection;
	// MQTT 5.0 clients are told, 3.x clients with clean session 0 get it
	// silently. 0 keeps sessions as long as the client asked for, which for
	// 3.x is for ever.
	MaxSessionExpiry time.Duration `toml:"max_session_expiry"`
	// MaxConnectSize is the largest CONNECT packet in bytes; nobody is
	// authenticated yet when it is read.
	MaxConnectSize int `toml:"max_connect_size"`
	// MaxClientIDSize is the longest client id in bytes; it lives as long as
	// its session.
	MaxClientIDSize int `toml:"max_client_id_size"`
	// MaxWillSize is how many bytes a will may have, topic, payload and
	// properties together: each session may leave one behind in RAM.
	MaxWillSize int `toml:"max_will_size"`
	// MaxPacketSize is the largest packet in bytes a connected client may
	// send (MQTT 5.0 §3.2.2.3.6).
	MaxPacketSize int `toml:"max_packet_size"`
	// MaxUserProperties is how many user properties a packet may carry; more
	// end the connection with 0x97. In a packet they are five bytes each, in
	// RAM thirty-two.
	MaxUserProperties int `toml:"max_user_properties"`
	// MaxPublishRate is how many messages a second one client may publish, and
	// topic filters it may subscribe to or unsubscribe from, a second's worth at
	// once. 0 sets no bound: a client that publishes as fast as it can gets one
	// core at most, and QoS 1 and 2 wait for the disk anyway.
	MaxPublishRate int `toml:"max_publish_rate"`
	// PublishRatePolicy is "slow" or "disconnect", for a client above
	// MaxPublishRate.
	PublishRatePolicy RatePolicy `toml:"publish_rate_policy"`
	// ReceiveMaximum is how many QoS 1 and 2 publications of one client may
	// be unacknowledged by us (MQTT 5.0 §3.2.2.3.3). 3.x clients cannot be told.
	ReceiveMaximum int `toml:"receive_maximum"`
	// MaxUnacknowledgedBytes is how many bytes of them, each with 256 of our own,
	// may wait for their acknowledgement; then reading pauses, and the keep alive
	// with it. A client that has something to acknowledge itself is read on after
	// 5 s, and what it publishes is refused until there is room.
	MaxUnacknowledgedBytes int `toml:"max_unacknowledged_bytes"`
	// MaxUnreleased is how many QoS 2 publications of one session may wait for
	// their PUBREL, over all its connections; one more is refused with 0x97.
	MaxUnreleased int `toml:"max_unreleased"`
	// MaxInflight is how many QoS 1 and 2 deliveries may be unacknowledged by
	// one client, whatever more it offers as its receive maximum.
	MaxInflight int `toml:"max_inflight"`
	// MaxQueued is how many QoS 1 and 2 deliveries wait in RAM for one client
	// whose session ends with its connection; one more and it is disconnected
	// with 0x97. Persistent sessions queue in the store, with its bounds.
	MaxQueued int `toml:"max_queued"`
	// MaxQueuedBytes is the same bound in bytes of topic, payload and
	// properties.
	MaxQueuedBytes int `toml:"max_queued_bytes"`
	// MaxOutput is how many bytes may wait for one client's socket. Above it
	// QoS 0 is dropped and counted, QoS 1 and 2 wait in their queue.
	MaxOutput int `toml:"max_output"`
	// MaxSubscriptions is how many topic filters one session may hold.
	MaxSubscriptions int `toml:"max_subscriptions"`
	// MaxSubscriptionsTotal is how many topic filters all sessions may hold.
	// Filters that mix '+' and levels in all ways make a message of many levels
	// cost as many steps as there are filters: 100,000 of them 30 ms.
	MaxSubscriptionsTotal int `toml:"max_subscriptions_total"`
	// MaxSubscriptionBytes is the same bound in bytes of the filters.
	MaxSubscriptionBytes int `toml:"max_subscription_bytes"`
	// MaxTopicSize is how many bytes a topic name or filter may have.
	MaxTopicSize int `toml:"max_topic_size"`
	// MaxTopicLevels is how many levels a topic name or filter may have.
	MaxTopicLevels int `toml:"max_topic_levels"`
	// MaxTopicAliases is how many topic aliases a client may set, and how many
	// of those it allows us we use. Each pins a topic name in RAM
	// (MQTT 5.0 §3.2.2.3.8). 0 allows none.
	MaxTopicAliases int `toml:"max_topic_aliases"`
	// MaxRetained is how many retained messages are kept.
	MaxRetained int `toml:"max_retained"`
	// MaxRetainedPerClient is how many of them one client may have set since
	// the start, so that none leaves the others without.
	MaxRetainedPerClient int `toml:"max_retained_per_client"`
	// MaxRetainedBytes bounds them in bytes of topic, payload and properties;
	// they are all in RAM.
	MaxRetainedBytes int `toml:"max_retained_bytes"`
	// SysInterval is how often the $SYS topics are renewed. 0 turns them off.
	SysInterval time.Duration `toml:"sys_interval"`
	// WillGrace is how long after a start the wills kept from before it wait
	// at least for their clients to return.
	WillGrace time.Duration `toml:"will_grace"`
	// Loops is how many readiness loops serve the plain TCP and Unix
	// connections. 0 takes one for every two processors, at most four; -1 takes
	// none, and gives each connection a goroutine as TLS and WebSocket have it.
	Loops int `toml:"loops"`
	// CheckPayloadFormat refuses messages whose payload format indicator says
	// UTF-8 and whose payload is none, with 0x99 (MQTT 5.0 §3.3.2.3.2).
	CheckPayloadFormat bool `toml:"check_payload_format"`
	// ResponseInformation is told to MQTT 5.0 clients that ask for it: where
	// they may have answers sent to (MQTT 5.0 §3.2.2.3.15). Empty: nothing.
	ResponseInformation string `toml:"response_information"`
	// ServerReference is where MQTT 5.0 clients are sent, with 0x9C, when
	// there is no room for them here and when this gateway stops
	// (MQTT 5.0 §4.11). Empty: nowhere.
	ServerReference string `toml:"server_reference"`

	// Auth decides who may connect and what they may do. Nil: everybody whom
	// the listener's policy lets in anonymously may do everything but
	// publish into $SYS.
	Auth Auth `toml:"-"`
	// Stored says how many deliveries wait in the store, and their bytes of
	// topic, payload and properties, for $SYS/broker/store. Nil: none.
	Stored func() (messages, bytes int64) `toml:"-"`
	// Version is told in $SYS/broker/version, and Built, the time of what it was
	// built from, in $SYS/broker/timestamp.
	Version, Built string `toml:"-"`
}

// DefaultOptions returns bounds that suit a gateway with 256 MB of RAM.
func DefaultOptions() Options {
	return Options{
		MaxConnections: 1024,
		// A cell of machines behind one router, and yet no single host that
		// takes all the connections there are.
		MaxConnectionsPerAddress: 256,
		MaxHandshakes:            128,    // a slow modem takes seconds, a flood of one address its own places
		MaxConnectRatePerAddress: 30,     // a cell of 256 machines at once after a power cut, and then a steady trickle
		MaxConnectRatePerClient:  5,      // nobody's back-off is as short
		MaxSessions:              10_000, // a client that makes up a new id each time ends here
		ConnectTimeout:           10 * time.Second,
		MaxConnectSize:           64 << 10, // a will of 60 kB; Mosquitto reads 256 MB from a stranger
		MaxClientIDSize:          1024,     // 23 are usual, 128 the most a cloud takes
		MaxWillSize:              8 << 10,  // a status message; 10,000 sessions with one each take 80 MB
		MaxPacketSize:            1 << 20,  // a firmware chunk or a camera still; not a film
		MaxUserProperties:        100,      // tracing takes two, the busiest bridge a dozen
		PublishRatePolicy:        RateSlow, // only an operator knows how fast is too fast
		ReceiveMaximum:           256,      // the work of half a commit window at 500 msg/s from one client
		MaxUnacknowledgedBytes:   1 << 20,  // 3,000 readings: a commit a second keeps nobody waiting
		MaxUnreleased:            4096,     // of 65,535, in RAM and on disk; 16 windows that lost their client
		MaxInflight:              1024,     // 50,000 msg/s over a radio's 20 ms; 100 kB while they are under way
		MaxQueued:                10_000,
		MaxQueuedBytes:           8 << 20,
		MaxOutput:                512 << 10, // about what a send buffer of Linux takes on top
		MaxSubscriptions:         1000,
		MaxSubscriptionsTotal:    150_000,
		MaxSubscriptionBytes:     16 << 20, // 150,000 usual ones take half
		MaxTopicSize:             4096,     // clouds take 256 to 512
		MaxTopicLevels:           32,       // plant hierarchies have 6 to 10
		MaxTopicAliases:          32,
		MaxRetained:              100_000,
		MaxRetainedPerClient:     50_000, // half: a bridge may bring a whole plant
		MaxRetainedBytes:         32 << 20,
		SysInterval:              10 * time.Second, // as Mosquitto
		WillGrace:                30 * time.Second, // a client's usual reconnect back-off
		Version:                  "holdfast",
	}
}

// Validate names the first key that is out of range.
func (o Options) Validate() error {
	ints := []struct {
		key           string
		v, low, upper int
	}{
		{"max_connections", o.MaxConnections, 1, 1_000_000},
		{"max_connections_per_address", o.MaxConnectionsPerAddress, 0, 1_000_000},
		{"max_handshakes", o.MaxHandshakes, 1, 100_000},
		{"max_connect_rate_per_address", o.MaxConnectRatePerAddress, 0, 1_000_000},
		{"max_connect_rate_per_client", o.MaxConnectRatePerClient, 0, 1_000_000},
		{"max_client_id_size", o.MaxClientIDSize, 23, 65535}, // MQTT 5.0 §3.1.3.1 [MQTT-3.1.3-5]
		{"max_will_size", o.MaxWillSize, 64, 16 << 20},
		{"max_user_properties", o.MaxUserProperties, 0, 1_000_000},
		{"max_publish_rate", o.MaxPublishRate, 0, 10_000_000},
		{"max_unreleased", o.MaxUnreleased, 1, 65535},
		{"max_subscriptions_total", o.MaxSubscriptionsTotal, 1, 100_000_000},
		{"max_subscription_bytes", o.MaxSubscriptionBytes, 1024, 1 << 30},
		{"max_topic_size", o.MaxTopicSize, 16, 65535},
		{"max_retained_per_client", o.MaxRetainedPerClient, 0, 100_000_000},
		{"max_sessions", o.MaxSessions, 1, 10_000_000},
		{"max_connect_size", o.MaxConnectSize, 256, 16 << 20},
		{"max_packet_size", o.MaxPacketSize, 1024, 268_435_460},
		{"receive_maximum", o.ReceiveMaximum, 1, 65535},
		{"max_unacknowledged_bytes", o.MaxUnacknowledgedBytes, 1024, 1 << 30},
		{"max_inflight", o.MaxInflight, 1, 32767}, // half of the packet ids stay free
		{"max_queued", o.MaxQueued, 1, 10_000_000},
		{"max_queued_bytes", o.MaxQueuedBytes, 1024, 1 << 30},
		{"max_output", o.MaxOutput, 4096, 1 << 30},
		{"max_subscriptions", o.MaxSubscriptions, 1, 1_000_000},
		{"max_topic_levels", o.MaxTopicLevels, 2, 32768},
		{"max_topic_aliases", o.MaxTopicAliases, 0, 65535},
		{"max_retained", o.MaxRetained, 0, 100_000_000},
		{"max_retained_bytes", o.MaxRetainedBytes, 0, 1 << 30},
		{"loops", o.Loops, -1, 64},
	}
	for _, c := range ints {
		if c.v < c.low || c.v > c.upper {
			return fmt.Errorf("broker.%s: %d is outside %d..%d", c.key, c.v, c.low, c.upper)
		}
	}
	if p := o.PublishRatePolicy; p != RateSlow && p != RateDisconnect {
		return fmt.Errorf("broker.publish_rate_policy: %q is not slow or disconnect", string(p))
	}
	durations := []struct {
		key      string
		d        time.Duration
		low, top time.Duration
		zero     bool
	}{
		{"connect_timeout", o.ConnectTimeout, 100 * time.Millisecond, 5 * time.Minute, false},
		{"max_keep_alive", o.MaxKeepAlive, time.Second, 65535 * time.Second, true},
		{"max_session_expiry", o.MaxSessionExpiry, time.Second, 0xFFFFFFFE * time.Second, true},
		{"sys_interval", o.SysInterval, time.Second, 24 * time.Hour, true},
		{"will_grace", o.WillGrace, 0, time.Hour, true},
	}
	for _, c := range durations {
		if c.d == 0 && c.zero {
			continue
		}
		if c.d < c.low || c.d > c.top {
			return fmt.Errorf("broker.%s: %s is outside %s..%s", c.key, c.d, c.low, c.top)
		}
	}
	return nil
}
