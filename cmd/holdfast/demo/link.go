package demo

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"holdfast/broker/client"
	"holdfast/broker/message"
	"holdfast/broker/packet"
)

// redial is the pause between two attempts to connect.
const redial = 100 * time.Millisecond

// link is a client that connects again and again and keeps its session: what it
// has subscribed waits for it at the broker, and what it has published and
// nobody acknowledged goes out again.
type link struct {
	opts      client.Options
	filters   []packet.Filter
	onMessage func(client.Message)
	session   client.Session

	mu      sync.Mutex
	current *client.Client // guarded by mu; nil while there is no connection
	lost    int            // guarded by mu; times the broker had forgotten the session
	last    error          // guarded by mu; of the latest attempt
}

// newLink makes a link that is not connected yet.
func newLink(url, clientID string, filters []packet.Filter, onMessage func(client.Message)) *link {
	return &link{
		opts: client.Options{
			URL: url, ClientID: clientID, KeepAlive: 10 * time.Second, ConnectTimeout: 5 * time.Second,
			SessionExpiry: 600, CleanStart: true,
		},
		filters: filters, onMessage: onMessage,
	}
}

// run keeps the connection until ctx ends. ready, if not nil, is closed when it
// is subscribed for the first time.
func (l *link) run(ctx context.Context, ready chan<- struct{}) {
	for ctx.Err() == nil {
		c, err := l.connect(ctx)
		l.set(c, err)
		if err == nil {
			if ready != nil {
				close(ready)
				ready = nil
			}
			select {
			case <-c.Done():
				l.set(nil, c.Err())
			case <-ctx.Done():
				l.set(nil, nil)
				bye, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
				_ = c.Disconnect(bye) // the broker may be gone already
				cancel()
			}
		}
		select {
		case <-time.After(redial):
		case <-ctx.Done():
		}
	}
}

func (l *link) connect(ctx context.Context) (*client.Client, error) {
	o := l.opts
	o.Session = &l.session
	c, err := client.Connect(ctx, o, l.onMessage)
	if err != nil {
		return nil, err
	}
	l.opts.Version = c.Conn().Version() // a broker does not change its mind, a bad moment may look so
	if c.Conn().SessionPresent() {
		return c, nil
	}
	reasons, err := c.Subscribe(ctx, l.filters)
	for i, r := range reasons {
		if r.Failed() {
			err = errors.Join(err, fmt.Errorf("subscribe to %q: %s", l.filters[i].Filter, r))
		}
	}
	if err != nil {
		c.Abort()
		return nil, err
	}
	if !l.opts.CleanStart {
		l.mu.Lock()
		l.lost++
		l.mu.Unlock()
	}
	l.opts.CleanStart = false // from now on there is something to go on with
	return c, nil
}

func (l *link) set(c *client.Client, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.current, l.last = c, err
}

// client is the connection there is now; nil if there is none. What is published
// on it is kept by the session even if it ends in between.
func (l *link) client() *client.Client {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.current
}

// state is how often the broker forgot the session, and why there is no
// connection, nil if there is one.
func (l *link) state() (lost int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.current == nil {
		err = errors.Join(errors.New("not connected"), l.last)
	}
	return l.lost, err
}

// forget ends a client's session at the broker, and clears retained topics.
func forget(ctx context.Context, url, clientID string, retained []string) error {
	c, err := client.Connect(ctx, client.Options{URL: url, ClientID: clientID, CleanStart: true, ConnectTimeout: 5 * time.Second}, nil)
	if err != nil {
		return fmt.Errorf("end session %s: %w", clientID, err)
	}
	for _, topic := range retained {
		if perr := c.Publish(ctx, &message.Message{Topic: topic, QoS: 1, Retain: true}); perr != nil {
			err = errors.Join(err, fmt.Errorf("clear %s: %w", topic, perr))
		}
	}
	return errors.Join(err, c.Disconnect(ctx))
}
