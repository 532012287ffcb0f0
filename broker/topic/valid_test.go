package topic_test

import (
	"errors"
	"strings"
	"testing"

	"holdfast/broker/topic"
)

func TestValidName(t *testing.T) {
	tests := map[string]struct {
		in    string
		valid bool
	}{
		"one level":                         {"sport", true},
		"levels":                            {"sport/tennis/player1", true},
		"one slash has two empty levels":    {"/", true},
		"leading and trailing slash":        {"/finance/", true},
		"space":                             {"Accounts payable", true},
		"reserved":                          {"$SYS/broker/load", true},
		"share prefix is a name like any":   {"$share/g/t", true},
		"beyond ASCII":                      {"küche/温度/🌡", true},
		"byte order mark":                   {"a\ufeffb", true},
		"replacement character":             {"a\ufffdb", true},
		"control character":                 {"a\x01b", true},
		"longest":                           {strings.Repeat("x", 65535), true},
		"deepest":                           {strings.Repeat("/", topic.MaxLevels-1), true},
		"empty":                             {"", false},
		"too long":                          {strings.Repeat("x", 65536), false},
		"too deep":                          {strings.Repeat("/", topic.MaxLevels), false},
		"null":                              {"a\x00b", false},
		"plus":                              {"a/+/b", false},
		"hash":                              {"a/#", false},
		"plus inside a level":               {"a+", false},
		"broken UTF-8":                      {"a\xff", false},
		"UTF-8 cut off":                     {"a\xe6\xb8", false},
		"surrogate":                         {"a\xed\xa0\x80", false},
		"overlong":                          {"a\xc0\x80", false},
		"beyond Unicode":                    {"\xf4\x90\x80\x80", false},
		"continuation byte without a start": {"\x80", false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			err := topic.ValidName(tt.in)
			if (err == nil) != tt.valid {
				t.Errorf("ValidName(%.40q) = %v, want valid %v", tt.in, err, tt.valid)
			}
			if err != nil && !errors.Is(err, topic.ErrInvalid) {
				t.Errorf("ValidName(%.40q) = %v, want an error that wraps ErrInvalid", tt.in, err)
			}
			if other := topic.ValidName([]byte(tt.in)); !errors.Is(other, err) {
				t.Errorf("ValidName of the same bytes = %v, want %v", other, err)
			}
		})
	}
}

func TestValidFilter(t *testing.T) {
	tests := map[string]struct {
		in    string
		valid bool
	}{
		"plain":                           {"sport/tennis", true},
		"everything":                      {"#", true},
		"all below":                       {"sport/tennis/#", true},
		"one level":                       {"+", true},
		"plus in the middle":              {"sport/+/player1", true},
		"plus and hash":                   {"+/tennis/#", true},
		"plus after an empty level":       {"/+", true},
		"only slash":                      {"/", true},
		"reserved":                        {"$SYS/#", true},
		"shared":                          {"$share/group/sport/#", true},
		"shared everything":               {"$share/g/#", true},
		"shared filter of an empty level": {"$share/g//", true},
		"share without slash is a plain":  {"$share", true},
		"longer than the share prefix":    {"$shared/g", true},
		"deepest shared":                  {"$share/g/" + strings.Repeat("/", topic.MaxLevels-1), true},
		"empty":                           {"", false},
		"hash not last":                   {"sport/tennis/#/ranking", false},
		"hash inside a level":             {"sport/tennis#", false},
		"two hashes":                      {"##", false},
		"plus at the end of a level":      {"sport+", false},
		"plus at the start of a level":    {"+sport", false},
		"two plus":                        {"a/++/b", false},
		"plus then hash":                  {"+#", false},
		"null":                            {"a\x00", false},
		"broken UTF-8":                    {"a/\xff/#", false},
		"too long":                        {strings.Repeat("x", 65536), false},
		"too deep":                        {strings.Repeat("/", topic.MaxLevels), false},
		"share without name":              {"$share/", false},
		"share with an empty name":        {"$share//a", false},
		"share with nothing behind":       {"$share/g", false},
		"share with an empty filter":      {"$share/g/", false},
		"share name with plus":            {"$share/g+/a", false},
		"share name with hash":            {"$share/#/a", false},
		"share name with null":            {"$share/g\x00/a", false},
		"share name not UTF-8":            {"$share/\xff/a", false},
		"shared filter is wrong":          {"$share/g/a#", false},
		"shared too long":                 {"$share/g/" + strings.Repeat("x", 65535), false},
		"shared too deep":                 {"$share/g/" + strings.Repeat("/", topic.MaxLevels), false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			err := topic.ValidFilter(tt.in)
			if (err == nil) != tt.valid {
				t.Errorf("ValidFilter(%.40q) = %v, want valid %v", tt.in, err, tt.valid)
			}
			if err != nil && !errors.Is(err, topic.ErrInvalid) {
				t.Errorf("ValidFilter(%.40q) = %v, want an error that wraps ErrInvalid", tt.in, err)
			}
			if other := topic.ValidFilter([]byte(tt.in)); !errors.Is(other, err) {
				t.Errorf("ValidFilter of the same bytes = %v, want %v", other, err)
			}
		})
	}
}

func TestParseShared(t *testing.T) {
	tests := map[string]struct {
		in, group, inner string
		shared, bad      bool
	}{
		"plain":              {in: "a/b", inner: "a/b"},
		"share alone":        {in: "$share", inner: "$share"},
		"shared":             {in: "$share/g/a/#", group: "g", inner: "a/#", shared: true},
		"group with dollar":  {in: "$share/$g/$SYS/#", group: "$g", inner: "$SYS/#", shared: true},
		"empty level inside": {in: "$share/g//", group: "g", inner: "/", shared: true},
		"no name":            {in: "$share//a", shared: true, bad: true},
		"no filter":          {in: "$share/g", shared: true, bad: true},
		"empty filter":       {in: "$share/g/", shared: true, bad: true},
		"wildcard in name":   {in: "$share/+/a", shared: true, bad: true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			group, inner, shared, err := topic.ParseShared(tt.in)
			if group != tt.group || inner != tt.inner || shared != tt.shared || (err != nil) != tt.bad {
				t.Errorf("ParseShared(%q) = %q, %q, %v, %v, want %q, %q, %v, error %v",
					tt.in, group, inner, shared, err, tt.group, tt.inner, tt.shared, tt.bad)
			}
		})
	}
}

// matches is shared by the tests of Match, Trie and Index: the examples of
// MQTT 5.0 §4.7 and the corners around them.
var matches = map[string]struct {
	filter, name string
	want         bool
}{
	"equal":                                      {"sport/tennis/player1", "sport/tennis/player1", true},
	"case counts":                                {"ACCOUNTS", "Accounts", false},
	"leading slash counts":                       {"/finance", "finance", false},
	"trailing slash counts":                      {"a/", "a", false},
	"trailing slash counts the other way":        {"a", "a/", false},
	"prefix is not enough":                       {"sport", "sport/tennis", false},
	"level prefix is not enough":                 {"sport/ten", "sport/tennis", false},
	"hash matches its parent":                    {"sport/tennis/player1/#", "sport/tennis/player1", true},
	"hash matches one below":                     {"sport/tennis/player1/#", "sport/tennis/player1/ranking", true},
	"hash matches further below":                 {"sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", true},
	"hash does not match a sibling":              {"sport/tennis/player1/#", "sport/tennis/player2", false},
	"hash does not match a grandparent":          {"sport/tennis/player1/#", "sport/tennis", false},
	"hash alone":                                 {"#", "a/b/c", true},
	"hash matches an empty level":                {"a/#", "a/", true},
	"plus matches one level":                     {"sport/tennis/+", "sport/tennis/player1", true},
	"plus does not match two":                    {"sport/tennis/+", "sport/tennis/player1/ranking", false},
	"plus does not match none":                   {"sport/+", "sport", false},
	"plus matches an empty level":                {"sport/+", "sport/", true},
	"plus plus matches slash first":              {"+/+", "/finance", true},
	"slash plus":                                 {"/+", "/finance", true},
	"plus alone does not match slash first":      {"+", "/finance", false},
	"plus in the middle":                         {"a/+/c", "a/b/c", true},
	"plus then hash matches parent":              {"a/+/#", "a/b", true},
	"plus then hash needs the plus":              {"a/+/#", "a", false},
	"hash does not match dollar":                 {"#", "$SYS", false},
	"hash does not match below dollar":           {"#", "$SYS/a", false},
	"plus does not match dollar":                 {"+/monitor/Clients", "$SYS/monitor/Clients", false},
	"dollar named matches":                       {"$SYS/#", "$SYS/a/b", true},
	"dollar named with hash matches its parent":  {"$SYS/#", "$SYS", true},
	"dollar named with plus":                     {"$SYS/monitor/+", "$SYS/monitor/Clients", true},
	"dollar later is a letter like any":          {"a/+", "a/$b", true},
	"dollar later under hash":                    {"#", "a/$b", true},
	"dollar later under plus in the first level": {"+/$b", "a/$b", true},
	"only slash":                                 {"/", "/", true},
	"plus plus matches only slash":               {"+/+", "/", true},
	"filter longer":                              {"a/b/c", "a/b", false},
}

func TestMatch(t *testing.T) {
	for name, tt := range matches {
		t.Run(name, func(t *testing.T) {
			if got := topic.Match(tt.filter, tt.name); got != tt.want {
				t.Errorf("Match(%q, %q) = %v, want %v", tt.filter, tt.name, got, tt.want)
			}
		})
	}
}

func TestValidDoesNotAllocate(t *testing.T) {
	name, filter := []byte("küche/温度/1"), "$share/g/küche/+/#"
	bad := strings.Repeat("a/", 1000)
	got := testing.AllocsPerRun(100, func() {
		_ = topic.ValidName(name)
		_ = topic.ValidFilter(filter)
		_ = topic.ValidFilter(bad)
		_, _, _, _ = topic.ParseShared(filter)
		_ = topic.Match("küche/+/#", "küche/温度/1")
	})
	if got != 0 {
		t.Errorf("validating allocated %v times, want 0", got)
	}
}
