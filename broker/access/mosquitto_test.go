//go:build integration

package access_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/broker"
	"holdfast/broker/access"
	"holdfast/broker/brokertest"
)

const aclText = `topic read public/#

user ann
topic read plant/#
topic deny plant/secret/#
topic write cmd/ann

user bob
topic readwrite plant/+/x

pattern readwrite own/%u/#
pattern write up/%c
pattern deny own/%u/private
`

// mosquittoFiles makes a password file with mosquitto_passwd, hashes of two
// kinds, and an ACL file.
func mosquittoFiles(t *testing.T) (passwords, acl string) {
	t.Helper()
	passwd, err := exec.LookPath("mosquitto_passwd")
	if err != nil {
		t.Fatalf("install mosquitto: %v", err)
	}
	dir := t.TempDir()
	passwords, acl = filepath.Join(dir, "passwd"), filepath.Join(dir, "acl")
	for _, args := range [][]string{
		{"-c", "-b", passwords, "ann", "ann's"}, {"-H", "sha512", "-b", passwords, "bob", "bob's"},
	} {
		if out, err := exec.CommandContext(t.Context(), passwd, args...).CombinedOutput(); err != nil {
			t.Fatalf("mosquitto_passwd %v: %v\n%s", args, err, out)
		}
	}
	if err := os.WriteFile(acl, []byte(aclText), 0o600); err != nil {
		t.Fatal(err)
	}
	return passwords, acl
}

// holdfastWith starts a broker with these files and returns its host:port.
func holdfastWith(t *testing.T, passwords, acl string) string {
	t.Helper()
	o := access.DefaultOptions()
	o.PasswordFile, o.ACLFile = passwords, acl
	rules, err := access.Load(o, nil)
	if err != nil {
		t.Fatal(err)
	}
	return brokertest.Start(t, nil, func(o *broker.Options) { o.Auth = access.New(rules, slog.New(slog.DiscardHandler)) }).Addr
}

// mosquittoWith starts Mosquitto with these files and returns its host:port.
func mosquittoWith(t *testing.T, passwords, acl string) string {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	_, port, _ := net.SplitHostPort(addr)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(t.TempDir(), "mosquitto.conf")
	text := fmt.Sprintf("listener %s 127.0.0.1\nallow_anonymous true\npassword_file %s\nacl_file %s\nuser root\n", port, passwords, acl)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	server := exec.Command("mosquitto", "-c", conf)
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = server.Process.Kill()
		_ = server.Wait()
	})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for ctx.Err() == nil {
		var d net.Dialer
		if nc, err := d.DialContext(ctx, "tcp", addr); err == nil {
			nc.Close()
			return addr
		}
	}
	t.Fatal("mosquitto does not listen")
	return ""
}

// client runs mosquitto_pub or mosquitto_sub as a user ("" is anonymous).
func client(t *testing.T, program, addr, user, password string, args ...string) (string, error) {
	t.Helper()
	host, port, _ := net.SplitHostPort(addr)
	all := []string{"-h", host, "-p", port}
	if user != "" {
		all = append(all, "-u", user, "-P", password)
	}
	out, err := exec.CommandContext(t.Context(), program, append(all, args...)...).CombinedOutput()
	return string(out), err
}

func TestMosquittosClientsAreLetInAndRefused(t *testing.T) {
	passwords, acl := mosquittoFiles(t)
	addr := holdfastWith(t, passwords, acl)
	pub := func(user, password, topic string) (string, error) {
		return client(t, "mosquitto_pub", addr, user, password, "-V", "5", "-q", "1", "-r", "-t", topic, "-m", "from "+user)
	}
	for _, tt := range []struct{ user, password, topic, want string }{
		{"ann", "ann's", "cmd/ann", ""},
		{"bob", "bob's", "plant/1/x", ""},
		{"bob", "bob's", "own/bob/1", ""},
		{"ann", "ann's", "plant/1/x", "not authorized"},
		{"ann", "bob's", "cmd/ann", "Not authorized"},
		{"eve", "ann's", "cmd/ann", "Not authorized"},
	} {
		out, err := pub(tt.user, tt.password, tt.topic)
		if (tt.want == "") != (err == nil && out == "") || !strings.Contains(strings.ToLower(out), strings.ToLower(tt.want)) && !strings.Contains(out, "Bad") {
			t.Errorf("%s publishes to %s: %q, %v; want %q", tt.user, tt.topic, out, err, tt.want)
		}
	}
	out, err := client(t, "mosquitto_sub", addr, "ann", "ann's", "-t", "#", "-C", "1", "-W", "5", "-v")
	if err != nil || out != "plant/1/x from bob\n" {
		t.Errorf("ann is sent %q, %v", out, err)
	}
}

// What Mosquitto lets pass with these files, we let pass, and no more: each
// user publishes to each topic, and each user reads what is retained there.
func TestTheSameFilesMeanTheSame(t *testing.T) {
	passwords, acl := mosquittoFiles(t)
	ours, theirs := holdfastWith(t, passwords, acl), mosquittoWith(t, passwords, acl)
	users := map[string]string{"": "", "ann": "ann's", "bob": "bob's"}
	topics := []string{
		"public/a", "plant/1/x", "plant/1/y", "plant/secret/x", "cmd/ann", "cmd/bob",
		"own/ann/1", "own/bob/1", "own/ann/private", "up/id-ann", "up/id-bob", "up/id-", "other",
	}
	for user, password := range users {
		for _, topic := range topics {
			var got [2]string
			for i, addr := range []string{ours, theirs} {
				// 5.0 is told whether it was allowed.
				out, err := client(t, "mosquitto_pub", addr, user, password, "-V", "5", "-i", "id-"+user, "-q", "1", "-r", "-t", topic, "-m", "x")
				got[i] = fmt.Sprint(err == nil && !strings.Contains(out, "ot authorized"))
			}
			if got[0] != got[1] {
				t.Errorf("%q publishes to %s: %s here, %s with Mosquitto", user, topic, got[0], got[1])
			}
		}
	}
	// What was let pass is retained; who gets it? Waiting for what does not
	// come takes its time, so all wait at once.
	var wg sync.WaitGroup
	for user, password := range users {
		for n, topic := range topics {
			wg.Go(func() {
				var got [2]string
				for i, addr := range []string{ours, theirs} {
					out, _ := client(t, "mosquitto_sub", addr, user, password, "-i", fmt.Sprint("s-", user, n), "-t", topic, "-F", "%t", "-C", "1", "-W", "1")
					got[i] = strings.Join(onlyTopics(out, topics), " ")
				}
				if got[0] != got[1] {
					t.Errorf("%q subscribes to %s and gets %q here, %q with Mosquitto", user, topic, got[0], got[1])
				}
			})
		}
	}
	wg.Wait()
}

// onlyTopics leaves the remarks of mosquitto_sub out.
func onlyTopics(out string, topics []string) []string {
	var found []string
	for line := range strings.Lines(out) {
		for _, t := range topics {
			if strings.TrimSpace(line) == t {
				found = append(found, t)
			}
		}
	}
	return found
}
