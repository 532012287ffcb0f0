package survey

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"holdfast/adapters/modbus"
)

// Kinds of what is heard on a line.
const (
	KindRequest   = "request"
	KindAnswer    = "answer"
	KindException = "exception"
	KindNoAnswer  = "no answer" // to the request before
	KindGarbled   = "garbled"   // a frame by its form, with a wrong checksum
	KindNoise     = "noise"     // bytes of no frame
)

// Heard is one thing that was heard on a line.
type Heard struct {
	// At is when its last byte had come.
	At   time.Time `json:"time"`
	Kind string    `json:"kind"`
	Unit byte      `json:"unit"`
	// Text says what it is, Data what it carries, in hexadecimal.
	Text string `json:"text,omitempty"`
	Data string `json:"data,omitempty"`
	// After is how long after its request an answer was complete, or none had
	// come.
	After time.Duration `json:"after_ns,omitempty"`
}

// Tally counts what was heard of one unit.
type Tally struct {
	Unit       byte `json:"unit"`
	Requests   int  `json:"requests"`
	Answers    int  `json:"answers"`
	Exceptions int  `json:"exceptions"`
	NoAnswers  int  `json:"no_answers"`
	Garbled    int  `json:"garbled"`
	// Fastest, Mean and Slowest are of answers, exceptions included, from the
	// end of the request.
	Fastest time.Duration `json:"fastest_ns"`
	Mean    time.Duration `json:"mean_ns"`
	Slowest time.Duration `json:"slowest_ns"`
	sum     time.Duration
	timed   int
}

const (
	// patience is how long a request waits for its answer. One that is repeated
	// later is a request again, though it looks like its own answer (function 6).
	patience = time.Second
	// longest is the longest frame, in ASCII. What makes no frame in as many
	// bytes is none.
	longest = 513
)

// Sniffer takes apart what others say on a line, requests and answers alike. It is
// not for concurrent use.
type Sniffer struct {
	// ASCII says that the framing is not RTU.
	ASCII bool
	// Bytes are all that came, Noise those of no frame.
	Bytes, Noise int

	buf     []byte
	last    time.Time       // when the last of buf came
	asked   *modbus.Request // without an answer yet
	askedAt time.Time
	tallies map[byte]*Tally
	out     []Heard
}

// Take takes bytes that came at that time and returns what they complete.
func (s *Sniffer) Take(at time.Time, b []byte) []Heard {
	s.out = nil
	s.Bytes += len(b)
	s.expire(at)
	s.buf, s.last = append(s.buf, b...), at
	s.scan(at, len(s.buf) > 2*longest)
	return s.out
}

// Silent says that the line was silent long enough for what came to be all of it.
func (s *Sniffer) Silent(at time.Time) []Heard {
	s.out = nil
	s.scan(s.last, true)
	s.expire(at)
	return s.out
}

// Tallies are the counts by unit.
func (s *Sniffer) Tallies() []Tally {
	var all []Tally
	for _, t := range s.tallies {
		if t.timed > 0 {
			t.Mean = t.sum / time.Duration(t.timed)
		}
		all = append(all, *t)
	}
	slices.SortFunc(all, func(a, b Tally) int { return int(a.Unit) - int(b.Unit) })
	return all
}

func (s *Sniffer) tally(unit byte) *Tally {
	if s.tallies == nil {
		s.tallies = map[byte]*Tally{}
	}
	t := s.tallies[unit]
	if t == nil {
		t = &Tally{Unit: unit}
		s.tallies[unit] = t
	}
	return t
}

// expire gives up a request that had no answer.
func (s *Sniffer) expire(at time.Time) {
	if s.asked != nil && at.Sub(s.askedAt) > patience {
		s.unanswered(at)
	}
}

func (s *Sniffer) unanswered(at time.Time) {
	s.out = append(s.out, Heard{At: at, Kind: KindNoAnswer, Unit: s.asked.Unit, Text: s.asked.String(), After: at.Sub(s.askedAt)})
	s.tally(s.asked.Unit).NoAnswers++
	s.asked = nil
}

// scan takes frames off the front of buf. final says that what is there is all.
func (s *Sniffer) scan(at time.Time, final bool) {
	var noise []byte
	for len(s.buf) > 0 {
		before := len(s.out)
		n, wait := s.frame(at, final)
		if wait {
			break
		}
		if n == 0 { // no frame starts here
			noise, n = append(noise, s.buf[0]), 1
		} else {
			s.noise(at, noise, before)
			noise = nil
		}
		s.buf = s.buf[n:]
	}
	s.noise(at, noise, len(s.out))
	s.buf = slices.Clone(s.buf) // what was taken is not kept
}

// noise notes bytes of no frame as the i-th thing heard.
func (s *Sniffer) noise(at time.Time, b []byte, i int) {
	if len(b) == 0 {
		return
	}
	s.Noise += len(b)
	s.out = append(s.out, Heard{})
	copy(s.out[i+1:], s.out[i:])
	s.out[i] = Heard{At: at, Kind: KindNoise, Text: fmt.Sprintf("%d bytes", len(b)), Data: hex.EncodeToString(b[:min(len(b), 32)])}
}

// frame takes the frame at the start of buf: n is its length, 0 if there is none;
// wait says that it may still become one.
func (s *Sniffer) frame(at time.Time, final bool) (n int, wait bool) {
	b := s.buf
	if s.ASCII {
		return s.asciiFrame(at, final)
	}
	if len(b) < 2 {
		return 0, !final
	}
	request, answer := modbus.RequestLen(b), modbus.AnswerLen(b)
	if b[0] > 247 {
		request, answer = 0, 0
	}
	fits := func(n int) bool { return n > 0 && n <= len(b) && modbus.CRC(b[:n]) == 0 }
	isAnswer := s.asked != nil && s.asked.Unit == b[0] && byte(s.asked.Function) == b[1]&0x7f
	switch {
	case isAnswer && fits(answer):
		s.answer(at, b[0], b[1:answer-2])
		return answer, false
	case fits(request):
		s.request(at, b[0], b[1:request-2])
		return request, false
	case fits(answer):
		s.answer(at, b[0], b[1:answer-2])
		return answer, false
	case !final && (request >= len(b) || answer >= len(b)):
		return 0, true
	}
	// A frame by its form counts as one that was hurt when it ends where the
	// line fell silent, or where another begins, and no other begins within it.
	for _, n := range []int{answer, request} {
		if n > 0 && n <= len(b) && (n == len(b) || whole(b[n:])) && !wholeWithin(b, n) {
			s.garbled(at, b[0], b[:n])
			return n, false
		}
	}
	return 0, false
}

// wholeWithin says that a frame starts within the n bytes at the start of b.
func wholeWithin(b []byte, n int) bool {
	for i := 1; i < n; i++ {
		if whole(b[i:]) {
			return true
		}
	}
	return false
}

// whole says that a frame starts here.
func whole(b []byte) bool {
	if len(b) < 2 || b[0] > 247 {
		return false
	}
	for _, n := range []int{modbus.RequestLen(b), modbus.AnswerLen(b)} {
		if n > 0 && n <= len(b) && modbus.CRC(b[:n]) == 0 {
			return true
		}
	}
	return false
}

// asciiFrame is frame for ASCII.
func (s *Sniffer) asciiFrame(at time.Time, final bool) (n int, wait bool) {
	b := s.buf
	if b[0] != ':' {
		return 0, false
	}
	n = bytes.IndexByte(b, '\n') + 1
	if again := bytes.IndexByte(b[1:], ':') + 1; again > 0 && (n == 0 || again < n) || n == 0 && final {
		return 0, false
	}
	if n == 0 {
		return 0, true
	}
	unit, pdu, err := modbus.ParseASCII(b[:n])
	switch {
	case errors.Is(err, modbus.ErrGarbled):
		s.garbled(at, 0, b[:n])
	case err != nil:
		return 0, false
	case s.asked != nil && s.asked.Unit == unit && answers(s.asked, pdu):
		s.answer(at, unit, pdu)
	default:
		if _, err := modbus.ParseRequest(unit, pdu); err == nil {
			s.request(at, unit, pdu)
		} else {
			s.answer(at, unit, pdu)
		}
	}
	return n, false
}

// answers says whether pdu has the form of an answer to r.
func answers(r *modbus.Request, pdu []byte) bool {
	_, err := r.ParseAnswer(pdu)
	_, refused := errors.AsType[*modbus.ExceptionError](err)
	return err == nil || refused
}

func (s *Sniffer) garbled(at time.Time, unit byte, b []byte) {
	s.out = append(s.out, Heard{At: at, Kind: KindGarbled, Unit: unit, Text: fmt.Sprintf("%d bytes with a wrong checksum", len(b)), Data: hex.EncodeToString(b)})
	s.tally(unit).Garbled++
	if s.asked != nil && s.asked.Unit == unit {
		s.asked = nil // this was its answer, most likely
	}
}

func (s *Sniffer) request(at time.Time, unit byte, pdu []byte) {
	if s.asked != nil {
		s.unanswered(at)
	}
	t := s.tally(unit)
	t.Requests++
	r, err := modbus.ParseRequest(unit, slices.Clone(pdu))
	if err != nil {
		s.out = append(s.out, Heard{At: at, Kind: KindRequest, Unit: unit, Text: err.Error(), Data: hex.EncodeToString(pdu)})
		return
	}
	s.out = append(s.out, Heard{At: at, Kind: KindRequest, Unit: unit, Text: r.String(), Data: hex.EncodeToString(r.Data)})
	if unit != 0 { // a broadcast has no answer
		s.asked, s.askedAt = &r, at
	}
}

func (s *Sniffer) answer(at time.Time, unit byte, pdu []byte) {
	h := Heard{At: at, Kind: KindAnswer, Unit: unit}
	t := s.tally(unit)
	asked := s.asked
	if asked != nil && asked.Unit == unit {
		h.After = at.Sub(s.askedAt)
		s.asked = nil
		if t.timed == 0 || h.After < t.Fastest {
			t.Fastest = h.After
		}
		t.Slowest = max(t.Slowest, h.After)
		t.sum += h.After
		t.timed++
	} else {
		asked = nil
	}
	if pdu[0]&0x80 != 0 {
		code := modbus.Exception(pdu[1])
		h.Kind, h.Text = KindException, fmt.Sprintf("%d (%v)", byte(code), code)
		t.Exceptions++
		s.out = append(s.out, h)
		return
	}
	t.Answers++
	h.Text = modbus.Function(pdu[0]).String()
	if asked == nil {
		h.Text += ", its request was not heard"
	} else if data, err := asked.ParseAnswer(pdu); err != nil {
		h.Text += ": " + err.Error()
	} else {
		h.Data = hex.EncodeToString(data)
	}
	s.out = append(s.out, h)
}
