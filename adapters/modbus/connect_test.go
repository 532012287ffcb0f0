package modbus

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/adapters/modbus/modbustest"
)

// oneWire is a line that is there once.
type oneWire struct{ w Wire }

func (l oneWire) Open(context.Context) (Wire, error) { return l.w, nil }
func (l oneWire) Wait(context.Context) error         { return errors.New("gone") }

// clientOf connects to a slave over a line in memory.
func clientOf(t *testing.T, slave *modbustest.Slave) *Client {
	t.Helper()
	master, far := modbustest.NewLine(time.Millisecond)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = slave.Serve(ctx, far) }) // it ends with ctx
	c, err := Connect(ctx, Options{CharTime: time.Millisecond, Prefix: "p"}, oneWire{master}, slog.New(slog.DiscardHandler))
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

func TestClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slave := modbustest.New(modbustest.Options{})
		slave.Unit(5).SetHolding(0, 42)
		c := clientOf(t, slave)
		data, err := c.Do(t.Context(), readHolding(5, 0, 1))
		if err != nil || !bytes.Equal(data, []byte{0, 42}) {
			t.Errorf("Do = % x, %v", data, err)
		}
		if err := c.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
		if _, err := c.Do(t.Context(), readHolding(5, 0, 1)); !errors.Is(err, ErrNotOpen) {
			t.Errorf("Do after Close = %v, want ErrNotOpen", err)
		}
	})
}

// A request that waits longer than its unit would has the longer quarantine too:
// an answer that is later still is not taken for the next one.
func TestLongTimeoutHasItsQuarantine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slave := modbustest.New(modbustest.Options{})
		u := slave.Unit(5)
		u.SetHolding(0, 1)
		u.SetHolding(1, 2)
		c := clientOf(t, slave)
		u.Fault(modbustest.Fault{Delay: 4 * time.Second}, 1)
		if _, err := c.DoWithin(t.Context(), readHolding(5, 0, 1), 3*time.Second); !errors.Is(err, ErrNoAnswer) {
			t.Fatalf("DoWithin = %v, want no answer", err)
		}
		data, err := c.Do(t.Context(), readHolding(5, 1, 1))
		if err != nil || !bytes.Equal(data, []byte{0, 2}) {
			t.Errorf("Do = % x, %v, want the register asked for and not the late one", data, err)
		}
	})
}

// What is written by hand is verified, whatever part of its register it is.
func TestChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slave := modbustest.New(modbustest.Options{})
		u := slave.Unit(5)
		u.SetHolding(0, 0xff00, 0, 0)
		u.SetCoil(0, false)
		c := clientOf(t, slave)
		for name, x := range map[string]struct {
			o    Point
			text string
			want any
		}{
			"bit":    {Point{Register: "holding:0.3"}, "on", true},
			"float":  {Point{Register: "holding:1", Type: "float32", Order: "CDAB"}, "-2.5", -2.5},
			"coil":   {Point{Register: "coil:0"}, "1", true},
			"scaled": {Point{Register: "holding:1", Type: "int16", Scale: 0.1}, "-3.7", -3.7},
			"text":   {Point{Register: "holding:1", Type: "string", Length: 2}, "abc", "abc"},
		} {
			x.o.Name = "v"
			change, err := NewChange(5, x.o, "", x.text)
			if err != nil {
				t.Errorf("%s: NewChange = %v", name, err)
				continue
			}
			// Only now is it known that what comes back is no echo.
			if _, _, err := change.Read(t.Context(), c.DoWithin, 0); err != nil {
				t.Errorf("%s: Read = %v", name, err)
			}
			if err := change.Write(t.Context(), c.DoWithin, 0); err != nil {
				t.Errorf("%s: Write = %v", name, err)
			}
			if v, same, err := change.Read(t.Context(), c.DoWithin, 0); v != x.want || !same || err != nil {
				t.Errorf("%s: Read = %v, %v, %v, want %v", name, v, same, err, x.want)
			}
		}
		if got := u.Holding(0); got != 0xff08 {
			t.Errorf("the register of the bit is %04x, want ff08", got)
		}
		if _, err := NewChange(5, Point{Name: "v", Register: "holding:0"}, "", "70000"); err == nil {
			t.Error("a value that does not fit was taken")
		}
	})
}
