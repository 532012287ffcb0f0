package mosquitto

import (
	"cmp"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// Note names a line that has no equal, or one that is a little different.
type Note struct {
	Line int
	Key  string
	Text string
}

// String is one line, fit for a terminal and for a comment in TOML.
func (n Note) String() string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, fmt.Sprintf("%d: %s: %s", n.Line, n.Key, n.Text))
}

// Convert returns the TOML that means what the mosquitto.conf means, and what
// it could not say.
func Convert(data string) (toml string, notes []Note) {
	c := &converter{}
	c.conf = read(data, func(d directive, text string) { c.note(d, text) })
	c.listeners()
	c.access()
	c.bounds()
	c.bridges()
	for _, key := range slices.Sorted(maps.Keys(c.conf.global)) {
		d := c.conf.global[key]
		text, known := noEqual[key]
		if !known {
			text = "is not known, and was left out"
		}
		c.note(d, text)
	}
	slices.SortStableFunc(c.notes, func(a, b Note) int { return cmp.Compare(a.Line, b.Line) })
	return c.out.String(), c.notes
}

type converter struct {
	conf  *conf
	out   strings.Builder
	notes []Note
}

func (c *converter) note(d directive, format string, args ...any) {
	if len(args) > 0 {
		format = fmt.Sprintf(format, args...)
	}
	c.notes = append(c.notes, Note{d.line, d.key, format})
}

func (c *converter) table(name string) {
	if c.out.Len() > 0 {
		c.out.WriteByte('\n')
	}
	c.out.WriteString(name + "\n")
}

func (c *converter) set(key, value string) { c.out.WriteString(key + " = " + value + "\n") }

// text writes a string as TOML; one that begins like a reference to elsewhere
// is marked as text.
func text(s string) string {
	scheme, _, ok := strings.Cut(s, ":")
	if ok && slices.Contains([]string{"env", "file", "cred", "text"}, scheme) {
		s = "text:" + s
	}
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case !unicode.IsPrint(r):
			fmt.Fprintf(&b, `\U%08X`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// take removes a directive from settings: whoever takes it has dealt with it.
func take(settings map[string]directive, key string) (directive, bool) {
	d, ok := settings[key]
	delete(settings, key)
	return d, ok
}

func (c *converter) listeners() {
	anonymous, said := take(c.conf.global, "allow_anonymous")
	policy := "never" // the default since 2.0
	if said && anonymous.value == "true" {
		policy = "always"
	}
	if len(c.conf.listeners) == 0 {
		// Without a listener Mosquitto is open to this machine, and so is
		// Holdfast by default.
		if said {
			c.table("[[listener]]")
			c.set("address", text("tcp://127.0.0.1:1883"))
			c.set("anonymous", text(map[string]string{"always": "loopback", "never": "never"}[policy]))
		}
		return
	}
	for _, l := range c.conf.listeners {
		c.listener(l, policy)
	}
}

func (c *converter) listener(l *listener, policy string) {
	at := directive{l.line, "listener", ""}
	cert, secure := take(l.settings, "certfile")
	key, _ := take(l.settings, "keyfile")
	scheme := "tcp"
	switch {
	case l.path != "":
		scheme = "unix"
	case l.websockets && secure:
		scheme = "wss"
	case l.websockets:
		scheme = "ws"
	case secure:
		scheme = "tls"
	}
	address := scheme + "://" + l.path
	if l.path == "" {
		if n, err := strconv.ParseUint(l.port, 10, 16); err != nil || n == 0 {
			c.note(at, "%q is not a port; the listener was left out", l.port)
			return
		}
		address = scheme + "://" + net.JoinHostPort(cmp.Or(l.host, "::"), l.port)
	}
	c.table("[[listener]]")
	c.set("address", text(address))
	if d, ok := take(l.settings, "allow_anonymous"); ok {
		policy = map[bool]string{true: "always", false: "never"}[d.value == "true"]
	}
	c.set("anonymous", text(policy))
	ca, hasCA := take(l.settings, "cafile")
	required, _ := take(l.settings, "require_certificate")
	identity, byName := take(l.settings, "use_identity_as_username")
	if secure {
		c.set("cert_file", text(cert.value))
		c.set("key_file", text(key.value))
		switch {
		case required.value == "true" && hasCA:
			c.set("client_cert", text("required"))
			c.set("client_ca_file", text(ca.value))
		case required.value == "true":
			c.note(required, "needs a cafile; Holdfast takes no capath")
		case hasCA:
			c.note(ca, "is of no use without require_certificate true")
		}
		if byName && identity.value == "true" {
			c.set("identity", text("certificate_cn"))
		}
		if d, ok := take(l.settings, "tls_version"); ok {
			switch d.value {
			case "tlsv1.3":
				c.set("tls_min_version", text("1.3"))
			case "tlsv1.2":
			default:
				c.note(d, "1.2 is the oldest version of TLS that Holdfast speaks")
			}
		}
	}
	for _, k := range slices.Sorted(maps.Keys(l.settings)) {
		d := l.settings[k]
		if k == "max_connections" || k == "max_topic_alias" {
			c.shared(d)
			continue
		}
		if k == "password_file" || k == "acl_file" {
			c.note(d, "Holdfast has one for all listeners; name it in [access], and limit users to listeners with [user.NAME] listeners")
			continue
		}
		c.note(d, "%s", cmp.Or(noEqual[k], "has no equal for a single listener"))
	}
}

// shared makes a listener's bound one for all.
func (c *converter) shared(d directive) {
	if _, ok := c.conf.global[d.key]; !ok {
		c.conf.global[d.key] = d
	}
	if len(c.conf.listeners) > 1 {
		c.note(d, "is one bound for all listeners in Holdfast")
	}
}

func (c *converter) access() {
	passwords, hasUsers := take(c.conf.global, "password_file")
	acl, hasRules := take(c.conf.global, "acl_file")
	if !hasUsers && !hasRules {
		return
	}
	c.table("[access]")
	if hasUsers {
		c.set("password_file", text(passwords.value))
	}
	if hasRules {
		c.set("acl_file", text(acl.value))
		if !hasUsers {
			c.note(acl, "Mosquitto believes any user name here; to Holdfast a name without a password is none, and lines below \"user\" are for nobody")
		}
		return
	}
	// Without an acl_file Mosquitto's users may do everything.
	c.table("[[access.rule]]")
	c.set("allow", `["read", "write"]`)
	c.set("topics", `["#", "$SYS/#"]`)
}

// bounds are the directives that became a key of [broker] or [store].
func (c *converter) bounds() {
	type bound struct {
		key  string
		unit string // "s" for seconds, "period", or empty for a number
		zero string // what 0 or -1 means: the value to write; empty: leave it out and say so
	}
	known := map[string]bound{
		"max_connections":              {"max_connections", "", "1000000"},
		"max_inflight_messages":        {"max_inflight", "", "32767"},
		"max_queued_messages":          {"max_queued", "", "10000000"},
		"max_queued_bytes":             {"max_queued_bytes", "", "1073741824"},
		"max_packet_size":              {"max_packet_size", "", "268435460"},
		"message_size_limit":           {"max_packet_size", "", "268435460"},
		"max_keepalive":                {"max_keep_alive", "s", "0s"},
		"max_topic_alias":              {"max_topic_aliases", "", "0"},
		"persistent_client_expiration": {"max_session_expiry", "period", "0s"},
		"sys_interval":                 {"sys_interval", "s", "0s"},
	}
	var lines []string
	seen := map[string]bool{}
	for _, key := range slices.Sorted(maps.Keys(known)) {
		d, ok := take(c.conf.global, key)
		if !ok {
			continue
		}
		b := known[key]
		value, err := boundValue(d.value, b.unit, b.zero)
		switch {
		case err != nil:
			c.note(d, "%v", err)
			continue
		case seen[b.key]:
			c.note(d, "says the same as another line; one was left out")
			continue
		}
		seen[b.key] = true
		lines = append(lines, b.key+" = "+value)
		if key == "max_queued_messages" || key == "max_queued_bytes" {
			c.note(d, "bounds what waits in RAM; persistent sessions queue in the store, with the bounds of [store]")
		}
		if key == "message_size_limit" {
			c.note(d, "counts the payload, max_packet_size the whole packet")
		}
	}
	if len(lines) > 0 {
		c.table("[broker]")
		c.out.WriteString(strings.Join(lines, "\n") + "\n")
	}
}

func boundValue(s, unit, zero string) (string, error) {
	if unit == "period" {
		hours := map[byte]int{'h': 1, 'd': 24, 'w': 7 * 24, 'm': 30 * 24, 'y': 365 * 24}
		if s == "" || hours[s[len(s)-1]] == 0 {
			return "", fmt.Errorf("%q is not a number followed by h, d, w, m or y", s)
		}
		n, err := strconv.ParseUint(s[:len(s)-1], 10, 20)
		if err != nil {
			return "", fmt.Errorf("%q is not a number followed by h, d, w, m or y", s)
		}
		return text(fmt.Sprintf("%dh", int(n)*hours[s[len(s)-1]])), nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return "", fmt.Errorf("%q is not a number", s)
	}
	if n <= 0 {
		if unit == "s" {
			return text(zero), nil
		}
		return zero, nil
	}
	if unit == "s" {
		return text(strconv.FormatInt(n, 10) + "s"), nil
	}
	return strconv.FormatInt(n, 10), nil
}

func (c *converter) bridges() {
	names := map[string]bool{}
	for _, b := range c.conf.bridges {
		at := directive{b.line, "connection", b.name}
		name := strings.Map(func(r rune) rune {
			if r < 0x80 && (unicode.IsLetter(r) || unicode.IsDigit(r) || r == '-' || r == '_') {
				return r
			}
			return '-'
		}, b.name)
		if name != b.name {
			c.note(at, "is called %s", name)
		}
		if name == "" || names[name] {
			c.note(at, "has no name of its own and was left out")
			continue
		}
		names[name] = true
		c.bridge(b, "uplink."+name, at)
	}
}

// keys of an uplink that take a bridge's text as it is.
var bridgeTexts = []struct{ from, to string }{
	{"remote_clientid", "client_id"},
	{"clientid", "client_id"},
	{"remote_username", "username"},
	{"username", "username"},
	{"remote_password", "password"},
	{"password", "password"},
	{"bridge_cafile", "ca_file"},
	{"bridge_certfile", "cert_file"},
	{"bridge_keyfile", "key_file"},
}

func (c *converter) bridge(b *bridge, table string, at directive) {
	address, ok := take(b.settings, "address")
	if !ok {
		address, ok = take(b.settings, "addresses")
	}
	addresses := strings.Fields(address.value)
	if !ok || len(addresses) == 0 {
		c.note(at, "has no address and was left out")
		return
	}
	_, capath := b.settings["bridge_capath"]
	_, cafile := b.settings["bridge_cafile"]
	c.table("[" + table + "]")
	for i, a := range addresses {
		addresses[i] = text(bridgeURL(a, capath || cafile))
	}
	if len(addresses) == 1 {
		c.set("url", addresses[0])
	} else {
		c.set("urls", "["+strings.Join(addresses, ", ")+"]")
		c.note(address, "each change between them begins a new session, unless shared_session = true says that they are one cluster")
	}
	written := map[string]bool{}
	for _, k := range bridgeTexts {
		if d, ok := take(b.settings, k.from); ok && !written[k.to] {
			written[k.to] = true
			c.set(k.to, text(d.value))
			if k.to == "password" {
				c.note(d, "stands in the TOML now; better put it into a file of its own: password = \"file:PATH\"")
			}
		}
	}
	c.bridgeOptions(b)
	for _, k := range slices.Sorted(maps.Keys(b.settings)) {
		c.note(b.settings[k], "%s", cmp.Or(noEqual[k], "has no equal for an uplink"))
	}
	for _, d := range b.topics {
		c.route(table, d)
	}
}

func bridgeURL(address string, secure bool) string {
	scheme, port := "mqtt", "1883"
	if secure {
		scheme, port = "mqtts", "8883"
	}
	host, p, err := net.SplitHostPort(address)
	if err != nil {
		host, p = strings.Trim(address, "[]"), port
	}
	return scheme + "://" + net.JoinHostPort(host, p)
}

func (c *converter) bridgeOptions(b *bridge) {
	if d, ok := take(b.settings, "bridge_protocol_version"); ok {
		version := map[string]string{"mqttv50": "5.0", "mqttv311": "3.1.1"}[d.value]
		if version == "" {
			version = "3.1.1"
			c.note(d, "an uplink speaks 5.0 or 3.1.1; 3.1.1 was taken")
		}
		c.set("protocol", text(version))
	}
	if d, ok := take(b.settings, "keepalive_interval"); ok {
		if n, err := strconv.ParseUint(d.value, 10, 16); err != nil || n < 5 {
			c.note(d, "%q is outside 5..65535", d.value)
		} else {
			c.set("keep_alive", text(d.value+"s"))
		}
	}
	if d, ok := take(b.settings, "bridge_insecure"); ok && d.value == "true" {
		c.set("insecure", "true")
		c.note(d, "takes the certificate of any broker, as before; Holdfast means it for trials only")
	}
	if d, ok := take(b.settings, "round_robin"); ok && d.value == "true" {
		c.set("failover", text("round_robin"))
	}
	if d, ok := take(b.settings, "bridge_alpn"); ok {
		c.set("alpn", "["+text(d.value)+"]")
	}
	if d, ok := take(b.settings, "bridge_bind_address"); ok {
		if _, err := netip.ParseAddr(d.value); err != nil {
			c.note(d, "%q is not an IP address, which source_address needs", d.value)
		} else {
			c.set("source_address", text(d.value))
		}
	}
	if d, ok := take(b.settings, "bridge_tcp_user_timeout"); ok {
		if n, err := strconv.ParseUint(d.value, 10, 32); err != nil || n < 1000 {
			c.note(d, "%q is not 1000 ms or more", d.value)
		} else {
			c.set("tcp_user_timeout", text(d.value+"ms"))
		}
	}
	if d, ok := take(b.settings, "notifications"); ok && d.value == "false" {
		c.set("status_topic", `""`)
	}
	if d, ok := take(b.settings, "notification_topic"); ok {
		c.set("status_topic", text(d.value))
		c.note(d, "the payload is JSON with \"state\", not 1 and 0")
	}
	if d, ok := take(b.settings, "restart_timeout"); ok {
		low, high, two := strings.Cut(d.value, " ")
		if _, err := strconv.ParseUint(low, 10, 16); err == nil {
			c.set("reconnect_min", text(low+"s"))
		}
		if high = strings.TrimSpace(high); two {
			if _, err := strconv.ParseUint(high, 10, 16); err == nil {
				c.set("reconnect_max", text(high+"s"))
			}
		}
	}
	for key, usual := range map[string]string{"cleansession": "false", "start_type": "automatic", "try_private": ""} {
		if d, ok := b.settings[key]; ok && (usual == "" || d.value == usual) {
			delete(b.settings, key)
		}
	}
}

// route translates topic PATTERN [DIRECTION [QOS [LOCAL-PREFIX REMOTE-PREFIX]]].
func (c *converter) route(table string, d directive) {
	words := strings.Fields(d.value)
	for i, w := range words {
		if w == `""` {
			words[i] = ""
		}
	}
	words = append(words, make([]string, 5)...)
	filter, direction, qos, local, remote := words[0], cmp.Or(words[1], "out"), cmp.Or(words[2], "0"), words[3], words[4]
	switch {
	case filter == "":
		c.note(d, "names one topic by its prefixes; write the route by hand")
		return
	case !slices.Contains([]string{"out", "in", "both"}, direction) || !slices.Contains([]string{"0", "1", "2"}, qos):
		c.note(d, "is not: topic FILTER out|in|both QOS LOCAL-PREFIX REMOTE-PREFIX")
		return
	}
	c.table("[[" + table + ".route]]")
	c.set("direction", text(direction))
	c.set("filter", text(filter))
	if remote != "" {
		c.set("prefix", text(remote))
	}
	if local != "" {
		c.set("local_prefix", text(local))
	}
	c.set("qos", qos)
	if qos == "0" && direction != "in" {
		c.note(d, "QoS 0 is not kept while the link is down; qos = 1 is, up to the publisher's")
	}
}

// noEqual says of each directive that has no equal what is the case instead.
var noEqual = map[string]string{ //nolint:gosec // words about passwords, none of them one
	"persistence":                "Holdfast always keeps what it acknowledged",
	"persistence_location":       "the store is in gateway.data (/var/lib/holdfast); Mosquitto's file cannot be taken over",
	"persistence_file":           "the store is store.path",
	"autosave_interval":          "messages are on disk before they are acknowledged, see store.commit_window",
	"autosave_on_changes":        "messages are on disk before they are acknowledged, see store.commit_window",
	"retain_available":           "retained messages are always available, see broker.max_retained",
	"queue_qos0_messages":        "QoS 0 is not kept for clients that are away",
	"log_dest":                   "logs go to standard error, and from there to the journal",
	"log_type":                   "see log.level",
	"log_timestamp":              "logs have a time, in the journal its own",
	"log_timestamp_format":       "times are RFC 3339",
	"log_facility":               "logs go to standard error",
	"connection_messages":        "connections are logged at level info",
	"user":                       "the user is that of the systemd unit",
	"pid_file":                   "systemd knows the process",
	"include_dir":                "import the files of the folder one by one; Holdfast's drop-ins are holdfast.d/*.toml",
	"allow_zero_length_clientid": "clients without an id get one",
	"auto_id_prefix":             "ids that are given begin with holdfast-",
	"allow_duplicate_messages":   "overlapping subscriptions bring one message, at the highest QoS",
	"upgrade_outgoing_qos":       "a message is delivered with the publisher's QoS or less",
	"set_tcp_nodelay":            "is always on",
	"memory_limit":               "set MemoryMax= and GOMEMLIMIT in the systemd unit",
	"max_inflight_bytes":         "see broker.max_inflight",
	"check_retain_source":        "the right to a retained message is looked at when it is published and when it is received",
	"clientid_prefixes":          "write [[access.rule]] with client_ids",
	"psk_file":                   "TLS with pre-shared keys is not there; use certificates or passwords",
	"psk_hint":                   "TLS with pre-shared keys is not there; use certificates or passwords",
	"plugin":                     "there are no plugins",
	"auth_plugin":                "there are no plugins",
	"bind_interface":             "listen on the interface's address",
	"capath":                     "put the certificates into one file, client_ca_file",
	"cafile":                     "is for listeners with a certfile",
	"crlfile":                    "there are no revocation lists; take the user away, [[access.rule]] names who may do what",
	"use_subject_as_username":    "user names are the common name (certificate_cn) or the alternative name (certificate_san)",
	"use_username_as_clientid":   "bind client ids to users with [user.NAME] client_ids = [\"%u\"]",
	"require_certificate":        "is for listeners with a certfile",
	"use_identity_as_username":   "is for listeners with a certfile",
	"mount_point":                "clients of all listeners see the same topics",
	"max_qos":                    "all QoS are there on all listeners",
	"http_dir":                   "no files are served",
	"ciphers":                    "the cipher suites are those of Go, all with forward secrecy",
	"ciphers_tls1.3":             "the cipher suites are those of Go, all with forward secrecy",
	"dhparamfile":                "key exchange is by elliptic curves",
	"tls_version":                "is for listeners with a certfile",
	"socket_domain":              "name an IPv4 or IPv6 address",
	"local_clientid":             "an uplink is no client of the local broker",
	"local_username":             "an uplink is no client of the local broker",
	"local_password":             "an uplink is no client of the local broker",
	"local_cleansession":         "an uplink is no client of the local broker",
	"cleansession":               "an uplink keeps its session, or it would lose what is on its way",
	"start_type":                 "an uplink is always on",
	"notifications":              "see status_topic",
	"notifications_local_only":   "the uplink's state is in `holdfast status`",
	"bridge_capath":              "put the certificates into one file, ca_file; without it the system's are used",
	"bridge_attempt_unsubscribe": "an uplink subscribes to what its routes say",
	"bridge_psk":                 "TLS with pre-shared keys is not there; use certificates or passwords",
	"bridge_identity":            "TLS with pre-shared keys is not there; use certificates or passwords",
}
