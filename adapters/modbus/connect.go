package modbus

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"holdfast/adapters/health"
	"holdfast/adapters/reading"
	"holdfast/broker/message"
)

// Client makes requests over a line of which nothing is polled: what the command
// line uses. All that [Bus.Do] says holds, quarantines included.
type Client struct {
	*Bus
	stop  context.CancelFunc
	ended chan struct{} // closed when err is set
	err   error
}

// Connect opens the line for a Client, which has it until Close. Of o the
// devices are ignored. Errors of the line are returned as they are.
func Connect(ctx context.Context, o Options, line Line, log *slog.Logger) (*Client, error) {
	o.Devices, o.OnDevices = nil, nil
	b, err := New("command", o, line, nowhere{}, health.NewMonitor(func(health.Change) {}), log)
	if err != nil {
		return nil, err
	}
	t, err := b.openLine(ctx)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	b.update(func() { b.open, b.since, b.opened = true, now, now })
	b.admit(true, nil)
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	c := &Client{Bus: b, stop: cancel, ended: make(chan struct{})}
	go func() {
		defer close(c.ended)
		interrupt := context.AfterFunc(ctx, t.interrupt)
		defer interrupt()
		err := b.poll(ctx, t)
		err = errors.Join(err, b.abort(t, err))
		b.admit(false, err)
		if ctx.Err() != nil {
			err = nil // Close asked for it
		}
		c.err = errors.Join(err, t.close())
	}()
	return c, nil
}

// Done is closed when the line is gone or the Client closed.
func (c *Client) Done() <-chan struct{} { return c.ended }

// Close gives the line back. Its error is why it was gone before, if it was.
func (c *Client) Close() error {
	c.stop()
	<-c.ended
	return c.err
}

// nowhere takes what a bus without devices never has.
type nowhere struct{}

// Put is part of Sink.
func (nowhere) Put(string, byte, ...reading.Reading) {}

// PutMessage is part of Sink.
func (nowhere) PutMessage(string, *message.Message) {}
