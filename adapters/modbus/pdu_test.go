package modbus

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"
)

func drawRequest(t *rapid.T) Request {
	r := Request{
		Unit: rapid.ByteRange(1, 247).Draw(t, "unit"),
		Function: rapid.SampledFrom([]Function{
			ReadCoils, ReadDiscreteInputs, ReadHoldingRegisters, ReadInputRegisters,
			WriteSingleCoil, WriteSingleRegister, WriteMultipleCoils, WriteMultipleRegisters,
			MaskWriteRegister, ReadWriteRegisters, ReadDeviceID,
		}).Draw(t, "function"),
	}
	if r.Function == ReadDeviceID {
		r.Data = []byte{meiDeviceID, rapid.ByteRange(IdentifyBasic, IdentifyOne).Draw(t, "code"), rapid.Byte().Draw(t, "object")}
		return r
	}
	r.Count = uint16(rapid.IntRange(1, r.Function.limit()).Draw(t, "count"))
	r.Addr = uint16(rapid.IntRange(0, 1<<16-int(r.Count)).Draw(t, "addr"))
	if !r.Function.reads() {
		n := r.dataLen()
		r.Data = rapid.SliceOfN(rapid.Byte(), n, n).Draw(t, "data")
	}
	if r.Function == ReadWriteRegisters {
		n := rapid.IntRange(1, MaxReadWriteRegisters).Draw(t, "written")
		r.WriteAddr = uint16(rapid.IntRange(0, 1<<16-n).Draw(t, "write addr"))
		r.Data = rapid.SliceOfN(rapid.Byte(), 2*n, 2*n).Draw(t, "data")
	}
	if r.Function == WriteSingleCoil {
		r.Data = []byte{rapid.SampledFrom([]byte{0, 0xff}).Draw(t, "coil"), 0}
	}
	return r
}

// drawIdentification is what follows the MEI type in an answer.
func drawIdentification(t *rapid.T, code byte) []byte {
	more := rapid.SampledFrom([]byte{0, moreFollows}).Draw(t, "more")
	b := []byte{code, 0x81, more, rapid.Byte().Draw(t, "next"), 0}
	for range rapid.IntRange(0, 10).Draw(t, "objects") {
		value := rapid.SliceOfN(rapid.Byte(), 0, 60).Draw(t, "value")
		if len(b)+2+len(value) > maxPDU-2 {
			break
		}
		b = append(b, rapid.Byte().Draw(t, "id"), byte(len(value)))
		b = append(b, value...)
		b[4]++
	}
	return b
}

func TestRequestsAndAnswersComeBackEqual(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := drawRequest(t)
		pdu, err := r.AppendPDU(nil)
		if err != nil {
			t.Fatal(err)
		}
		back, err := ParseRequest(r.Unit, pdu)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(r, back, cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("request (-sent +parsed):\n%s", diff)
		}
		var data []byte
		switch {
		case r.Function == ReadDeviceID:
			data = drawIdentification(t, r.Data[1])
		case r.Function.reads():
			data = rapid.SliceOfN(rapid.Byte(), r.dataLen(), r.dataLen()).Draw(t, "answer")
		}
		answer, err := r.AppendAnswer(nil, data)
		if err != nil {
			t.Fatal(err)
		}
		if want := r.answerLen(); len(answer) != want && r.Function != ReadDeviceID || len(answer) > want {
			t.Fatalf("answer of %d bytes, want %d", len(answer), r.answerLen())
		}
		got, err := r.ParseAnswer(answer)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(data, got, cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("data (-sent +parsed):\n%s", diff)
		}
		// And through the frame finder, on a line without echo.
		adu := AppendRTU(nil, r.Unit, pdu)
		s := scanAnswer(AppendRTU(nil, r.Unit, answer), r, adu, echoNone, false)
		if diff := cmp.Diff(answer, s.pdu); diff != "" {
			t.Fatalf("frame (-sent +found):\n%s", diff)
		}
	})
}

func TestRequestsThatCannotBe(t *testing.T) {
	tests := map[string]Request{
		"unknown function":        {Unit: 1, Function: 99, Count: 1},
		"nothing":                 {Unit: 1, Function: ReadCoils},
		"too many registers":      {Unit: 1, Function: ReadInputRegisters, Count: 126},
		"too many bits":           {Unit: 1, Function: ReadCoils, Count: 2001},
		"past the last address":   {Unit: 1, Function: ReadHoldingRegisters, Addr: 65535, Count: 2},
		"a read with data":        {Unit: 1, Function: ReadHoldingRegisters, Count: 1, Data: []byte{1}},
		"a write without data":    {Unit: 1, Function: WriteSingleRegister, Count: 1},
		"a coil that is neither":  {Unit: 1, Function: WriteSingleCoil, Count: 1, Data: []byte{0x12, 0}},
		"too few bytes for coils": {Unit: 1, Function: WriteMultipleCoils, Count: 9, Data: []byte{1}},
		"one mask":                {Unit: 1, Function: MaskWriteRegister, Count: 1, Data: []byte{0, 1}},
		"masks of two registers":  {Unit: 1, Function: MaskWriteRegister, Count: 2, Data: []byte{0, 1, 0, 2}},
		"nothing to write":        {Unit: 1, Function: ReadWriteRegisters, Count: 1},
		"half a register":         {Unit: 1, Function: ReadWriteRegisters, Count: 1, Data: []byte{1, 2, 3}},
		"122 to write":            {Unit: 1, Function: ReadWriteRegisters, Count: 1, Data: make([]byte, 244)},
		"written past the end":    {Unit: 1, Function: ReadWriteRegisters, Count: 1, WriteAddr: 65535, Data: make([]byte, 4)},
		"two addresses to read":   {Unit: 1, Function: ReadHoldingRegisters, Count: 1, WriteAddr: 5},
		"identification 5":        {Unit: 1, Function: ReadDeviceID, Data: []byte{14, 5, 0}},
		"another MEI type":        {Unit: 1, Function: ReadDeviceID, Data: []byte{13, 1, 0}},
		"identity at an address":  {Unit: 1, Function: ReadDeviceID, Addr: 7, Data: []byte{14, 1, 0}},
	}
	for name, r := range tests {
		t.Run(name, func(t *testing.T) {
			if _, err := r.AppendPDU(nil); !errors.Is(err, ErrMalformed) {
				t.Errorf("AppendPDU(%+v) = %v, want ErrMalformed", r, err)
			}
		})
	}
}

func TestAnswersThatAreNone(t *testing.T) {
	read := Request{Unit: 1, Function: ReadHoldingRegisters, Addr: 10, Count: 2}
	write := Request{Unit: 1, Function: WriteMultipleRegisters, Addr: 10, Count: 1, Data: []byte{0, 1}}
	mask := Request{Unit: 1, Function: MaskWriteRegister, Addr: 4, Count: 1, Data: []byte{0, 0xf2, 0, 0x25}}
	identify := Request{Unit: 1, Function: ReadDeviceID, Data: []byte{14, 1, 0}}
	tests := map[string]struct {
		r    Request
		pdu  []byte
		want error
	}{
		"empty":                    {read, nil, ErrMalformed},
		"only a function":          {read, []byte{3}, ErrMalformed},
		"another function":         {read, []byte{4, 4, 0, 1, 0, 2}, ErrMismatch},
		"another function refused": {read, []byte{0x84, 2}, ErrMismatch},
		"fewer registers":          {read, []byte{3, 2, 0, 1}, ErrMismatch},
		"cut":                      {read, []byte{3, 4, 0, 1, 0}, ErrMalformed},
		"long exception":           {read, []byte{0x83, 2, 0}, ErrMalformed},
		"write of another address": {write, []byte{16, 0, 11, 0, 1}, ErrMismatch},
		"write of another count":   {write, []byte{16, 0, 10, 0, 2}, ErrMismatch},
		"write, cut":               {write, []byte{16, 0, 10, 0}, ErrMalformed},
		"another AND mask":         {mask, []byte{22, 0, 4, 0, 0xf3, 0, 0x25}, ErrMismatch},
		"another OR mask":          {mask, []byte{22, 0, 4, 0, 0xf2, 0, 0x24}, ErrMismatch},
		"mask, cut":                {mask, []byte{22, 0, 4, 0, 0xf2}, ErrMalformed},
		"identity, another code":   {identify, []byte{43, 14, 2, 1, 0, 0, 0}, ErrMismatch},
		"identity, another type":   {identify, []byte{43, 13, 1, 1, 0, 0, 0}, ErrMismatch},
		"identity, cut":            {identify, []byte{43, 14, 1, 1, 0, 0, 1, 0, 3, 'a', 'b'}, ErrMalformed},
		"identity, and more":       {identify, []byte{43, 14, 1, 1, 0, 0, 0, 9}, ErrMalformed},
		"identity, more is 1":      {identify, []byte{43, 14, 1, 1, 1, 0, 0}, ErrMalformed},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if _, err := tt.r.ParseAnswer(tt.pdu); !errors.Is(err, tt.want) {
				t.Errorf("ParseAnswer(% x) = %v, want %v", tt.pdu, err, tt.want)
			}
		})
	}
}

func FuzzParseRequest(f *testing.F) {
	for _, g := range goldenFrames(f) {
		f.Add(g.request[1 : len(g.request)-2])
	}
	f.Fuzz(func(t *testing.T, pdu []byte) {
		r, err := ParseRequest(1, pdu)
		if err != nil {
			return
		}
		back, err := r.AppendPDU(nil)
		if err != nil {
			t.Fatalf("% x parses to %+v, which cannot be encoded: %v", pdu, r, err)
		}
		if diff := cmp.Diff(pdu, back); diff != "" {
			t.Errorf("(-parsed +encoded):\n%s", diff)
		}
	})
}

func FuzzParseAnswer(f *testing.F) {
	for _, g := range goldenFrames(f) {
		f.Add(g.request[1:len(g.request)-2], g.answer[1:len(g.answer)-2])
	}
	f.Fuzz(func(t *testing.T, request, answer []byte) {
		r, err := ParseRequest(1, request)
		if err != nil {
			return
		}
		data, err := r.ParseAnswer(answer)
		if err != nil {
			return
		}
		back, err := r.AppendAnswer(nil, data)
		if err != nil {
			t.Fatalf("% x cannot be encoded: %v", answer, err)
		}
		if diff := cmp.Diff(answer, back); diff != "" {
			t.Errorf("(-parsed +encoded):\n%s", diff)
		}
	})
}
