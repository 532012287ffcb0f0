package modbus

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/adapters/modbus/modbustest"
)

// newPeerRig is a bus that reaches the slave over the network, which is in
// memory: net.Pipe keeps datagrams apart like UDP.
func newPeerRig(tb testing.TB, po PeerOptions, o Options) *rig {
	tb.Helper()
	r := newRig(tb, o)
	r.slave = modbustest.New(modbustest.Options{Framing: modbustest.TCP})
	p, err := NewPeer(po)
	if err != nil {
		tb.Fatal(err)
	}
	p.call = func(context.Context, string, string) (net.Conn, error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.broken != nil {
			return nil, r.broken
		}
		r.opened++
		near, far := net.Pipe()
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = r.slave.Serve(ctx, far)
			_ = far.Close()
		}()
		return spyConn{Conn: near, rig: r, stop: func() { cancel(); <-done }}, nil
	}
	r.bus.line = p
	return r
}

// spyConn is our end of a connection.
type spyConn struct {
	net.Conn
	rig  *rig
	stop func()
}

func (c spyConn) Write(p []byte) (int, error) {
	if c.rig.onSend != nil {
		c.rig.onSend(p)
	}
	return c.Conn.Write(p)
}

func (c spyConn) Close() error {
	err := c.Conn.Close()
	c.stop()
	return err
}

func peerOptions(device string, pipeline int) PeerOptions {
	o := DefaultPeerOptions()
	o.Device, o.Pipeline = device, pipeline
	return o
}

// The property of TestLateAnswersNeverBecomeValues on ids, where it holds
// without exception: answers of any lateness, also behind each other, doubled,
// with wrong units, functions and ids, with connections that end in the middle.
func TestNoAnswerIsTakenForAnother(t *testing.T) {
	for name, po := range map[string]PeerOptions{
		"tcp":              peerOptions("tcp://plc", 1),
		"tcp, 8 under way": peerOptions("tcp://plc", 8),
		"udp, 3 under way": peerOptions("udp://plc", 3),
	} {
		t.Run(name, func(t *testing.T) { noAnswerIsTakenForAnother(t, po) })
	}
}

func noAnswerIsTakenForAnother(t *testing.T, po PeerOptions) {
	t.Helper()
	exchanges := uint64(35_000) // three kinds of peers: 105 000
	if testing.Short() {
		exchanges = 2000
	}
	synctest.Test(t, func(t *testing.T) {
		const timeout = 200 * time.Millisecond
		epoch := time.Now()
		millis := func() uint64 { return uint64(time.Since(epoch).Milliseconds()) }
		var devices []Device
		for u := 1; u <= 4; u++ {
			d := DefaultDevice()
			d.Name, d.Unit, d.Every, d.Timeout, d.MaxGap = fmt.Sprint("u", u), u, 100*time.Millisecond, timeout, new(0)
			for p := range 4 {
				d.Points = append(d.Points, Point{Name: fmt.Sprint("p", p), Register: fmt.Sprint("holding:", 100*p), Type: "uint64"})
			}
			devices = append(devices, d)
		}
		o := DefaultOptions()
		o.Devices = devices
		r := newPeerRig(t, po, o)
		for id := byte(1); id <= 4; id++ {
			u := r.slave.Unit(id)
			rnd := rand.New(rand.NewPCG(3, uint64(id)))
			u.OnRead(func(q modbustest.Request) {
				v := binary.BigEndian.AppendUint64(nil, uint64(id)<<56|uint64(q.Addr)<<40|millis())
				for i := range 4 {
					u.SetHolding(q.Addr+uint16(i), binary.BigEndian.Uint16(v[2*i:]))
				}
			})
			// In a stream whose bytes are mixed or missing nobody can find the
			// frames; see TestHalfAFrame for what is done about it.
			stream := po.Device != "udp://plc"
			u.FaultFunc(func(modbustest.Request) (f modbustest.Fault) {
				kind := rnd.IntN(40)
				if stream && kind >= 13 {
					kind = 40
				}
				switch kind {
				case 0, 1, 2, 3, 4, 5:
					f.Delay = time.Duration(rnd.Int64N(int64(12 * timeout)))
				case 6:
					f.Silent = true
				case 7:
					f.Exception = byte(1 + rnd.IntN(11))
				case 8:
					f.WrongUnit = byte(1 + rnd.IntN(5))
				case 9:
					f.WrongFunction = byte(1 + rnd.IntN(4))
				case 10:
					f.WrongTransaction = uint16(10_000 + rnd.IntN(40_000)) // not one under way by chance
				case 11:
					f.Twice = true
				case 12:
					f.Echo = true
				case 13:
					f.SplitAfter, f.SplitPause = 1+rnd.IntN(12), time.Duration(rnd.Int64N(int64(2*timeout)))
				case 14:
					f.Cut = 1 + rnd.IntN(12) // what follows makes no frame with it
				case 15:
					f.NoiseBefore = []byte{byte(rnd.IntN(256)), 0, 0, 0}
				}
				if stream && rnd.IntN(50) == 0 {
					f.Hangup, f.SplitAfter = true, rnd.IntN(12)
				}
				return f
			})
		}
		// The id of a request and its answer is looked at by nobody here: what
		// counts is when a value was the register's.
		asked := map[string]uint64{} // by unit and register, the latest request
		r.onSend = func(adu []byte) {
			asked[fmt.Sprint(adu[6], binary.BigEndian.Uint16(adu[8:]))] = millis()
		}
		good := 0
		r.onPut = func(g got) {
			if g.Quality != "good" {
				return
			}
			good++
			number, _ := g.Value.(json.Number)
			v, err := strconv.ParseUint(string(number), 10, 64)
			if err != nil {
				t.Fatalf("value %v of %s/%s: %v", g.Value, g.Device, g.Point, err)
			}
			id, addr, tick := int(v>>56), int(v>>40&0xffff), v&(1<<40-1)
			if g.Device != fmt.Sprint("u", id) || g.Point != fmt.Sprint("p", addr/100) {
				t.Errorf("%s/%s has the value of unit %d register %d", g.Device, g.Point, id, addr)
			}
			if since := asked[fmt.Sprint(id, addr)]; tick < since || tick > millis() {
				t.Errorf("%s/%s at %d ms has the value of %d ms, asked for at %d ms", g.Device, g.Point, millis(), tick, since)
			}
		}
		r.start()
		for r.slave.Stats().Requests < exchanges && !t.Failed() {
			r.after(10 * time.Second)
			select {
			case err := <-r.ended: // the peer hung up too often: the supervisor's turn
				if err == nil {
					t.Fatal("Run ended without an error")
				}
				r.start()
			default:
			}
		}
		r.stop()
		st, s := r.bus.Status(), r.slave.Stats()
		var n unitCounters
		for _, u := range st.Units {
			n.timeouts += u.Timeouts
			n.mismatched += u.Mismatched
			n.exceptions += u.Exceptions
		}
		t.Logf("%d exchanges in %v, %d with a fault: %d good readings; %d timeouts, %d mismatched, %d exceptions, %d late answers, %d foreign frames, %d connections, %d broken",
			s.Requests, time.Since(epoch).Round(time.Second), s.Faults, good, n.timeouts, n.mismatched, n.exceptions,
			st.LateAnswers, st.ForeignFrames, st.Connects, st.BrokenConnections)
		if good < int(exchanges)/4 || n.timeouts == 0 || n.mismatched == 0 || n.exceptions == 0 || st.LateAnswers == 0 || st.ForeignFrames == 0 ||
			po.Device != "udp://plc" && st.BrokenConnections == 0 {
			t.Error("the faults left too little to look at, or one kind did not occur")
		}
	})
}

// The rest of half a frame is not waited for: what comes next would be taken
// for it.
func TestHalfAFrame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newPeerRig(t, peerOptions("tcp://plc", 1), options(meter("m", 1, time.Second, 0, 1, 2, 3)))
		u := r.slave.Unit(1)
		u.SetHolding(0, 1, 2, 3, 4)
		n := 0
		u.FaultFunc(func(modbustest.Request) modbustest.Fault {
			n++
			return modbustest.Fault{Cut: n % 4 / 3 * (1 + n%9)}
		})
		r.start()
		r.after(5 * time.Minute)
		r.stop()
		for i := range 4 {
			for _, v := range r.of(fmt.Sprint("p", i)) {
				if v != fmt.Sprint(i+1, " good") && v != "<nil> bad" {
					t.Errorf("p%d = %s", i, v)
				}
			}
		}
		if st := r.bus.Status(); st.BrokenConnections < 10 || st.Units[0].Answers < 50 {
			t.Errorf("status = %+v, want broken connections and answers all the same", st)
		}
	})
}

// A dead unit behind a gateway that says so, and one behind a gateway that says
// nothing: the others keep their rhythm.
func TestDeadUnitBehindAGateway(t *testing.T) {
	for name, tt := range map[string]struct {
		fault    modbustest.Fault
		pipeline int
		want     int // of 600 readings
	}{
		"path unavailable":          {modbustest.Fault{Exception: 10, Delay: 50 * time.Millisecond}, 1, 595},
		"no answer from the target": {modbustest.Fault{Exception: 11, Delay: 900 * time.Millisecond}, 1, 540},
		"silent":                    {modbustest.Fault{Silent: true}, 1, 540},
		"silent, 4 under way":       {modbustest.Fault{Silent: true}, 4, 598},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newPeerRig(t, peerOptions("tcp://gateway", tt.pipeline), options(
					meter("m", 1, time.Second, 0), meter("n", 2, time.Second, 0), meter("dead", 3, time.Second, 0)))
				r.slave.Unit(1).SetHolding(0, 1)
				r.slave.Unit(2).SetHolding(0, 2)
				r.slave.Unit(3).Fault(tt.fault, -1)
				r.start()
				r.after(5 * time.Minute)
				r.stop()
				m, _ := r.count("m")
				n, bad := r.count("n")
				if m+n < tt.want || bad > 0 {
					t.Errorf("%d good readings of the living, %d bad; want %d and 0", m+n, bad, tt.want)
				}
				if _, bad := r.count("dead"); bad != 1 {
					t.Errorf("the dead unit is said to be bad %d times, want once", bad)
				}
				if st := r.bus.Status(); st.Units[2].State != UnitDown || st.Connects != 1 || st.BrokenConnections != 0 {
					t.Errorf("unit %v, %d connections, %d broken; want down, 1, 0", st.Units[2].State, st.Connects, st.BrokenConnections)
				}
			})
		})
	}
}

// What a peer holds at once is asked at once.
func TestPipeline(t *testing.T) {
	for pipeline, want := range map[int]int{1: 10, 4: 40, 16: 160} {
		synctest.Test(t, func(t *testing.T) {
			var ds []Device
			for u := 1; u <= 16; u++ {
				d := meter(fmt.Sprint("m", u), u, 100*time.Millisecond, 0, 1000)
				ds = append(ds, d)
			}
			o := options(ds...)
			o.WarmUp = 0
			r := newPeerRig(t, peerOptions("tcp://plc", pipeline), o)
			for u := byte(1); u <= 16; u++ {
				r.slave.Unit(u).SetHolding(0, 1)
				r.slave.Unit(u).SetHolding(1000, 1)
				r.slave.Unit(u).Fault(modbustest.Fault{Delay: 100 * time.Millisecond}, -1)
			}
			r.start()
			r.after(10*time.Second + 50*time.Millisecond)
			r.stop()
			if n := int(r.slave.Stats().Answers); n < want*9 || n > want*10+16 {
				t.Errorf("%d under way: %d answers in 10s, want about %d", pipeline, n, want*10)
			}
			if load := r.bus.Status().Load; load < 0 || load > 1 {
				t.Errorf("load = %v", load)
			}
		})
	}
}

// A unit that has not answered yet, or not the last time, has one request under
// way, so that it takes no room from the others.
func TestOnlyOneRequestToASuspect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newPeerRig(t, peerOptions("tcp://plc", 8), options(meter("m", 1, time.Second, 0, 100, 200, 300)))
		u := r.slave.Unit(1)
		for _, a := range []uint16{0, 100, 200, 300} {
			u.SetHolding(a, a)
		}
		r.start()
		r.after(10 * time.Second)
		before := r.unit()
		if before.Answers < 40 || before.Timeouts != 0 {
			t.Fatalf("status = %+v, want 40 answers", before)
		}
		r.slave.SetMute(true)
		r.after(1500 * time.Millisecond) // one cycle is under way, and missed as one
		if st := r.unit(); st.State != UnitSuspect || st.Timeouts != 4 {
			t.Errorf("after one missed cycle: %v with %d timeouts, want suspect with 4", st.State, st.Timeouts)
		}
		r.after(10 * time.Second)
		if st := r.unit(); st.State != UnitDown {
			t.Errorf("then: %v, want down", st.State)
		}
		r.slave.SetMute(false)
		r.after(time.Minute + 15*time.Second)
		if st := r.unit(); st.State != UnitUp {
			t.Errorf("then: %v, want up", st.State)
		}
		r.stop()
	})
}

// Many peers close a connection on which nothing was asked for a while. That is
// no fault: the next request opens another.
func TestPeerClosesIdleConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newPeerRig(t, peerOptions("tcp://plc", 1), options(meter("m", 1, 10*time.Second, 0)))
		r.slave.Unit(1).SetHolding(0, 5)
		p := r.bus.line.(*Peer)
		dial := p.call
		p.call = func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := dial(ctx, network, addr)
			if err == nil {
				time.AfterFunc(4*time.Second, func() { _ = c.(spyConn).Conn.SetReadDeadline(time.Now()) })
			}
			return hungUpConn{c}, err
		}
		r.start()
		r.after(time.Minute - time.Second)
		r.stop()
		st := r.bus.Status()
		if good, bad := r.count("m"); good != 6 || bad != 0 || st.Connects != 6 || st.BrokenConnections != 0 || st.Units[0].Timeouts != 0 {
			t.Errorf("%d good, %d bad, status %+v; want 6 readings over 6 connections", good, bad, st)
		}
	})
}

// hungUpConn says EOF where its Conn says that a deadline has passed.
type hungUpConn struct{ net.Conn }

func (c hungUpConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil {
		err = io.EOF
	}
	return n, err
}

func TestIdleClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		po := peerOptions("tcp://plc", 1)
		po.IdleClose = 2 * time.Second
		r := newPeerRig(t, po, options(meter("m", 1, 10*time.Second, 0)))
		r.slave.Unit(1).SetHolding(0, 5)
		r.start()
		r.after(time.Minute - time.Second)
		r.stop()
		st := r.bus.Status()
		if good, bad := r.count("m"); good != 6 || bad != 0 || st.Connects != 6 || st.BrokenConnections != 0 {
			t.Errorf("%d good, %d bad, %d connections, %d broken; want 6, 0, 6, 0", good, bad, st.Connects, st.BrokenConnections)
		}
	})
}

// A unit at which the peer hangs up costs itself, not the others: some gateways
// do that for units they do not know.
func TestPeerThatHangsUpAtOneUnit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newPeerRig(t, peerOptions("tcp://gateway", 1), options(meter("m", 1, time.Second, 0), meter("bad", 2, time.Second, 0)))
		r.slave.Unit(1).SetHolding(0, 5)
		r.slave.Unit(2).Fault(modbustest.Fault{Hangup: true}, -1)
		r.start()
		r.after(5 * time.Minute)
		r.stop()
		if good, bad := r.count("m"); good < 299 || bad != 0 {
			t.Errorf("%d good and %d bad readings, want 299 and 0", good, bad)
		}
		st := r.bus.Status()
		if st.Units[1].State != UnitDown || st.BrokenConnections < 5 || !strings.Contains(st.Units[1].LastError, "the connection ended") {
			t.Errorf("status = %+v, want unit 2 down, its connections broken", st)
		}
	})
}

// A peer that takes calls and ends them is as good as gone: the bus ends, and is
// run again after a pause.
func TestPeerThatOnlyHangsUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newPeerRig(t, peerOptions("tcp://plc", 1), options(meter("m", 1, time.Second, 0)))
		r.slave.Unit(1).Fault(modbustest.Fault{Hangup: true}, -1)
		r.start()
		err := <-r.ended
		if err == nil || !strings.Contains(err.Error(), "ended 3 connections without an answer") {
			t.Errorf("Run = %v", err)
		}
		r.mu.Lock()
		r.broken = errors.New("connection refused")
		r.mu.Unlock()
		r.start()
		if err := <-r.ended; !errors.Is(err, r.broken) {
			t.Errorf("Run = %v, want %v", err, r.broken)
		}
		if st := r.bus.Status(); st.Open || st.LastError != "connection refused" {
			t.Errorf("status = %+v", st)
		}
		r.slave.Unit(1).SetHolding(0, 1)
		r.slave.Unit(1).Fault(modbustest.Fault{}, 0)
		r.mu.Lock()
		r.broken = nil
		r.mu.Unlock()
		r.start()
		r.after(10 * time.Second)
		r.stop()
		if good, _ := r.count("m"); good < 8 {
			t.Errorf("%d good readings after the peer came back, want 8", good)
		}
	})
}

// A thousand requests without an answer: another connection frees their ids.
func TestSilentIDsAreBounded(t *testing.T) {
	s := &session{p: &Peer{}, silent: map[uint16]bool{}, conn: &conn{}}
	s.flying = []asked{{id: 7}}
	s.silent[8], s.silent[9] = true, true
	s.next = 6
	if id := s.id(); id != 10 {
		t.Errorf("id = %d, want 10: 7 is under way, 8 and 9 may still be answered", id)
	}
	s.next = 1<<16 - 1
	if id := s.id(); id != 0 {
		t.Errorf("id = %d, want 0", id)
	}
	synctest.Test(t, func(t *testing.T) {
		d := meter("m", 1, 20*time.Millisecond, 0)
		d.Timeout = 10 * time.Millisecond
		r := newPeerRig(t, peerOptions("tcp://plc", 1), options(d))
		u := r.slave.Unit(1)
		u.SetHolding(0, 1)
		n := 0
		u.FaultFunc(func(modbustest.Request) modbustest.Fault {
			n++
			return modbustest.Fault{Silent: n%3 > 0}
		})
		r.start()
		r.after(10 * time.Minute)
		r.stop()
		st := r.bus.Status()
		if st.Units[0].Timeouts < 2*maxSilent || st.Connects < 2 || st.Connects > 2+st.Units[0].Timeouts/maxSilent {
			t.Errorf("%d timeouts over %d connections, want another one every %d", st.Units[0].Timeouts, st.Connects, maxSilent)
		}
	})
}

func TestMBAPFrames(t *testing.T) {
	frame := AppendMBAP(nil, 0x1234, 17, []byte{3, 0, 1, 0, 2})
	if want := []byte{0x12, 0x34, 0, 0, 0, 6, 17, 3, 0, 1, 0, 2}; !slices.Equal(frame, want) {
		t.Fatalf("AppendMBAP = % x, want % x", frame, want)
	}
	for i := range frame {
		if _, _, _, n, err := ParseMBAP(frame[:i]); n != 0 || err != nil {
			t.Errorf("of %d bytes: %d, %v, want more", i, n, err)
		}
	}
	id, unit, pdu, n, err := ParseMBAP(append(frame, 9, 9))
	if id != 0x1234 || unit != 17 || !slices.Equal(pdu, frame[7:]) || n != len(frame) || err != nil {
		t.Errorf("ParseMBAP = %#x, %d, % x, %d, %v", id, unit, pdu, n, err)
	}
	for name, bad := range map[string][]byte{
		"another protocol": {0, 0, 0, 1, 0, 6, 1, 3, 0, 0, 0, 1},
		"only a unit":      {0, 0, 0, 0, 0, 1, 1},
		"too long":         {0, 0, 0, 0, 0, 255, 1, 3},
	} {
		if _, _, _, _, err := ParseMBAP(bad); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v, want ErrMalformed", name, err)
		}
	}
}

func FuzzParseMBAP(f *testing.F) {
	for _, g := range goldenFrames(f) {
		f.Add(AppendMBAP(nil, 7, g.unit, g.answer[1:len(g.answer)-2]))
	}
	f.Add([]byte{0, 0, 0, 0, 0, 2, 1, 3})
	f.Fuzz(func(t *testing.T, in []byte) {
		id, unit, pdu, n, err := ParseMBAP(in)
		if err != nil || n == 0 {
			if n != 0 || pdu != nil {
				t.Errorf("n %d, pdu % x beside %v", n, pdu, err)
			}
			return
		}
		if got := AppendMBAP(nil, id, unit, pdu); !slices.Equal(got, in[:n]) {
			t.Errorf("% x was read and is written % x", in[:n], got)
		}
	})
}

func TestPeerOptions(t *testing.T) {
	good := map[string]string{
		"tcp://10.0.0.5":           "10.0.0.5:502",
		"tcp://plc.local:1502":     "plc.local:1502",
		"tls://plc":                "plc:802",
		"udp://[fe80::1%eth0]:502": "[fe80::1%eth0]:502",
		"udp://[fe80::1]":          "[fe80::1]:502",
		"rtu+tcp://converter:4001": "converter:4001",
	}
	for device, addr := range good {
		p, err := NewPeer(PeerOptions{Device: device})
		if err != nil || p.addr != addr {
			t.Errorf("%s: %+v, %v, want %s", device, p, err, addr)
		}
	}
	for _, device := range []string{
		"", "/dev/ttyUSB0", "http://plc", "tcp://", "tcp://:502", "tcp://plc:0", "tcp://plc:70000", "tcp://plc:modbus",
		"rtu+tcp://converter", "tcp://plc:502/1", "tcp://user@plc", "tcp://a b", "tcp://[::zz]:502",
	} {
		if err := (PeerOptions{Device: device}).Validate(); err == nil || !strings.HasPrefix(err.Error(), "device: ") {
			t.Errorf("%q: %v, want an error about the device", device, err)
		}
	}
	with := func(device string, change func(*PeerOptions)) PeerOptions {
		o := peerOptions(device, 1)
		change(&o)
		return o
	}
	for want, o := range map[string]PeerOptions{
		"ca_file: means nothing to a tcp:// peer":          with("tcp://a", func(o *PeerOptions) { o.CAFile = "x" }),
		"insecure: means nothing to a udp:// peer":         with("udp://a", func(o *PeerOptions) { o.Insecure = true }),
		"idle_close: means nothing to a udp:// peer":       with("udp://a", func(o *PeerOptions) { o.IdleClose = time.Minute }),
		"pipeline: means nothing to a rtu+tcp:// peer":     with("rtu+tcp://a:1", func(o *PeerOptions) { o.Pipeline = 2 }),
		"pipeline: 17 is outside 1..16":                    with("tcp://a", func(o *PeerOptions) { o.Pipeline = 17 }),
		"dial_timeout: 1ms is outside 100ms..1m":           with("tcp://a", func(o *PeerOptions) { o.DialTimeout = time.Millisecond }),
		"tcp_keep_alive: 1ms is outside 1s..2h":            with("tcp://a", func(o *PeerOptions) { o.TCPKeepAlive = time.Millisecond }),
		"idle_close: 1ms is neither 0s nor within 1s..24h": with("tcp://a", func(o *PeerOptions) { o.IdleClose = time.Millisecond }),
		"key_file: is missing beside cert_file":            with("tls://a", func(o *PeerOptions) { o.CertFile = "x" }),
		"cert_file: is missing beside key_file":            with("tls://a", func(o *PeerOptions) { o.KeyFile = "x" }),
	} {
		if err := o.Validate(); err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}
