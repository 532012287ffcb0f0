package config

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"holdfast/broker"
	"holdfast/broker/access"
	"holdfast/broker/listen"
)

// AccessRules reads the password and the ACL file and compiles them with the
// users and rules of the configuration. Its errors name file and line.
func (c *Config) AccessRules() (*access.Rules, error) {
	opts := c.Access
	opts.Users = c.Users
	listeners := make(map[string]access.ListenerIdentity, len(c.Listeners))
	for _, l := range c.Listeners {
		listeners[l.Label()] = l.Identity
	}
	return access.Load(opts, listeners)
}

// Label is what the listener is called where access rules name it.
func (l *Listener) Label() string {
	if l.Name != "" {
		return l.Name
	}
	return l.Address
}

func (c *Config) validateAccess(add func(error)) {
	add(c.Access.Validate())
	for _, name := range sortedKeys(c.Users) {
		key := join("user", name)
		if err := access.ValidUser(name); err != nil {
			add(fmt.Errorf("%s: %w", key, err))
		}
		add(rekey(c.Users[name].Validate(), "", key))
		c.validateListenerNames(add, key+".listeners", c.Users[name].Listeners)
	}
	for i, r := range c.Access.Rules {
		c.validateListenerNames(add, index("access.rule", i)+".listeners", r.Listeners)
	}
	for i, l := range c.Listeners {
		if err := l.Identity.Validate(); err != nil {
			add(fmt.Errorf("%s.identity: %w", index("listener", i), err))
		}
		for j := range i {
			// Rules for the one would be rules for the other.
			if l.Name != "" && c.Listeners[j].Label() == l.Name {
				add(fmt.Errorf("%s.name: another listener is called %q already", index("listener", i), l.Name))
			}
		}
	}
}

// validateListenerNames catches the name of a listener that is none: a rule
// for it would silently be no rule, a user's log-in silently impossible.
func (c *Config) validateListenerNames(add func(error), key string, names []string) {
	var known []string
	for _, l := range c.Listeners {
		known = append(known, l.Label())
	}
	for _, name := range names {
		if name != "" && !slices.Contains(known, name) {
			add(fmt.Errorf("%s: there is no listener %q%s", key, name, suggest(name, known)))
		}
	}
}

// accessWarnings names listeners that are open to the network and let nobody
// in, or everybody.
func (c *Config) accessWarnings() []string {
	var out []string
	users := c.Access.PasswordFile != "" || len(c.Users) > 0
	rules := users || c.Access.ACLFile != "" || len(c.Access.Rules) > 0
	for i, l := range c.Listeners {
		if l.local() {
			continue
		}
		key := index("listener", i)
		certificates := l.Identity == access.ByCommonName || l.Identity == access.ByAlternativeName
		switch {
		case l.Anonymous == broker.AnonymousAlways && !rules:
			out = append(out, key+": everybody who reaches "+l.Address+" may read and write everything; configure [[access.rule]]")
		case l.Anonymous != broker.AnonymousAlways && !users && !certificates:
			out = append(out, key+": nobody from elsewhere can connect to "+l.Address+": there are no users; configure [user.NAME] or access.password_file")
		case certificates && !rules:
			out = append(out, key+": every client with a certificate may read and write everything; configure [[access.rule]]")
		}
	}
	return out
}

// local says whether only programs of this machine can reach the listener.
// What systemd listens on is its affair.
func (l *Listener) local() bool {
	a, err := listen.ParseAddress(l.Address)
	if err != nil || a.Network != "tcp" {
		return true
	}
	host, _, err := net.SplitHostPort(a.Place)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}
