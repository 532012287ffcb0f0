package serial

import (
	"bytes"
	"fmt"
	"time"

	"holdfast/adapters/port"
)

// How a meter is read by IEC 62056-21, modes A, B and C (§6.4):
//
//	port's baud rate, often 300      the rate the meter has offered
//	/?! -------->
//	    <-------- /LGZ5... (who it is, and a baud character)
//	                              A: no change, what follows comes by itself
//	                              B: the meter changes, and sends by itself
//	ACK 0 5 0 -->                 C: both change, then it sends
//	    <-------- STX data ! ETX BCC
//
// A break in the data that is longer than the timeout ends the exchange, as does
// maxReadout.

const (
	// reaction is what a meter is given after its identification before it is
	// answered: it need not listen sooner (§6.4.3.1, 200 ms at least unless it says
	// that it is faster).
	reaction = 200 * time.Millisecond
	// maxReadout is how long one reading of a meter may take: at 300 baud, 7 kB.
	maxReadout = 5 * time.Minute
	// defaultSilence is the poll's timeout: how long the meter may be silent. It
	// answers and goes on within 1.5 s (§6.4.3.1).
	defaultSilence = 3 * time.Second
	ack            = 0x06
)

// offer is what an identification says of the rates.
type offer struct {
	baud int
	// ack is the baud character to confirm with, 0 where nothing is confirmed.
	ack byte
}

// offered reads the fifth character of an identification (§6.3.2). Anything else
// than the known ones is mode A. The rates are 300 and its doubles up to 19200.
func offered(ident []byte, now int) offer {
	if len(ident) < 5 {
		return offer{baud: now}
	}
	switch c := ident[4]; {
	case c >= '0' && c <= '6': // mode C
		return offer{baud: 300 << (c - '0'), ack: c}
	case c >= 'A' && c <= 'F': // mode B
		return offer{baud: 600 << (c - 'A')}
	}
	return offer{baud: now}
}

// ChangesBaud says that the port's rate is changed while the device is read, which
// the driver must be able to do.
func (o *Options) ChangesBaud() bool { return o.Framing == FramingIEC62056 && len(o.Polls) > 0 }

// identified takes a frame for the identification of a meter; false if it is none.
// What it asks for is done by signOn once the bytes that came with it are through
// the framer.
func (a *Adapter) identified(body []byte) bool {
	if a.opts.Framing != FramingIEC62056 || body[0] != '/' {
		return false
	}
	a.count(func(s *Status) { s.Ignored++ })
	// "/?" is our own request, given back by the line.
	if x := a.asked; x != nil && x.poll != nil && !bytes.HasPrefix(body, []byte("/?")) {
		o := offered(body, a.line.Options().Baud)
		a.offer = &o
	}
	return true
}

// signOn goes on with what the meter has offered.
func (a *Adapter) signOn(p *port.Port) error {
	o := a.offer
	a.offer = nil
	if o == nil || a.asked == nil {
		return nil
	}
	now := p.Options().Baud
	if o.ack != 0 {
		if err := wait(p, reaction); err != nil {
			return err
		}
		began := time.Now()
		answer := []byte{ack, '0', o.ack, '0', '\r', '\n'}
		if _, err := p.Write(answer); err != nil {
			return err
		}
		if err := p.Drain(); err != nil {
			return err
		}
		// The kernel has handed it on, but the chip and an adapter on USB hold
		// some characters: the change must not cut them.
		over := time.Duration(len(answer))*p.Options().CharTime() + 5*time.Millisecond
		if err := wait(p, time.Until(began.Add(over))); err != nil {
			return err
		}
	}
	if o.baud != now {
		if err := p.SetBaud(o.baud); err != nil {
			return fmt.Errorf("change to %d baud: %w", o.baud, err)
		}
		a.changed = true
	}
	a.goOn(time.Now())
	return nil
}

// goOn gives a meter that is speaking more time.
func (a *Adapter) goOn(now time.Time) {
	if x := a.asked; x != nil && x.poll != nil && a.opts.Framing == FramingIEC62056 {
		x.deadline = now.Add(x.poll.Timeout)
		if x.deadline.After(x.limit) {
			x.deadline = x.limit
		}
	}
}

// startRate goes back to the rate at which meters are spoken to.
func (a *Adapter) startRate(p *port.Port) error {
	if !a.changed {
		return nil
	}
	a.changed = false
	return p.SetBaud(p.Options().Baud)
}

// wait waits while the port is open.
func wait(p *port.Port, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-p.Done():
		return p.Err()
	}
}
