package demo

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"holdfast/adapters/modbus/modbustest"
)

// The registers of the meter, and how often it is asked.
const (
	meterUnit  = 1
	meterEvery = 500 * time.Millisecond
)

// meter is a Modbus RTU slave: a flow and a pressure that drift, and a number
// that grows with every poll it answers.
type meter struct {
	plug  plug
	slave *modbustest.Slave
	polls atomic.Uint32
}

func newMeter(name string) (*meter, error) {
	m := &meter{plug: plug{name: name}, slave: modbustest.New(modbustest.Options{})}
	unit := m.slave.Unit(meterUnit)
	unit.OnRead(func(modbustest.Request) {
		n := m.polls.Add(1)
		set := func(addr uint16, v float64) {
			unit.SetHolding(addr, modbustest.Float32(float32(v), "CDAB")...)
		}
		set(100, drift(n, 12.5, 3, 40))
		set(102, drift(n, 2.1, 0.2, 25))
		unit.SetHolding(104, modbustest.Uint32(n, "CDAB")...)
	})
	unit.SetHolding(100, make([]uint16, 6)...) // they exist before the first read
	return m, m.plug.plugIn()
}

// run answers until ctx ends.
func (m *meter) run(ctx context.Context) error {
	if err := m.slave.Serve(ctx, patient{m.plug.file()}); err != nil && ctx.Err() == nil {
		return fmt.Errorf("meter: %w", err)
	}
	return nil
}

// drift goes up and down around middle, once in every so many steps.
func drift(n uint32, middle, swing, steps float64) float64 {
	return middle + swing*math.Sin(2*math.Pi*float64(n)/steps)
}

// speakEvery is the pause between two lines of the sensor.
const speakEvery = 250 * time.Millisecond

// sensor speaks a line at a time, unasked: temperature, humidity and a number.
// While it is unplugged it is silent and does not count.
type sensor struct {
	plug  plug
	lines atomic.Uint32
}

func newSensor(name string) (*sensor, error) {
	s := &sensor{plug: plug{name: name}}
	return s, s.plug.plugIn()
}

// run speaks until ctx ends.
func (s *sensor) run(ctx context.Context) error {
	tick := time.NewTicker(speakEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if f := s.plug.file(); f != nil {
			if err := s.speak(f); err != nil {
				return fmt.Errorf("sensor: %w", err)
			}
		}
	}
}

func (s *sensor) speak(f *os.File) error {
	n := s.lines.Add(1)
	line := fmt.Sprintf("T=%.2f H=%.1f N=%d\r\n", drift(n, 21, 2, 120), drift(n, 48, 6, 90), n)
	// Who does not listen misses the line: it must not hold up the sensor.
	_ = f.SetWriteDeadline(time.Now().Add(speakEvery))
	_, err := f.WriteString(line)
	if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, os.ErrClosed) || errors.Is(err, syscall.EIO) {
		return nil
	}
	return err
}

// field is everything on serial lines.
type field struct {
	meter  *meter
	sensor *sensor
	wg     sync.WaitGroup
	failed chan error // of 2: one for each device
}

// startField plugs the devices in; they run until ctx ends.
func startField(ctx context.Context, meterName, sensorName string) (*field, error) {
	m, err := newMeter(meterName)
	if err != nil {
		return nil, fmt.Errorf("meter: %w", err)
	}
	s, err := newSensor(sensorName)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("sensor: %w", err), m.plug.unplug())
	}
	f := &field{meter: m, sensor: s, failed: make(chan error, 2)}
	for _, run := range []func(context.Context) error{m.run, s.run} {
		f.wg.Go(func() {
			if err := run(ctx); err != nil {
				f.failed <- err
			}
		})
	}
	return f, nil
}

// close waits for the devices, whose ctx has ended, and unplugs them.
func (f *field) close() error {
	f.wg.Wait()
	return errors.Join(f.meter.plug.unplug(), f.sensor.plug.unplug())
}
