package topic

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// MaxLevels is the largest number of levels in a name or filter. MQTT allows
// 65,536; every level of a filter costs a node of the trie, so that a few
// hostile SUBSCRIBE packets would fill the memory of a small board. Mosquitto
// has the same limit of 200.
const MaxLevels = 200

// maxBytes is the largest UTF-8 encoded string (MQTT 5.0 §1.5.4
// [MQTT-4.7.3-3]).
const maxBytes = 65535

// ErrInvalid is wrapped by every error of this package.
var ErrInvalid = errors.New("invalid topic")

// The errors are made once: refusing hostile traffic allocates nothing.
var (
	errEmpty     = fmt.Errorf("%w: empty [MQTT-4.7.3-1]", ErrInvalid)
	errLong      = fmt.Errorf("%w: longer than %d bytes [MQTT-4.7.3-3]", ErrInvalid, maxBytes)
	errDeep      = fmt.Errorf("%w: more than %d levels", ErrInvalid, MaxLevels)
	errNull      = fmt.Errorf("%w: null character [MQTT-4.7.3-2]", ErrInvalid)
	errUTF8      = fmt.Errorf("%w: not UTF-8 [MQTT-1.5.4-1]", ErrInvalid)
	errWildcard  = fmt.Errorf("%w: wildcard in a topic name [MQTT-3.3.2-2]", ErrInvalid)
	errHash      = fmt.Errorf("%w: '#' is not alone in the last level [MQTT-4.7.1-1]", ErrInvalid)
	errPlus      = fmt.Errorf("%w: '+' is not alone in its level [MQTT-4.7.1-2]", ErrInvalid)
	errShareName = fmt.Errorf("%w: share name is empty or has a wildcard [MQTT-4.8.2-1] [MQTT-4.8.2-2]", ErrInvalid)
	errShareNone = fmt.Errorf("%w: no topic filter after the share name [MQTT-4.8.2-2]", ErrInvalid)
)

// ValidName tells whether a message may be published to name: 1 to 65535 bytes
// of UTF-8 without U+0000 and wildcards, at most [MaxLevels] levels (MQTT 5.0
// §3.3.2.1, §4.7.3). It does not allocate.
func ValidName[T ~string | ~[]byte](name T) error {
	return valid(name, false)
}

// ValidFilter tells whether filter may be subscribed to: 1 to 65535 bytes of
// UTF-8 without U+0000, wildcards alone in their level and '#' last, at most
// [MaxLevels] levels (MQTT 5.0 §4.7.1, §4.7.3). A filter that begins with
// $share/ must have a share name and a valid filter behind it (§4.8.2). It
// does not allocate.
func ValidFilter[T ~string | ~[]byte](filter T) error {
	if len(filter) > maxBytes {
		return errLong
	}
	inner, shared, err := afterShare(filter)
	if err != nil {
		return err
	}
	if shared {
		// What stands before the inner filter must be UTF-8 too; it holds no
		// wildcards, and its two levels never reach the trie.
		if err := valid(filter[:len(filter)-len(inner)], false); err != nil {
			return err
		}
	}
	return valid(inner, true)
}

// valid scans once, with a fast way for ASCII.
func valid[T ~string | ~[]byte](s T, wildcards bool) error {
	if len(s) == 0 {
		return errEmpty
	}
	if len(s) > maxBytes {
		return errLong
	}
	levels := 1
	for i := 0; i < len(s); {
		switch c := s[i]; {
		case c == '/':
			if levels++; levels > MaxLevels {
				return errDeep
			}
		case c == 0:
			return errNull
		case c == '#' || c == '+':
			if !wildcards {
				return errWildcard
			}
			first := i == 0 || s[i-1] == '/'
			if c == '#' && (!first || i != len(s)-1) {
				return errHash
			}
			if c == '+' && (!first || i != len(s)-1 && s[i+1] != '/') {
				return errPlus
			}
		case c >= utf8.RuneSelf:
			var few [utf8.UTFMax]byte
			n := copy(few[:], s[i:min(len(s), i+utf8.UTFMax)])
			// Surrogates and overlong forms decode as one wrong byte.
			r, size := utf8.DecodeRune(few[:n])
			if r == utf8.RuneError && size <= 1 {
				return errUTF8
			}
			i += size
			continue
		}
		i++
	}
	return nil
}

// sharePrefix begins the filter of a shared subscription (MQTT 5.0 §4.8.2).
const sharePrefix = "$share/"

// afterShare returns the filter behind $share/NAME/, or s itself when it does
// not begin with $share/.
func afterShare[T ~string | ~[]byte](s T) (inner T, shared bool, err error) {
	if len(s) < len(sharePrefix) || string(s[:len(sharePrefix)]) != sharePrefix {
		return s, false, nil
	}
	for i := len(sharePrefix); i < len(s); i++ {
		switch s[i] {
		case '+', '#':
			return inner, true, errShareName
		case '/':
			if i == len(sharePrefix) {
				return inner, true, errShareName
			}
			if i == len(s)-1 {
				return inner, true, errShareNone
			}
			return s[i+1:], true, nil
		}
	}
	if len(s) == len(sharePrefix) {
		return inner, true, errShareName
	}
	return inner, true, errShareNone
}

// ParseShared takes the filter of a subscription apart. For
// $share/GROUP/FILTER it returns the share name, the filter behind it and
// true; any other filter comes back as inner with an empty group. The error
// says what is wrong with the share name, or that nothing follows it; inner is
// not validated, see [ValidFilter] (MQTT 5.0 §4.8.2). It does not allocate.
func ParseShared(filter string) (group, inner string, shared bool, err error) {
	inner, shared, err = afterShare(filter)
	if err != nil || !shared {
		return "", inner, shared, err
	}
	return filter[len(sharePrefix) : len(filter)-len(inner)-1], inner, true, nil
}

// Match tells whether a message published to name is for a subscription to
// filter. '+' stands for one level, '#' for its parent and all below it; a
// filter that begins with a wildcard does not match a name that begins with
// '$' (MQTT 5.0 §4.7.1, §4.7.2 [MQTT-4.7.2-1]). The filter comes without
// $share/NAME/. Time grows with the length of the two, not with its square.
func Match(filter, name string) bool {
	if filter == "" || name == "" {
		return false
	}
	if name[0] == '$' && (filter[0] == '+' || filter[0] == '#') {
		return false
	}
	for {
		f, filterRest, filterMore := strings.Cut(filter, "/")
		if f == "#" {
			return true
		}
		n, nameRest, nameMore := strings.Cut(name, "/")
		if f != "+" && f != n {
			return false
		}
		if !nameMore {
			return !filterMore || filterRest == "#"
		}
		if !filterMore {
			return false
		}
		filter, name = filterRest, nameRest
	}
}
