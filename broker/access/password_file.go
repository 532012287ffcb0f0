package access

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// passwords are the users of a password file.
type passwords map[string]passwordLine

type passwordLine struct {
	hash Hash
	line int
}

// readPasswords reads a password file.
func readPasswords(path string) (passwords, error) {
	data, err := readFile(path)
	if err != nil {
		return nil, err
	}
	return parsePasswords(path, data)
}

// parsePasswords reads lines of NAME:HASH. Errors do not show what stands
// behind the name.
func parsePasswords(file string, data []byte) (passwords, error) {
	users := passwords{}
	err := eachLine(file, data, func(n int, line string) error {
		name, text, ok := strings.Cut(line, ":")
		if !ok {
			return errors.New("is not NAME:HASH")
		}
		name, text = strings.Trim(name, " \t"), strings.Trim(text, " \t")
		if err := ValidUser(name); err != nil {
			return err
		}
		if first, twice := users[name]; twice {
			return fmt.Errorf("user %q is on line %d already", name, first.line)
		}
		hash, err := ParseHash(text)
		if err != nil {
			return fmt.Errorf("the password of user %q: %w", name, err)
		}
		users[name] = passwordLine{hash, n}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return users, nil
}

// ErrNoUser says that the user to be deleted is not in the password file.
var ErrNoUser = errors.New("no such user")

// SetPassword gives a user of the password file a new hash, or adds the user;
// a file that does not exist is made with mode 0600. Made by root in the folder
// of another group (/etc/holdfast is root:holdfast) it belongs to that group,
// which may read it, or the daemon could not. Everything else in the file stays as it is. The change is on disk when SetPassword
// returns, and whoever reads the file meanwhile finds the old or the new one
// whole.
func SetPassword(path, user string, hash Hash) (added bool, err error) {
	if err := ValidUser(user); err != nil {
		return false, err
	}
	err = rewrite(path, true, func(lines [][]byte) ([][]byte, error) {
		fresh := []byte(user + ":" + hash.String())
		for i, line := range lines {
			if lineOf(line, user) {
				lines[i] = fresh
				return lines, nil
			}
		}
		added = true
		return append(lines, fresh), nil
	})
	return added, err
}

// DeleteUser takes a user out of the password file, with the guarantees of
// [SetPassword]. It returns [ErrNoUser] when there is none of that name.
func DeleteUser(path, user string) error {
	return rewrite(path, false, func(lines [][]byte) ([][]byte, error) {
		for i, line := range lines {
			if lineOf(line, user) {
				return append(lines[:i:i], lines[i+1:]...), nil
			}
		}
		return nil, fmt.Errorf("%s: user %q: %w", path, user, ErrNoUser)
	})
}

func lineOf(line []byte, user string) bool {
	name, _, ok := strings.Cut(string(line), ":")
	return ok && line[0] != '#' && strings.Trim(name, " \t") == user
}

// rewrite replaces a password file by what change makes of its lines. A file
// with a mistake is not touched.
func rewrite(path string, create bool, change func([][]byte) ([][]byte, error)) (err error) {
	// The file a link points to is replaced, not the link.
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	// Two at once would each keep only their own change. The file itself
	// cannot be locked: it is replaced.
	if err := syscall.Flock(int(dir.Fd()), syscall.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", dir.Name(), err)
	}
	old, err := os.Stat(path)
	switch {
	case err == nil && !old.Mode().IsRegular():
		return fmt.Errorf("%s: is not a regular file", path)
	case err != nil && (!create || !errors.Is(err, os.ErrNotExist)):
		return err
	}
	var data []byte
	if old != nil {
		if data, err = readFile(path); err != nil {
			return err
		}
		if _, err := parsePasswords(path, data); err != nil {
			return err
		}
	}
	data = bytes.TrimSuffix(data, []byte("\n"))
	var lines [][]byte
	if len(data) > 0 {
		lines = bytes.Split(data, []byte("\n"))
	}
	if lines, err = change(lines); err != nil {
		return err
	}
	data = bytes.Join(lines, []byte("\n"))
	if len(data) > 0 {
		data = append(data, '\n')
	}
	if err := replaceFile(path, old, data); err != nil {
		return err
	}
	if err := dir.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", dir.Name(), err)
	}
	return nil
}

// replaceFile writes beside the file and renames. The new one has the old
// one's owner and mode, without what others than owner and group may do.
func replaceFile(path string, old os.FileInfo, data []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(data)
	switch {
	case err != nil:
	case old != nil:
		err = keepOwner(f, old)
	default:
		err = followFolder(f)
	}
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

func keepOwner(f *os.File, old os.FileInfo) error {
	if st, ok := old.Sys().(*syscall.Stat_t); ok {
		// Before the mode: it must not be wide for another group even for a
		// moment.
		if err := f.Chown(int(st.Uid), int(st.Gid)); err != nil && os.Geteuid() == 0 {
			return err
		}
	}
	return f.Chmod(old.Mode().Perm() &^ 0o007)
}

// followFolder lets the group of the folder read a new file, if it is root who
// made it.
func followFolder(f *os.File) error {
	folder, err := os.Stat(filepath.Dir(f.Name()))
	if err != nil {
		return err
	}
	st, ok := folder.Sys().(*syscall.Stat_t)
	if !ok || os.Geteuid() != 0 || st.Gid == 0 || folder.Mode().Perm()&0o007 != 0 {
		return nil
	}
	if err := f.Chown(0, int(st.Gid)); err != nil {
		return err
	}
	return f.Chmod(0o640)
}
