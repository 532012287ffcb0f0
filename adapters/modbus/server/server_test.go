package server

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"holdfast/adapters/modbus"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what takes no time.
const patience = 30 * time.Second

// handlerFunc is a Handler.
type handlerFunc func(ctx context.Context, unit byte, pdu, answer []byte) []byte

func (f handlerFunc) Handle(ctx context.Context, unit byte, pdu, answer []byte) []byte {
	return f(ctx, unit, pdu, answer)
}

// echo answers with what it was asked.
var echo = handlerFunc(func(_ context.Context, _ byte, pdu, answer []byte) []byte { return append(answer, pdu...) })

// serve runs a server on a loopback port until the end of the test.
func serve(t *testing.T, o Options, h Handler) (s *Server, address string) {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s, err = New("test", o, func(context.Context) ([]net.Listener, error) { return []net.Listener{l}, nil }, h, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
		if n := s.Status().Connections; n != 0 {
			t.Errorf("%d connections are left", n)
		}
	})
	return s, l.Addr().String()
}

func dial(t *testing.T, address string) net.Conn {
	t.Helper()
	c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return c
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// expect reads exactly that.
func expect(t *testing.T, c net.Conn, want string) {
	t.Helper()
	w := unhex(t, want)
	got := make([]byte, len(w))
	if _, err := io.ReadFull(c, got); err != nil {
		t.Fatalf("read: %v after % x, want % x", err, got, w)
	}
	if !bytes.Equal(got, w) {
		t.Fatalf("got % x, want % x", got, w)
	}
}

func send(t *testing.T, c net.Conn, s string) {
	t.Helper()
	if _, err := c.Write(unhex(t, s)); err != nil {
		t.Fatal(err)
	}
}

// closed waits for the other side to close.
func closed(t *testing.T, c net.Conn) {
	t.Helper()
	if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("read %d bytes, %v, want a closed connection", n, err)
	} else if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
		t.Error("the connection is still open")
	}
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); <-time.After(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not so: %s", what)
		}
	}
}

// Requests sent ahead are answered in their order, however the bytes are cut.
func TestRequestsSentAhead(t *testing.T) {
	s, address := serve(t, defaultOptions(), echo)
	c := dial(t, address)
	one, two, three := "0001 0000 0006 11 03 006b 0003", "0002 0000 0003 12 2b0e", "0003 0000 0002 00 07"
	send(t, c, one+two+three)
	expect(t, c, one+two+three)
	for _, b := range unhex(t, one+two) {
		if _, err := c.Write([]byte{b}); err != nil {
			t.Fatal(err)
		}
	}
	expect(t, c, one+two)
	many := strings.Repeat(one, 1000)
	all, sent := unhex(t, many), make(chan error, 1)
	go func() {
		_, err := c.Write(all)
		sent <- err
	}()
	expect(t, c, many)
	if err := <-sent; err != nil {
		t.Error(err)
	}
	if st := s.Status(); st.Requests != 1005 || st.Accepted != 1 {
		t.Errorf("status %+v", st)
	}
}

// What is not Modbus ends the connection, and nothing else.
func TestNoModbus(t *testing.T) {
	s, address := serve(t, defaultOptions(), echo)
	other := dial(t, address)
	for _, bytes := range []string{"474554202f20485454502f312e310d0a0d0a", "0001 0000 0001 00", "0001 0000 ffff 00", "0001 0001 0002 00 00"} {
		c := dial(t, address)
		send(t, c, bytes)
		closed(t, c)
	}
	send(t, other, "0009 0000 0002 01 03")
	expect(t, other, "0009 0000 0002 01 03")
	if st := s.Status(); st.Malformed != 4 || st.Accepted != 5 {
		t.Errorf("status %+v", st)
	}
}

// Half a request does not keep a connection alive.
func TestSilentConnectionIsClosed(t *testing.T) {
	o := defaultOptions()
	o.IdleTimeout = time.Second
	s, address := serve(t, o, echo)
	c := dial(t, address)
	send(t, c, "0001 0000 0006")
	closed(t, c)
	until(t, "it counts as idle", func() bool { return s.Status().Idle == 1 })
}

// More masters than may be there are turned away, and those there are served.
func TestFlood(t *testing.T) {
	o := defaultOptions()
	o.MaxConnections = 4
	s, address := serve(t, o, echo)
	var served []net.Conn
	for range 4 {
		c := dial(t, address)
		send(t, c, "0001 0000 0002 01 03")
		expect(t, c, "0001 0000 0002 01 03")
		served = append(served, c)
	}
	var flood sync.WaitGroup
	for range 100 {
		flood.Go(func() {
			c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", address)
			if err != nil {
				return
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(patience))
			_, _ = c.Read(make([]byte, 1))
		})
	}
	flood.Wait()
	for _, c := range served {
		send(t, c, "0001 0000 0002 01 03")
		expect(t, c, "0001 0000 0002 01 03")
	}
	if st := s.Status(); st.Connections != 4 || st.Full != 100 || st.Accepted != 4 {
		t.Errorf("status %+v", st)
	}
	// One that has been silent has to go for another.
	s.mu.Lock()
	for c := range s.conns {
		if c.RemoteAddr().String() == served[2].LocalAddr().String() {
			c.last = c.last.Add(-displaceable)
		}
	}
	s.mu.Unlock()
	c := dial(t, address)
	send(t, c, "0001 0000 0002 01 03")
	expect(t, c, "0001 0000 0002 01 03")
	closed(t, served[2])
	if st := s.Status(); st.Displaced != 1 || st.Connections != 4 {
		t.Errorf("status %+v", st)
	}
}

// A master that reads no answers is let go, and costs the others nothing.
func TestMasterThatDoesNotRead(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for the timeout of a write")
	}
	big := handlerFunc(func(_ context.Context, _ byte, _, answer []byte) []byte { return append(answer, make([]byte, 253)...) })
	s, address := serve(t, defaultOptions(), big)
	deaf := dial(t, address)
	go func() {
		request := unhex(t, strings.Repeat("0001 0000 0002 01 03", 1000))
		for {
			if _, err := deaf.Write(request); err != nil {
				return
			}
		}
	}()
	until(t, "its requests are being answered", func() bool { return s.Status().Requests > 1000 })
	c := dial(t, address)
	send(t, c, "0001 0000 0002 01 03")
	if _, err := io.ReadFull(c, make([]byte, 260)); err != nil {
		t.Error(err)
	}
	until(t, "it is let go", func() bool { return s.Status().Connections == 1 })
}

func TestAllow(t *testing.T) {
	for allow, ok := range map[string]bool{"127.0.0.0/8": true, "127.0.0.1": true, "10.0.0.0/8": false, "::1": false} {
		o := defaultOptions()
		o.Allow = []string{allow}
		s, address := serve(t, o, echo)
		c := dial(t, address)
		if !ok {
			closed(t, c)
			if st := s.Status(); st.Refused != 1 {
				t.Errorf("allow %s: status %+v", allow, st)
			}
			continue
		}
		send(t, c, "0001 0000 0002 01 03")
		expect(t, c, "0001 0000 0002 01 03")
	}
}

func TestOptionsOutOfRange(t *testing.T) {
	for key, change := range map[string]func(*Options){
		"allow[0]: ":        func(o *Options) { o.Allow = []string{"localhost"} },
		"max_connections: ": func(o *Options) { o.MaxConnections = 0 },
		"idle_timeout: ":    func(o *Options) { o.IdleTimeout = 0 },
	} {
		o := defaultOptions()
		change(&o)
		if _, err := New("x", o, nil, echo, slog.New(slog.DiscardHandler)); err == nil || !strings.HasPrefix(err.Error(), key) {
			t.Errorf("%s%v", key, err)
		}
	}
	for key, change := range map[string]func(*GatewayOptions){
		"units[0]: ":       func(o *GatewayOptions) { o.Units = []int{0} },
		"unit_map: ":       func(o *GatewayOptions) { o.UnitMap = map[string]int{"x": 1} },
		"unit_map.7: ":     func(o *GatewayOptions) { o.UnitMap = map[string]int{"7": 300} },
		"write_units[0]: ": func(o *GatewayOptions) { o.WriteUnits = []int{-1} },
		"functions[0]: ":   func(o *GatewayOptions) { o.Functions = []int{8} },
		"max_wait: ":       func(o *GatewayOptions) { o.MaxWait = 0 },
	} {
		o := DefaultGatewayOptions()
		change(&o)
		if err := o.Validate(); err == nil || !strings.HasPrefix(err.Error(), key) {
			t.Errorf("%s%v", key, err)
		}
	}
}

// A request is passed on as it is, and what becomes of it comes back.
func TestGateway(t *testing.T) {
	o := DefaultGatewayOptions()
	o.UnitMap, o.WriteUnits = map[string]int{"101": 1}, []int{0, 2}
	var asked modbus.Request
	var data []byte
	var outcome error
	g, err := NewGateway(o, func(_ context.Context, r modbus.Request) ([]byte, error) {
		asked = r
		return data, outcome
	})
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		unit    byte
		pdu     string
		data    string
		outcome error
		want    string
		at      byte // the unit asked; 0: none was
	}{
		"a read":                   {1, "03 0000 0002", "00010002", nil, "03 04 00010002", 1},
		"another number":           {101, "04 0000 0001", "0007", nil, "04 02 0007", 1},
		"identification":           {1, "2b 0e 01 00", "01 01 00 00 01 00 01 41", nil, "2b 0e 01 01 00 00 01 00 01 41", 1},
		"a write":                  {2, "06 0001 0003", "", nil, "06 0001 0003", 2},
		"a write to another unit":  {1, "06 0001 0003", "", nil, "86 01", 0},
		"a broadcast":              {0, "06 0001 0003", "", nil, "", 0},
		"a read of nobody":         {0, "03 0001 0001", "", nil, "83 0a", 0},
		"a unit that cannot be":    {255, "03 0001 0001", "", nil, "83 0a", 0},
		"a function nobody knows":  {1, "08 0000 0000", "", nil, "88 01", 0},
		"too many registers":       {1, "03 0000 007e", "", nil, "83 03", 0},
		"one byte":                 {1, "03", "", nil, "83 03", 0},
		"the unit refuses":         {1, "03 0000 0001", "", &modbus.ExceptionError{Function: 3, Code: 2}, "83 02", 1},
		"it is silent":             {1, "03 0000 0001", "", modbus.ErrNoAnswer, "83 0b", 1},
		"it is down":               {1, "03 0000 0001", "", modbus.ErrDown, "83 0b", 1},
		"it is garbled":            {1, "03 0000 0001", "", modbus.ErrGarbled, "83 0b", 1},
		"the line is busy":         {1, "03 0000 0001", "", modbus.ErrBusy, "83 06", 1},
		"the line has no time":     {1, "03 0000 0001", "", context.DeadlineExceeded, "83 06", 1},
		"the line is not there":    {1, "03 0000 0001", "", modbus.ErrNotOpen, "83 0a", 1},
		"the line is lost":         {1, "03 0000 0001", "", modbus.ErrLost, "83 0b", 1},
		"an answer that cannot be": {1, "03 0000 0002", "00", nil, "83 0b", 1},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			asked, data, outcome = modbus.Request{}, unhex(t, tt.data), tt.outcome
			got := g.Handle(t.Context(), tt.unit, unhex(t, tt.pdu), nil)
			if !bytes.Equal(got, unhex(t, tt.want)) {
				t.Errorf("got % x, want %s", got, tt.want)
			}
			if asked.Unit != tt.at {
				t.Errorf("asked %v, want unit %d", asked, tt.at)
			}
		})
	}
}

// Whatever comes has an answer that answers it, or none.
func FuzzGateway(f *testing.F) {
	f.Add(byte(1), []byte{3, 0, 0, 0, 2})
	f.Add(byte(0), []byte{6, 0, 1, 0, 2})
	o := DefaultGatewayOptions()
	o.WriteUnits = []int{0, 1}
	g, err := NewGateway(o, func(_ context.Context, r modbus.Request) ([]byte, error) {
		if r.Unit > 1 {
			return nil, modbus.ErrNoAnswer
		}
		return make([]byte, 2*int(r.Count)), nil
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, unit byte, pdu []byte) {
		if len(pdu) > 0 && len(pdu) <= 253 {
			judge(t, unit, pdu, g.Handle(t.Context(), unit, pdu, nil))
		}
	})
}

// judge says whether an answer is one.
func judge(t *testing.T, unit byte, pdu, answer []byte) {
	t.Helper()
	if len(answer) == 0 {
		if unit != 0 {
			t.Errorf("% x to unit %d has no answer", pdu, unit)
		}
		return
	}
	if len(answer) == 2 && answer[0] == pdu[0]|0x80 {
		return
	}
	r, err := modbus.ParseRequest(unit, pdu)
	if err != nil {
		t.Fatalf("% x, which is no request, has the answer % x", pdu, answer)
	}
	if _, err := r.ParseAnswer(answer); err != nil || len(answer) > 253 {
		t.Errorf("% x has the answer % x: %v", pdu, answer, err)
	}
}
