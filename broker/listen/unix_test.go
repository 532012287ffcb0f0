package listen

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"holdfast/broker/brokertest"
)

func TestUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mqtt")
	o := DefaultOptions()
	o.SocketMode = "0640"
	o.SocketOwner = ":" + strconv.Itoa(os.Getgid())
	e := openEndpoint(t, "unix://"+path, o)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode() != fs.ModeSocket|0o640 {
		t.Errorf("mode %v", info.Mode())
	}
	serve(t, e)
	c := brokertest.Connect(t, dial(t, e), brokertest.V5("local"))
	c.Subscribe(0, "a")
	c.Publish(1, false, "a", "x")
	c.Message()
}

func TestPeerIdentity(t *testing.T) {
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	e := openEndpoint(t, "unix://"+filepath.Join(t.TempDir(), "mqtt"), DefaultOptions())
	dial(t, e)
	peer, ok := accept(t, e).(interface{ PeerIdentity() string })
	if !ok {
		t.Fatal("the connection does not know its peer")
	}
	if got, want := peer.PeerIdentity(), "unix:"+me.Username; got != want {
		t.Errorf("peer %q, want %q", got, want)
	}
}

func TestUserName(t *testing.T) {
	for uid, want := range map[uint32]string{0: "unix:root", 3_999_999_999: "unix:3999999999", overflowUID: ""} {
		if got := userName(uid); got != want {
			t.Errorf("userName(%d) = %q, want %q", uid, got, want)
		}
	}
}

// A living process whose queue of connections is full does not answer either.
func TestUnixSocketOfABusyProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "busy")
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}), syscall.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	for {
		c, err := net.Dial("unix", path)
		if err != nil {
			break // full
		}
		defer c.Close()
	}
	if err := RemoveDeadSocket(t.Context(), path); err == nil {
		t.Error("RemoveDeadSocket = nil")
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the socket is gone: %v", err)
	}
}

func TestUnixSocketInTheWay(t *testing.T) {
	dir := t.TempDir()
	// What a killed process leaves: a socket that nobody listens on.
	dead := filepath.Join(dir, "dead")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: dead, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	openEndpoint(t, "unix://"+dead, DefaultOptions())

	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		dead:                               "another process answers there",
		file:                               "something that is not a socket is there",
		filepath.Join(dir, "no", "folder"): "no such file or directory",
	} {
		_, err := Open(t.Context(), "unix://"+path, DefaultOptions(), nil, logger(t))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %q", path, err, want)
		}
	}
	if _, err := os.Stat(file); err != nil {
		t.Errorf("the file: %v", err)
	}
}

func TestSocketOwnerThatIsNobody(t *testing.T) {
	for _, owner := range []string{"no-such-user", ":no-such-group", "root:no-such-group"} {
		path := filepath.Join(t.TempDir(), "mqtt")
		o := DefaultOptions()
		o.SocketOwner = owner
		if _, err := Open(t.Context(), "unix://"+path, o, nil, logger(t)); err == nil {
			t.Errorf("owner %q: opened", owner)
		}
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("owner %q: %v; a socket nobody serves is left", owner, err)
		}
	}
}
