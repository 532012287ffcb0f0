package main

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"io"
	"net"
	"runtime"
	"sync"

	"holdfast/broker/packet"
)

// The floor: a broker that parses and forwards and does nothing else. It keeps
// no session, checks nothing, loses what a connection does not take, and knows
// exact topics only. What a real broker costs beyond it is what it does for its
// users; what it costs itself is the machine's share.
//
//	holdfast-bench null --epoll {port}    one readiness loop
//	holdfast-bench null {port}            a goroutine for each connection, corked

// runNull is the command `null`.
func runNull(ctx context.Context, args []string, stderr io.Writer) error {
	fs := flag.NewFlagSet("holdfast-bench null", flag.ContinueOnError)
	fs.SetOutput(stderr)
	epoll := fs.Bool("epoll", false, "one readiness loop in place of a goroutine for each connection")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if fs.NArg() != 1 {
		return errors.New("null: name the port")
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", net.JoinHostPort("127.0.0.1", fs.Arg(0)))
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	b := &nullBroker{subs: make(map[string][]*nullConn)}
	if *epoll {
		return b.serveEpoll(l)
	}
	return b.serveGoroutines(l)
}

type nullBroker struct {
	mu   sync.RWMutex
	subs map[string][]*nullConn // guarded by mu; by topic
}

// nullConn is one connection of the null broker.
type nullConn struct {
	write   func(b []byte) error
	partial []byte // of the epoll variant: what came of the next packet

	mu     sync.Mutex
	out    []byte // guarded by mu
	corked bool   // guarded by mu; out goes with somebody's cork
	qos    byte   // guarded by mu; of its subscriptions
	nextID uint16 // guarded by mu
}

// nullCork is whom to flush once the packets at hand are done.
type nullCork []*nullConn

func (c *nullConn) queue(k *nullCork, b ...byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.queueLocked(k, b)
}

func (c *nullConn) queueLocked(k *nullCork, b []byte) {
	c.out = append(c.out, b...)
	if !c.corked {
		c.corked = true
		*k = append(*k, c)
	}
}

func (k *nullCork) flush() {
	for _, c := range *k {
		c.mu.Lock()
		_ = c.write(c.out) // a connection that is gone shows in its reading
		c.out, c.corked = c.out[:0], false
		c.mu.Unlock()
	}
	*k = (*k)[:0]
}

// handle acts on the whole packets in b and returns what is left of it.
func (n *nullBroker) handle(c *nullConn, b []byte, k *nullCork) ([]byte, error) {
	for {
		size, err := packet.Frame(b, 0)
		if err != nil {
			return nil, err
		}
		if size == 0 || size > len(b) {
			return b, nil
		}
		n.act(c, b[:size], k)
		b = b[size:]
	}
}

func (n *nullBroker) act(c *nullConn, f []byte, k *nullCork) {
	at := 1
	for f[at]&0x80 != 0 {
		at++
	}
	body := f[at+1:]
	switch packet.Type(f[0] >> 4) {
	case packet.TypeConnect:
		c.queue(k, 0x20, 2, 0, 0)
	case packet.TypePublish:
		n.publish(c, f, body, k)
	case packet.TypePubrec:
		c.queue(k, 0x62, 2, body[0], body[1])
	case packet.TypePubrel:
		c.queue(k, 0x70, 2, body[0], body[1])
	case packet.TypeSubscribe:
		topicLen := int(binary.BigEndian.Uint16(body[2:]))
		c.mu.Lock()
		c.qos = body[4+topicLen]
		c.mu.Unlock()
		n.mu.Lock()
		topic := string(body[4 : 4+topicLen])
		n.subs[topic] = append(n.subs[topic], c)
		n.mu.Unlock()
		c.queue(k, 0x90, 3, body[0], body[1], body[4+topicLen])
	case packet.TypePingreq:
		c.queue(k, 0xd0, 0)
	default: // acknowledgements nobody waits for
	}
}

func (n *nullBroker) publish(c *nullConn, f, body []byte, k *nullCork) {
	topicLen := int(binary.BigEndian.Uint16(body))
	idAt := len(f) - len(body) + 2 + topicLen
	qos := f[0] >> 1 & 3
	n.mu.RLock()
	defer n.mu.RUnlock()
	for _, s := range n.subs[string(body[2:2+topicLen])] {
		s.mu.Lock()
		at := len(s.out)
		if s.qos == qos { // as it came; nothing else is measured
			s.queueLocked(k, f)
			if qos > 0 {
				s.nextID = s.nextID%60_000 + 1
				binary.BigEndian.PutUint16(s.out[at+idAt:], s.nextID)
			}
		}
		s.mu.Unlock()
	}
	switch qos {
	case 1:
		c.queue(k, 0x40, 2, f[idAt], f[idAt+1])
	case 2:
		c.queue(k, 0x50, 2, f[idAt], f[idAt+1])
	}
}

func (n *nullBroker) serveGoroutines(l net.Listener) error {
	for {
		nc, err := l.Accept()
		if err != nil {
			return closedIsNil(err)
		}
		go n.serve(nc)
	}
}

func (n *nullBroker) serve(nc net.Conn) {
	defer nc.Close()
	c := &nullConn{write: func(b []byte) error {
		_, err := nc.Write(b)
		return err
	}}
	defer n.forget(c)
	var k nullCork
	buf, end := make([]byte, 64<<10), 0
	for {
		m, err := nc.Read(buf[end:])
		if err != nil {
			return
		}
		rest, err := n.handle(c, buf[:end+m], &k)
		if err != nil {
			return
		}
		k.flush()
		end = copy(buf, rest)
		if end == len(buf) {
			return // larger than anything that is measured
		}
	}
}

func (n *nullBroker) forget(c *nullConn) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for topic, subs := range n.subs {
		kept := subs[:0]
		for _, s := range subs {
			if s != c {
				kept = append(kept, s)
			}
		}
		n.subs[topic] = kept
	}
}

func closedIsNil(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// serveEpoll serves everything with one loop on one thread.
func (n *nullBroker) serveEpoll(l net.Listener) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	return n.loop(l)
}
