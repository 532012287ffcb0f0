package server

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/adapters/modbus"
	"holdfast/adapters/modbus/modbustest"
	"holdfast/adapters/port"
)

const char9600 = 10 * time.Second / 9600

// wires are the ends of lines in memory, opened one after the other.
type wires chan modbus.Wire

func (w wires) Open(context.Context) (modbus.Wire, error) {
	select {
	case l := <-w:
		return l, nil
	default:
		return nil, port.ErrUnplugged
	}
}

func (w wires) Wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(time.Second):
		return nil
	}
}

// lineRig is a server of units 17 and 18 on a line in memory; master is its far end.
type lineRig struct {
	s      *Line
	master *modbustest.Line
	wires  wires
	done   []string     // what the handler was asked
	work   atomic.Int64 // how long it takes, in nanoseconds
}

// onLine runs fn with a server on a fake clock.
func onLine(t *testing.T, fn func(t *testing.T, r *lineRig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := &lineRig{wires: make(wires, 1)}
		r.plug()
		handler := handlerFunc(func(_ context.Context, unit byte, pdu, answer []byte) []byte {
			r.done = append(r.done, fmt.Sprintf("%d:%x", unit, pdu))
			<-time.After(time.Duration(r.work.Load()))
			q, e := parse(unit, pdu)
			if e != 0 {
				return refuse(answer, pdu[0], e)
			}
			data := []byte{0x12, 0x34}
			if q.Function != modbus.ReadHoldingRegisters {
				data = nil
			}
			answer, err := q.AppendAnswer(answer, data)
			if err != nil {
				t.Error(err)
			}
			return answer
		})
		var err error
		if r.s, err = NewLine("test", r.wires, char9600, []int{17, 18}, handler, slog.New(slog.DiscardHandler)); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- r.s.Run(ctx) }()
		synctest.Wait()
		fn(t, r)
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
		if r.s.Status().Line.Open {
			t.Error("it is open after its end")
		}
	})
}

func (r *lineRig) plug() {
	var far *modbustest.Line
	r.master, far = modbustest.NewLine(char9600)
	r.wires <- far
}

func (r *lineRig) say(t *testing.T, b ...[]byte) {
	t.Helper()
	for _, p := range b {
		if _, err := r.master.Write(p); err != nil {
			t.Fatal(err)
		}
	}
}

// hears is what comes until the line has been silent for 200 ms.
func (r *lineRig) hears(t *testing.T) []byte {
	t.Helper()
	var all []byte
	for {
		if err := r.master.SetReadDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		var b [64]byte
		n, err := r.master.Read(b[:])
		all = append(all, b[:n]...)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

func (r *lineRig) want(t *testing.T, want []byte) {
	t.Helper()
	if got := r.hears(t); !bytes.Equal(got, want) {
		t.Errorf("got % x, want % x", got, want)
	}
	synctest.Wait()
}

func frame(t testing.TB, unit byte, pdu string) []byte {
	t.Helper()
	return modbus.AppendRTU(nil, unit, unhex(t, pdu))
}

// A request is answered whatever came before it, and nothing else is.
func TestLineAnswers(t *testing.T) {
	read, answer := frame(t, 17, "03 006b 0001"), frame(t, 17, "03 02 1234")
	other := [][]byte{
		frame(t, 5, "03 0000 0004"), frame(t, 5, "03 08 1122334455667788"), frame(t, 5, "06 0001 0002"), frame(t, 5, "06 0001 0002"),
		frame(t, 5, "10 0001 0001 02 1234"), frame(t, 5, "10 0001 0001"), frame(t, 5, "83 02"), frame(t, 5, "16 0001 00ff 0001"),
		frame(t, 5, "2b 0e 01 00"), frame(t, 5, "2b 0e 01 82 00 00 01 00 03 616263"),
		frame(t, 5, "17 0001 0001 0002 0001 02 1234"), frame(t, 5, "17 02 1234"),
	}
	inside := frame(t, 5, "03 08 "+hex.EncodeToString(read)) // that is data
	tests := map[string]struct {
		in   [][]byte
		want []byte
	}{
		"a read":                 {[][]byte{read}, answer},
		"the other unit":         {[][]byte{frame(t, 18, "06 0001 0002")}, frame(t, 18, "06 0001 0002")},
		"a function not known":   {[][]byte{frame(t, 17, "63 01")}, frame(t, 17, "e3 01")},
		"a count that cannot be": {[][]byte{frame(t, 17, "03 0000 0000")}, frame(t, 17, "83 03")},
		"noise before":           {[][]byte{{0, 0xff, 17, 3}, read}, answer},
		"a hurt request before":  {[][]byte{read[:7], {0}, read}, answer},
		"noise behind":           {[][]byte{read, {0}}, answer},
		"more noise behind":      {[][]byte{read, {0xff, 0xff, 0xff}}, nil},
		"another unit":           {[][]byte{frame(t, 19, "03 006b 0001")}, nil},
		"a wrong checksum":       {[][]byte{read[:7], {0}}, nil},
		"others before":          {append(slices.Clip(other), read), answer},
		"what looks like one":    {[][]byte{inside}, nil},
		"a broadcast read":       {[][]byte{frame(t, 0, "03 006b 0001")}, nil},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			onLine(t, func(t *testing.T, r *lineRig) {
				t.Helper()
				r.say(t, tt.in...)
				r.want(t, tt.want)
				if want := min(len(tt.want), 1); len(r.done) != want {
					t.Errorf("done: %v", r.done)
				}
				r.say(t, read)
				r.want(t, answer)
			})
		})
	}
	t.Run("split", func(t *testing.T) {
		onLine(t, func(t *testing.T, r *lineRig) {
			t.Helper()
			for i := range read {
				r.say(t, read[:i])
				<-time.After(16 * time.Millisecond) // an adapter keeps the rest back
				r.say(t, read[i:])
				r.want(t, answer)
			}
			if st := r.s.Status(); st.Requests != 8 || st.Line.Answers != 8 || st.Line.Garbled != 0 || !st.Line.Open {
				t.Errorf("status %+v, %+v", st, st.Line)
			}
		})
	})
}

// The line is silent for 3.5 characters before an answer begins.
func TestLineWaitsForSilence(t *testing.T) {
	onLine(t, func(t *testing.T, r *lineRig) {
		t.Helper()
		start := time.Now()
		r.say(t, frame(t, 17, "03 006b 0001"))
		var b [1]byte
		if err := r.master.SetReadDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
		if _, err := r.master.Read(b[:]); err != nil {
			t.Fatal(err)
		}
		// The line hands over up to 8 characters at a time.
		if took := time.Since(start); took < (8+3)*char9600+char9600/2 || took > 24*char9600 {
			t.Errorf("an answer after %v", took)
		}
		r.hears(t)
	})
}

// When others speak before the line was silent, nobody waits for an answer.
func TestLineSpokenAfter(t *testing.T) {
	onLine(t, func(t *testing.T, r *lineRig) {
		t.Helper()
		r.say(t, frame(t, 17, "03 006b 0001"))
		<-time.After(9 * char9600)
		for _, b := range frame(t, 5, "03 006b 0001") {
			r.say(t, []byte{b})
			<-time.After(char9600)
		}
		r.want(t, nil)
		if st := r.s.Status().Line; len(r.done) != 0 || st.Late != 1 || st.Foreign != 1 {
			t.Errorf("done %v, status %+v", r.done, st)
		}
	})
}

// A broadcast is done and not answered.
func TestLineBroadcast(t *testing.T) {
	onLine(t, func(t *testing.T, r *lineRig) {
		t.Helper()
		r.say(t, frame(t, 0, "06 0001 0002"))
		r.want(t, nil)
		if len(r.done) != 1 || r.done[0] != "17:0600010002" || r.s.Status().Line.Broadcasts != 1 {
			t.Errorf("done %v, status %+v", r.done, r.s.Status().Line)
		}
		r.say(t, []byte{0, 0xff}, frame(t, 0, "06 0001 0002"))
		r.want(t, nil)
		if len(r.done) != 1 {
			t.Errorf("done behind noise: %v", r.done)
		}
	})
}

// An answer that comes back is no request, though that to function 6 looks like it.
func TestLineEcho(t *testing.T) {
	onLine(t, func(t *testing.T, r *lineRig) {
		t.Helper()
		write := frame(t, 17, "06 0001 0002")
		for range 3 {
			r.say(t, write)
			var got []byte
			for len(got) < len(write) {
				var b [8]byte
				if err := r.master.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
					t.Fatal(err)
				}
				n, err := r.master.Read(b[:])
				if err != nil {
					t.Fatal(err)
				}
				r.say(t, b[:n]) // as it comes
				got = append(got, b[:n]...)
			}
			if !bytes.Equal(got, write) {
				t.Fatalf("got % x", got)
			}
			r.want(t, nil)
		}
		if st := r.s.Status().Line; len(r.done) != 3 || st.Echoes != 3 || st.Foreign != 0 {
			t.Errorf("done %v, status %+v", r.done, st)
		}
		// Without an echo, the same again is a request.
		for range 2 {
			r.say(t, write)
			r.want(t, write)
		}
	})
}

// Whoever has given up has no answer: it would be taken for that to another request.
func TestLineLate(t *testing.T) {
	onLine(t, func(t *testing.T, r *lineRig) {
		t.Helper()
		read, write, answer := frame(t, 17, "03 006b 0001"), frame(t, 17, "06 0001 0002"), frame(t, 17, "03 02 1234")
		r.work.Store(int64(1100 * time.Millisecond))
		r.say(t, write)
		<-time.After(500 * time.Millisecond)
		r.say(t, read)
		<-time.After(time.Second)
		r.want(t, nil)
		if st := r.s.Status().Line; len(r.done) != 1 || st.Late != 1 {
			t.Errorf("done %v, status %+v", r.done, st)
		}
		// Asked again while it was busy: only the last is answered.
		r.work.Store(int64(300 * time.Millisecond))
		r.say(t, write)
		<-time.After(200 * time.Millisecond)
		r.say(t, read)
		<-time.After(50 * time.Millisecond)
		r.work.Store(0)
		<-time.After(70 * time.Millisecond)
		r.want(t, answer)
		if st := r.s.Status().Line; st.Late != 2 {
			t.Errorf("status %+v", st)
		}
	})
}

// A line that is unplugged is opened again; one that fails is the supervisor's.
func TestLineUnplugged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		far := make(wires, 1)
		s, err := NewLine("test", far, char9600, []int{17}, echo, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- s.Run(t.Context()) }()
		<-time.After(10 * time.Second)
		if s.Status().Line.Open {
			t.Error("it is open")
		}
		master, slave := modbustest.NewLine(char9600)
		far <- slave
		<-time.After(2 * time.Second)
		if !s.Status().Line.Open {
			t.Error("it is not open")
		}
		_ = master.Close()
		if err := <-ended; err == nil {
			t.Error("it ended without an error")
		}
	})
}

func TestLineUnits(t *testing.T) {
	for _, units := range [][]int{nil, {0}, {1, 248}} {
		if _, err := NewLine("test", nil, char9600, units, echo, slog.New(slog.DiscardHandler)); err == nil {
			t.Errorf("%v passed", units)
		}
	}
}

// Whatever comes and however it is cut: it ends, keeps little, and every request it
// finds stood there with its checksum; one at the end of clean traffic is found.
func FuzzFramer(f *testing.F) {
	f.Add([]byte{}, uint8(3))
	f.Add(frame(f, 17, "03 006b 0001"), uint8(1))
	f.Add(append(frame(f, 5, "03 08 1122334455667788"), frame(f, 17, "10 0001 0001 02 1234")...), uint8(5))
	f.Add(append(frame(f, 0, "06 0001 0002"), frame(f, 17, "63 01")...), uint8(7))
	f.Fuzz(func(t *testing.T, in []byte, cut uint8) {
		fr := framer{sent: frame(t, 17, "06 0001 0002")}
		fr.units[17] = true
		check := func(final bool) {
			for {
				r, ok := fr.next(final)
				if !ok {
					break
				}
				if r.unit != 0 && r.unit != 17 || len(r.pdu) == 0 || !bytes.Contains(in, modbus.AppendRTU(nil, r.unit, r.pdu)) {
					t.Fatalf("%d: % x was not in % x", r.unit, r.pdu, in)
				}
			}
			if len(fr.buf) > kept || final && len(fr.buf) > 0 {
				t.Fatalf("%d bytes are kept", len(fr.buf))
			}
		}
		size := int(cut)%64 + 1
		for rest := in; len(rest) > 0; {
			n := min(size, len(rest))
			fr.buf = append(fr.buf, rest[:n]...)
			rest = rest[n:]
			check(false)
		}
		check(true)
		fr.buf = append(fr.buf, frame(t, 17, "03 006b 0001")...)
		if r, ok := fr.next(false); !ok || r.unit != 17 || !r.aligned {
			t.Fatalf("not found after silence: %+v", r)
		}
	})
}
