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

// Client is the client's side of one exchange, for one goroutine.
type Client struct {
	password  string
	nonce     string
	bare      string // client-first-message-bare
	signature []byte // what the server has to prove
}

// noBinding is the gs2-header: no channel binding, no other identity.
const noBinding = "n,,"

// NewClient begins an exchange. It fails for a user name or password that
// cannot be prepared (RFC 4013): an empty one, control characters.
func NewClient(user, password string) (*Client, error) { return newClient(user, password, rand.Text()) }

func newClient(user, password, nonce string) (*Client, error) {
	name, err := prepare(user)
	if err != nil {
		return nil, fmt.Errorf("user name: %w", err)
	}
	if _, err := prepare(password); err != nil {
		return nil, fmt.Errorf("password: %w", err)
	}
	return &Client{password: password, nonce: nonce, bare: "n=" + escape(name) + ",r=" + nonce}, nil
}

// First is the client's first message.
func (c *Client) First() []byte { return []byte(noBinding + c.bare) }

// Respond answers the server's challenge. It takes the server's count of
// iterations, at most [MaxIterations].
func (c *Client) Respond(challenge []byte) ([]byte, error) {
	text, err := checkText(challenge)
	if err != nil {
		return nil, err
	}
	nonce, rest, err := attribute(text, "r")
	if err != nil {
		return nil, err
	}
	salt64, rest, err := attribute(rest, "s")
	if err != nil {
		return nil, err
	}
	count, _, err := attribute(rest, "i")
	if err != nil {
		return nil, err
	}
	if !validNonce(nonce) || len(nonce) <= len(c.nonce) || !strings.HasPrefix(nonce, c.nonce) {
		return nil, fmt.Errorf("%w: the server's nonce does not begin with ours", ErrMessage)
	}
	salt, err := decode(salt64)
	if err != nil {
		return nil, fmt.Errorf("%w: the salt is not base64", ErrMessage)
	}
	n, err := strconv.Atoi(count)
	if err != nil {
		return nil, fmt.Errorf("%w: the count of iterations is no number", ErrMessage)
	}
	salted, err := saltedPassword([]byte(c.password), salt, n)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMessage, err)
	}
	without := "c=" + base64.StdEncoding.EncodeToString([]byte(noBinding)) + ",r=" + nonce
	message := c.bare + "," + text + "," + without
	clientKey := mac(salted, "Client Key")
	stored := sha256.Sum256(clientKey)
	proof := make([]byte, keySize)
	subtle.XORBytes(proof, clientKey, mac(stored[:], message))
	c.signature = mac(mac(salted, "Server Key"), message)
	return []byte(without + ",p=" + base64.StdEncoding.EncodeToString(proof)), nil
}

// Verify checks the server's last message. Before it has returned nil the
// server may be anybody.
func (c *Client) Verify(final []byte) error {
	text, err := checkText(final)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrServer, err)
	}
	value, _, err := attribute(text, "v")
	if err != nil {
		return fmt.Errorf("%w: %w", ErrServer, err)
	}
	signature, err := decode(value)
	if err != nil || c.signature == nil || !hmac.Equal(signature, c.signature) {
		return ErrServer
	}
	return nil
}
