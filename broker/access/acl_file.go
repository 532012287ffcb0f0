package access

import (
	"errors"
	"fmt"
	"strings"

	"holdfast/broker"
)

// aclLine is one topic or pattern line of an ACL file.
type aclLine struct {
	pattern     pattern
	read, write bool // neither: a denial
}

func (l *aclLine) denial() bool { return !l.read && !l.write }

// aclFile is a file in the form of Mosquitto's acl_file (mosquitto.conf(5)),
// with Mosquitto's meaning: the lines of the user come first, then the
// patterns, and among each of them the denials.
type aclFile struct {
	users     map[string][]aclLine
	anonymous []aclLine // topic lines before the first user line
	patterns  []aclLine
}

func readACLFile(path string) (*aclFile, error) {
	data, err := readFile(path)
	if err != nil {
		return nil, err
	}
	return parseACLFile(path, data)
}

// parseACLFile reads these lines, words separated by blanks, the last up to the
// end of the line:
//
//	user NAME
//	topic [read|write|readwrite|deny] FILTER
//	pattern [read|write|readwrite|deny] FILTER
func parseACLFile(file string, data []byte) (*aclFile, error) {
	acl := &aclFile{users: map[string][]aclLine{}}
	user := ""
	err := eachLine(file, data, func(_ int, line string) error {
		word, rest, _ := strings.Cut(strings.TrimLeft(line, " "), " ")
		rest = strings.Trim(rest, " \t")
		switch word {
		case "user":
			if rest == "" {
				return errors.New("user: the name is missing")
			}
			user = rest
			if acl.users[user] == nil {
				acl.users[user] = []aclLine{}
			}
			return nil
		case "topic", "pattern":
			l, err := parseACLLine(rest, word == "pattern")
			if err != nil {
				return fmt.Errorf("%s: %w", word, err)
			}
			switch {
			case word == "pattern":
				acl.patterns = append(acl.patterns, l)
			case user == "":
				acl.anonymous = append(acl.anonymous, l)
			default:
				acl.users[user] = append(acl.users[user], l)
			}
			return nil
		default:
			return fmt.Errorf("%q is not user, topic or pattern", word)
		}
	})
	if err != nil {
		return nil, err
	}
	return acl, nil
}

func parseACLLine(rest string, subst bool) (aclLine, error) {
	if rest == "" {
		return aclLine{}, errors.New("the topic is missing")
	}
	l := aclLine{read: true, write: true}
	access, filter, two := strings.Cut(rest, " ")
	if !two {
		filter = rest
	} else {
		switch access {
		case "read":
			l.write = false
		case "write":
			l.read = false
		case "readwrite":
		case "deny":
			l.read, l.write = false, false
		default:
			return aclLine{}, fmt.Errorf("%q is not read, write, readwrite or deny", access)
		}
	}
	var err error
	l.pattern, err = newPattern(strings.TrimLeft(filter, " \t"), subst)
	return l, err
}

// verdict is what a set of rules says about an action.
type verdict byte

const (
	silent verdict = iota
	allowed
	denied
)

// of returns the lines for the user himself.
func (a *aclFile) of(id *broker.Identity) []aclLine {
	if id.Name == "" {
		return a.anonymous
	}
	return a.users[id.Name]
}

// judge says whether the file allows or denies it. Mosquitto lets everybody
// hold any subscription and looks at each message only; here a subscription
// that cannot bring a single message is refused.
func (a *aclFile) judge(id *broker.Identity, action broker.Action, topic string) verdict {
	for _, lines := range [2][]aclLine{a.of(id), a.patterns} {
		v := silent
		for i := range lines {
			l := &lines[i]
			switch {
			case action == broker.ActionSubscribe:
				if l.read && l.pattern.overlaps(topic, id) {
					return allowed
				}
			case l.denial():
				if l.pattern.fends(topic, id) {
					return denied
				}
			case action == broker.ActionPublish && l.write, action == broker.ActionReceive && l.read:
				if v == silent && l.pattern.matches(topic, id) {
					v = allowed
				}
			}
		}
		if v != silent {
			return v
		}
	}
	return silent
}
