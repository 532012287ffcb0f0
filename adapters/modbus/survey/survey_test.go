package survey

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"holdfast/adapters/modbus"
	"holdfast/adapters/modbus/modbustest"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

type oneWire struct{ w modbus.Wire }

func (l oneWire) Open(context.Context) (modbus.Wire, error) { return l.w, nil }
func (l oneWire) Wait(context.Context) error                { return os.ErrClosed }

// connect connects to a slave over a line in memory.
func connect(t *testing.T, slave *modbustest.Slave) *modbus.Client {
	t.Helper()
	master, far := modbustest.NewLine(time.Millisecond)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = slave.Serve(ctx, far) }) // it ends with ctx
	c, err := modbus.Connect(ctx, modbus.Options{CharTime: time.Millisecond, Prefix: "p"}, oneWire{master}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
		cancel()
		wg.Wait()
	})
	return c
}

// Each unit that is there is found as itself, also one whose answer comes when
// others have been asked, and one whose answers are damaged; no other is.
func TestScanFindsEachUnitAsItself(t *testing.T) {
	for delay := 0 * time.Millisecond; delay <= 900*time.Millisecond; delay += 90 * time.Millisecond {
		synctest.Test(t, func(t *testing.T) {
			slave := modbustest.New(modbustest.Options{})
			slave.Unit(3).SetHolding(0, 1)
			slave.Unit(9) // refuses
			late := slave.Unit(17)
			late.SetHolding(0, 2)
			late.Fault(modbustest.Fault{Delay: delay}, -1)
			hurt := slave.Unit(30)
			hurt.SetHolding(0, 3)
			hurt.Fault(modbustest.Fault{CorruptCRC: true}, 1)
			c := connect(t, slave)
			var units []byte
			for u := byte(1); u <= 40; u++ {
				units = append(units, u)
			}
			last, of := 0, 0
			found, err := Scan(t.Context(), c.DoWithin, ScanOptions{
				Units: units, Timeout: 50 * time.Millisecond, Patience: time.Second,
				Heard: func() uint64 { s := c.Status(); return s.StrayBytes + s.ForeignFrames },
				Progress: func(done, all, _ int) {
					last, of = done, all
				},
			})
			var got []byte
			for _, s := range found {
				got = append(got, s.Unit)
			}
			if want := []byte{3, 9, 17, 30}; err != nil || !slices.Equal(got, want) {
				t.Errorf("with answers after %v: Scan = %v, %v, want %v", delay, got, err, want)
			}
			if last != of || of < len(units) {
				t.Errorf("progress ended with %d of %d", last, of)
			}
			for _, s := range found {
				if code, refused := errors.AsType[*modbus.ExceptionError](s.Err); (s.Unit == 9) != refused {
					t.Errorf("unit %d: %v, %v", s.Unit, code, s.Err)
				}
			}
		})
	}
}

func TestScanEndsWithItsLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := connect(t, modbustest.New(modbustest.Options{}))
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		_, err := Scan(t.Context(), c.DoWithin, ScanOptions{Units: []byte{1, 2}, Timeout: time.Second, Heard: func() uint64 { return 0 }})
		if !errors.Is(err, modbus.ErrNotOpen) {
			t.Errorf("Scan = %v, want ErrNotOpen", err)
		}
	})
}

// A unit that keeps silent to what it does not know is given up soon, and what it
// said before is kept.
func TestIdentifyGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slave := modbustest.New(modbustest.Options{})
		u := slave.Unit(1)
		u.SetIdentity("Maker", "Model", "1")
		u.FaultFunc(func(r modbustest.Request) modbustest.Fault {
			return modbustest.Fault{Silent: r.Function != byte(modbus.ReadDeviceID)}
		})
		c := connect(t, slave)
		start := time.Now()
		id, err := Identify(t.Context(), c.DoWithin, 1, nil, time.Second)
		if err != nil || id.String() != "Maker Model 1" || id.SunSpec != "" {
			t.Errorf("Identify = %+v, %v", id, err)
		}
		if d := time.Since(start); d > 15*time.Second {
			t.Errorf("it took %v", d)
		}
	})
}

func TestExplain(t *testing.T) {
	for code := range modbus.Exception(15) {
		if Explain(&modbus.ExceptionError{Code: code}) == "" {
			t.Errorf("exception %d is not explained", code)
		}
	}
	if got := Explain(modbus.ErrNoAnswer); !strings.Contains(got, "unit number") {
		t.Errorf("no answer: %q", got)
	}
	if got := Explain(os.ErrClosed); got != "" {
		t.Errorf("what says all itself: %q", got)
	}
}

// Every type is tried in every order, and what is no value is nil.
func TestValues(t *testing.T) {
	at, err := modbus.ParseRegister("holding:10")
	if err != nil {
		t.Fatal(err)
	}
	values := Values(at, []byte{0x41, 0x48, 0, 0, 0x7f, 0xc0, 0, 0})
	find := func(register, typ, order string) any {
		for _, v := range values {
			if v.Register == register && v.Type == typ && v.Order == order {
				return v.Value
			}
		}
		t.Errorf("no %s as %s %s", register, typ, order)
		return nil
	}
	if got := find("holding:10", "float32", "ABCD"); got != 12.5 {
		t.Errorf("float32 = %v, want 12.5", got)
	}
	if got := find("holding:11", "float32", "CDAB"); got != nil { // NaN
		t.Errorf("NaN = %v, want nil", got)
	}
	if got := find("holding:10", "ascii", ""); got != "AH" {
		t.Errorf("ascii = %v", got)
	}
	find("holding:10", "uint64", "GHEFCDAB")
}
