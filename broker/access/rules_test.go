package access

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"holdfast/broker"
)

func TestRules(t *testing.T) {
	t.Parallel()
	users := map[string]User{"ann": {Password: hashOf("x")}, "bob": {Password: hashOf("x")}}
	const pub, sub, get = broker.ActionPublish, broker.ActionSubscribe, broker.ActionReceive
	rules := []Rule{
		{Users: []string{"ann"}, Allow: []Right{Read}, Topics: []string{"plant/#"}},
		{Users: []string{"ann"}, Allow: []Right{Write}, Topics: []string{"cmd/%u/+", "log/%c"}},
		{Users: []string{"ann", "bob"}, Allow: []Right{Subscribe}, Topics: []string{"#"}},
		{Deny: []Right{Read, Write}, Topics: []string{"plant/secret/#"}},
		{Allow: []Right{Read}, Topics: []string{"public/#"}},
		{Anonymous: true, Allow: []Right{Write}, Topics: []string{"guest"}},
		{ClientIDs: []string{"hmi"}, Allow: []Right{Write}, Topics: []string{"hmi"}},
		{Listeners: []string{"local"}, Allow: []Right{Read, Write}, Topics: []string{"local"}},
		{Users: []string{"bob"}, Deny: []Right{Subscribe}, Topics: []string{"public/big/#"}},
	}
	r := load(t, func(o *Options) { o.Users, o.Rules = users, rules }, nil)
	tests := map[string]struct {
		id     broker.Identity
		action broker.Action
		topic  string
		want   bool
	}{
		"read":                             {who("ann"), get, "plant/x", true},
		"read is not write":                {who("ann"), pub, "plant/x", false},
		"read of another user":             {who("bob"), get, "plant/x", false},
		"read lets subscribe within":       {who("ann"), sub, "plant/+/x", true},
		"subscribe lets hold more":         {who("ann"), sub, "#", true},
		"and brings nothing":               {who("bob"), get, "plant/x", false},
		"no subscribing without":           {who(""), sub, "#", false},
		"own level":                        {who("ann"), pub, "cmd/ann/x", true},
		"level of another":                 {who("ann"), pub, "cmd/bob/x", false},
		"client id":                        {who("ann"), pub, "log/c-ann", true},
		"denied for all":                   {who("ann"), get, "plant/secret/x", false},
		"denied to subscribe":              {who("ann"), sub, "plant/secret/#", false},
		"public":                           {who("bob"), get, "public/x", true},
		"public to the anonymous":          {who(""), get, "public/x", true},
		"anonymous only":                   {who(""), pub, "guest", true},
		"anonymous is not ann":             {who("ann"), pub, "guest", false},
		"by client id":                     {broker.Identity{Name: "bob", ClientID: "hmi"}, pub, "hmi", true},
		"by another client id":             {who("bob"), pub, "hmi", false},
		"by listener":                      {broker.Identity{ClientID: "x", Listener: "local"}, pub, "local", true},
		"by another listener":              {who("bob"), pub, "local", false},
		"subscription denied to one":       {who("bob"), sub, "public/big/x", false},
		"and not to another":               {who("ann"), sub, "public/big/x", true},
		"$SYS is not in #":                 {who("ann"), sub, "$SYS/#", false},
		"unknown user":                     {who("eve"), get, "public/x", false},
		"unknown action":                   {who("ann"), broker.Action(9), "plant/x", false},
		"nothing is said":                  {who("ann"), pub, "x", false},
		"the wildcard itself as a user":    {broker.Identity{Name: "+"}, pub, "cmd/ann/x", false},
		"a client id with a wildcard":      {broker.Identity{Name: "ann", ClientID: "+"}, pub, "log/x", false},
		"a client id with a slash, denied": {broker.Identity{Name: "ann", ClientID: "a/b"}, pub, "log/a/b", false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := r.allows(&tt.id, tt.action, tt.topic); got != tt.want {
				t.Errorf("allows(%+v, %d, %q) = %t, want %t", tt.id, tt.action, tt.topic, got, tt.want)
			}
		})
	}
}

func TestClosedOnceAnythingIsConfigured(t *testing.T) {
	t.Parallel()
	empty := writeFile(t, "")
	tests := map[string]struct {
		change func(*Options)
		closed bool
	}{
		"nothing":             {func(*Options) {}, false},
		"a user":              {withUsers(map[string]User{"ann": {}}), true},
		"empty password file": {func(o *Options) { o.PasswordFile = empty }, true},
		"empty ACL file":      {func(o *Options) { o.ACLFile = empty }, true},
		"a rule":              {func(o *Options) { o.Rules = []Rule{{Deny: []Right{Read}, Topics: []string{"x"}}} }, true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := quiet(load(t, tt.change, nil))
			for _, action := range []broker.Action{broker.ActionPublish, broker.ActionSubscribe, broker.ActionReceive} {
				if got := a.Authorize(who(""), action, "a/b"); got == tt.closed {
					t.Errorf("action %d: %t", action, got)
				}
			}
		})
	}
}

func TestLoadNamesWhatIsWrong(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	twice := filepath.Join(dir, "passwd")
	if err := os.WriteFile(twice, []byte("ann:"+hashOf("x")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	acl := filepath.Join(dir, "acl")
	if err := os.WriteFile(acl, []byte("\ntopic raed a"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		change func(*Options)
		want   string
	}{
		"hashing":         {func(o *Options) { o.MaxHashing = 0 }, "access.max_hashing: 0 is outside 1..64"},
		"delay":           {func(o *Options) { o.FailureDelayMax = 0 }, "access.failure_delay_max: 0s is outside"},
		"no such file":    {func(o *Options) { o.PasswordFile = dir + "/x" }, "access.password_file: open "},
		"no such ACL":     {func(o *Options) { o.ACLFile = dir + "/x" }, "access.acl_file: open "},
		"line of the ACL": {func(o *Options) { o.ACLFile = acl }, acl + `:2: topic: "raed"`},
		"in both":         {func(o *Options) { o.PasswordFile, o.Users = twice, map[string]User{"ann": {Password: hashOf("x")}} }, twice + `:1: user "ann" has a password in the configuration already`},
		"plain password":  {withUsers(map[string]User{"ann": {Password: "hunter2"}}), "user.ann: password: is not a hash"},
		"user name":       {withUsers(map[string]User{"a:b": {}}), "user.a:b: the user name has the character"},
		"no topics":       {func(o *Options) { o.Rules = []Rule{{Allow: []Right{Read}}} }, "access.rule[0].topics: is missing"},
		"no rights":       {func(o *Options) { o.Rules = []Rule{{Topics: []string{"a"}}} }, "access.rule[0].allow: is missing"},
		"unknown right":   {func(o *Options) { o.Rules = []Rule{{Deny: []Right{"publish"}, Topics: []string{"a"}}} }, `access.rule[0].deny: "publish" is not read, write or subscribe`},
		"topic":           {func(o *Options) { o.Rules = []Rule{{Allow: []Right{Read}, Topics: []string{"a", "b/#/c"}}} }, `access.rule[0].topics: "b/#/c": `},
		"empty condition": {func(o *Options) { o.Rules = []Rule{{Users: []string{""}, Allow: []Right{Read}, Topics: []string{"a"}}} }, "access.rule[0].users: an empty one fits nobody"},
		"users + anonymous": {func(o *Options) {
			o.Rules = []Rule{{Users: []string{"a"}, Anonymous: true, Allow: []Right{Read}, Topics: []string{"a"}}}
		}, "access.rule[0].anonymous: "},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := DefaultOptions()
			tt.change(&o)
			_, err := Load(o, nil)
			if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("got %v, want %q in it", err, tt.want)
			}
		})
	}
}

// The file may hold the passwords of users whose limits the configuration
// names.
func TestPasswordFileCompletesTheConfiguration(t *testing.T) {
	t.Parallel()
	r := load(t, func(o *Options) {
		o.PasswordFile = writeFile(t, "ann:"+hashOf("x")+"\n")
		o.Users = map[string]User{"ann": {ClientIDs: []string{"hmi"}}}
	}, nil)
	if u := r.users["ann"]; !u.hash.Verify([]byte("x")) || u.clientIDs[0] != "hmi" {
		t.Errorf("got %+v", u)
	}
}

func TestWarnings(t *testing.T) {
	t.Parallel()
	path := writeFile(t, "ann:"+hashOf("x")+"\n")
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	r := load(t, func(o *Options) { o.PasswordFile = path }, nil)
	got := strings.Join(r.Warnings(), "\n")
	for _, want := range []string{"nobody may publish or subscribe", "may be read by everybody"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in %q", want, got)
		}
	}
	r = load(t, func(o *Options) {
		o.Rules = []Rule{{Users: []string{"eve"}, Allow: []Right{Read}, Topics: []string{"#"}}}
	}, nil)
	if got := strings.Join(r.Warnings(), "\n"); got != `access.rule[0].users: there is no user "eve"` {
		t.Errorf("got %q", got)
	}
}

// Whatever the rules, what they allow is in the text of one of them, and what
// a denial names is not allowed.
func TestRulesGrantWhatTheirTextSays(t *testing.T) {
	t.Parallel()
	genRule := rapid.Custom(func(t *rapid.T) Rule {
		r := Rule{Topics: []string{joined(t, genPatternLevel, true, "topic")}}
		if r.Topics[0] == "" {
			r.Topics[0] = "#"
		}
		right := rapid.SampledFrom([]Right{Read, Write}).Draw(t, "right")
		if rapid.IntRange(0, 3).Draw(t, "deny") == 0 {
			r.Deny = []Right{right}
		} else {
			r.Allow = []Right{right}
		}
		switch rapid.IntRange(0, 4).Draw(t, "for") {
		case 0:
			r.Users = []string{"a"}
		case 1:
			r.Anonymous = true
		case 2:
			r.ClientIDs = []string{"c"}
		}
		return r
	})
	rapid.Check(t, func(rt *rapid.T) {
		o := DefaultOptions()
		o.Rules = rapid.SliceOfN(genRule, 1, 5).Draw(rt, "rules")
		r, err := Load(o, map[string]ListenerIdentity{"lan": ByCommonName}) // any name is known
		if err != nil {
			rt.Fatal(err)
		}
		id := broker.Identity{Name: genWho.Draw(rt, "user"), ClientID: rapid.SampledFrom([]string{"c", "+", "a/b"}).Draw(rt, "client"), Listener: "lan"}
		name := joined(rt, genNameLevel, false, "name")
		for action, right := range map[broker.Action]Right{broker.ActionPublish: Write, broker.ActionReceive: Read} {
			granted, forbidden := false, false
			for _, rule := range o.Rules {
				if len(rule.Users) > 0 && rule.Users[0] != id.Name || rule.Anonymous && id.Name != "" ||
					len(rule.ClientIDs) > 0 && rule.ClientIDs[0] != id.ClientID || !naive(rule.Topics[0], id, name) {
					continue
				}
				granted = granted || len(rule.Allow) > 0 && rule.Allow[0] == right
				forbidden = forbidden || len(rule.Deny) > 0 && rule.Deny[0] == right
			}
			if got := r.allows(&id, action, name); got && (!granted || forbidden) {
				rt.Fatalf("rules %+v let %+v do %d to %q; granted %t, forbidden %t", o.Rules, id, action, name, granted, forbidden)
			} else if !got && granted && !forbidden && usable(id.Name, true) && usable(id.ClientID, true) {
				rt.Fatalf("rules %+v keep %+v from %d to %q", o.Rules, id, action, name)
			}
		}
	})
}

func TestAuthorizeDoesNotAllocate(t *testing.T) {
	a := quiet(load(t, func(o *Options) {
		o.Users = map[string]User{"ann": {Password: hashOf("x")}}
		o.Rules = []Rule{{Users: []string{"ann"}, Allow: []Right{Write}, Topics: []string{"plant/%u/+/%c/#"}}}
		o.ACLFile = writeFile(t, "user ann\ntopic deny x/#\npattern read a/%u\n")
	}, nil))
	id := who("ann")
	if n := testing.AllocsPerRun(100, func() {
		if !a.Authorize(id, broker.ActionPublish, "plant/ann/7/c-ann/flow") {
			t.Error("denied")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkAuthorize(b *testing.B) {
	a := quiet(load(b, func(o *Options) {
		o.Users = map[string]User{"ann": {Password: hashOf("x")}}
		o.Rules = []Rule{{Users: []string{"ann"}, Allow: []Right{Write}, Topics: []string{"plant/%u/+/%c/#"}}}
	}, nil))
	id := who("ann")
	b.ReportAllocs()
	for b.Loop() {
		a.Authorize(id, broker.ActionPublish, "plant/ann/7/c-ann/flow")
	}
}
