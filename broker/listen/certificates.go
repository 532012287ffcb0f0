package listen

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// checkEvery is how often at most the files are looked at: three stat calls,
// which a storm of handshakes must not multiply.
const checkEvery = time.Second

// certificates are the files of a TLS listener and what was last read of them.
type certificates struct {
	opts  Options
	log   *slog.Logger
	every time.Duration
	// server is what connections start with. It is one and the same for all of
	// them: it holds the keys of the session tickets, which outlive the files.
	server *tls.Config

	current atomic.Pointer[loaded]

	mu       sync.Mutex
	checked  time.Time   // guarded by mu
	stamps   []fileStamp // guarded by mu; of what current was read from
	lastErr  string      // guarded by mu; why the files as they are cannot be used
	reloads  uint64      // guarded by mu
	failures uint64      // guarded by mu
}

// loaded is one reading of the files.
type loaded struct {
	config *tls.Config
	leaf   *x509.Certificate
}

// CertificateStatus says what certificate clients are shown.
type CertificateStatus struct {
	Subject   string    `json:"subject"`
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`
	Reloads   uint64    `json:"reloads"`
	Failures  uint64    `json:"failures"` // readings that could not be used
	// LastError is why the files as they are now cannot be used; those of
	// before are in use then.
	LastError string `json:"last_error,omitempty"`
}

// fileStamp changes when a file is written, replaced, or a link on its way is.
type fileStamp struct {
	dev, inode uint64
	size       int64
	modified   int64 // nanoseconds
}

func stampOf(name string) (fileStamp, error) {
	info, err := os.Stat(name)
	if err != nil {
		return fileStamp{}, err
	}
	s := fileStamp{size: info.Size(), modified: info.ModTime().UnixNano()}
	if sys, ok := info.Sys().(*syscall.Stat_t); ok {
		s.dev, s.inode = uint64(sys.Dev), sys.Ino //nolint:unconvert // 32 bits on some architectures
	}
	return s, nil
}

func loadCertificates(o Options, log *slog.Logger) (*certificates, error) {
	c := &certificates{opts: o, log: log, every: checkEvery}
	c.server = &tls.Config{MinVersion: o.minVersion(), GetConfigForClient: c.forClient}
	stamps, err := c.stamp()
	if err != nil {
		return nil, err
	}
	l, err := c.load()
	if err != nil {
		return nil, err
	}
	c.checked, c.stamps = time.Now(), stamps
	c.current.Store(l)
	c.tell(l)
	if info, err := os.Stat(o.KeyFile); err == nil && info.Mode().Perm()&0o007 != 0 {
		log.Warn("everybody on this machine may read the private key", "file", o.KeyFile)
	}
	return c, nil
}

// tell says when a certificate does not fit the clock. It is used all the same:
// on a board without a clock chip it is the clock that is wrong.
func (c *certificates) tell(l *loaded) {
	now := time.Now()
	switch {
	case now.Before(l.leaf.NotBefore):
		c.log.Warn("certificate is not valid yet, or the clock is wrong", "file", c.opts.CertFile, "clock", now, "not_before", l.leaf.NotBefore)
	case now.After(l.leaf.NotAfter):
		c.log.Warn("certificate has expired, or the clock is wrong", "file", c.opts.CertFile, "clock", now, "not_after", l.leaf.NotAfter)
	}
}

func (c *certificates) stamp() ([]fileStamp, error) {
	var stamps []fileStamp
	for _, f := range []struct{ key, name string }{
		{"cert_file", c.opts.CertFile}, {"key_file", c.opts.KeyFile}, {"client_ca_file", c.opts.ClientCAFile},
	} {
		if f.name == "" {
			continue
		}
		s, err := stampOf(f.name)
		if err != nil {
			return nil, fmt.Errorf("listener.%s: %w", f.key, err)
		}
		stamps = append(stamps, s)
	}
	return stamps, nil
}

// load reads the files.
func (c *certificates) load() (*loaded, error) {
	certPEM, err := os.ReadFile(c.opts.CertFile)
	if err != nil {
		return nil, fmt.Errorf("listener.cert_file: %w", err)
	}
	keyPEM, err := os.ReadFile(c.opts.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("listener.key_file: %w", err)
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("listener.cert_file: %s with %s: %w", c.opts.CertFile, c.opts.KeyFile, err)
	}
	config := &tls.Config{
		Certificates: []tls.Certificate{pair},
		MinVersion:   c.opts.minVersion(),
		ClientAuth:   c.opts.clientAuth(),
	}
	if c.opts.ClientCAFile != "" {
		if config.ClientCAs, err = readPool(c.opts.ClientCAFile); err != nil {
			return nil, fmt.Errorf("listener.client_ca_file: %w", err)
		}
	}
	leaf := pair.Leaf
	if leaf == nil { // GODEBUG x509keypairleaf=0
		if leaf, err = x509.ParseCertificate(pair.Certificate[0]); err != nil {
			return nil, fmt.Errorf("listener.cert_file: %w", err)
		}
	}
	return &loaded{config, leaf}, nil
}

// readPool reads certificates. Unlike AppendCertsFromPEM it does not pass over
// those it cannot read: half a file is a broken file.
func readPool(name string) (*x509.CertPool, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	pool, n := x509.NewCertPool(), 0
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: certificate %d: %w", name, n+1, err)
		}
		pool.AddCert(cert)
		n++
	}
	if n == 0 {
		return nil, errors.New(name + " has no certificate in it")
	}
	return pool, nil
}

// forClient is asked in each handshake.
func (c *certificates) forClient(*tls.ClientHelloInfo) (*tls.Config, error) {
	// While one handshake reads the files the others go on with what there is.
	if c.mu.TryLock() {
		c.refreshLocked(time.Now())
		c.mu.Unlock()
	}
	return c.current.Load().config, nil
}

func (c *certificates) refreshLocked(now time.Time) {
	if now.Sub(c.checked) < c.every {
		return
	}
	c.checked = now
	// Before reading: what changes meanwhile has another stamp next time.
	stamps, err := c.stamp()
	if err == nil && c.lastErr == "" && slices.Equal(stamps, c.stamps) {
		return
	}
	var l *loaded
	if err == nil {
		l, err = c.load()
	}
	if err != nil {
		c.failures++
		if text := err.Error(); text != c.lastErr {
			c.lastErr = text
			c.log.Error("changed certificate files not used, the previous ones stay", "err", err)
		}
		return
	}
	c.stamps, c.lastErr = stamps, ""
	c.reloads++
	c.current.Store(l)
	c.log.Info("certificate files read again", "subject", l.leaf.Subject.String(), "not_after", l.leaf.NotAfter)
	c.tell(l)
}

func (c *certificates) status() *CertificateStatus {
	leaf := c.current.Load().leaf
	c.mu.Lock()
	defer c.mu.Unlock()
	return &CertificateStatus{
		Subject: leaf.Subject.String(), NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter,
		Reloads: c.reloads, Failures: c.failures, LastError: c.lastErr,
	}
}
