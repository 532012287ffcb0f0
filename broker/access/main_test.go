package access

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"

	"holdfast/broker"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// hashOf hashes a password at next to no cost.
func hashOf(password string) string {
	h := Hash{scheme: schemeArgon2, memory: 8, iterations: 1, threads: 1, salt: []byte("somesalt"), sum: make([]byte, 32)}
	h.sum = h.compute([]byte(password))
	return h.String()
}

func writeFile(tb testing.TB, text string) string {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "file")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		tb.Fatal(err)
	}
	return path
}

func load(tb testing.TB, change func(*Options), listeners map[string]ListenerIdentity) *Rules {
	tb.Helper()
	o := DefaultOptions()
	change(&o)
	r, err := Load(o, listeners)
	if err != nil {
		tb.Fatal(err)
	}
	return r
}

func quiet(r *Rules) *Access { return New(r, slog.New(slog.DiscardHandler)) }

func who(name string) broker.Identity {
	return broker.Identity{Name: name, ClientID: "c-" + name, Listener: "lan"}
}
