package main

import (
	"errors"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// loop reads whoever has something to say, and flushes at the end of the turn.
func (n *nullBroker) loop(l net.Listener) error {
	tcp, ok := l.(*net.TCPListener)
	if !ok {
		return errors.New("null: not a TCP listener")
	}
	file, err := tcp.File()
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	listening := int(file.Fd())
	if err := unix.SetNonblock(listening, true); err != nil {
		return err
	}
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(ep) }()
	watch := func(fd int) error {
		return unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)})
	}
	if err := watch(listening); err != nil {
		return err
	}
	conns := make(map[int]*nullConn)
	var events [256]unix.EpollEvent
	buf := make([]byte, 64<<10)
	var k nullCork
	for {
		count, err := unix.EpollWait(ep, events[:], -1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		for i := range max(count, 0) {
			fd := int(events[i].Fd)
			if fd == listening {
				if err := n.acceptOne(listening, conns, watch); err != nil {
					return err
				}
				continue
			}
			if !n.readOne(fd, conns[fd], buf, &k) {
				n.forget(conns[fd])
				// It may be corked still, and its descriptor another's soon.
				conns[fd].write = func([]byte) error { return nil }
				delete(conns, fd)
				_ = unix.Close(fd)
			}
		}
		k.flush()
	}
}

func (n *nullBroker) acceptOne(listening int, conns map[int]*nullConn, watch func(int) error) error {
	fd, _, err := unix.Accept4(listening, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
	if err != nil {
		return nil //nolint:nilerr // gone again
	}
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	conns[fd] = &nullConn{write: func(b []byte) error { return writeAll(fd, b) }}
	return watch(fd)
}

func (n *nullBroker) readOne(fd int, c *nullConn, buf []byte, k *nullCork) bool {
	end := copy(buf, c.partial)
	m, err := unix.Read(fd, buf[end:])
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
		return true
	}
	if err != nil || m <= 0 {
		return false
	}
	rest, err := n.handle(c, buf[:end+m], k)
	if err != nil || len(rest) == len(buf) {
		return false
	}
	c.partial = append(c.partial[:0], rest...)
	return true
}

// writeAll waits for a receiver that is behind: a floor has no queues.
func writeAll(fd int, b []byte) error {
	for len(b) > 0 {
		m, err := unix.Write(fd, b)
		if m > 0 {
			b = b[m:]
		}
		if errors.Is(err, unix.EAGAIN) {
			ready := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
			if _, err := unix.Poll(ready, int(time.Second/time.Millisecond)); err != nil && !errors.Is(err, unix.EINTR) {
				return err
			}
			continue
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
	return nil
}
