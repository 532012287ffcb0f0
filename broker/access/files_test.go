package access

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"holdfast/broker"
)

func TestPasswordFileNamesItsWrongLines(t *testing.T) {
	t.Parallel()
	good := hashOf("secret")
	tests := map[string]struct {
		in   string
		want []string // empty: users ann and bob
	}{
		"two users":     {in: "# comment\n\nann:" + good + "\nbob:" + good + "\n"},
		"windows":       {in: "ann:" + good + "\r\nbob: " + good + " \r\n"},
		"no last line":  {in: "ann:" + good + "\nbob:" + good},
		"no colon":      {in: "ann:" + good + "\nbob\n", want: []string{"f:2: is not NAME:HASH"}},
		"twice":         {in: "ann:" + good + "\nbob:" + good + "\nann:" + good, want: []string{`f:3: user "ann" is on line 1 already`}},
		"plain text":    {in: "ann:hunter2\nbob:" + good, want: []string{`f:1: the password of user "ann": is not a hash`}},
		"no password":   {in: "ann:\n", want: []string{`f:1: the password of user "ann": is not a hash`}},
		"no name":       {in: ":" + good + "\n", want: []string{"f:1: the user name is empty"}},
		"control":       {in: "a\x1bb:" + good + "\n", want: []string{"f:1: the user name has the character U+001B in it"}},
		"no UTF-8":      {in: "\xff:" + good + "\n", want: []string{"f:1: the user name is not UTF-8"}},
		"several":       {in: "x\ny\n", want: []string{"f:1: ", "f:2: "}},
		"not this file": {in: strings.Repeat("x\n", 100), want: []string{"f:20: ", "f: and perhaps more"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			users, err := parsePasswords("f", []byte(tt.in))
			if len(tt.want) == 0 {
				if err != nil || len(users) != 2 || !users["ann"].hash.Verify([]byte("secret")) || !users["bob"].hash.Verify([]byte("secret")) {
					t.Fatalf("got %v, %v", users, err)
				}
				return
			}
			for _, want := range tt.want {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("got %v, want %q in it", err, want)
				}
			}
			if strings.Contains(fmt.Sprint(err), "hunter2") {
				t.Errorf("the error shows the password: %v", err)
			}
			if _, ok := errors.AsType[*FileError](err); !ok {
				t.Errorf("%v holds no FileError", err)
			}
		})
	}
}

func TestACLFileNamesItsWrongLines(t *testing.T) {
	t.Parallel()
	tests := map[string]string{
		"topic\n":                       "f:1: topic: the topic is missing",
		"\n# x\ntopic raed a/b\n":       `f:3: topic: "raed" is not read, write, readwrite or deny`,
		"topic read a/#/b\n":            "f:1: topic: invalid topic",
		"user\n":                        "f:1: user: the name is missing",
		"pattern write x%u/a\n":         "f:1: pattern: ",
		"allow a/b\n":                   `f:1: "allow" is not user, topic or pattern`,
		"topic\tread a\n":               `f:1: "topic\tread" is not user`,
		"topic read $share/g/a\n":       "f:1: topic: $share",
		"user ann\ntopic deny\ntopic #": "",
	}
	for in, want := range tests {
		_, err := parseACLFile("f", []byte(in))
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("parseACLFile(%q) = %v, want %q in it", in, err, want)
		}
	}
}

func TestACLFileMeansWhatItMeansToMosquitto(t *testing.T) {
	t.Parallel()
	const file = `# anonymous clients
topic read public/#

user ann
topic read plant/#
topic deny plant/secret/#
topic write cmd/ann
topic readwrite both/+
topic plain
topic read with blanks/x
topic %u/literal

user bob b
topic plant/#

pattern read own/%u/#
pattern write up/%c/+
pattern deny own/%u/private
pattern deny plant/later
`
	acl, err := parseACLFile("f", []byte(file))
	if err != nil {
		t.Fatal(err)
	}
	const pub, sub, get = broker.ActionPublish, broker.ActionSubscribe, broker.ActionReceive
	tests := map[string]struct {
		user, client string
		action       broker.Action
		topic        string
		want         verdict
	}{
		"anonymous":                     {"", "c", get, "public/x", allowed},
		"anonymous lines are not ann's": {"ann", "c", get, "public/x", silent},
		"read":                          {"ann", "c", get, "plant/x", allowed},
		"read is not write":             {"ann", "c", pub, "plant/x", silent},
		"denied within":                 {"ann", "c", get, "plant/secret/x", denied},
		"denied to write, too":          {"ann", "c", pub, "plant/secret/x", denied},
		"write":                         {"ann", "c", pub, "cmd/ann", allowed},
		"write is not read":             {"ann", "c", get, "cmd/ann", silent},
		"both":                          {"ann", "c", get, "both/x", allowed},
		"without access":                {"ann", "c", pub, "plain", allowed},
		"blanks":                        {"ann", "c", get, "with blanks/x", allowed},
		"no %u in topic lines":          {"ann", "c", get, "ann/literal", silent},
		"%u as text":                    {"ann", "c", get, "%u/literal", allowed},
		"user with a blank":             {"bob b", "c", pub, "plant/x", allowed},
		"pattern":                       {"bob b", "c", get, "own/bob b/x", allowed},
		"pattern of another":            {"bob b", "c", get, "own/ann/x", silent},
		"pattern denies":                {"ann", "c", get, "own/ann/private", denied},
		"the user's line comes first":   {"ann", "c", get, "plant/later", allowed},
		"pattern by client id":          {"", "c", pub, "up/c/1", allowed},
		"a client id that would widen":  {"", "+", pub, "up/x/1", silent},
		"nobody's user":                 {"eve", "c", get, "plant/x", silent},
		"subscribe":                     {"ann", "c", sub, "plant/#", allowed},
		"subscribe wider":               {"ann", "c", sub, "#", allowed},
		"subscribe to nothing of hers":  {"ann", "c", sub, "cmd/#", silent},
		"subscribe to $SYS":             {"ann", "c", sub, "$SYS/#", silent},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			id := &broker.Identity{Name: tt.user, ClientID: tt.client}
			if got := acl.judge(id, tt.action, tt.topic); got != tt.want {
				t.Errorf("judge(%+v, %d, %q) = %d, want %d", id, tt.action, tt.topic, got, tt.want)
			}
		})
	}
}

func FuzzPasswordFile(f *testing.F) {
	good := hashOf("secret")
	f.Add("ann:" + good + "\n# x\nbob:" + good)
	f.Add("ann:$7$101$AAAA$AAAA\n:\n")
	f.Add("ann:$6$AAAA$AAAA")
	f.Fuzz(func(t *testing.T, in string) {
		users, err := parsePasswords("f", []byte(in))
		if err != nil {
			if users != nil {
				t.Errorf("users beside an error")
			}
			return
		}
		for name, u := range users {
			again, err := parsePasswords("f", []byte(name+":"+u.hash.String()))
			if err != nil || !again[name].hash.equal(u.hash) {
				t.Errorf("user %q, %q: read again: %v, %v", name, u.hash, again, err)
			}
		}
	})
}

// Whatever an ACL file says, it grants nothing that none of its lines allows.
func FuzzACLFile(f *testing.F) {
	f.Add("user ann\ntopic read a/#\npattern write %u/x\n", "ann", "c", "a/b")
	f.Add("topic deny #\ntopic a/b\n", "", "c", "a/b")
	f.Add("pattern deny s/%c\npattern s/#\n", "ann", "a/b", "s/a/b")
	f.Fuzz(func(t *testing.T, in, user, client, topic string) {
		acl, err := parseACLFile("f", []byte(in))
		if err != nil {
			return
		}
		id := &broker.Identity{Name: user, ClientID: client}
		for _, action := range []broker.Action{broker.ActionPublish, broker.ActionReceive, broker.ActionSubscribe} {
			if acl.judge(id, action, topic) != allowed {
				continue
			}
			granted := false
			for line := range strings.SplitSeq(in, "\n") {
				word, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
				granted = granted || (word == "topic" || word == "pattern") && !strings.HasPrefix(strings.TrimSpace(rest), "deny ")
			}
			if !granted {
				t.Errorf("%q grants %+v action %d on %q", in, id, action, topic)
			}
		}
	})
}

func TestSetPasswordChangesOneLineOnly(t *testing.T) {
	t.Parallel()
	old := hashOf("old")
	path := writeFile(t, "# staff\nann:"+old+"\n\n#bob:was here\nbob:"+old+"\n")
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	h, err := ParseHash(hashOf("new"))
	if err != nil {
		t.Fatal(err)
	}
	for user, added := range map[string]bool{"bob": false, "eve": true} {
		if got, err := SetPassword(path, user, h); got != added || err != nil {
			t.Errorf("SetPassword(%s) = %t, %v", user, got, err)
		}
	}
	if err := DeleteUser(path, "ann"); err != nil {
		t.Error(err)
	}
	want := "# staff\n\n#bob:was here\nbob:" + h.String() + "\neve:" + h.String() + "\n"
	if got, _ := os.ReadFile(path); string(got) != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o640 {
		t.Errorf("mode %04o: others may read it", info.Mode().Perm())
	}
	if err := DeleteUser(path, "ann"); !errors.Is(err, ErrNoUser) {
		t.Errorf("DeleteUser of nobody = %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestSetPasswordMakesAPrivateFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "passwd")
	if _, err := SetPassword(path, "ann", NewHash([]byte("x"))); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v; want mode 0600", info.Mode(), err)
	}
	for _, user := range []string{"", "a:b", "a\nb", "\xff"} {
		if _, err := SetPassword(path, user, Hash{}); err == nil {
			t.Errorf("user %q was written", user)
		}
	}
}

func TestSetPasswordLeavesWhatItDoesNotUnderstand(t *testing.T) {
	t.Parallel()
	const text = "ann:hunter2\n"
	path := writeFile(t, text)
	if _, err := SetPassword(path, "bob", NewHash(nil)); err == nil {
		t.Error("no error")
	}
	if got, _ := os.ReadFile(path); string(got) != text {
		t.Errorf("the file is %q now", got)
	}
	link := filepath.Join(t.TempDir(), "link")
	good := writeFile(t, "ann:"+hashOf("x")+"\n")
	if err := os.Symlink(good, link); err != nil {
		t.Fatal(err)
	}
	if _, err := SetPassword(link, "bob", NewHash(nil)); err != nil {
		t.Fatal(err)
	}
	if users, err := readPasswords(good); err != nil || len(users) != 2 {
		t.Errorf("behind the link: %v, %v", users, err)
	}
	if _, err := SetPassword(filepath.Dir(good), "bob", NewHash(nil)); err == nil {
		t.Error("a folder became a file")
	}
}

func TestPasswordsSetAtTheSameTimeAreAllKept(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "passwd")
	h, err := ParseHash(hashOf("x"))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if _, err := SetPassword(path, fmt.Sprint("user", i), h); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if users, err := readPasswords(path); err != nil || len(users) != 20 {
		t.Errorf("%d users, %v", len(users), err)
	}
}
