package modbus

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/adapters/modbus/modbustest"
)

func readHolding(unit byte, addr, n uint16) Request {
	return Request{Unit: unit, Function: ReadHoldingRegisters, Addr: addr, Count: n}
}

func writeHolding(unit byte, addr, v uint16) Request {
	return Request{Unit: unit, Function: WriteSingleRegister, Addr: addr, Count: 1, Data: binary.BigEndian.AppendUint16(nil, v)}
}

func TestDo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, options(meter("m", 1, time.Second, 0)))
		r.slave.Unit(1).SetHolding(0, 7, 8)
		r.slave.Unit(9).SetHolding(5, 42) // not configured
		ctx := t.Context()
		if _, err := r.bus.Do(ctx, readHolding(1, 0, 2)); !errors.Is(err, ErrNotOpen) {
			t.Errorf("before the line is open: %v, want ErrNotOpen", err)
		}
		r.start()
		r.after(300 * time.Millisecond)
		data, err := r.bus.Do(ctx, readHolding(1, 0, 2))
		if want := []byte{0, 7, 0, 8}; err != nil || !bytes.Equal(data, want) {
			t.Errorf("Do = % x, %v, want % x", data, err, want)
		}
		if data, err = r.bus.Do(ctx, readHolding(9, 5, 1)); err != nil || !bytes.Equal(data, []byte{0, 42}) {
			t.Errorf("Do of a unit that is not configured = % x, %v, want 00 2a", data, err)
		}
		if _, err = r.bus.Do(ctx, writeHolding(1, 1, 99)); err != nil || r.slave.Unit(1).Holding(1) != 99 {
			t.Errorf("after Do = %v the register is %d, want 99", err, r.slave.Unit(1).Holding(1))
		}
		_, err = r.bus.Do(ctx, readHolding(1, 100, 1))
		if refusal, ok := errors.AsType[*ExceptionError](err); !ok || refusal.Code != IllegalDataAddress {
			t.Errorf("Do of an address that is not there = %v, want exception 2", err)
		}
		if _, err = r.bus.Do(ctx, Request{Unit: 1, Function: 99}); !errors.Is(err, ErrMalformed) {
			t.Errorf("Do of an unknown function = %v, want ErrMalformed", err)
		}
		gone, cancel := context.WithCancel(ctx)
		cancel()
		if _, err = r.bus.Do(gone, readHolding(1, 0, 1)); !errors.Is(err, context.Canceled) {
			t.Errorf("Do with a context that has ended = %v", err)
		}
		r.stop()
		if _, err := r.bus.Do(ctx, readHolding(1, 0, 1)); !errors.Is(err, ErrNotOpen) {
			t.Errorf("after the bus has stopped: %v, want ErrNotOpen", err)
		}
		want := RequestStatus{Taken: 4, Answered: 3, Exceptions: 1, NotOpen: 2}
		if got := r.bus.Status().Asked; got != want {
			t.Errorf("status %+v, want %+v", got, want)
		}
	})
}

// The functions that only requests from outside use, against the slave.
func TestDoWithFunctionsOfTwoKinds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, options(meter("m", 1, time.Minute, 0)))
		u := r.slave.Unit(1)
		u.SetHolding(0, 0x12, 1, 2, 3)
		u.SetIdentity("ACME", "X1", "1.0", "https://acme.example", "Meter")
		r.start()
		r.after(300 * time.Millisecond)
		// V1.1b3 §6.16: (0x12 AND 0xF2) OR (0x25 AND NOT 0xF2) = 0x17.
		if _, err := r.bus.Do(t.Context(), Request{Unit: 1, Function: MaskWriteRegister, Count: 1, Data: []byte{0, 0xf2, 0, 0x25}}); err != nil || u.Holding(0) != 0x17 {
			t.Errorf("mask write: %v, register %#x, want 0x17", err, u.Holding(0))
		}
		data, err := r.bus.Do(t.Context(), Request{Unit: 1, Function: ReadWriteRegisters, Addr: 0, Count: 3, WriteAddr: 1, Data: []byte{0, 8, 0, 9}})
		if want := []byte{0, 0x17, 0, 8, 0, 9}; err != nil || !bytes.Equal(data, want) {
			t.Errorf("read/write = % x, %v, want % x", data, err, want)
		}
		objects, err := Identify(t.Context(), r.bus.Do, 1, IdentifyRegular)
		var got []string
		for _, o := range objects {
			got = append(got, o.Name()+"="+string(o.Value))
		}
		want := []string{"VendorName=ACME", "ProductCode=X1", "MajorMinorRevision=1.0", "VendorUrl=https://acme.example", "ProductName=Meter"}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("Identify = %q, %v, want %q", got, err, want)
		}
		r.stop()
	})
}

// A broadcast is for all, has no answer, and leaves the line alone for the
// turnaround.
func TestBroadcast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := options(meter("m", 1, time.Minute, 0))
		o.Turnaround = 300 * time.Millisecond
		r := newRig(t, o)
		for id := byte(1); id <= 2; id++ {
			r.slave.Unit(id).SetHolding(0, 7)
		}
		r.start()
		r.after(time.Second)
		begin := time.Now()
		if _, err := r.bus.Do(t.Context(), writeHolding(0, 0, 9)); err != nil || r.slave.Unit(1).Holding(0) != 9 || r.slave.Unit(2).Holding(0) != 9 {
			t.Errorf("broadcast: %v, registers %d and %d, want 9", err, r.slave.Unit(1).Holding(0), r.slave.Unit(2).Holding(0))
		}
		if d := time.Since(begin); d < o.Turnaround || d > o.Turnaround+50*time.Millisecond {
			t.Errorf("it took %v, want the turnaround of %v", d, o.Turnaround)
		}
		if _, err := r.bus.Do(t.Context(), readHolding(0, 0, 1)); !errors.Is(err, ErrMalformed) {
			t.Errorf("a broadcast that reads: %v, want ErrMalformed", err)
		}
		if data, err := r.bus.Do(t.Context(), readHolding(2, 0, 1)); err != nil || !bytes.Equal(data, []byte{0, 9}) {
			t.Errorf("afterwards % x, %v", data, err)
		}
		r.stop()
	})
}

// Polls that are due go on at two thirds of their rate and more, whatever is
// asked from outside, and who asks has a third of the bus.
func TestRequestsFromOutsideHaveTheirShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		polls := func(askers int) (rate float64, asked int) {
			r := newRig(t, options(meter("m", 1, 10*time.Millisecond, 0, 20), meter("n", 1, 10*time.Millisecond, 0, 20)))
			r.slave.Unit(1).SetHolding(0, 7)
			r.slave.Unit(1).SetHolding(20, 7)
			r.start()
			r.after(time.Second)
			before, _ := r.count("m")
			ctx, cancel := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			var done atomic.Int64
			for range askers {
				wg.Go(func() {
					for ctx.Err() == nil {
						if _, err := r.bus.Do(ctx, readHolding(1, 0, 1)); err == nil {
							done.Add(1)
						}
					}
				})
			}
			r.after(15 * time.Second)
			cancel()
			wg.Wait()
			good, _ := r.count("m")
			r.stop()
			if st := r.bus.Status().Asked; askers > 0 && st.Deferred == 0 {
				t.Errorf("status %+v: none was deferred", st)
			}
			return float64(good - before), int(done.Load())
		}
		alone, _ := polls(0)
		beside, asked := polls(8)
		if beside < 0.62*alone || float64(asked) < 0.28*alone {
			t.Errorf("polls %v alone, %v beside %d requests from outside, want at least 62%% and 28%%", alone, beside, asked)
		}
	})
}

// A unit that is down costs nobody anything: requests to it fail at once.
func TestDoToADownUnitFailsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, options(meter("m", 1, time.Second, 0), meter("dead", 2, time.Second, 0)))
		r.slave.Unit(1).SetHolding(0, 7)
		r.start()
		r.after(10 * time.Second)
		begin := time.Now()
		if _, err := r.bus.Do(t.Context(), writeHolding(2, 0, 1)); !errors.Is(err, ErrDown) || !time.Now().Equal(begin) {
			t.Errorf("Do = %v after %v, want ErrDown at once", err, time.Since(begin))
		}
		// One that is not configured has three chances, and then a pause.
		var errs []string
		for range 5 {
			_, err := r.bus.Do(t.Context(), readHolding(77, 0, 1))
			errs = append(errs, fmt.Sprint(errors.Is(err, ErrNoAnswer), errors.Is(err, ErrDown)))
		}
		if want := strings.Split("true false,true false,true false,false true,false true", ","); !slices.Equal(errs, want) {
			t.Errorf("no answer, down: %q, want %q", errs, want)
		}
		r.slave.Unit(77).SetHolding(0, 5)
		r.after(2 * time.Second)
		if data, err := r.bus.Do(t.Context(), readHolding(77, 0, 1)); err != nil || !bytes.Equal(data, []byte{0, 5}) {
			t.Errorf("when its time has come: % x, %v", data, err)
		}
		r.stop()
		if st := r.bus.Status(); st.Asked.Down != 3 || len(st.Units) != 2 {
			t.Errorf("status %+v, want 3 requests refused, 2 units", st)
		}
	})
}

// A unit that keeps silent about one thing is not taken out of the schedule for
// it, and its late answer is nobody's value.
func TestSilenceToARequestFromOutside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, options(meter("m", 1, time.Second, 0)))
		u := r.slave.Unit(1)
		u.SetHolding(0, 7)
		u.SetHolding(50, 666)
		u.FaultFunc(func(q modbustest.Request) modbustest.Fault {
			if q.Addr == 50 {
				return modbustest.Fault{Delay: 1100 * time.Millisecond} // later than the timeout
			}
			return modbustest.Fault{}
		})
		r.start()
		r.after(300 * time.Millisecond)
		for range 10 {
			if data, err := r.bus.Do(t.Context(), readHolding(1, 50, 1)); !errors.Is(err, ErrNoAnswer) {
				t.Errorf("Do = % x, %v, want ErrNoAnswer", data, err)
			}
		}
		r.after(3 * time.Second)
		r.stop()
		good, bad := r.count("m")
		if good < 8 || bad != 0 || slices.Contains(r.of("p0"), "666 good") {
			t.Errorf("%d good and %d bad readings, want 8 at least and 0: %q", good, bad, r.of("p0"))
		}
		if st := r.unit(); st.State != UnitUp {
			t.Errorf("unit is %v, want up", st.State)
		}
	})
}

// The queue is bounded, what is taken back is never sent, and what goes to one
// unit keeps its order.
func TestRequestsFromOutsideWaitInABoundedQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, options(meter("m", 1, 24*time.Hour, 0)))
		u := r.slave.Unit(1)
		u.SetHolding(0, 7)
		var mu sync.Mutex
		var sent []uint16
		u.OnWrite(func(q modbustest.Request) {
			mu.Lock()
			sent = append(sent, u.Holding(q.Addr))
			mu.Unlock()
		})
		r.start()
		r.after(time.Second)
		r.slave.Unit(2) // slow to answer: everybody waits
		r.slave.Unit(2).SetHolding(0, 1)
		r.slave.Unit(2).Fault(modbustest.Fault{Delay: 900 * time.Millisecond}, -1)
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = r.bus.Do(t.Context(), readHolding(2, 0, 1)) })
		synctest.Wait()
		short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		results := make([]error, maxAsks+3)
		for i := range results {
			ctx := t.Context()
			if i%4 == 3 {
				ctx = short
			}
			wg.Go(func() { _, results[i] = r.bus.Do(ctx, writeHolding(1, 0, uint16(i))) })
			synctest.Wait()
		}
		wg.Wait()
		var want []uint16
		for i, err := range results {
			switch {
			case i >= maxAsks:
				if !errors.Is(err, ErrBusy) {
					t.Errorf("request %d: %v, want ErrBusy", i, err)
				}
			case i%4 == 3:
				if !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("request %d: %v, want its deadline", i, err)
				}
			default:
				want = append(want, uint16(i))
				if err != nil {
					t.Errorf("request %d: %v", i, err)
				}
			}
		}
		mu.Lock()
		if !slices.Equal(sent, want) {
			t.Errorf("written %v, want %v", sent, want)
		}
		mu.Unlock()
		r.stop()
		if st := r.bus.Status().Asked; st.Busy != 3 || st.GivenUp != maxAsks/4 || st.Waiting != 0 {
			t.Errorf("status %+v, want 3 busy, %d given up", st, maxAsks/4)
		}
	})
}

// When the line goes, what waits was not sent and what is under way may have
// been carried out: both are told at once, and told apart.
func TestTheLineIsLostUnderARequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, options(meter("m", 1, time.Hour, 0)))
		r.slave.Unit(1).SetHolding(0, 7)
		r.start()
		r.after(time.Second)
		r.slave.SetMute(true)
		var wg sync.WaitGroup
		var first, second error
		wg.Go(func() { _, first = r.bus.Do(t.Context(), writeHolding(1, 0, 1)) })
		synctest.Wait()
		wg.Go(func() { _, second = r.bus.Do(t.Context(), writeHolding(1, 0, 2)) })
		synctest.Wait()
		begin := time.Now()
		r.mu.Lock()
		far := r.far
		r.mu.Unlock()
		_ = far.Close()
		wg.Wait()
		if !errors.Is(first, ErrLost) || !errors.Is(second, ErrNotOpen) || time.Since(begin) > time.Millisecond {
			t.Errorf("errors after %v: %v; %v; want ErrLost and ErrNotOpen at once", time.Since(begin), first, second)
		}
		if err := <-r.ended; err == nil {
			t.Error("Run has no error")
		}
		r.cancel()
	})
}
