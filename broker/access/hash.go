package access

import (
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/crypto/argon2"

	"holdfast/broker/scram"
)

// The parameters of new hashes. OWASP counts 7 MiB with 5 passes as strong as
// 19 MiB with 2 or 46 MiB with 1; the first leaves most of a Pi Zero's memory
// alone, whose one core is as busy with each of them. More lanes would need
// more cores.
const (
	argonMemory  = 7 << 10 // KiB
	argonPasses  = 5
	argonThreads = 1
	argonSalt    = 16 // bytes (RFC 9106 §3.1)
	argonSum     = 32
)

// What a hash in a file may cost at most. 64 MiB is the second recommendation
// of RFC 9106 §4; more would push a small board into its swap at each log-in.
const (
	maxArgonMemory  = 64 << 10 // KiB
	maxArgonPasses  = 64
	maxArgonThreads = 16
	maxIterations   = 10_000_000 // PBKDF2; several seconds
	minSum, maxSum  = 16, 128    // bytes
	minSalt         = 8          // RFC 9106 §3.1
)

// scheme is how a password was hashed.
type scheme byte

const (
	schemeNone   scheme = iota // nobody can log in with it
	schemeArgon2               // $argon2id$: argon2id, RFC 9106, in the PHC string format
	schemePBKDF2               // $7$: PBKDF2-HMAC-SHA512, Mosquitto since 2.0
	schemeSHA512               // $6$: SHA-512 of password and salt, Mosquitto before 2.0
	schemeSCRAM                // SCRAM-SHA-256$: keys of RFC 5803, which fit the password itself too
)

// Hash is a hashed password. The zero value fits no password.
type Hash struct {
	scheme     scheme
	memory     uint32 // argon2: KiB
	iterations uint32 // argon2: passes
	threads    uint8  // argon2: lanes
	salt, sum  []byte
	keys       scram.Keys // SCRAM
}

// errNoHash does not show the text: it may be a password.
var errNoHash = errors.New("is not a hash of a password ($argon2id$, $7$, $6$ or SCRAM-SHA-256$); `holdfast passwd` makes one")

// NewHash hashes a password with argon2id and a fresh salt.
func NewHash(password []byte) Hash {
	h := Hash{
		scheme: schemeArgon2, memory: argonMemory, iterations: argonPasses, threads: argonThreads,
		salt: make([]byte, argonSalt), sum: make([]byte, argonSum),
	}
	_, _ = rand.Read(h.salt) // never fails (crypto/rand)
	h.sum = h.compute(password)
	return h
}

// ParseHash reads a hash: $argon2id$v=19$m=KiB,t=PASSES,p=LANES$SALT$SUM,
// Mosquitto's $7$ITERATIONS$SALT$SUM and $6$SALT$SUM, or the keys
// SCRAM-SHA-256$ITERATIONS:SALT$STOREDKEY:SERVERKEY. Errors do not repeat it.
func ParseHash(s string) (Hash, error) {
	if strings.HasPrefix(s, scram.Name+"$") {
		keys, err := scram.ParseKeys(s)
		if err != nil {
			return Hash{}, err
		}
		return Hash{scheme: schemeSCRAM, keys: keys}, nil
	}
	rest, ok := strings.CutPrefix(s, "$")
	if !ok {
		return Hash{}, errNoHash
	}
	parts := strings.Split(rest, "$")
	switch {
	case parts[0] == "argon2id" && len(parts) == 5:
		return parseArgon2(parts[1:])
	case parts[0] == "7" && len(parts) == 4:
		n, err := strconv.ParseUint(parts[1], 10, 32)
		if err != nil || n < 1 || n > maxIterations {
			return Hash{}, fmt.Errorf("the $7$ hash asks for iterations outside 1..%d", maxIterations)
		}
		h := Hash{scheme: schemePBKDF2, iterations: uint32(n)}
		return h.withSums(base64.StdEncoding, parts[2], parts[3], 1)
	case parts[0] == "6" && len(parts) == 3:
		h, err := Hash{scheme: schemeSHA512}.withSums(base64.StdEncoding, parts[1], parts[2], 1)
		if err == nil && len(h.sum) != sha512.Size {
			err = fmt.Errorf("the $6$ hash has %d bytes, not %d", len(h.sum), sha512.Size)
		}
		return h, err
	case strings.HasPrefix(parts[0], "argon2"):
		return Hash{}, errors.New("of the argon2 hashes only $argon2id$v=19$m=...,t=...,p=...$SALT$SUM is known")
	default:
		return Hash{}, errNoHash
	}
}

func parseArgon2(parts []string) (Hash, error) {
	if parts[0] != fmt.Sprintf("v=%d", argon2.Version) {
		return Hash{}, fmt.Errorf("the argon2id hash is not of version %d", argon2.Version)
	}
	params := strings.Split(parts[1], ",")
	if len(params) != 3 {
		return Hash{}, errors.New("the argon2id hash has other parameters than m, t and p")
	}
	var values [3]uint64
	for i, want := range []struct {
		name       string
		low, upper uint64
	}{{"m", 8, maxArgonMemory}, {"t", 1, maxArgonPasses}, {"p", 1, maxArgonThreads}} {
		text, ok := strings.CutPrefix(params[i], want.name+"=")
		n, err := strconv.ParseUint(text, 10, 32)
		if !ok || err != nil || n < want.low || n > want.upper {
			return Hash{}, fmt.Errorf("the argon2id hash's %s is outside %d..%d", want.name, want.low, want.upper)
		}
		values[i] = n
	}
	h := Hash{scheme: schemeArgon2, memory: uint32(values[0]), iterations: uint32(values[1]), threads: uint8(values[2])}
	if h.memory < 8*uint32(h.threads) { // RFC 9106 §3.1
		return Hash{}, errors.New("the argon2id hash's m is less than 8 times its p")
	}
	return h.withSums(base64.RawStdEncoding, parts[2], parts[3], minSalt)
}

func (h Hash) withSums(enc *base64.Encoding, salt, sum string, least int) (Hash, error) {
	var err1, err2 error
	// Strict: a hash has one spelling.
	h.salt, err1 = enc.Strict().DecodeString(salt)
	h.sum, err2 = enc.Strict().DecodeString(sum)
	switch {
	case err1 != nil || err2 != nil:
		return Hash{}, errors.New("the hash's salt or sum is not base64")
	case len(h.salt) < least || len(h.salt) > maxSum:
		return Hash{}, fmt.Errorf("the hash's salt has %d bytes, outside %d..%d", len(h.salt), least, maxSum)
	case len(h.sum) < minSum || len(h.sum) > maxSum:
		return Hash{}, fmt.Errorf("the hash's sum has %d bytes, outside %d..%d", len(h.sum), minSum, maxSum)
	}
	return h, nil
}

// String writes the hash as ParseHash reads it.
func (h Hash) String() string {
	std, raw := base64.StdEncoding, base64.RawStdEncoding
	switch h.scheme {
	case schemeArgon2:
		return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, h.memory, h.iterations, h.threads,
			raw.EncodeToString(h.salt), raw.EncodeToString(h.sum))
	case schemePBKDF2:
		return fmt.Sprintf("$7$%d$%s$%s", h.iterations, std.EncodeToString(h.salt), std.EncodeToString(h.sum))
	case schemeSHA512:
		return fmt.Sprintf("$6$%s$%s", std.EncodeToString(h.salt), std.EncodeToString(h.sum))
	case schemeSCRAM:
		return h.keys.String()
	default:
		return ""
	}
}

// Verify says whether it is that password's hash, in a time that does not
// depend on where they differ.
func (h Hash) Verify(password []byte) bool {
	switch h.scheme {
	case schemeNone:
		return false
	case schemeSCRAM:
		return h.keys.Fit(password)
	default:
	}
	return subtle.ConstantTimeCompare(h.compute(password), h.sum) == 1
}

func (h Hash) compute(password []byte) []byte {
	switch h.scheme {
	case schemeArgon2:
		return argon2.IDKey(password, h.salt, h.iterations, h.memory, h.threads, uint32(len(h.sum)))
	case schemePBKDF2:
		sum, err := pbkdf2.Key(sha512.New, string(password), h.salt, int(h.iterations), len(h.sum))
		if err != nil {
			return nil // a FIPS mode that forbids it; equals no sum
		}
		return sum
	case schemeSHA512:
		sum := sha512.Sum512(slices.Concat(password, h.salt))
		return sum[:]
	default:
		return nil
	}
}

// equal compares the hashes themselves: has the password been set anew?
func (h Hash) equal(other Hash) bool { return h.String() == other.String() }
