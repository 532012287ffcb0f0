package modbustest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// line is one Serve: a slave at one end of one wire.
type line struct {
	s  *Slave
	rw io.ReadWriter
	wg sync.WaitGroup

	mu     sync.Mutex // held while a piece of an answer is written
	queues map[byte]chan request
}

// request is one request as it travels from the parser to its unit.
type request struct {
	unit *Unit
	id   byte
	pdu  []byte
	txn  uint16 // Modbus/TCP only
	at   time.Time
}

func (l *line) parseRTU(ctx context.Context, chunks <-chan []byte) error {
	var buf []byte
	gap := time.NewTimer(time.Hour)
	defer gap.Stop()
	take := func(final bool) {
		for len(buf) > 0 {
			n, need := requestFrame(buf)
			switch {
			case n > 0:
				l.dispatch(ctx, request{id: buf[0], pdu: append([]byte(nil), buf[1:n-2]...), at: time.Now()})
				buf = buf[n:]
			case need && !final:
				return
			default:
				l.s.n.discarded.Add(1)
				buf = buf[1:]
			}
		}
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-gap.C:
			take(true)
		case c, ok := <-chunks:
			if !ok {
				return errReader
			}
			if l.s.echo.Load() {
				if err := l.write(c); err != nil {
					return err
				}
			}
			buf = append(buf, c...)
			take(false)
			gap.Reset(l.s.opts.Gap)
		}
	}
}

func (l *line) parseTCP(ctx context.Context, chunks <-chan []byte) error {
	var buf []byte
	for {
		select {
		case <-ctx.Done():
			return nil
		case c, ok := <-chunks:
			if !ok {
				return errReader
			}
			buf = append(buf, c...)
		}
		rest, err := l.takeTCP(ctx, buf)
		if err != nil {
			return err
		}
		buf = rest
	}
}

// takeTCP dispatches the whole requests in buf and returns what is left.
func (l *line) takeTCP(ctx context.Context, buf []byte) (rest []byte, err error) {
	for len(buf) >= 8 {
		n := 6 + int(buf[4])<<8 + int(buf[5])
		if buf[2] != 0 || buf[3] != 0 || n < 8 || n > 260 {
			return nil, errors.New("not a Modbus/TCP request")
		}
		if len(buf) < n {
			break
		}
		l.dispatch(ctx, request{
			id: buf[6], pdu: append([]byte(nil), buf[7:n]...),
			txn: uint16(buf[0])<<8 | uint16(buf[1]), at: time.Now(),
		})
		buf = buf[n:]
	}
	return buf, nil
}

// parseASCII takes what stands between a colon and CR LF; a colon in between
// begins anew.
func (l *line) parseASCII(ctx context.Context, chunks <-chan []byte) error {
	var buf []byte
	for {
		select {
		case <-ctx.Done():
			return nil
		case c, ok := <-chunks:
			if !ok {
				return errReader
			}
			if l.s.echo.Load() {
				if err := l.write(c); err != nil {
					return err
				}
			}
			buf = append(buf, c...)
		}
		for {
			end := bytes.IndexByte(buf, '\n')
			if end < 0 {
				buf = buf[max(0, len(buf)-600):]
				break
			}
			text := buf[:end+1]
			buf = buf[end+1:]
			from := bytes.LastIndexByte(text, ':')
			if id, pdu, ok := unASCII(text[max(0, from):]); from >= 0 && ok {
				l.s.n.discarded.Add(uint64(from))
				l.dispatch(ctx, request{id: id, pdu: pdu, at: time.Now()})
			} else {
				l.s.n.discarded.Add(uint64(len(text)))
			}
		}
	}
}

// dispatch hands a request to its unit's goroutine, which works on one at a
// time as a device does.
func (l *line) dispatch(ctx context.Context, r request) {
	if r.id == 0 && l.s.opts.Framing != TCP {
		// A broadcast is done by all and answered by none (MODBUS Serial Line V1.02 §2.1).
		l.s.n.broadcasts.Add(1)
		for _, u := range l.s.all() {
			u.serve(r.pdu)
		}
		return
	}
	r.unit = l.s.find(r.id)
	if r.unit == nil {
		l.s.n.foreign.Add(1)
		return
	}
	l.s.n.requests.Add(1)
	q := l.queues[r.id]
	if q == nil {
		q = make(chan request, l.s.opts.Queue) // full: the request is lost and counted
		l.queues[r.id] = q
		l.wg.Go(func() { l.unit(ctx, q) })
	}
	select {
	case q <- r:
	default:
		l.s.n.lost.Add(1)
	}
}

func (l *line) unit(ctx context.Context, q <-chan request) {
	for {
		select {
		case <-ctx.Done():
			return
		case r := <-q:
			if l.answer(ctx, r) != nil {
				return // the reader sees the dead line too
			}
		}
	}
}

func (l *line) answer(ctx context.Context, r request) error {
	req := parseRequest(r)
	f, faulty := r.unit.nextFault(req)
	if faulty {
		l.s.n.faults.Add(1)
	}
	if f.Silent || l.s.mute.Load() {
		l.s.n.silent.Add(1)
		return nil
	}
	var pdu []byte
	if f.Exception != 0 {
		pdu = []byte{r.pdu[0] | 0x80, f.Exception}
	} else {
		pdu = r.unit.serve(r.pdu)
	}
	if pdu[0]&0x80 != 0 {
		l.s.n.exceptions.Add(1)
	}
	if f.Delay > 0 && !wait(ctx, f.Delay) {
		return nil
	}
	head, tail := f.apply(l.s.opts.Framing, r, pdu)
	l.s.n.answers.Add(1)
	if f.Hangup && len(tail) == 0 {
		hangUp(l.rw)
		return nil
	}
	if err := l.write(head); err != nil {
		return err
	}
	if f.Hangup {
		hangUp(l.rw)
		return nil
	}
	if len(tail) == 0 {
		return nil
	}
	// Meanwhile another unit may speak: half a frame, then a whole one.
	if !wait(ctx, f.SplitPause) {
		return nil
	}
	return l.write(tail)
}

// hangUp ends a connection as a device does that restarts: with a reset.
func hangUp(rw io.ReadWriter) {
	if t, ok := rw.(interface{ NetConn() net.Conn }); ok { // TLS
		rw = t.NetConn()
	}
	if l, ok := rw.(interface{ SetLinger(sec int) error }); ok {
		_ = l.SetLinger(0)
	}
	if c, ok := rw.(io.Closer); ok {
		_ = c.Close()
	}
}

func (l *line) write(b []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, err := l.rw.Write(b)
	if hungUp(l.rw, err) {
		return nil // and nobody hears it
	}
	return err
}

// wait returns true after d and false when ctx ended first.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
