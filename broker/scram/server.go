package scram

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"
)

// Server is the server's side of one exchange, for one goroutine.
type Server struct {
	// User is who the client says it is.
	User string

	binding     string // what the client has to repeat in c=
	clientBare  string // client-first-message-bare
	serverFirst string
	nonce       string
	keys        Keys
	challenged  bool
}

// Begin reads the client's first message. Its nonce is followed by a fresh one.
func Begin(first []byte) (*Server, error) { return begin(first, rand.Text()) }

func begin(first []byte, nonce string) (*Server, error) {
	text, err := checkText(first)
	if err != nil {
		return nil, err
	}
	// gs2-header: "n" or "y", the authorisation identity, and a comma. "y" says
	// that the client would bind to the channel and thinks that we cannot,
	// which is so (RFC 5802 §6).
	parts := strings.SplitN(text, ",", 3)
	if len(parts) < 3 || parts[0] != "n" && parts[0] != "y" {
		return nil, fmt.Errorf("%w: it asks for channel binding, or is no first message", ErrMessage)
	}
	s := &Server{binding: parts[0] + "," + parts[1] + ",", clientBare: parts[2]}
	name, rest, err := attribute(s.clientBare, "n") // "m=", an extension that must be known, is none
	if err != nil {
		return nil, err
	}
	client, _, err := attribute(rest, "r")
	if err != nil {
		return nil, err
	}
	if !validNonce(client) {
		return nil, fmt.Errorf("%w: the nonce is empty or not printable", ErrMessage)
	}
	s.nonce = client + nonce
	if s.User, err = userName(name); err != nil {
		return nil, err
	}
	if parts[1] != "" {
		authzid, ok := strings.CutPrefix(parts[1], "a=")
		if authzid, err = unescape(authzid); !ok || err != nil || authzid != s.User {
			return nil, fmt.Errorf("%w: nobody acts for another", ErrMessage)
		}
	}
	return s, nil
}

func userName(escaped string) (string, error) {
	name, err := unescape(escaped)
	if err != nil {
		return "", err
	}
	name, err = prepare(name)
	if err != nil {
		return "", fmt.Errorf("user name: %w", err)
	}
	return name, nil
}

// Challenge is the server's first message: the salt and count of the user's
// keys.
func (s *Server) Challenge(k Keys) []byte {
	s.keys, s.challenged = k, true
	s.serverFirst = "r=" + s.nonce + ",s=" + base64.StdEncoding.EncodeToString(k.Salt) + ",i=" + strconv.Itoa(k.Iterations)
	return []byte(s.serverFirst)
}

// Finish checks the client's proof and returns the server's own. It fails with
// [ErrProof] if the client does not know the password.
func (s *Server) Finish(final []byte) ([]byte, error) {
	text, err := checkText(final)
	if err != nil {
		return nil, err
	}
	if !s.challenged {
		return nil, fmt.Errorf("%w: there was no challenge", ErrMessage)
	}
	s.challenged = false
	binding, rest, err := attribute(text, "c")
	if err != nil {
		return nil, err
	}
	nonce, _, err := attribute(rest, "r")
	if err != nil {
		return nil, err
	}
	at := strings.LastIndex(text, ",p=")
	if at < 0 || nonce != s.nonce || binding != base64.StdEncoding.EncodeToString([]byte(s.binding)) {
		return nil, fmt.Errorf("%w: its nonce, channel binding or proof is not that of this exchange", ErrMessage)
	}
	proof, err := decode(text[at+len(",p="):])
	if err != nil || len(proof) != keySize {
		return nil, fmt.Errorf("%w: the proof is not %d bytes of base64", ErrMessage, keySize)
	}
	message := s.clientBare + "," + s.serverFirst + "," + text[:at]
	clientKey := make([]byte, keySize)
	subtle.XORBytes(clientKey, proof, mac(s.keys.Stored[:], message))
	stored := sha256.Sum256(clientKey)
	if !hmac.Equal(stored[:], s.keys.Stored[:]) {
		return nil, ErrProof
	}
	return []byte("v=" + base64.StdEncoding.EncodeToString(mac(s.keys.Server[:], message))), nil
}
