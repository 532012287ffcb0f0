package access

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"holdfast/broker"
)

// Rules are the users and rights of one configuration. They do not change.
type Rules struct {
	// closed says that a user or a rule was configured: what is not allowed
	// is denied.
	closed bool
	// guarded says that users were configured: a user name without its
	// password lets nobody in.
	guarded  bool
	users    map[string]*user
	named    []*user // those with a password, in order: see stranger
	scrams   []*user // those of them with SCRAM keys
	rules    []rule  // for everybody, as far as their conditions say
	byUser   map[string][]rule
	acl      *aclFile // nil without one
	identity map[string]ListenerIdentity

	maxHashing int
	throttle   throttleOptions
	warnings   []string
}

// user is a compiled User, or one of the password file.
type user struct {
	name      string
	hash      Hash
	clientIDs []string
	listeners []string
	server    string // where it belongs; empty for here
	moved     bool   // for good
}

// rule is a compiled Rule.
type rule struct {
	anonymous bool
	clientIDs []string
	listeners []string
	allow     rights
	deny      rights
	topics    []pattern
}

// rights is a set of rights.
type rights byte

const (
	canRead rights = 1 << iota
	canWrite
	canSubscribe
)

func rightsOf(names []Right) rights {
	var r rights
	for _, n := range names {
		switch n {
		case Read:
			r |= canRead
		case Write:
			r |= canWrite
		case Subscribe:
			r |= canSubscribe
		}
	}
	return r
}

// Load reads the files that the options name and compiles it all. listeners
// says, by name of listener, where the user names of its clients come from;
// those that are not in it ask for passwords.
func Load(opts Options, listeners map[string]ListenerIdentity) (*Rules, error) {
	if err := opts.Validate(); err != nil {
		return nil, err
	}
	r := &Rules{
		closed:     opts.PasswordFile != "" || opts.ACLFile != "" || len(opts.Users) > 0 || len(opts.Rules) > 0,
		guarded:    opts.PasswordFile != "" || len(opts.Users) > 0,
		users:      map[string]*user{},
		byUser:     map[string][]rule{},
		identity:   listeners,
		maxHashing: opts.MaxHashing,
		throttle:   throttleOptions{delay: opts.FailureDelay, most: opts.FailureDelayMax},
	}
	errs := []error{r.loadUsers(&opts)}
	if opts.ACLFile != "" {
		acl, err := readACLFile(opts.ACLFile)
		if err != nil {
			errs = append(errs, fmt.Errorf("access.acl_file: %w", err))
		}
		r.acl = acl
	}
	for i := range opts.Rules {
		r.add(&opts.Rules[i])
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	r.warn(&opts)
	return r, nil
}

func (r *Rules) loadUsers(opts *Options) error {
	var errs []error
	for _, name := range opts.sortedNames() {
		u := opts.Users[name]
		if err := errors.Join(ValidUser(name), u.Validate()); err != nil {
			errs = append(errs, fmt.Errorf("user.%s: %w", name, err))
			continue
		}
		hash, _ := ParseHash(u.Password) // checked; empty: nobody logs in with it
		r.users[name] = &user{name: name, hash: hash, clientIDs: u.ClientIDs, listeners: u.Listeners, server: u.ServerReference, moved: u.ServerMoved}
	}
	if opts.PasswordFile != "" {
		lines, err := readPasswords(opts.PasswordFile)
		if err != nil {
			errs = append(errs, fmt.Errorf("access.password_file: %w", err))
		}
		for name, l := range lines {
			u := r.users[name]
			switch {
			case u == nil:
				r.users[name] = &user{name: name, hash: l.hash}
			case u.hash.scheme == schemeNone:
				u.hash = l.hash // the configuration says where, the file says with what
			default:
				errs = append(errs, fmt.Errorf("access.password_file: %w", &FileError{
					opts.PasswordFile, l.line, fmt.Sprintf("user %q has a password in the configuration already", name),
				}))
			}
		}
	}
	for _, u := range r.users {
		if u.hash.scheme != schemeNone {
			r.named = append(r.named, u)
		}
	}
	slices.SortFunc(r.named, func(a, b *user) int {
		if a.name < b.name {
			return -1
		}
		return 1
	})
	for _, u := range r.named {
		if u.hash.scheme == schemeSCRAM {
			r.scrams = append(r.scrams, u)
		}
	}
	return errors.Join(errs...)
}

func (r *Rules) add(from *Rule) {
	c := rule{
		anonymous: from.Anonymous, clientIDs: from.ClientIDs, listeners: from.Listeners,
		allow: rightsOf(from.Allow), deny: rightsOf(from.Deny),
	}
	for _, t := range from.Topics {
		p, err := newPattern(t, true)
		if err != nil {
			panic(fmt.Sprintf("access: topic %q passed validation", t))
		}
		c.topics = append(c.topics, p)
	}
	if len(from.Users) == 0 {
		r.rules = append(r.rules, c)
		return
	}
	for _, name := range slices.Compact(slices.Sorted(slices.Values(from.Users))) {
		r.byUser[name] = append(r.byUser[name], c)
	}
}

// Warnings returns what is allowed and yet likely to be a mistake.
func (r *Rules) Warnings() []string { return r.warnings }

// Users is how many users there are.
func (r *Rules) Users() int { return len(r.users) }

// Closed says that at least one user or rule is configured, so that what no
// rule allows is denied.
func (r *Rules) Closed() bool { return r.closed }

func (r *Rules) warn(opts *Options) {
	add := func(format string, args ...any) { r.warnings = append(r.warnings, fmt.Sprintf(format, args...)) }
	if r.closed && len(opts.Rules) == 0 && opts.ACLFile == "" {
		add("access: there are users and no rules: nobody may publish or subscribe to anything")
	}
	byConnection := r.anyByConnection()
	for i, from := range opts.Rules {
		for _, name := range from.Users {
			if r.users[name] == nil && !byConnection {
				add("access.rule[%d].users: there is no user %q", i, name)
			}
		}
	}
	for key, path := range map[string]string{"access.password_file": opts.PasswordFile} {
		if info, err := os.Stat(path); path != "" && err == nil && info.Mode().Perm()&0o007 != 0 {
			add("%s: %s may be read by everybody on this machine (mode %04o)", key, path, info.Mode().Perm())
		}
	}
}

// known says whether somebody may be connected under the name an identity has.
func (r *Rules) known(id *broker.Identity) bool {
	return id.Name == "" || r.users[id.Name] != nil || r.identity[id.Listener].byConnection() ||
		id.Restored && r.anyByConnection()
}

func (r *Rules) anyByConnection() bool {
	for _, l := range r.identity {
		if l.byConnection() {
			return true
		}
	}
	return false
}

// Revokes says whether a client that came in under the rules before has to log
// in again: its user is gone or has another password, may no longer use its
// client id or listener, or its listener proves names in another way.
func (r *Rules) Revokes(before *Rules, id broker.Identity) bool {
	byConnection := r.identity[id.Listener].byConnection()
	if byConnection != before.identity[id.Listener].byConnection() || !r.known(&id) {
		return true
	}
	is, was := r.users[id.Name], before.users[id.Name]
	if is != nil && !is.welcome(&id) {
		return true
	}
	if id.Name == "" || byConnection {
		return false
	}
	return was == nil || !is.hash.equal(was.hash)
}

// allows says whether the identity may do that.
func (r *Rules) allows(id *broker.Identity, action broker.Action, topic string) bool {
	if !r.closed {
		return true
	}
	if !r.known(id) {
		return false
	}
	v := silent
	for _, rules := range [2][]rule{r.rules, r.byUser[id.Name]} {
		for i := range rules {
			switch rules[i].judge(id, action, topic) {
			case denied:
				return false
			case allowed:
				v = allowed
			case silent:
			}
		}
	}
	if r.acl == nil {
		return v == allowed
	}
	switch r.acl.judge(id, action, topic) {
	case denied:
		return false
	case allowed:
		return true
	default:
		return v == allowed
	}
}

// concerns says whether the rule is for that client, or may be.
func (c *rule) concerns(id *broker.Identity) bool {
	return (!c.anonymous || id.Name == "") &&
		(len(c.clientIDs) == 0 || slices.Contains(c.clientIDs, id.ClientID)) &&
		(len(c.listeners) == 0 || id.Restored || slices.Contains(c.listeners, id.Listener))
}

func (c *rule) judge(id *broker.Identity, action broker.Action, topic string) verdict {
	if !c.concerns(id) {
		return silent
	}
	allow, deny := c.allow, c.deny
	if id.Restored && len(c.listeners) > 0 {
		deny = 0 // it may have come by another
	}
	switch action {
	case broker.ActionPublish:
		allow, deny = allow&canWrite, deny&canWrite
	case broker.ActionReceive:
		allow, deny = allow&canRead, deny&canRead
	case broker.ActionSubscribe:
		// Who may not read what a filter brings may not hold it either.
		allow, deny = allow&(canRead|canSubscribe), deny&(canRead|canSubscribe)
	default:
		return denied
	}
	v := silent
	for i := range c.topics {
		p := &c.topics[i]
		switch {
		case deny != 0 && p.concernsDenial(id, action, topic):
			return denied
		case allow != 0 && v == silent && p.grants(id, action, topic):
			v = allowed
		}
	}
	return v
}

func (p *pattern) grants(id *broker.Identity, action broker.Action, topic string) bool {
	if action == broker.ActionSubscribe {
		return p.covers(topic, id)
	}
	return p.matches(topic, id)
}

func (p *pattern) concernsDenial(id *broker.Identity, action broker.Action, topic string) bool {
	if action == broker.ActionSubscribe {
		return p.covers(topic, id)
	}
	return p.fends(topic, id)
}
