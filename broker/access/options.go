package access

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Options are the users and rules, and what a stranger may cost the machine.
type Options struct {
	// PasswordFile has a line NAME:HASH for each user, as `holdfast passwd`
	// and mosquitto_passwd write it. Empty means none.
	PasswordFile string `toml:"password_file"`
	// ACLFile is a file in the form of Mosquitto's acl_file. Empty means none.
	ACLFile string `toml:"acl_file"`
	// MaxHashing is how many passwords are hashed at once; each takes the
	// memory that its hash asks for, 7 MiB for those of `holdfast passwd`.
	MaxHashing int `toml:"max_hashing"`
	// FailureDelay is how long the next log-in waits after one that failed,
	// counted per address and user; it doubles with each further failure.
	FailureDelay time.Duration `toml:"failure_delay"`
	// FailureDelayMax is where it stops doubling. Log-ins that would wait
	// longer than this are refused at once.
	FailureDelayMax time.Duration `toml:"failure_delay_max"`
	// Rules say what clients may do, beside those of ACLFile.
	Rules []Rule `toml:"rule"`
	// Users are those of the configuration itself, by name.
	Users map[string]User `toml:"-"`
}

// User is one user.
type User struct {
	// Password is a hash in one of the forms of [ParseHash]; empty for a user
	// who cannot log in with a password.
	Password string `toml:"password"`
	// ClientIDs are the client ids the user may connect with; "%u" stands for
	// the user's name. Empty means any.
	ClientIDs []string `toml:"client_ids"`
	// Listeners are the listeners the user may connect to. Empty means any.
	Listeners []string `toml:"listeners"`
	// ServerReference is the server where the user's clients belong, for example
	// "other.example:1883": they are let in nowhere here, and MQTT 5.0 clients are
	// told to go there (MQTT 5.0 §4.11). Empty means here.
	ServerReference string `toml:"server_reference"`
	// ServerMoved says that they belong there for good: 0x9D in place of 0x9C.
	ServerMoved bool `toml:"server_moved"`
}

// Rule allows or denies. It is for clients that fit all of Users, Anonymous,
// ClientIDs and Listeners; each that is not given fits everybody. A denial
// prevails over whatever allows the same.
type Rule struct {
	// Users are the names of users.
	Users []string `toml:"users"`
	// Anonymous makes the rule one for clients without a user name only.
	Anonymous bool `toml:"anonymous"`
	// ClientIDs are what the clients call themselves; nothing proves it.
	ClientIDs []string `toml:"client_ids"`
	// Listeners are names of listeners.
	Listeners []string `toml:"listeners"`
	// Allow are the rights the rule gives.
	Allow []Right `toml:"allow"`
	// Deny are the rights the rule takes away.
	Deny []Right `toml:"deny"`
	// Topics are topic filters. Levels that are %u or %c stand for the user
	// name and the client id.
	Topics []string `toml:"topics"`
}

// Right is something that can be done with a topic.
type Right string

// The rights.
const (
	// Read is to be sent messages of a topic, and to subscribe to filters that
	// match no others.
	Read Right = "read"
	// Write is to publish to a topic, with a will too.
	Write Right = "write"
	// Subscribe is to hold filters within the topic, without receiving
	// anything by that: whoever may Read a/b and Subscribe to # can subscribe
	// to # and gets a/b. Denied, such filters are refused.
	Subscribe Right = "subscribe"
)

// ListenerIdentity is where the user name of a listener's clients comes from.
type ListenerIdentity string

// The ways to be somebody.
const (
	// ByPassword is the user name of the CONNECT packet, proven by its
	// password. The empty text means it too.
	ByPassword ListenerIdentity = "password"
	// ByCommonName is the common name of the subject of a verified client
	// certificate; user name and password are not looked at.
	ByCommonName ListenerIdentity = "certificate_cn"
	// ByAlternativeName is its first subject alternative name: a DNS name,
	// else an e-mail address, else a URI.
	ByAlternativeName ListenerIdentity = "certificate_san"
	// ByPeer is the user of the process at the other end of a Unix socket,
	// as this machine calls it; user name and password are not looked at.
	ByPeer ListenerIdentity = "peer"
)

// Validate says whether it is one of them.
func (l ListenerIdentity) Validate() error {
	switch l {
	case "", ByPassword, ByCommonName, ByAlternativeName, ByPeer:
		return nil
	}
	return fmt.Errorf("%q is not password, certificate_cn, certificate_san or peer", string(l))
}

// byConnection says whether names come from the connection and not from the
// CONNECT packet. Such users need not be configured.
func (l ListenerIdentity) byConnection() bool {
	return l == ByCommonName || l == ByAlternativeName || l == ByPeer
}

// DefaultOptions returns no users and no rules.
func DefaultOptions() Options {
	return Options{
		MaxHashing:      1, // a small board has one core to spare and 7 MiB
		FailureDelay:    500 * time.Millisecond,
		FailureDelayMax: 5 * time.Second, // half of the broker's connect timeout: nobody is cut off while waiting
	}
}

// Validate names every key that is out of range.
func (o Options) Validate() error {
	var errs []error
	add := func(format string, args ...any) { errs = append(errs, fmt.Errorf("access."+format, args...)) }
	if o.MaxHashing < 1 || o.MaxHashing > 64 {
		add("max_hashing: %d is outside 1..64", o.MaxHashing)
	}
	if o.FailureDelay < 0 || o.FailureDelay > time.Minute {
		add("failure_delay: %s is outside 0s..1m0s", o.FailureDelay)
	}
	if o.FailureDelayMax < o.FailureDelay || o.FailureDelayMax > time.Minute {
		add("failure_delay_max: %s is outside failure_delay..1m0s", o.FailureDelayMax)
	}
	for i, r := range o.Rules {
		r.validate(func(key, format string, args ...any) {
			add("rule[%d].%s: %s", i, key, fmt.Sprintf(format, args...))
		})
	}
	return errors.Join(errs...)
}

// Validate names every key that is wrong, beginning with the key itself.
func (u User) Validate() error {
	var errs []error
	if u.Password != "" {
		if _, err := ParseHash(u.Password); err != nil {
			errs = append(errs, fmt.Errorf("password: %w", err))
		}
	}
	if slices.Contains(u.ClientIDs, "") {
		errs = append(errs, errors.New("client_ids: an empty one fits nobody"))
	}
	if slices.Contains(u.Listeners, "") {
		errs = append(errs, errors.New("listeners: an empty one fits nobody"))
	}
	if len(u.ServerReference) > 65535 || !utf8.ValidString(u.ServerReference) || strings.ContainsRune(u.ServerReference, 0) {
		errs = append(errs, errors.New("server_reference: is no UTF-8 text of at most 65535 bytes"))
	}
	if u.ServerMoved && u.ServerReference == "" {
		errs = append(errs, errors.New("server_moved: needs server_reference"))
	}
	return errors.Join(errs...)
}

func (r *Rule) validate(add func(key, format string, args ...any)) {
	if r.Anonymous && len(r.Users) > 0 {
		add("anonymous", "clients without a user name are none of users")
	}
	for key, names := range map[string][]string{"users": r.Users, "client_ids": r.ClientIDs, "listeners": r.Listeners} {
		if slices.Contains(names, "") {
			add(key, "an empty one fits nobody")
		}
	}
	if len(r.Allow)+len(r.Deny) == 0 {
		add("allow", "is missing, and so is deny; expected read, write or subscribe")
	}
	for key, rights := range map[string][]Right{"allow": r.Allow, "deny": r.Deny} {
		for _, right := range rights {
			switch right {
			case Read, Write, Subscribe:
			default:
				add(key, "%q is not read, write or subscribe", string(right))
			}
		}
	}
	if len(r.Topics) == 0 {
		add("topics", "is missing; expected topic filters")
	}
	for _, t := range r.Topics {
		if _, err := newPattern(t, true); err != nil {
			add("topics", "%q: %v", t, err)
		}
	}
}

// ValidUser says whether a user can have that name: something that can be
// written in a password file and in a log.
func ValidUser(name string) error {
	switch {
	case name == "":
		return errors.New("the user name is empty")
	case len(name) > maxName:
		return fmt.Errorf("the user name is longer than %d bytes", maxName)
	case !utf8.ValidString(name):
		return errors.New("the user name is not UTF-8")
	}
	for _, r := range name {
		if r == ':' || !unicode.IsPrint(r) {
			return fmt.Errorf("the user name has the character %U in it", r)
		}
	}
	return nil
}

// maxName bounds user names, in bytes; a certificate's common name has 64 at
// most (RFC 5280, ub-common-name), its alternative names may be longer.
const maxName = 1024

// sortedNames are the users of the configuration, in order.
func (o Options) sortedNames() []string { return slices.Sorted(maps.Keys(o.Users)) }
