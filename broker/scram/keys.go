package scram

import (
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Name is the mechanism's name, in MQTT the authentication method
// (RFC 7677 §3, MQTT 5.0 §4.12).
const Name = "SCRAM-SHA-256"

const (
	// MinIterations is what RFC 7677 §4 asks for at least.
	MinIterations = 4096
	// MaxIterations bounds what the other side or a file can make us compute,
	// a few seconds on the smallest boards.
	MaxIterations = 1_000_000
	// newIterations are those of new keys. The device that logs in pays for
	// them each time, about half a second on a Pi Zero; whoever has stolen
	// the keys pays for each guess.
	newIterations = 65_536

	saltSize = 16 // bytes, of new keys
	minSalt  = 4
	maxSalt  = 128
	keySize  = sha256.Size
)

// Errors that callers test for.
var (
	// ErrMessage means that what came is no SCRAM message that is due now, or
	// asks for what is not supported.
	ErrMessage = errors.New("not a SCRAM message that is due")
	// ErrProof means that the client does not know the password.
	ErrProof = errors.New("the client's proof is wrong")
	// ErrServer means that the server refused, or does not have the keys of
	// the password: it is not who it says it is.
	ErrServer = errors.New("the server did not prove that it knows the user")
)

// Keys are what a server keeps of a password (RFC 5802 §3). Whoever has them
// can play the server, and test guesses of the password.
type Keys struct {
	Salt       []byte
	Iterations int
	Stored     [keySize]byte
	Server     [keySize]byte
}

// NewKeys makes keys of a password with a fresh salt.
func NewKeys(password []byte) (Keys, error) {
	salt := make([]byte, saltSize)
	_, _ = rand.Read(salt) // never fails (crypto/rand)
	return Derive(password, salt, newIterations)
}

// Derive makes keys of a password (RFC 5802 §3).
func Derive(password, salt []byte, iterations int) (Keys, error) {
	salted, err := saltedPassword(password, salt, iterations)
	if err != nil {
		return Keys{}, err
	}
	k := Keys{Salt: salt, Iterations: iterations}
	k.Stored = sha256.Sum256(mac(salted, "Client Key"))
	copy(k.Server[:], mac(salted, "Server Key"))
	return k, nil
}

func saltedPassword(password, salt []byte, iterations int) ([]byte, error) {
	prepared, err := prepare(string(password))
	if err != nil {
		return nil, fmt.Errorf("password: %w", err)
	}
	if iterations < MinIterations || iterations > MaxIterations {
		return nil, fmt.Errorf("%d iterations are outside %d..%d", iterations, MinIterations, MaxIterations)
	}
	if len(salt) < minSalt || len(salt) > maxSalt {
		return nil, fmt.Errorf("a salt of %d bytes is outside %d..%d", len(salt), minSalt, maxSalt)
	}
	return pbkdf2.Key(sha256.New, prepared, salt, iterations, keySize)
}

func mac(key []byte, message string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(message))
	return h.Sum(nil)
}

// Fit says whether the keys are of that password. It takes as long as making
// them.
func (k Keys) Fit(password []byte) bool {
	other, err := Derive(password, k.Salt, k.Iterations)
	return err == nil && subtle.ConstantTimeCompare(k.Stored[:], other.Stored[:]) == 1
}

// String writes the keys as [ParseKeys] reads them, in the form of RFC 5803
// that PostgreSQL and others use:
// SCRAM-SHA-256$ITERATIONS:SALT$STOREDKEY:SERVERKEY.
func (k Keys) String() string {
	enc := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("%s$%d:%s$%s:%s", Name, k.Iterations, enc(k.Salt), enc(k.Stored[:]), enc(k.Server[:]))
}

// ParseKeys reads keys. Errors do not repeat them.
func ParseKeys(s string) (Keys, error) {
	parts := strings.Split(s, "$")
	if len(parts) != 3 || parts[0] != Name {
		return Keys{}, errors.New("is not " + Name + "$ITERATIONS:SALT$STOREDKEY:SERVERKEY")
	}
	count, salt, ok1 := strings.Cut(parts[1], ":")
	stored, server, ok2 := strings.Cut(parts[2], ":")
	n, err := strconv.Atoi(count)
	if !ok1 || !ok2 || err != nil || n < MinIterations || n > MaxIterations {
		return Keys{}, fmt.Errorf("the %s keys ask for iterations outside %d..%d", Name, MinIterations, MaxIterations)
	}
	k := Keys{Iterations: n}
	if k.Salt, err = decode(salt); err != nil || len(k.Salt) < minSalt || len(k.Salt) > maxSalt {
		return Keys{}, fmt.Errorf("the salt of the %s keys is not %d to %d bytes of base64", Name, minSalt, maxSalt)
	}
	for _, x := range []struct {
		to   *[keySize]byte
		text string
	}{{&k.Stored, stored}, {&k.Server, server}} {
		b, err := decode(x.text)
		if err != nil || len(b) != keySize {
			return Keys{}, fmt.Errorf("one of the %s keys is not %d bytes of base64", Name, keySize)
		}
		copy(x.to[:], b)
	}
	return k, nil
}

// decode is strict: a key has one spelling.
func decode(s string) ([]byte, error) { return base64.StdEncoding.Strict().DecodeString(s) }
