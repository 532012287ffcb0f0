package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"holdfast/broker/packet"
)

// sink is a cloud that takes everything at once, with a Receive Maximum and an
// alias space of 65535, and notes what came when. What it costs itself is not
// part of the measurement.
type sink struct {
	l   net.Listener
	pem []byte // its certificate; nil in the clear
	wg  sync.WaitGroup

	mu          sync.Mutex
	conns       map[net.Conn]struct{} // guarded by mu
	sessions    int                   // guarded by mu; CONNECTs answered
	messages    int                   // guarded by mu; on topics of the load
	head        int                   // guarded by mu; of these, the ones that came at first
	first, last time.Time             // guarded by mu; of these
	live        []time.Duration       // guarded by mu; how long each live reading was under way
}

// Topics of the load, and of those the ones whose readings are timed.
const (
	uplinkPrefix = "bench/"
	livePrefix   = "bench/live/"
)

func newSink(ctx context.Context, secure bool) (*sink, error) {
	s := &sink{conns: map[net.Conn]struct{}{}}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	if secure {
		cert, text, err := selfSigned()
		if err != nil {
			return nil, errors.Join(err, l.Close())
		}
		s.pem = text
		l = tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12})
	}
	s.l = l
	s.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.wg.Go(func() { s.serve(c) })
		}
	})
	return s, nil
}

// selfSigned is a certificate for the loopback address, and its PEM.
func selfSigned() (tls.Certificate, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "cloud"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

func (s *sink) close() {
	_ = s.l.Close()
	s.mu.Lock()
	for c := range s.conns {
		_ = c.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
}

func (s *sink) serve(c net.Conn) {
	s.mu.Lock()
	s.conns[c] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
		_ = c.Close()
	}()
	r := packet.NewReader(c, 64<<10)
	v := packet.V311
	aliases := map[uint16]string{}
	var out []byte
	count := 0
	for {
		in, err := r.Next()
		if err != nil {
			return
		}
		var answer packet.Packet
		switch p := in.(type) {
		case *packet.Connect:
			v = p.Version
			ack := &packet.Connack{}
			if v == packet.V5 {
				ack.Properties = packet.Properties{TopicAliasMaximum: 65535}
			}
			answer = ack
			s.mu.Lock()
			s.sessions++
			s.mu.Unlock()
		case *packet.Publish:
			name := aliases[p.TopicAlias]
			if len(p.Topic) > 0 {
				if name = string(p.Topic); p.TopicAlias != 0 {
					aliases[p.TopicAlias] = name
				}
			}
			if strings.HasPrefix(name, livePrefix) {
				s.timed(p.Payload)
			} else if strings.HasPrefix(name, uplinkPrefix) {
				count++
			}
			switch p.QoS {
			case 1:
				out = append(out, 0x40, 2, byte(p.PacketID>>8), byte(p.PacketID))
			case 2:
				out = append(out, 0x50, 2, byte(p.PacketID>>8), byte(p.PacketID))
			}
		case *packet.Pubrel:
			out = append(out, 0x70, 2, byte(p.PacketID>>8), byte(p.PacketID))
		case *packet.Subscribe:
			answer = &packet.Suback{PacketID: p.PacketID, Reasons: make([]packet.ReasonCode, len(p.Filters))}
		case *packet.Unsubscribe:
			ack := &packet.Unsuback{PacketID: p.PacketID}
			if v == packet.V5 {
				ack.Reasons = make([]packet.ReasonCode, len(p.Filters))
			}
			answer = ack
		case *packet.Pingreq:
			answer = &packet.Pingresp{}
		case *packet.Disconnect:
			return
		}
		if answer != nil {
			if out, err = answer.AppendTo(out, v); err != nil {
				return
			}
		}
		if r.More() {
			continue
		}
		if count > 0 {
			arrived := time.Now()
			s.mu.Lock()
			if s.messages == 0 {
				s.first, s.head = arrived, count
			}
			s.messages, s.last = s.messages+count, arrived
			s.mu.Unlock()
			count = 0
		}
		if len(out) > 0 {
			if _, err := c.Write(out); err != nil {
				return
			}
			out = out[:0]
		}
	}
}

// timed notes how long a live reading was under way.
func (s *sink) timed(payload []byte) {
	sent, err := strconv.ParseInt(strings.TrimSpace(string(payload)), 10, 64)
	if err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.live = append(s.live, time.Since(time.Unix(0, sent)))
}

// counts returns how many messages of the load came, and how many a second
// from the first to the last.
func (s *sink) counts() (n int, perSecond float64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.messages, float64(s.messages-s.head) / max(s.last.Sub(s.first).Seconds(), 1e-9)
}
