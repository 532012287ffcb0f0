package server

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/adapters/reading"
)

// writes notes what is written, and fails as it is told.
type writes struct {
	mu   sync.Mutex
	done []string
	err  error
	wait bool
	read any
}

func (w *writes) Write(ctx context.Context, device, point string, value any) (any, error) {
	w.mu.Lock()
	w.done = append(w.done, fmt.Sprintf("%s/%s=%v", device, point, value))
	err, waits := w.err, w.wait
	w.mu.Unlock()
	if waits {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return w.read, err
}

func plant() RegistersOptions {
	o := DefaultRegistersOptions()
	o.Registers = []Register{
		{Device: "boiler", Point: "flow", Register: "input:100", Type: "float32", Quality: "input:102", Age: "input:103"},
		{Device: "boiler", Point: "level", Register: "input:104", Type: "int16", Scale: 0.1},
		{Device: "boiler", Point: "level", Register: "input:200", Type: "int16", WhenBad: Hold, Quality: "input:201"},
		{Device: "boiler", Point: "level", Register: "input:300", WhenBad: ByFailing},
		{Device: "boiler", Point: "setpoint", Register: "holding:10", Type: "float32", Write: true},
		{Device: "boiler", Point: "mode", Register: "holding:12", Write: true},
		{Device: "boiler", Point: "flow", Register: "holding:13", Type: "float64"},
		{Device: "boiler", Point: "pump", Register: "coil:0", Write: true},
		{Device: "boiler", Point: "valve", Register: "coil:1", Write: true, Invalid: new(int64(0))},
		{Device: "boiler", Point: "alarm", Register: "discrete:7"},
	}
	return o
}

func registers(t testing.TB, o RegistersOptions, w Writer) *Registers {
	t.Helper()
	r, err := NewRegisters("test", o, Identity{Version: "1.2", Name: "gw"}, w, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestRegisters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &writes{}
		r := registers(t, plant(), w)
		ask := func(pdu, want string) {
			t.Helper()
			if got := r.Handle(t.Context(), 1, unhex(t, pdu), nil); !bytes.Equal(got, unhex(t, want)) {
				t.Errorf("%s: got % x, want %s", pdu, got, want)
			}
		}
		put := func(point string, value any, q reading.Quality) {
			r.Put(time.Now(), reading.Reading{Device: "boiler", Point: point, Value: value, Quality: q})
		}
		// Nothing is known yet.
		ask("04 0064 0005", "04 0a 7fc00000 0003 ffff 8000")
		ask("04 00c8 0002", "04 04 8000 0003")
		ask("04 012c 0001", "84 04")
		ask("01 0000 0001", "81 04")
		ask("01 0001 0001", "01 01 00")
		ask("02 0007 0001", "82 04")
		ask("16 000c fff0 0001", "96 04")

		put("flow", 21.5, reading.Good)
		put("level", int64(7), reading.Uncertain)
		put("mode", uint64(0x1234), reading.Good)
		put("pump", true, reading.Good)
		put("valve", int64(1), reading.Good)
		put("alarm", false, reading.Good)
		put("nobody", 1.0, reading.Good)
		<-time.After(90 * time.Second)
		ask("04 0064 0005", "04 0a 41ac0000 0000 005a 0046")
		ask("04 00c8 0002", "04 04 0007 0001")
		ask("04 012c 0001", "04 02 0007")
		ask("01 0000 0002", "01 01 03")
		ask("02 0007 0001", "02 01 00")
		ask("03 000d 0004", "03 08 4035800000000000")

		// A value is read whole, and nothing where there is none.
		for _, pdu := range []string{"04 0065 0002", "04 0064 0001", "04 0063 0003", "04 0064 0006", "04 0000 0001", "04 ffff 0001"} {
			ask(pdu, "84 02")
		}
		ask("01 0000 0003", "81 02")
		ask("04 0064 007e", "84 03")
		ask("04 0064 0000", "84 03")
		ask("04 0064", "84 03")
		ask("07", "87 01")
		ask("08 0000 1234", "88 01")
		ask("64 0000", "e4 01")

		// A bad value.
		put("flow", nil, reading.Good)
		put("level", int64(9), reading.Bad)
		ask("04 0064 0005", "04 0a 7fc00000 0002 005a 8000")
		ask("04 00c8 0002", "04 04 0007 0002")
		ask("04 012c 0001", "84 04")
		put("level", 1e9, reading.Good) // does not fit, and is no other
		ask("04 00c8 0002", "04 04 0007 0002")
		put("flow", 1.0, reading.Good)
		put("level", 2.0, reading.Good)
		ask("04 0064 0005", "04 0a 3f800000 0000 0000 0014")

		// The device is away, and back.
		r.SetDevice("boiler", false)
		ask("04 0064 0003", "04 06 7fc00000 0002")
		r.SetDevice("boiler", true)
		ask("04 0064 0003", "04 06 3f800000 0000")
		r.RemoveDevice("boiler")
		ask("04 0064 0003", "04 06 7fc00000 0002")
		put("flow", 1.0, reading.Good)
		ask("04 0064 0003", "04 06 3f800000 0000")

		// Old, and very old.
		<-time.After(10*time.Minute + time.Second)
		ask("04 0064 0004", "04 08 7fc00000 0002 0259")
		<-time.After(48 * time.Hour)
		ask("04 0067 0001", "04 02 fffe")

		// Identification: all, the basic part, one, one that is not there.
		ask("2b 0e 01 00", "2b 0e 01 82 00 00 03 00 08 486f6c6466617374 01 08 686f6c6466617374 02 03 312e32")
		ask("2b 0e 02 02", "2b 0e 02 82 00 00 02 02 03 312e32 06 02 6777")
		ask("2b 0e 04 06", "2b 0e 04 82 00 00 01 06 02 6777")
		ask("2b 0e 04 05", "ab 02")
		ask("2b 0e 03 77", "2b 0e 03 82 00 00 04 00 08 486f6c6466617374 01 08 686f6c6466617374 02 03 312e32 06 02 6777")
		ask("2b 0d 00", "ab 03")
		if st := r.Status(); st.Updates != 24 || st.Unfit != 3 || st.Never+st.Bad+st.Good+st.Uncertain != 10 {
			t.Errorf("status %+v", st)
		}
		if len(w.done) > 0 {
			t.Errorf("written: %v", w.done)
		}
	})
}

func TestRegistersWrite(t *testing.T) {
	tests := map[string]struct {
		pdu, want string
		err       error
		wait      bool
		done      string
		read      any
	}{
		"a coil":                          {pdu: "05 0000 ff00", want: "05 0000 ff00", done: "[boiler/pump=true]"},
		"coils":                           {pdu: "0f 0000 0002 01 02", want: "0f 0000 0002", done: "[boiler/pump=false boiler/valve=true]"},
		"a register":                      {pdu: "06 000c 0007", want: "06 000c 0007", done: "[boiler/mode=7]"},
		"registers":                       {pdu: "10 000a 0003 06 41ac0000 0009", want: "10 000a 0003", done: "[boiler/mode=9 boiler/setpoint=21.5]"},
		"bits of one":                     {pdu: "16 000c ff00 00ff", want: "16 000c ff00 00ff", done: "[boiler/mode=4863]"},
		"and read":                        {pdu: "17 000c 0001 000c 0001 02 0005", want: "17 02 1234", done: "[boiler/mode=5]"},
		"and read back":                   {pdu: "17 000c 0001 000c 0001 02 0005", want: "17 02 0005", read: json.Number("5"), done: "[boiler/mode=5]"},
		"half of one":                     {pdu: "06 000a 41ac", want: "86 02"},
		"its other half":                  {pdu: "10 000b 0002 04 00000009", want: "90 02"},
		"one that is only read":           {pdu: "10 000d 0004 08 4035800000000000", want: "90 02"},
		"and one that is only read":       {pdu: "10 000c 0002 04 00090000", want: "90 02"},
		"bits of one that is not there":   {pdu: "16 0063 ff00 00ff", want: "96 02"},
		"bits of a part":                  {pdu: "16 000a ff00 00ff", want: "96 02"},
		"what stands for nothing":         {pdu: "10 000a 0003 06 7fc00000 0009", want: "90 03"},
		"what is no coil":                 {pdu: "05 0000 1200", want: "85 03"},
		"none":                            {pdu: "10 000c 0000 00", want: "90 03"},
		"refused":                         {pdu: "06 000c 0007", want: "86 03", err: fmt.Errorf("%w: no", ErrRefused), done: "[boiler/mode=7]"},
		"failed":                          {pdu: "06 000c 0007", want: "86 04", err: errors.New("no"), done: "[boiler/mode=7]"},
		"nobody answers":                  {pdu: "06 000c 0007", want: "86 04", wait: true, done: "[boiler/mode=7]"},
		"not read when it is not written": {pdu: "17 000c 0001 000d 0001 02 0005", want: "97 02"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := &writes{err: tt.err, wait: tt.wait, read: tt.read}
				r := registers(t, plant(), w)
				r.Put(time.Now(), reading.Reading{Device: "boiler", Point: "mode", Value: int64(0x1234)})
				got := r.Handle(t.Context(), 1, unhex(t, tt.pdu), nil)
				if !bytes.Equal(got, unhex(t, tt.want)) {
					t.Errorf("got % x, want %s", got, tt.want)
				}
				slices.Sort(w.done)
				if done := fmt.Sprint(w.done); done != tt.done && (tt.done != "" || len(w.done) > 0) {
					t.Errorf("written %s, want %s", done, tt.done)
				}
			})
		})
	}
}

func TestRegistersFillGapsAndUnits(t *testing.T) {
	o := plant()
	o.FillGaps, o.Units = true, []int{1, 255}
	r := registers(t, o, nil)
	r.Put(time.Now(), reading.Reading{Device: "boiler", Point: "level", Value: int64(1)})
	for pdu, want := range map[string]string{
		"04 00c6 0004": "04 08 ffff ffff 0001 0000",
		"04 00ca 0002": "84 02", // nothing there at all
		"01 0001 0004": "01 01 00",
		"04 0063 0002": "84 02", // half of one
	} {
		if got := r.Handle(t.Context(), 255, unhex(t, pdu), nil); !bytes.Equal(got, unhex(t, want)) {
			t.Errorf("%s: got % x, want %s", pdu, got, want)
		}
	}
	if got := r.Handle(t.Context(), 2, unhex(t, "04 00c8 0001"), nil); !bytes.Equal(got, unhex(t, "84 0b")) {
		t.Errorf("another unit: % x", got)
	}
	// Without somebody to write to nothing is.
	if got := r.Handle(t.Context(), 1, unhex(t, "06 000c 0001"), nil); !bytes.Equal(got, unhex(t, "86 02")) {
		t.Errorf("a write: % x", got)
	}
}

// A value of several registers is never of two moments.
func TestRegistersReadIsOfOneMoment(t *testing.T) {
	o := DefaultRegistersOptions()
	o.Registers = []Register{
		{Device: "d", Point: "a", Register: "input:0", Type: "uint64"},
		{Device: "d", Point: "a", Register: "input:4", Type: "uint64", Order: "DCBA"},
	}
	r := registers(t, o, nil)
	stop := make(chan struct{})
	var writing sync.WaitGroup
	writing.Go(func() {
		for i := uint64(0); ; i++ {
			select {
			case <-stop:
				return
			default:
				r.Put(time.Now(), reading.Reading{Device: "d", Point: "a", Value: i%255*0x0101010101010101 + 1})
			}
		}
	})
	for range 2000 {
		got := r.Handle(t.Context(), 1, unhex(t, "04 0000 0004"), nil)
		v := binary.BigEndian.Uint64(got[2:]) - 1
		if v+1 != ^uint64(0) && v%0x0101010101010101 != 0 {
			t.Fatalf("torn: % x", got)
		}
	}
	close(stop)
	writing.Wait()
}

func TestRegistersOutOfRange(t *testing.T) {
	for key, change := range map[string]func(*RegistersOptions){
		"max_age: ":               func(o *RegistersOptions) { o.MaxAge = time.Millisecond },
		"when_bad: ":              func(o *RegistersOptions) { o.WhenBad = "0" },
		"write_timeout: ":         func(o *RegistersOptions) { o.WriteTimeout = 0 },
		"units[0]: ":              func(o *RegistersOptions) { o.Units = []int{256} },
		"idle_timeout: ":          func(o *RegistersOptions) { o.IdleTimeout = 0 },
		"register[0].device: ":    func(o *RegistersOptions) { o.Registers[0].Device = "a/b" },
		"register[1].point: ":     func(o *RegistersOptions) { o.Registers[1].Point = "" },
		"register[1].register: ":  func(o *RegistersOptions) { o.Registers[1].Register = "input:101" },
		"register[0].quality: ":   func(o *RegistersOptions) { o.Registers[0].Quality = "coil:1" },
		"register[0].age: ":       func(o *RegistersOptions) { o.Registers[0].Age = "input:x" },
		"register[2].age: ":       func(o *RegistersOptions) { o.Registers[2].Age = "input:102" },
		"register[0].write: ":     func(o *RegistersOptions) { o.Registers[0].Write = true },
		"register[0].when_bad: ":  func(o *RegistersOptions) { o.Registers[0].WhenBad = "x" },
		"register[0].max_age: ":   func(o *RegistersOptions) { o.Registers[0].MaxAge = -1 },
		"register[0].type: ":      func(o *RegistersOptions) { o.Registers[0].Type = "uint8" },
		"register[7].invalid: ":   func(o *RegistersOptions) { o.Registers[7].Invalid = new(int64(2)) },
		"register[1].invalid[0]:": func(o *RegistersOptions) { o.Registers[1].Invalid = new(int64(1 << 20)) },
	} {
		o := plant()
		change(&o)
		if err := o.Validate(); err == nil || !strings.HasPrefix(err.Error(), key) {
			t.Errorf("%s%v", key, err)
		}
	}
}

// Whatever comes has an answer that answers it.
func FuzzRegisters(f *testing.F) {
	for _, s := range []string{"04 0064 0005", "10 000a 0003 06 41ac0000 0009", "16 000c ff00 00ff", "17 000c 0001 000c 0001 02 0005", "2b 0e 01 00", "0f 0000 0002 01 02"} {
		f.Add(unhex(f, s))
	}
	o := plant()
	o.FillGaps = true
	r := registers(f, o, &writes{})
	r.Put(time.Now(), reading.Reading{Device: "boiler", Point: "mode", Value: int64(1)}, reading.Reading{Device: "boiler", Point: "pump", Value: true})
	f.Fuzz(func(t *testing.T, pdu []byte) {
		if len(pdu) > 0 && len(pdu) <= 253 {
			judge(t, 1, pdu, r.Handle(t.Context(), 1, pdu, nil))
		}
	})
}

// A read of as much as there can be costs little.
func BenchmarkRead(b *testing.B) {
	o := DefaultRegistersOptions()
	for i := range 60 {
		o.Registers = append(o.Registers, Register{Device: "d", Point: fmt.Sprint(i), Register: fmt.Sprintf("input:%d", 2*i), Type: "float32"})
	}
	r := registers(b, o, nil)
	for i := range 60 {
		r.Put(time.Now(), reading.Reading{Device: "d", Point: fmt.Sprint(i), Value: 1.5})
	}
	pdu, answer := unhex(b, "04 0000 0078"), make([]byte, 0, 260)
	b.ReportAllocs()
	for b.Loop() {
		answer = r.Handle(b.Context(), 1, pdu, answer[:0])
	}
	if len(answer) != 242 {
		b.Fatalf("% x", answer)
	}
}
