package port

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// lookSlowly is how often Wait looks for the device while the kernel tells
	// it of changes: only for the case that one is not told, as on a file
	// system that has no inotify.
	lookSlowly = 10 * time.Second
	// lookOften is the same when the kernel cannot tell, because the user has
	// run out of inotify instances.
	lookOften = time.Second
	// permitted is how long a device that may not be opened yet is waited for:
	// the kernel makes it for root alone, udev hands it over a moment later.
	permitted = 2 * time.Second
	// handLong is an absence that no loose contact makes: somebody has plugged
	// the device in again, and deserves a look at once.
	handLong = 2 * time.Second
)

// The pause between openings that come to nothing.
const (
	backoffMin = time.Second
	backoffMax = 30 * time.Second
	// settled is how long an opening must have lasted to be no part of a row
	// of failures.
	settled = 10 * time.Second
)

// hotplug has the kernel tell of changes in the folders that lead to a device
// file. It belongs to one goroutine.
type hotplug struct {
	f *os.File // an inotify descriptor in the runtime's poller; nil: there is none
}

func newHotplug() (*hotplug, error) {
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		return &hotplug{}, os.NewSyscallError("inotify_init1", err)
	}
	return &hotplug{f: os.NewFile(uintptr(fd), "inotify")}, nil
}

func (h *hotplug) close() {
	if h.f != nil {
		_ = h.f.Close() // nothing was written
	}
}

// watched are the changes that may bring a device: made, renamed into place,
// or handed over to us by udev. The others move what has to be watched.
const watched = unix.IN_CREATE | unix.IN_MOVED_TO | unix.IN_ATTRIB | unix.IN_DELETE |
	unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR

// watch sees to it that whatever makes the device appear at path is told. It
// looks again until nothing new is to be watched: a folder may be made between
// the look for it and the watch on the one it is in.
func (h *hotplug) watch(path string) error {
	if h.f == nil {
		return nil
	}
	rc, err := h.f.SyscallConn()
	if err != nil {
		return err
	}
	var before []string
	for range 2 * maxLinks {
		now := folders(path)
		if slices.Equal(now, before) {
			return nil
		}
		before = now
		for _, dir := range now {
			// Watching a folder again is no second watch. One that has gone
			// is left out of the next round.
			cerr := rc.Control(func(fd uintptr) { _, err = unix.InotifyAddWatch(int(fd), dir, watched) })
			if err = errors.Join(cerr, err); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) {
				return os.NewSyscallError("inotify_add_watch", err)
			}
		}
	}
	return nil // it changes as fast as we look: there will be an event
}

// maxLinks is how many links are followed to a device; udev makes one.
const maxLinks = 8

// folders are those in which something must change before there can be a
// device at path: its folder, or the next one above that exists; the same for
// what path is a link to.
func folders(path string) (dirs []string) {
	for range maxLinks {
		dir := filepath.Dir(path)
		for {
			if info, err := os.Stat(dir); err == nil && info.IsDir() || dir == filepath.Dir(dir) {
				break
			}
			dir = filepath.Dir(dir)
		}
		if !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
		to, err := os.Readlink(path)
		if err != nil {
			return dirs // no link, or nothing there
		}
		if !filepath.IsAbs(to) {
			to = filepath.Join(filepath.Dir(path), to)
		}
		path = to
	}
	return dirs
}

// wait returns when something has changed, at until, or with the error of ctx.
// What has changed is not looked at: an event, or a queue that has overflown,
// means to look again.
func (h *hotplug) wait(ctx context.Context, until time.Time) error {
	if h.f == nil {
		timer := time.NewTimer(time.Until(until))
		defer timer.Stop()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
			return nil
		}
	}
	wake := context.AfterFunc(ctx, func() { _ = h.f.SetReadDeadline(time.Unix(1, 0)) })
	defer wake()
	if err := h.f.SetReadDeadline(until); err != nil {
		return err
	}
	// After the deadline was set: AfterFunc has the last word.
	if err := ctx.Err(); err != nil {
		return err
	}
	var events [4096]byte
	if _, err := h.f.Read(events[:]); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	return ctx.Err()
}

// Wait returns nil once there is a device to be opened, or the error of ctx. It
// opens nothing. A device that is there but could not be opened, or was lost
// soon after, is waited for longer and longer, 1 to 30 s; one that comes back
// after it was away for a while is there at once.
func (l *Line) Wait(ctx context.Context) error {
	h, err := newHotplug()
	defer h.close()
	slow := lookSlowly
	deaf := func(err error) {
		slow = lookOften
		l.log.Warn("port is looked for by the clock", "device", l.opts.Device, "delay", slow, "err", err)
	}
	if err != nil {
		deaf(err)
	}
	var gone, there time.Time // since when
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		if slow == lookSlowly {
			if err := h.watch(l.opts.watchPath()); err != nil {
				deaf(err)
			}
		}
		path, err := l.opts.present()
		now := time.Now()
		var wake time.Time
		switch {
		case errors.Is(err, ErrUnplugged):
			if gone.IsZero() {
				gone = now
			}
			there = time.Time{}
			l.setState("absent", err)
			wake = now.Add(slow)
		case err != nil:
			return nil // Open says it, and to somebody who listens
		default:
			if !gone.IsZero() && now.Sub(gone) >= handLong {
				l.forgive()
			}
			gone = time.Time{}
			if there.IsZero() {
				there = now
			}
			wake = l.nextTry()
			if unix.Access(path, unix.R_OK|unix.W_OK) != nil {
				wake = later(wake, there.Add(permitted))
			}
			if !wake.After(now) {
				return nil
			}
			wake = earlier(wake, now.Add(slow))
		}
		if err := h.wait(ctx, wake); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			deaf(err)
			h.close()
			h.f = nil
		}
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// tried notes an attempt to open a device that is there.
func (l *Line) tried() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tries++
	l.lastTry = time.Now()
}

// forgive forgets attempts that came to nothing.
func (l *Line) forgive() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tries = 0
}

// nextTry is when the device may be opened again. The second attempt is free:
// unplugged and plugged in again is one.
func (l *Line) nextTry() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.tries < 2 {
		return time.Time{}
	}
	return l.lastTry.Add(min(backoffMin<<min(l.tries-2, 10), backoffMax))
}
