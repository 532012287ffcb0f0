package access

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/broker"
	"holdfast/broker/packet"
)

func from(ip string) net.Addr { return &net.TCPAddr{IP: net.ParseIP(ip), Port: 4711} }

func login(user, password string) broker.ConnInfo {
	return broker.ConnInfo{
		Listener: "lan", Remote: from("192.0.2.7"), ClientID: "c", HasUsername: true, Username: user,
		HasPassword: true, Password: []byte(password),
	}
}

func withUsers(users map[string]User) func(*Options) { return func(o *Options) { o.Users = users } }

func TestAuthenticate(t *testing.T) {
	t.Parallel()
	listeners := map[string]ListenerIdentity{"cn": ByCommonName, "san": ByAlternativeName, "unix": ByPeer}
	ann := map[string]User{
		"ann":  {Password: hashOf("secret")},
		"bob":  {Password: hashOf("bob's"), ClientIDs: []string{"%u", "bob-2"}, Listeners: []string{"lan"}},
		"cert": {ClientIDs: []string{"meter"}},
	}
	none := map[string]User{}
	const yes, bad, no = packet.ReasonSuccess, packet.ReasonBadUserNameOrPassword, packet.ReasonNotAuthorized
	change := func(i broker.ConnInfo, f func(*broker.ConnInfo)) broker.ConnInfo { f(&i); return i }
	tests := map[string]struct {
		users map[string]User
		info  broker.ConnInfo
		want  packet.ReasonCode
		name  string
	}{
		"right":                        {ann, login("ann", "secret"), yes, "ann"},
		"wrong password":               {ann, login("ann", "Secret"), bad, ""},
		"empty password":               {ann, login("ann", ""), bad, ""},
		"unknown":                      {ann, login("eve", "secret"), bad, ""},
		"empty name":                   {ann, login("", "secret"), bad, ""},
		"no password":                  {ann, change(login("ann", ""), func(i *broker.ConnInfo) { i.HasPassword = false }), bad, ""},
		"password without a name":      {ann, change(login("", "secret"), func(i *broker.ConnInfo) { i.HasUsername = false }), bad, ""},
		"empty name, anonymous let in": {ann, change(login("", ""), func(i *broker.ConnInfo) { i.Anonymous = true }), bad, ""},
		"user without a password":      {ann, login("cert", ""), bad, ""},
		"anonymous let in":             {ann, broker.ConnInfo{Listener: "lan", Anonymous: true}, yes, ""},
		"anonymous kept out":           {ann, broker.ConnInfo{Listener: "lan"}, no, ""},
		"certificate is no name here":  {ann, broker.ConnInfo{Listener: "lan", Certificate: "ann"}, no, ""},
		"own client id":                {ann, change(login("bob", "bob's"), func(i *broker.ConnInfo) { i.ClientID = "bob" }), yes, "bob"},
		"listed client id":             {ann, change(login("bob", "bob's"), func(i *broker.ConnInfo) { i.ClientID = "bob-2" }), yes, "bob"},
		"another client id":            {ann, change(login("bob", "bob's"), func(i *broker.ConnInfo) { i.ClientID = "ann" }), no, ""},
		"another listener":             {ann, change(login("bob", "bob's"), func(i *broker.ConnInfo) { i.ClientID, i.Listener = "bob", "wan" }), no, ""},
		"no users: a name is nothing":  {none, change(login("ann", "x"), func(i *broker.ConnInfo) { i.Anonymous = true }), yes, ""},
		"no users: kept out":           {none, login("ann", "x"), no, ""},
		"common name":                  {ann, broker.ConnInfo{Listener: "cn", Certificate: "pump 7"}, yes, "pump 7"},
		"common name before user name": {ann, change(login("ann", "secret"), func(i *broker.ConnInfo) { i.Listener, i.Certificate = "cn", "pump" }), yes, "pump"},
		"no certificate":               {ann, change(login("ann", "secret"), func(i *broker.ConnInfo) { i.Listener = "cn" }), no, ""},
		"no certificate, anonymous":    {ann, broker.ConnInfo{Listener: "cn", Anonymous: true}, no, ""},
		"control in the common name":   {ann, broker.ConnInfo{Listener: "cn", Certificate: "a\nb"}, no, ""},
		"alternative name":             {ann, broker.ConnInfo{Listener: "san", Certificate: "x", AlternativeNames: []string{"p7.example", "q"}}, yes, "p7.example"},
		"no alternative name":          {ann, broker.ConnInfo{Listener: "san", Certificate: "x"}, no, ""},
		"peer of a Unix socket":        {ann, change(login("ann", "secret"), func(i *broker.ConnInfo) { i.Listener, i.Peer = "unix", "unix:plc" }), yes, "plc"},
		"peer without a name":          {ann, broker.ConnInfo{Listener: "unix", Peer: "unix:1007"}, yes, "1007"},
		"no peer":                      {ann, broker.ConnInfo{Listener: "unix", Anonymous: true}, no, ""},
		"peer is no name here":         {ann, broker.ConnInfo{Listener: "lan", Peer: "unix:ann"}, no, ""},
		"certificate with client id":   {ann, broker.ConnInfo{Listener: "cn", Certificate: "cert", ClientID: "meter"}, yes, "cert"},
		"certificate, other client id": {ann, broker.ConnInfo{Listener: "cn", Certificate: "cert", ClientID: "x"}, no, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := quiet(load(t, withUsers(tt.users), listeners))
			for range 2 { // the second time a good password is remembered
				id, reason := a.Authenticate(t.Context(), tt.info)
				if reason != tt.want || id.Name != tt.name {
					t.Errorf("Authenticate = %+v, %v; want %q, %v", id, reason, tt.name, tt.want)
				}
				a.throttle = newThrottle()
			}
		})
	}
}

// A name of its own costs the hashing that a name that exists costs, so that
// the time does not tell them apart.
func TestUnknownUsersCostWhatKnownOnesCost(t *testing.T) {
	t.Parallel()
	a := quiet(load(t, withUsers(map[string]User{
		"new": {Password: hashOf("x")}, "old": {Password: "$7$101$uI0QtypBD9P8QIIt$6CqKh3Li+4gPExpJDwZ0ciQUGia4VDy3XyQv7jwE327VBn4vnuYjaEoaqAS8bSXerPNZzFkiEzx5zHBIvqEnrw=="},
		"cert": {},
	}), nil))
	r := a.rules.Load()
	like := map[string]int{}
	for i := range 200 {
		name := fmt.Sprint("stranger", i)
		u := a.stranger(r, name)
		if u != a.stranger(r, name) {
			t.Fatalf("%s costs something else each time", name)
		}
		like[u.name]++
	}
	if like["new"] < 50 || like["old"] < 50 || len(like) != 2 {
		t.Errorf("strangers are like %v", like)
	}
	nobodyYet := quiet(load(t, func(o *Options) { o.PasswordFile = writeFile(t, "") }, nil))
	if h := nobodyYet.stranger(nobodyYet.rules.Load(), "x").hash; h.memory != argonMemory {
		t.Errorf("without users a stranger costs %s", h)
	}
}

func TestAReconnectIsNotHashedAgain(t *testing.T) {
	t.Parallel()
	a := quiet(load(t, withUsers(map[string]User{"ann": {Password: hashOf("secret")}}), nil))
	if _, reason := a.Authenticate(t.Context(), login("ann", "secret")); reason.Failed() {
		t.Fatal(reason)
	}
	a.hashing <- struct{}{} // nobody can hash now
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if id, reason := a.Authenticate(ctx, login("ann", "secret")); reason.Failed() || id.Name != "ann" {
		t.Errorf("the remembered password: %v", reason)
	}
	if _, reason := a.Authenticate(ctx, login("ann", "wrong")); reason != packet.ReasonServerBusy {
		t.Errorf("another password: %v, want %v", reason, packet.ReasonServerBusy)
	}
	<-a.hashing
	// New rules know no remembered password.
	a.Replace(load(t, withUsers(map[string]User{"ann": {Password: hashOf("new")}}), nil))
	if _, reason := a.Authenticate(t.Context(), login("ann", "secret")); reason != packet.ReasonBadUserNameOrPassword {
		t.Errorf("the password of before: %v", reason)
	}
}

// So many passwords are hashed at once as the options say, and no more.
func TestHashingIsBounded(t *testing.T) {
	t.Parallel()
	a := quiet(load(t, func(o *Options) {
		o.MaxHashing, o.FailureDelay = 2, 0
		o.Users = map[string]User{"ann": {Password: hashOf("secret")}}
	}, nil))
	if cap(a.hashing) != 2 {
		t.Fatalf("%d places", cap(a.hashing))
	}
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() { a.Authenticate(t.Context(), login("ann", fmt.Sprint(i))) })
	}
	wg.Wait()
	if len(a.hashing) != 0 {
		t.Errorf("%d places were not given back", len(a.hashing))
	}
	if got := a.Status().Failures; got != 20 {
		t.Errorf("%d failures counted, want 20", got)
	}
}

func TestFailuresAreSlowedDown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := quiet(load(t, withUsers(map[string]User{"ann": {Password: hashOf("secret")}, "bob": {Password: hashOf("secret")}}), nil))
		try := func(ip, user, password string) (packet.ReasonCode, time.Duration) {
			begin := time.Now()
			info := login(user, password)
			info.Remote = from(ip)
			_, reason := a.Authenticate(t.Context(), info)
			return reason, time.Since(begin)
		}
		expect := func(what, ip, user, password string, reason packet.ReasonCode, wait time.Duration) {
			t.Helper()
			got, took := try(ip, user, password)
			if got != reason || took != wait {
				t.Errorf("%s: %v after %s, want %v after %s", what, got, took, reason, wait)
			}
		}
		const bad, yes = packet.ReasonBadUserNameOrPassword, packet.ReasonSuccess
		const ms = time.Millisecond
		expect("first failure", "192.0.2.1", "ann", "x", bad, 0)
		expect("second", "192.0.2.1", "ann", "x", bad, 500*ms)
		expect("third", "192.0.2.1", "ann", "x", bad, 1000*ms)
		expect("fourth", "192.0.2.1", "ann", "x", bad, 2000*ms)
		expect("fifth", "192.0.2.1", "ann", "x", bad, 4000*ms)
		expect("sixth", "192.0.2.1", "ann", "x", bad, 5000*ms)
		expect("another user at that address", "192.0.2.1", "bob", "secret", yes, 0)
		expect("another address", "192.0.2.2", "ann", "secret", yes, 0)
		expect("the right one waits as long", "192.0.2.1", "ann", "secret", yes, 5000*ms)
		expect("and begins anew", "192.0.2.1", "ann", "secret", yes, 0)

		// An address that tries many users is slowed down for all of them.
		for i := range freeFailures {
			expect("spray", "198.51.100.1", fmt.Sprint("u", i), "x", bad, 0)
		}
		expect("spray, one more", "198.51.100.1", "v", "x", bad, 0)
		expect("spray, slowed down", "198.51.100.1", "w", "x", bad, 500*ms)
		expect("in vain with one good password", "198.51.100.1", "bob", "secret", yes, 1000*ms)
		expect("the neighbour", "198.51.100.2", "bob", "secret", yes, 0)

		// So is a user whom many addresses try, but not where he comes from.
		for i := range freeFailures + 5 {
			try(fmt.Sprint("203.0.113.", i), "ann", "x")
		}
		if _, wait := try("203.0.113.200", "ann", "x"); wait == 0 {
			t.Error("a user tried from everywhere is not slowed down")
		}
		expect("the user at home", "192.0.2.2", "ann", "secret", yes, 0)
		expect("IPv6", "2001:db8::1", "zed", "x", bad, 0)
		expect("IPv6, next door in the /64", "2001:db8::2", "zed", "x", bad, 500*ms)

		<-time.After(forgetAfter + time.Second)
		expect("ten minutes later", "192.0.2.1", "ann", "x", bad, 0)
		if n := a.Status().Throttled; n == 0 {
			t.Error("nothing was counted")
		}
	})
}

// Many connections at once are no faster than one after the other, and most
// are refused at once.
func TestGuessingInParallelIsNotFaster(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := quiet(load(t, withUsers(map[string]User{"ann": {Password: hashOf("secret")}}), nil))
		a.Authenticate(t.Context(), login("ann", "x"))
		var mu sync.Mutex
		reasons := map[packet.ReasonCode]int{}
		begin := time.Now()
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				_, reason := a.Authenticate(t.Context(), login("ann", "x"))
				mu.Lock()
				reasons[reason]++
				mu.Unlock()
			})
		}
		wg.Wait()
		if tried := reasons[packet.ReasonBadUserNameOrPassword]; tried > 10 || reasons[packet.ReasonConnectionRateExceeded] != 100-tried {
			t.Errorf("of 100 at once: %v", reasons)
		}
		if took := time.Since(begin); took > 5*time.Second {
			t.Errorf("took %s", took)
		}
	})
}

func TestAClientThatHangsUpIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := quiet(load(t, withUsers(map[string]User{"ann": {Password: hashOf("secret")}}), nil))
		a.Authenticate(t.Context(), login("ann", "x"))
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		begin := time.Now()
		if _, reason := a.Authenticate(ctx, login("ann", "secret")); reason != packet.ReasonServerBusy || time.Since(begin) != time.Millisecond {
			t.Errorf("after the connect timeout: %v, %s later", reason, time.Since(begin))
		}
	})
}

func TestTheThrottleIsBounded(t *testing.T) {
	t.Parallel()
	th := newThrottle()
	o := throttleOptions{delay: time.Second, most: 5 * time.Second}
	now := time.Now()
	for i := range 3 * maxThrottled {
		addr := &net.TCPAddr{IP: net.IPv4(10, byte(i>>16), byte(i>>8), byte(i))}
		th.failed(o, now.Add(time.Duration(i)*time.Millisecond), th.keysOf(addr, fmt.Sprint(i)))
	}
	if n := th.size(); n > maxThrottled {
		t.Errorf("%d entries, want at most %d", n, maxThrottled)
	}
}

func TestFailuresAreLoggedNowAndThenAndEscaped(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		a := New(load(t, func(o *Options) {
			o.FailureDelay = 0
			o.Users = map[string]User{"ann": {Password: hashOf("secret")}}
		}, nil), slog.New(slog.NewTextHandler(&out, nil)))
		info := login("eve\n\x1b[31m"+strings.Repeat("x", 5000), "hunter2")
		info.ClientID = "a\u202eb"
		for range 100 {
			a.Authenticate(t.Context(), info)
		}
		<-time.After(logEvery)
		a.Authenticate(t.Context(), info)
		text := out.String()
		if n := strings.Count(text, "\n"); n != 2 {
			t.Errorf("%d lines for 101 failures:\n%s", n, text)
		}
		for _, want := range []string{"failures=1\n", "failures=100", `eve\\u{a}\\u{1b}[31mxxx`, "(5009 bytes)", `client_id=a\u{202e}b`} {
			if !strings.Contains(text, want) {
				t.Errorf("no %q in\n%s", want, text)
			}
		}
		if strings.Contains(text, "hunter2") || len(text) > 1500 {
			t.Errorf("the log shows too much:\n%s", text)
		}
	})
}

func TestReplaceRevokes(t *testing.T) {
	t.Parallel()
	before := load(t, withUsers(map[string]User{
		"same": {Password: hashOf("a")}, "gone": {Password: hashOf("a")}, "changed": {Password: hashOf("a")}, "bound": {Password: hashOf("a")},
	}), map[string]ListenerIdentity{"cert": ByCommonName, "was": ByCommonName})
	after := load(t, withUsers(map[string]User{
		"same": {Password: hashOf("a")}, "changed": {Password: hashOf("b")}, "bound": {Password: hashOf("a"), ClientIDs: []string{"x"}},
	}), map[string]ListenerIdentity{"cert": ByCommonName})
	tests := map[string]struct {
		id   broker.Identity
		want bool
	}{
		"nothing new":             {who("same"), false},
		"user gone":               {who("gone"), true},
		"another password":        {who("changed"), true},
		"bound to a client id":    {who("bound"), true},
		"that client id":          {broker.Identity{Name: "bound", ClientID: "x"}, false},
		"anonymous":               {who(""), false},
		"certificate":             {broker.Identity{Name: "pump", Listener: "cert"}, false},
		"certificate of a user":   {broker.Identity{Name: "changed", Listener: "cert"}, false},
		"certificates no longer":  {broker.Identity{Name: "same", Listener: "was"}, true},
		"no certificates, nobody": {broker.Identity{Name: "pump", Listener: "was"}, true},
	}
	a := quiet(before)
	if old := a.Replace(after); old != before {
		t.Error("Replace did not return the rules of before")
	}
	for name, tt := range tests {
		if got := after.Revokes(before, tt.id); got != tt.want {
			t.Errorf("%s: Revokes(%+v) = %t, want %t", name, tt.id, got, tt.want)
		}
	}
	open := load(t, func(*Options) {}, nil)
	if !open.Revokes(before, who("same")) || open.Revokes(before, who("")) {
		t.Error("without users nobody has a name")
	}
}
