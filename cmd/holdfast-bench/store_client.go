package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"holdfast/broker/packet"
)

// stuck is how long a broker may be silent before a measurement fails.
const stuck = 60 * time.Second

// open connects a client whose session outlives the connection. What the session
// holds may follow the CONNACK at once; it is read from r.
func open(ctx context.Context, addr, id string) (c net.Conn, r *packet.Reader, err error) {
	var d net.Dialer
	if c, err = d.DialContext(ctx, "tcp", addr); err != nil {
		return nil, nil, err
	}
	r = packet.NewReader(c, 64<<10)
	p, err := requestOver(c, r, &packet.Connect{Version: packet.V311, ClientID: id, KeepAlive: 600}, packet.V311)
	if err == nil {
		if ack, ok := p.(*packet.Connack); !ok || ack.Reason.Failed() {
			err = fmt.Errorf("answered with %v", p)
		}
	}
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("connect %s: %w", id, err), c.Close())
	}
	return c, r, nil
}

// newSession leaves behind a session that wants a topic.
func newSession(ctx context.Context, addr, topic string) error {
	c, r, err := open(ctx, addr, "session "+topic)
	if err != nil {
		return err
	}
	_, err = requestOver(c, r, &packet.Subscribe{PacketID: 1, Filters: []packet.Filter{{Filter: topic, QoS: 2}}}, packet.V311)
	if err == nil {
		_, err = c.Write([]byte{0xE0, 0}) // DISCONNECT
	}
	if err == nil {
		err = hungUp(c)
	}
	return errors.Join(err, c.Close())
}

// hungUp waits until the broker has closed the connection: what is published
// before it has seen the DISCONNECT would be sent to nobody, and come again as a
// duplicate, or not at all.
func hungUp(c net.Conn) error {
	if err := c.SetReadDeadline(time.Now().Add(stuck)); err != nil {
		return err
	}
	if n, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		return fmt.Errorf("after the DISCONNECT: %d bytes, %w", n, err)
	}
	return nil
}

// publishOver sends n messages with so many in flight, and returns how many were
// acknowledged: all, or those until ctx ended.
func publishOver(ctx context.Context, addr, topic, id string, qos byte, inFlight, n int) (acked int, err error) {
	c, err := connect(context.WithoutCancel(ctx), addr, id, packet.V311)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	frame, err := (&packet.Publish{Topic: []byte(topic), QoS: qos, PacketID: 1, Payload: make([]byte, storePayload)}).AppendTo(nil, packet.V311)
	if err != nil {
		return 0, err
	}
	idAt := len(frame) - storePayload - 2
	r := packet.NewReader(c, 16<<10)
	r.SetVersion(packet.V311)
	var out []byte
	sent := 0
	for acked < n {
		for ; sent < n && sent-acked < inFlight && ctx.Err() == nil; sent++ {
			at := len(out)
			out = append(out, frame...)
			binary.BigEndian.PutUint16(out[at+idAt:], uint16(sent%60_000)+1)
		}
		if sent == acked {
			return acked, nil // the time is over
		}
		if len(out) > 0 {
			if _, err := c.Write(out); err != nil {
				return acked, err
			}
			out = out[:0]
		}
		if err := c.SetReadDeadline(time.Now().Add(stuck)); err != nil {
			return acked, err
		}
		for more := true; more; more = r.More() {
			in, err := r.Next()
			if err != nil {
				return acked, fmt.Errorf("%d of %d acknowledged: %w", acked, n, err)
			}
			switch a := in.(type) {
			case *packet.Puback, *packet.Pubcomp:
				acked++
			case *packet.Pubrec:
				out = append(out, 0x62, 2, byte(a.PacketID>>8), byte(a.PacketID))
			default:
				return acked, fmt.Errorf("publisher got %T", in)
			}
		}
	}
	return acked, nil
}

// drainSession comes back to a session and takes what it holds.
func drainSession(ctx context.Context, addr, topic string, n int) (took time.Duration, err error) {
	began := time.Now()
	c, r, err := open(ctx, addr, "session "+topic)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	var out []byte
	for got := 0; got < n; {
		if err := c.SetReadDeadline(time.Now().Add(stuck)); err != nil {
			return 0, err
		}
		in, err := r.Next()
		if err != nil {
			return 0, fmt.Errorf("%d of %d drained: %w", got, n, err)
		}
		p, ok := in.(*packet.Publish)
		if !ok {
			return 0, fmt.Errorf("subscriber got %T", in)
		}
		got++
		out = append(out, 0x40, 2, byte(p.PacketID>>8), byte(p.PacketID))
		if !r.More() || got == n {
			if _, err := c.Write(out); err != nil {
				return 0, err
			}
			out = out[:0]
		}
	}
	return time.Since(began), nil
}
