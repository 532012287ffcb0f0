package modbustest

import (
	"fmt"
	"math"
	"slices"
	"sync"
)

// Table is one of the four address spaces of a unit.
type Table int

// The address spaces, each zero-based (MODBUS Application Protocol V1.1b3 §4.3).
const (
	Holding  Table = iota // functions 3, 6, 16, 22, 23
	Input                 // function 4
	Coil                  // functions 1, 5, 15
	Discrete              // function 2
)

// Exception codes of MODBUS Application Protocol V1.1b3 §7.
const (
	IllegalFunction    = 1
	IllegalDataAddress = 2
	IllegalDataValue   = 3
	DeviceFailure      = 4
	Acknowledge        = 5
	Busy               = 6
)

// Unit is one device. An address that was never set does not exist: reading it,
// alone or within a block, is answered with exception 2. Its methods are safe
// for concurrent use; several addresses set by one call change together.
type Unit struct {
	id byte

	mu     sync.Mutex
	regs   [2]map[uint16]uint16  // Holding, Input; guarded by mu
	bits   [2]map[uint16]bool    // Coil, Discrete; guarded by mu
	deny   [4]map[uint16]byte    // guarded by mu
	fault  Fault                 // guarded by mu
	times  int                   // guarded by mu; how often fault still applies, negative: always
	choose func(r Request) Fault // guarded by mu
	onRead func(r Request)       // guarded by mu
	onSet  func(r Request)       // guarded by mu
	served uint64                // guarded by mu
	about  []string              // guarded by mu; what function 43 says, by object
}

func newUnit(id byte) *Unit {
	u := &Unit{id: id}
	for i := range u.regs {
		u.regs[i] = map[uint16]uint16{}
		u.bits[i] = map[uint16]bool{}
	}
	for i := range u.deny {
		u.deny[i] = map[uint16]byte{}
	}
	return u
}

// ID is the unit's address on the bus.
func (u *Unit) ID() byte { return u.id }

// SetHolding sets holding registers from addr on.
func (u *Unit) SetHolding(addr uint16, v ...uint16) { u.set(Holding, addr, v) }

// SetInput sets input registers from addr on.
func (u *Unit) SetInput(addr uint16, v ...uint16) { u.set(Input, addr, v) }

func (u *Unit) set(t Table, addr uint16, v []uint16) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for i, x := range v {
		u.regs[t][addr+uint16(i)] = x
	}
}

// SetCoil sets coils from addr on.
func (u *Unit) SetCoil(addr uint16, v ...bool) { u.setBits(Coil, addr, v) }

// SetDiscrete sets discrete inputs from addr on.
func (u *Unit) SetDiscrete(addr uint16, v ...bool) { u.setBits(Discrete, addr, v) }

func (u *Unit) setBits(t Table, addr uint16, v []bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for i, x := range v {
		u.bits[t-Coil][addr+uint16(i)] = x
	}
}

// Holding returns a holding register, 0 if there is none: what a master wrote.
func (u *Unit) Holding(addr uint16) uint16 {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.regs[Holding][addr]
}

// Coil returns a coil, false if there is none.
func (u *Unit) Coil(addr uint16) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.bits[0][addr]
}

// Unset makes n addresses vanish: reading them is an illegal address again.
func (u *Unit) Unset(t Table, addr uint16, n int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for i := range n {
		a := addr + uint16(i)
		if t == Holding || t == Input {
			delete(u.regs[t], a)
		} else {
			delete(u.bits[t-Coil], a)
		}
	}
}

// Deny answers every read that includes addr with this exception; 0 allows it
// again.
func (u *Unit) Deny(t Table, addr uint16, exception byte) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if exception == 0 {
		delete(u.deny[t], addr)
		return
	}
	u.deny[t][addr] = exception
}

// SetIdentity is what the unit says of itself: vendor name, product code, revision
// and the objects after these (function 43/14), two in an answer.
func (u *Unit) SetIdentity(objects ...string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.about = slices.Clone(objects)
}

// OnRead is called before each read is served, with no lock held, so that fn
// can set the registers to what they are at this moment: a drifting float, a
// sequence number growing with each poll answered. It is not called for a
// request that a Fault leaves silent or answers with an exception.
func (u *Unit) OnRead(fn func(r Request)) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.onRead = fn
}

// OnWrite is called after each write was carried out, with no lock held.
func (u *Unit) OnWrite(fn func(r Request)) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.onSet = fn
}

// Fault applies f to the next answers; a negative times means until changed, 0
// ends it.
func (u *Unit) Fault(f Fault, times int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.fault, u.times, u.choose = f, times, nil
}

// FaultFunc asks fn for the fault of each answer; nil ends it.
func (u *Unit) FaultFunc(fn func(r Request) Fault) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.times, u.choose = 0, fn
}

// Served is the number of requests carried out with success.
func (u *Unit) Served() uint64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.served
}

func (u *Unit) nextFault(r Request) (f Fault, faulty bool) {
	u.mu.Lock()
	choose := u.choose
	if choose == nil && u.times != 0 {
		f, faulty = u.fault, true
		if u.times > 0 {
			u.times--
		}
	}
	u.mu.Unlock()
	if choose == nil {
		return f, faulty
	}
	f = choose(r)
	return f, f.some()
}

func (f *Fault) some() bool {
	return f.Delay != 0 || f.Silent || f.Exception != 0 || f.CorruptCRC || f.CorruptData || f.WrongUnit != 0 ||
		f.WrongFunction != 0 || f.WrongTransaction != 0 || f.Cut != 0 || f.Twice || f.Echo ||
		len(f.NoiseBefore) != 0 || len(f.NoiseAfter) != 0 || f.SplitAfter != 0 || f.Hangup || f.Rewrite != nil
}

// serve carries out one request and returns the answer's PDU.
func (u *Unit) serve(pdu []byte) []byte {
	r := parseRequest(request{id: u.id, pdu: pdu})
	u.mu.Lock()
	onRead, onSet := u.onRead, u.onSet
	u.mu.Unlock()
	if onRead != nil && r.Function >= 1 && r.Function <= 4 {
		onRead(r)
	}
	u.mu.Lock()
	out, exception := u.serveLocked(r)
	if exception == 0 {
		u.served++
	}
	u.mu.Unlock()
	if exception != 0 {
		return []byte{r.Function | 0x80, exception}
	}
	if onSet != nil && r.Function > 4 {
		onSet(r)
	}
	return out
}

func (u *Unit) serveLocked(r Request) (out []byte, exception byte) {
	p := r.PDU
	switch r.Function {
	case 1, 2, 3, 4:
		if len(p) != 5 {
			return nil, IllegalDataValue
		}
		return u.readLocked(r)
	case 5, 6:
		if len(p) != 5 {
			return nil, IllegalDataValue
		}
	case 15, 16:
		if len(p) < 6 || len(p) != 6+int(p[5]) {
			return nil, IllegalDataValue
		}
	case 22:
		if len(p) != 7 {
			return nil, IllegalDataValue
		}
	case 23:
		return u.readWriteLocked(r)
	case 43:
		return u.identifyLocked(p)
	}
	value := func(i int) uint16 { return uint16(p[i])<<8 | uint16(p[i+1]) }
	switch r.Function {
	case 5:
		if _, ok := u.bits[0][r.Addr]; !ok {
			return nil, IllegalDataAddress
		}
		if v := value(3); v != 0 && v != 0xff00 {
			return nil, IllegalDataValue
		}
		u.bits[0][r.Addr] = p[3] != 0
		return slices.Clone(p), 0
	case 6:
		if _, ok := u.regs[Holding][r.Addr]; !ok {
			return nil, IllegalDataAddress
		}
		u.regs[Holding][r.Addr] = value(3)
		return slices.Clone(p), 0
	case 22:
		v, ok := u.regs[Holding][r.Addr]
		if !ok {
			return nil, IllegalDataAddress
		}
		u.regs[Holding][r.Addr] = v&value(3) | value(5)&^value(3)
		return slices.Clone(p), 0
	case 15:
		if r.Count == 0 || r.Count > 1968 || int(p[5]) != (int(r.Count)+7)/8 {
			return nil, IllegalDataValue
		}
		for i := range r.Count {
			if _, ok := u.bits[0][r.Addr+i]; !ok {
				return nil, IllegalDataAddress
			}
		}
		for i := range r.Count {
			u.bits[0][r.Addr+i] = p[6+i/8]>>(i%8)&1 != 0
		}
		return slices.Clone(p[:5]), 0
	case 16:
		if r.Count == 0 || r.Count > 123 || int(p[5]) != 2*int(r.Count) {
			return nil, IllegalDataValue
		}
		for i := range r.Count {
			if _, ok := u.regs[Holding][r.Addr+i]; !ok {
				return nil, IllegalDataAddress
			}
		}
		for i := range int(r.Count) {
			u.regs[Holding][r.Addr+uint16(i)] = value(6 + 2*i)
		}
		return slices.Clone(p[:5]), 0
	}
	return nil, IllegalFunction
}

// readWriteLocked writes first (V1.1b3 §6.17).
func (u *Unit) readWriteLocked(r Request) (out []byte, exception byte) {
	p := r.PDU
	if len(p) < 12 || len(p) != 10+int(p[9]) || p[9]%2 != 0 || int(p[7])<<8|int(p[8]) != int(p[9])/2 {
		return nil, IllegalDataValue
	}
	write := append([]byte{16}, p[5:]...)
	r.Function = 3
	if _, exception = u.readLocked(r); exception != 0 {
		return nil, exception
	}
	if _, exception = u.serveLocked(parseRequest(request{id: u.id, pdu: write})); exception != 0 {
		return nil, exception
	}
	out, exception = u.readLocked(r)
	if exception == 0 {
		out[0] = 23
	}
	return out, exception
}

// identifyLocked answers function 43/14 (V1.1b3 §6.21).
func (u *Unit) identifyLocked(p []byte) (out []byte, exception byte) {
	switch {
	case u.about == nil || len(p) != 4 || p[1] != 14:
		return nil, IllegalFunction
	case p[2] < 1 || p[2] > 4:
		return nil, IllegalDataValue
	case p[2] == 4 && int(p[3]) >= len(u.about):
		return nil, IllegalDataAddress
	}
	first, end := int(p[3]), min(len(u.about), [...]int{3, 7, 256, int(p[3]) + 1}[p[2]-1])
	if first >= end {
		first = 0 // as the specification has it
	}
	last := min(first+2, end)
	out = []byte{43, 14, p[2], 0x83, 0, 0, byte(last - first)}
	if last < end {
		out[4], out[5] = 0xff, byte(last)
	}
	for i := first; i < last; i++ {
		out = append(append(out, byte(i), byte(len(u.about[i]))), u.about[i]...)
	}
	return out, 0
}

func (u *Unit) readLocked(r Request) (out []byte, exception byte) {
	table := map[byte]Table{1: Coil, 2: Discrete, 3: Holding, 4: Input}[r.Function]
	limit := uint16(125)
	if r.Function <= 2 {
		limit = 2000
	}
	if r.Count == 0 || r.Count > limit {
		return nil, IllegalDataValue
	}
	if int(r.Addr)+int(r.Count) > 1<<16 {
		return nil, IllegalDataAddress
	}
	for i := range r.Count {
		if code := u.deny[table][r.Addr+i]; code != 0 {
			return nil, code
		}
	}
	if r.Function <= 2 {
		data := make([]byte, (int(r.Count)+7)/8)
		for i := range r.Count {
			v, ok := u.bits[table-Coil][r.Addr+i]
			if !ok {
				return nil, IllegalDataAddress
			}
			if v {
				data[i/8] |= 1 << (i % 8)
			}
		}
		return append([]byte{r.Function, byte(len(data))}, data...), 0
	}
	out = []byte{r.Function, byte(2 * r.Count)}
	for i := range r.Count {
		v, ok := u.regs[table][r.Addr+i]
		if !ok {
			return nil, IllegalDataAddress
		}
		out = append(out, byte(v>>8), byte(v))
	}
	return out, 0
}

// Float32 returns v as two registers. order names where the bytes go, as a
// device's manual does: "ABCD" (A is the most significant byte), "DCBA",
// "BADC" or "CDAB".
func Float32(v float32, order string) []uint16 { return Uint32(math.Float32bits(v), order) }

// Uint32 returns v as two registers in the order named, see [Float32].
func Uint32(v uint32, order string) []uint16 {
	b := [4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)}
	if len(order) != 4 {
		panic(fmt.Sprintf("modbustest: order %q is not one of ABCD, DCBA, BADC, CDAB", order))
	}
	var out [4]byte
	for i := range 4 {
		out[i] = b[(order[i]-'A')&3]
	}
	return []uint16{uint16(out[0])<<8 | uint16(out[1]), uint16(out[2])<<8 | uint16(out[3])}
}
