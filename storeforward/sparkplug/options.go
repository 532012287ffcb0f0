package sparkplug

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"holdfast/broker/packet"
	"holdfast/broker/topic"
	"holdfast/storeforward/uplink/dial"
)

// Namespace is the first level of all topics but those of 2.2's STATE
// (Sparkplug 3.0 §4.1.1).
const Namespace = "spBv1.0"

// Options are the settings of one edge node. Start from [DefaultOptions].
type Options struct {
	// Options say where the host's broker is and how to get there. Several
	// URLs are the servers that §5.6 speaks of; each of them is tried in turn.
	dial.Options
	// Group and Node are the group id and edge node id, one topic level each;
	// an empty Node is the gateway's id.
	Group string `toml:"group"`
	Node  string `toml:"node"`
	// Gateway is the gateway's id.
	Gateway string `toml:"-"`
	// ClientID is that of the session; empty means group-node.
	ClientID string `toml:"client_id"`
	// Username and Password are for the host's broker.
	Username string `toml:"username"`
	Password string `toml:"password" secret:"true"`
	// Protocol is "auto" (5.0, and 3.1.1 if the server does not speak it),
	// "5.0" or "3.1.1".
	Protocol string `toml:"protocol"`
	// KeepAlive is the longest silence before a PINGREQ, whole seconds from
	// 5s to 18h.
	KeepAlive time.Duration `toml:"keep_alive"`
	// ConnectTimeout bounds one attempt, name lookup to CONNACK.
	ConnectTimeout time.Duration `toml:"connect_timeout"`
	// ReconnectMin and ReconnectMax bound the pause between attempts, which
	// grows with jitter.
	ReconnectMin time.Duration `toml:"reconnect_min"`
	ReconnectMax time.Duration `toml:"reconnect_max"`
	// PrimaryHost is the host id without which nothing is sent (§5.4): what
	// is measured waits in the store until its STATE says online. Empty sends
	// to whoever listens.
	PrimaryHost string `toml:"primary_host"`
	// Topics are the filters of the local topics that carry readings; an empty
	// list is filled in by the configuration.
	Topics []string `toml:"topics"`
	// Aliases has data name its metrics by number (§6.4.5).
	Aliases bool `toml:"aliases"`
	// Birth is how long a device or metric that was not heard of before is
	// waited for others of its kind before the device is born with them, and
	// how far apart births asked for by the host are at least.
	Birth time.Duration `toml:"birth"`
	// Commands has metrics that the host writes (DCMD) published as
	// local commands; without it they are refused and counted.
	Commands bool `toml:"commands"`
}

// DefaultOptions are right for most hosts.
func DefaultOptions() Options {
	return Options{
		Options: dial.DefaultOptions(), Protocol: "auto", KeepAlive: 30 * time.Second, ConnectTimeout: 20 * time.Second,
		ReconnectMin: time.Second, ReconnectMax: time.Minute, Aliases: true, Birth: 2 * time.Second,
	}
}

// Validate reports the first value out of range, naming its key; of the way to the
// host's broker dial.Options does that.
func (o *Options) Validate() error {
	for _, id := range []struct{ key, value string }{{"group", o.Group}, {"node", o.node()}} {
		if err := validID(id.value); err != nil {
			return fmt.Errorf("%s: %w", id.key, err)
		}
	}
	if o.PrimaryHost != "" {
		if err := validID(o.PrimaryHost); err != nil {
			return fmt.Errorf("primary_host: %w", err)
		}
	}
	switch o.Protocol {
	case "auto", "5.0", "3.1.1":
	default:
		return fmt.Errorf(`protocol: %q is not one of "auto", "5.0", "3.1.1"`, o.Protocol)
	}
	for _, d := range []struct {
		key              string
		value, low, high time.Duration
	}{
		{"keep_alive", o.KeepAlive, 5 * time.Second, 18 * time.Hour},
		{"connect_timeout", o.ConnectTimeout, time.Second, 10 * time.Minute},
		{"reconnect_min", o.ReconnectMin, 100 * time.Millisecond, time.Hour},
		{"reconnect_max", o.ReconnectMax, o.ReconnectMin, 24 * time.Hour},
		{"birth", o.Birth, 0, time.Minute},
	} {
		if d.value < d.low || d.value > d.high {
			return fmt.Errorf("%s: %v is outside %v..%v", d.key, d.value, d.low, d.high)
		}
	}
	if o.KeepAlive%time.Second != 0 {
		return fmt.Errorf("keep_alive: %v is not in whole seconds", o.KeepAlive)
	}
	if len(o.Topics) == 0 {
		return errors.New("topics: is empty")
	}
	for i, f := range o.Topics {
		if err := topic.ValidFilter(f); err != nil {
			return fmt.Errorf("topics[%d]: %w", i, err)
		}
	}
	return nil
}

func (o *Options) node() string {
	if o.Node != "" {
		return o.Node
	}
	return o.Gateway
}

func (o *Options) clientID() string {
	if o.ClientID != "" {
		return o.ClientID
	}
	return o.Group + "-" + o.node()
}

func (o *Options) version() packet.Version {
	switch o.Protocol {
	case "5.0":
		return packet.V5
	case "3.1.1":
		return packet.V311
	default:
		return 0
	}
}

// validID checks an id that is one level of a topic (§4.1.2, §4.1.4, §4.1.5).
func validID(s string) error {
	switch {
	case s == "":
		return errors.New("is missing")
	case strings.ContainsAny(s, "/+#\x00"):
		return fmt.Errorf("%q holds a character that a Sparkplug id cannot: / + #", s)
	}
	return nil
}
