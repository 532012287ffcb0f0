package dial

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"time"
)

// Certificate is what is to be known of one, ours or the cloud's.
type Certificate struct {
	Subject   string
	NotBefore time.Time
	NotAfter  time.Time
}

func certificateOf(c *x509.Certificate) *Certificate {
	subject := c.Subject.CommonName
	if subject == "" && len(c.DNSNames) > 0 {
		subject = c.DNSNames[0]
	}
	return &Certificate{Subject: clip(subject), NotBefore: c.NotBefore, NotAfter: c.NotAfter}
}

// Own reads the gateway's own certificate as the next connection will; nil when
// there is none.
func (o *Options) Own() (*Certificate, error) {
	if o.CertFile == "" {
		return nil, nil //nolint:nilnil // having none is no error
	}
	pair, err := o.ownPair()
	if err != nil {
		return nil, err
	}
	return certificateOf(pair.Leaf), nil
}

func (o *Options) ownPair() (tls.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(o.CertFile, o.KeyFile)
	if err != nil {
		return pair, fmt.Errorf("uplink.cert_file: %w", err)
	}
	if pair.Leaf == nil {
		if pair.Leaf, err = x509.ParseCertificate(pair.Certificate[0]); err != nil {
			return pair, fmt.Errorf("uplink.cert_file: %w", err)
		}
	}
	return pair, nil
}

// tlsConfig reads the files, anew each time: renewed certificates are taken up
// with the next connection.
func (o *Options) tlsConfig(host string) (*tls.Config, error) {
	c := &tls.Config{
		MinVersion:         tls.VersionTLS12,
		ServerName:         host,
		NextProtos:         o.ALPN,
		InsecureSkipVerify: o.Insecure, //nolint:gosec // only when the operator says so
	}
	if o.ServerName != "" {
		c.ServerName = o.ServerName
	}
	if o.CAFile != "" {
		pem, err := os.ReadFile(o.CAFile)
		if err != nil {
			return nil, fmt.Errorf("uplink.ca_file: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("uplink.ca_file: %s holds no certificate in PEM", o.CAFile)
		}
	}
	if o.CertFile != "" {
		pair, err := o.ownPair()
		if err != nil {
			return nil, err
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}
