package modbus

import (
	"encoding/json"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"holdfast/adapters/modbus/modbustest"
)

// exchanges is how many requests one case of the property tests makes: with the
// 100 cases of each of two lines it is 100,000.
const exchanges = 500

// The promise of this package. However late or garbled the answers, a value
// published as good is the value that the register had between the request and
// the answer. Left out are answers later than the quarantine, second copies
// that come after the next request, and a unit that speaks late in another's
// name: RTU has nothing to know them by (see the package documentation). Left out
// is also chance: of noise that looks like an answer, 1 in 65536 has a CRC that
// fits, so the noise here never holds the function code.
func TestALateAnswerIsNeverAnotherValue(t *testing.T) {
	t.Parallel()
	for name, echo := range map[string]bool{"a line without echo": false, "a line that echoes": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var all tally
			rapid.Check(t, func(rt *rapid.T) {
				faults := rapid.SliceOfN(rapid.Custom(serialFault), exchanges, exchanges).Draw(rt, "faults")
				one := tally{}
				synctest.Test(t, func(t *testing.T) { one = runFaults(t, faults, echo) })
				if one.wrong != "" {
					rt.Fatal(one.wrong)
				}
				all.add(one)
			})
			t.Logf("%d exchanges: %d good readings, %d bad; %d timeouts, %d garbled, %d mismatched, %d exceptions, %d foreign frames, %d stray bytes",
				all.requests, all.good, all.bad, all.timeouts, all.garbled, all.mismatched, all.exceptions, all.foreign, all.stray)
			if all.good < all.requests/4 || all.timeouts == 0 || all.garbled == 0 || all.mismatched == 0 || all.exceptions == 0 || all.foreign == 0 {
				t.Error("the faults left too little to look at, or one kind did not occur")
			}
		})
	}
}

// tally is what came of some exchanges.
type tally struct {
	wrong                                     string // the first reading that breaks the promise
	requests, good, bad                       uint64
	timeouts, garbled, mismatched, exceptions uint64
	foreign, stray                            uint64
}

func (a *tally) add(b tally) {
	a.requests += b.requests
	a.good += b.good
	a.bad += b.bad
	a.timeouts += b.timeouts
	a.garbled += b.garbled
	a.mismatched += b.mismatched
	a.exceptions += b.exceptions
	a.foreign += b.foreign
	a.stray += b.stray
}

// promiseTimeout is the timeout of the units in the property tests.
const promiseTimeout = time.Second

// runFaults polls five units which answer with these faults, one after another.
// The units differ in nothing but their address, and neither do their blocks,
// so that each answer fits each question; some are read together now and then.
func runFaults(t *testing.T, faults []modbustest.Fault, echo bool) (out tally) {
	t.Helper()
	var ds []Device
	for id := 11; id <= 15; id++ {
		d := DefaultDevice()
		d.Name, d.Unit, d.Every, d.Timeout = fmt.Sprint("u", id), id, time.Duration(id-10)*100*time.Millisecond, promiseTimeout
		for i, addr := range []int{0, 4, 100, 200} {
			d.Points = append(d.Points, Point{
				Name: fmt.Sprint("p", addr), Register: fmt.Sprint("holding:", addr), Type: "uint64", Every: time.Duration(1+i) * d.Every,
			})
		}
		ds = append(ds, d)
	}
	r := newRig(t, options(ds...))
	r.slave.SetEcho(echo)

	epoch := time.Now()
	millis := func() uint64 { return uint64(time.Since(epoch) / time.Millisecond) }
	var mu sync.Mutex
	next := 0                    // guarded by mu; the next fault
	asked := map[string]uint64{} // guarded by mu; when, by device: the latest request
	for id := byte(11); id <= 15; id++ {
		u := r.slave.Unit(id)
		// A register holds who it is and when it is looked at.
		u.OnRead(func(q modbustest.Request) {
			for addr := q.Addr; addr < q.Addr+q.Count; addr += 4 {
				v := uint64(id)<<56 | uint64(addr)<<40 | millis()
				u.SetHolding(addr, uint16(v>>48), uint16(v>>32), uint16(v>>16), uint16(v))
			}
		})
		u.FaultFunc(func(modbustest.Request) modbustest.Fault {
			mu.Lock()
			defer mu.Unlock()
			if next == len(faults) {
				return modbustest.Fault{}
			}
			next++
			return faults[next-1]
		})
	}
	r.onSend = func(adu []byte) {
		mu.Lock()
		defer mu.Unlock()
		asked[fmt.Sprint("u", adu[0])] = millis()
	}
	r.onPut = func(g got) {
		if g.Quality != "good" {
			out.bad++
			return
		}
		out.good++
		mu.Lock()
		from := asked[g.Device]
		mu.Unlock()
		number, _ := g.Value.(json.Number)
		v, err := strconv.ParseUint(string(number), 10, 64)
		who := fmt.Sprintf("u%d/p%d", v>>56, v>>40&0xffff)
		tick := v & (1<<40 - 1)
		if err != nil || who != g.Device+"/"+g.Point || tick < from || tick > millis() {
			out.wrong = fmt.Sprintf("%s/%s, asked for at %d ms and published at %d ms, has the value %v: that of %s at %d ms",
				g.Device, g.Point, from, millis(), g.Value, who, tick)
		}
	}
	r.start()
	for r.slave.Stats().Requests < uint64(len(faults)) {
		r.after(10 * time.Second)
	}
	r.stop()
	st := r.bus.Status()
	out.requests, out.foreign, out.stray = r.slave.Stats().Requests, st.ForeignFrames, st.StrayBytes
	for _, u := range st.Units {
		out.timeouts += u.Timeouts
		out.garbled += u.Garbled
		out.mismatched += u.Mismatched
		out.exceptions += u.Exceptions
	}
	return out
}

// serialFault is nothing in about half of the cases, else one or two things at once.
func serialFault(t *rapid.T) (f modbustest.Fault) {
	if rapid.IntRange(0, 2).Draw(t, "faulty") == 0 {
		return f
	}
	within := func(d time.Duration, label string) time.Duration {
		return time.Duration(rapid.Int64Range(0, int64(d/time.Microsecond)-1).Draw(t, label)) * time.Microsecond
	}
	noise := func(label string) []byte {
		b := rapid.SliceOfN(rapid.Byte(), 1, 30).Draw(t, label)
		for i, x := range b {
			// Half of it bytes that frames are made of.
			if x >= 0x80 {
				b[i] = []byte{11, 12, 13, 14, 15, 0, 2, 8, 0x83, 0x10}[x%10]
			}
			if b[i] == byte(ReadHoldingRegisters) {
				b[i] = 4
			}
		}
		return b
	}
	// Later than this it is not known whose answer it is.
	const latest = 29 * promiseTimeout / 10
	for range rapid.IntRange(1, 2).Draw(t, "things") {
		switch rapid.IntRange(0, 14).Draw(t, "what") {
		case 0, 1, 2:
			f.Delay = within(latest, "delay")
		case 3:
			f.Silent = true
		case 4:
			f.CorruptCRC = true
		case 5:
			f.CorruptData = true
		case 6:
			f.Cut = rapid.IntRange(1, 12).Draw(t, "cut")
		case 7:
			f.NoiseBefore = noise("noise before")
		case 8:
			f.NoiseAfter = noise("noise after")
		case 9:
			f.Exception = byte(rapid.IntRange(1, 11).Draw(t, "exception"))
		case 10:
			f.WrongUnit = byte(rapid.IntRange(11, 15).Draw(t, "unit"))
		case 11:
			f.WrongFunction = byte(rapid.IntRange(1, 4).Draw(t, "function"))
		case 12:
			f.Twice = true
		case 13:
			f.Echo = true
		case 14:
			f.SplitAfter = rapid.IntRange(1, 12).Draw(t, "split")
			f.SplitPause = within(promiseTimeout, "pause")
		}
	}
	if f.Delay+f.SplitPause > latest {
		f.Delay = 0
	}
	if f.WrongUnit != 0 {
		f.Delay, f.SplitAfter, f.SplitPause = 0, 0, 0
	}
	if f.Twice {
		f.SplitAfter, f.SplitPause = 0, 0
	}
	return f
}
