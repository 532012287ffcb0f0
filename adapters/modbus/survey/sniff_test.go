package survey

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"holdfast/adapters/modbus"
)

// rtu is a request and its answer as frames.
func rtu(t testing.TB, r modbus.Request, data []byte) (request, answer []byte) {
	t.Helper()
	pdu, err := r.AppendPDU(nil)
	if err != nil {
		t.Fatal(err)
	}
	request = modbus.AppendRTU(nil, r.Unit, pdu)
	pdu, err = r.AppendAnswer(nil, data)
	if err != nil {
		t.Fatal(err)
	}
	return request, modbus.AppendRTU(nil, r.Unit, pdu)
}

func lines(hs []Heard) string {
	var b strings.Builder
	for _, h := range hs {
		fmt.Fprintf(&b, "%s %d %s %s\n", h.Kind, h.Unit, h.Text, h.Data)
	}
	return b.String()
}

// A conversation is decoded the same however its bytes come in: all at once, one by
// one, or in pieces that do not fit the frames.
func TestSnifferTellsRequestsFromAnswers(t *testing.T) {
	var wire []byte
	add := func(r modbus.Request, data []byte) {
		q, a := rtu(t, r, data)
		wire = append(append(wire, q...), a...)
	}
	add(modbus.Request{Unit: 3, Function: modbus.ReadInputRegisters, Addr: 0, Count: 2}, []byte{0x43, 0x66, 0x80, 0})
	add(modbus.Request{Unit: 3, Function: modbus.ReadCoils, Addr: 0x0300, Count: 24}, []byte{1, 2, 3}) // as long as its request
	add(modbus.Request{Unit: 4, Function: modbus.WriteSingleRegister, Addr: 7, Count: 1, Data: []byte{0, 9}}, nil)
	add(modbus.Request{Unit: 4, Function: modbus.WriteMultipleRegisters, Addr: 7, Count: 2, Data: []byte{0, 9, 0, 8}}, nil)
	add(modbus.Request{Unit: 4, Function: modbus.ReadDeviceID, Data: []byte{14, 1, 0}}, []byte{1, 1, 0, 0, 1, 0, 2, 'H', 'i'})
	add(modbus.Request{Unit: 4, Function: modbus.MaskWriteRegister, Addr: 7, Count: 1, Data: []byte{0, 9, 0, 8}}, nil)
	add(modbus.Request{Unit: 4, Function: modbus.ReadWriteRegisters, Addr: 7, Count: 1, WriteAddr: 3, Data: []byte{0, 8}}, []byte{0, 5})
	q, _ := rtu(t, modbus.Request{Unit: 5, Function: modbus.ReadHoldingRegisters, Addr: 99, Count: 1}, []byte{0, 0})
	wire = append(append(wire, q...), modbus.AppendRTU(nil, 5, []byte{0x83, 2})...)
	const want = `request 3 unit 3 read input registers 0..1 
answer 3 read input registers 43668000
request 3 unit 3 read coils 768..791 
answer 3 read coils 010203
request 4 unit 4 write single register 7 0009
answer 4 write single register 
request 4 unit 4 write multiple registers 7..8 00090008
answer 4 write multiple registers 
request 4 unit 4 read device identification 0e0100
answer 4 read device identification 010100000100024869
request 4 unit 4 mask write register 7 00090008
answer 4 mask write register 
request 4 unit 4 read/write multiple registers 7 0008
answer 4 read/write multiple registers 0005
request 5 unit 5 read holding registers 99 
exception 5 2 (illegal data address) 
`
	at := time.Unix(1e9, 0)
	for seed := range uint64(50) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		var s Sniffer
		var got []Heard
		for rest := wire; len(rest) > 0; {
			n := len(rest)
			if seed > 0 {
				n = min(n, 1+rnd.IntN(20))
			}
			at = at.Add(time.Millisecond)
			got = append(got, s.Take(at, rest[:n])...)
			rest = rest[n:]
		}
		if lines(got) != want {
			t.Fatalf("seed %d:\n%s\nwant\n%s", seed, lines(got), want)
		}
		if s.Noise != 0 || s.Bytes != len(wire) {
			t.Errorf("seed %d: %d of %d bytes were noise", seed, s.Noise, s.Bytes)
		}
	}
}

// What goes wrong on a line is named: no answer, a wrong checksum, noise, an answer
// without its request; and the counts tell by unit.
func TestSnifferNamesWhatGoesWrong(t *testing.T) {
	q, a := rtu(t, modbus.Request{Unit: 3, Function: modbus.ReadInputRegisters, Addr: 0, Count: 2}, []byte{0x43, 0x66, 0x80, 0})
	var s Sniffer
	at := time.Unix(1e9, 0)
	var got []Heard
	take := func(after time.Duration, b []byte) {
		at = at.Add(after)
		got = append(got, s.Take(at, b)...)
		got = append(got, s.Silent(at.Add(30*time.Millisecond))...)
	}
	take(0, a)
	take(time.Millisecond, q)
	take(2*time.Second, q) // a repetition: the first had no answer
	bad := append([]byte(nil), a...)
	bad[4] ^= 1
	take(20*time.Millisecond, bad)
	take(time.Second, append([]byte{0, 0xff, 0x55}, q...))
	take(40*time.Millisecond, a)
	take(time.Second, []byte{0xfe})
	const want = `answer 3 read input registers, its request was not heard 
request 3 unit 3 read input registers 0..1 
no answer 3 unit 3 read input registers 0..1 
request 3 unit 3 read input registers 0..1 
garbled 3 9 bytes with a wrong checksum 030404436780004c1f
noise 0 2 bytes 00ff
noise 0 1 bytes 55
request 3 unit 3 read input registers 0..1 
answer 3 read input registers 43668000
noise 0 1 bytes fe
`
	if lines(got) != want {
		t.Errorf("got\n%s\nwant\n%s", lines(got), want)
	}
	ts := s.Tallies()
	if len(ts) != 1 {
		t.Fatalf("tallies = %+v", ts)
	}
	u := ts[0]
	if u.Unit != 3 || u.Requests != 3 || u.Answers != 2 || u.NoAnswers != 1 || u.Garbled != 1 || u.Fastest != 40*time.Millisecond || u.Mean != u.Slowest {
		t.Errorf("tally = %+v", u)
	}
}

func TestSnifferReadsASCII(t *testing.T) {
	r := modbus.Request{Unit: 3, Function: modbus.ReadInputRegisters, Addr: 0, Count: 1}
	pdu, err := r.AppendPDU(nil)
	if err != nil {
		t.Fatal(err)
	}
	wire := modbus.AppendASCII(nil, 3, pdu)
	answer, err := r.AppendAnswer(nil, []byte{1, 2})
	if err != nil {
		t.Fatal(err)
	}
	wire = modbus.AppendASCII(append(wire, "xx"...), 3, answer)
	s := Sniffer{ASCII: true}
	at := time.Unix(1e9, 0)
	got := s.Take(at, wire)
	const want = "request 3 unit 3 read input registers 0 \nnoise 0 2 bytes 7878\nanswer 3 read input registers 0102\n"
	if lines(got) != want {
		t.Errorf("got\n%s\nwant\n%s", lines(got), want)
	}
}

// Whatever comes, nothing is kept for longer than the longest frames, and all is
// accounted for.
func FuzzSniffer(f *testing.F) {
	q, a := rtu(f, modbus.Request{Unit: 3, Function: modbus.ReadInputRegisters, Addr: 0, Count: 2}, []byte{0x43, 0x66, 0x80, 0})
	f.Add(append(q, a...), false, uint8(3))
	f.Add([]byte(":0304000000017A\r\n:03"), true, uint8(200))
	f.Add([]byte{3, 43, 14, 1, 1, 0, 0, 255, 1, 255}, false, uint8(1))
	f.Fuzz(func(t *testing.T, wire []byte, ascii bool, piece uint8) {
		s := Sniffer{ASCII: ascii}
		at := time.Unix(1e9, 0)
		for rest := wire; len(rest) > 0; {
			n := min(len(rest), int(piece)+1)
			s.Take(at, rest[:n])
			rest = rest[n:]
			if len(s.buf) > 2*longest {
				t.Fatalf("%d bytes are kept", len(s.buf))
			}
		}
		s.Silent(at)
		if len(s.buf) != 0 || s.Bytes != len(wire) || s.Noise > s.Bytes {
			t.Errorf("%d bytes are left, %d of %d counted, %d noise", len(s.buf), s.Bytes, len(wire), s.Noise)
		}
	})
}
