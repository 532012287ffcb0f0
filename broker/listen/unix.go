package listen

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"strconv"
	"strings"
	"syscall"
)

// listenUnix opens a Unix socket, in place of one that a killed process left.
// Between bind and chmod the umask rules, which lets nobody else write.
func listenUnix(ctx context.Context, path string, o Options) (net.Listener, error) {
	mode, err := o.mode()
	if err != nil {
		return nil, err
	}
	uid, gid, err := lookUpOwner(o.SocketOwner)
	if err != nil {
		return nil, err
	}
	if err := RemoveDeadSocket(ctx, path); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	if o.SocketOwner != "" {
		err = os.Chown(path, uid, gid)
	}
	if mode != 0 && err == nil {
		err = os.Chmod(path, mode)
	}
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// RemoveDeadSocket takes away the Unix socket that a killed process left at path.
// It is an error when a process answers there or may answer later, or when what
// is there is not a socket.
func RemoveDeadSocket(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return errors.New("something that is not a socket is there")
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", path)
	switch {
	case err == nil:
		return errors.Join(errors.New("another process answers there"), c.Close())
	case !errors.Is(err, syscall.ECONNREFUSED):
		// Nobody has it open when it refuses. A living process with much to
		// do, or one that we may not talk to, looks different (unix(7)).
		return fmt.Errorf("whether a process answers there is not known: %w", err)
	}
	return os.Remove(path)
}

// lookUpOwner reads "user", "user:group" or ":group", by name or number; -1
// leaves one as it is.
func lookUpOwner(s string) (uid, gid int, err error) {
	name, group, _ := strings.Cut(s, ":")
	uid, gid = -1, -1
	if name != "" {
		if uid, err = number(name, func() (string, error) {
			u, err := user.Lookup(name)
			if err != nil {
				return "", err
			}
			return u.Uid, nil
		}); err != nil {
			return 0, 0, fmt.Errorf("socket_owner: %w", err)
		}
	}
	if group != "" {
		if gid, err = number(group, func() (string, error) {
			g, err := user.LookupGroup(group)
			if err != nil {
				return "", err
			}
			return g.Gid, nil
		}); err != nil {
			return 0, 0, fmt.Errorf("socket_owner: %w", err)
		}
	}
	return uid, gid, nil
}

func number(s string, lookUp func() (string, error)) (int, error) {
	if n, err := strconv.ParseUint(s, 10, 31); err == nil {
		return int(n), nil
	}
	id, err := lookUp()
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(id)
}

// unixListener accepts connections that know their peer.
type unixListener struct{ *net.UnixListener }

// Accept returns the next connection.
func (l *unixListener) Accept() (net.Conn, error) {
	nc, err := l.AcceptUnix()
	if err != nil {
		return nil, err
	}
	return &unixConn{nc}, nil
}

// unixConn is a Unix socket that says whose process is at the other end.
type unixConn struct{ *net.UnixConn }

// overflowUID is what the kernel says of a user that our user namespace does
// not map. Under PrivateUsers=yes of a systemd unit that is everybody but root
// and ourselves: they cannot be told apart, and so are nobody.
const overflowUID = 65534

// PeerIdentity is the user who made the connection: "unix:NAME", or "unix:UID"
// for a user without a name; empty when the kernel does not say.
func (c *unixConn) PeerIdentity() string { return UserOf(c.UnixConn) }

// UserOf is the user at the other end of a Unix socket, as the identity that
// access rules know: "unix:NAME", "unix:UID", or empty.
func UserOf(c *net.UnixConn) string {
	raw, err := c.SyscallConn()
	if err != nil {
		return ""
	}
	var cred *syscall.Ucred
	if controlErr := raw.Control(func(fd uintptr) {
		cred, err = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	}); controlErr != nil || err != nil {
		return ""
	}
	return userName(cred.Uid)
}

func userName(uid uint32) string {
	if uid == overflowUID {
		return ""
	}
	id := strconv.FormatUint(uint64(uid), 10)
	if u, err := user.LookupId(id); err == nil {
		return "unix:" + u.Username
	}
	return "unix:" + id
}
