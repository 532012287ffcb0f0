package serial

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"time"
	"unicode"
	"unicode/utf8"

	"holdfast/adapters"
	"holdfast/adapters/port"
	"holdfast/adapters/reading"
)

// The way of a question, all in the goroutine of Run:
//
//	command --[queue]--\                          answer --> readings, or the result
//	                    +--> discard, write --> wait --no answer--> quarantine: what comes
//	poll that is due --/                                            now is thrown away

// exchange is a question that waits for its answer.
type exchange struct {
	poll     *poll  // either
	order    *order // or
	request  []byte
	deadline time.Time
	limit    time.Time // of deadline, with framing "iec62056"
	echoed   bool
}

// order is a command with what is to be sent.
type order struct {
	*adapters.Order
	cmd     *command
	request []byte
}

// fail ends the command without the device having done anything.
func (o *order) fail(err error) {
	o.Finish(adapters.Result{Outcome: adapters.OutcomeFailed, Reason: err.Error()})
}

// queueLength is how many commands may wait: a line takes a few each second, and
// what waits longer than max_age is refused.
const queueLength = 16

// ahead is how many commands may go before a poll that is due.
const ahead = 4

// longestHeld is how long commands wait for a pause of a device that talks: what
// never falls silent is spoken to all the same.
const longestHeld = time.Second

var (
	errNoAnswer = errors.New("no answer")
	errRefused  = errors.New("device refused")
	errAbsent   = errors.New("device is not connected")
	errBusy     = errors.New("too many commands are waiting")
)

// TakeCommands subscribes to the topics of the device's commands. It is part of
// [adapters.Commanded].
func (a *Adapter) TakeCommands(c adapters.Commands) (stop func(), err error) {
	var filters []string
	byTopic := map[string]*command{}
	for name, cmd := range a.conv.commands {
		topic := a.opts.topic(a.device, name)
		filters = append(filters, topic)
		byTopic[topic] = cmd
	}
	if len(filters) == 0 {
		return func() {}, nil
	}
	return c.Subscribe(filters, func(in adapters.Command) {
		if cmd := byTopic[in.Topic]; cmd != nil {
			a.command(cmd, in)
		}
	})
}

// command takes a command from outside: into the queue, or refuses it.
func (a *Adapter) command(cmd *command, in adapters.Command) {
	o := &order{Order: a.receiver.Take(in, a.device, cmd.Name, "", cmd.MaxAge), cmd: cmd}
	if o.Order == nil {
		return
	}
	text, number, err := cmd.rule.read(in.Payload)
	if err == nil {
		o.request, err = cmd.template.append(nil, text, number)
	}
	if err != nil {
		o.Refuse(err.Error())
		return
	}
	if err := a.enqueue(o); err != nil {
		o.fail(err)
	}
}

func (a *Adapter) enqueue(o *order) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.open == nil {
		return errAbsent
	}
	select {
	case a.queue <- o:
	default:
		return errBusy
	}
	// Wake the Read: whoever sets a later deadline looks at the queue after.
	return a.open.SetReadDeadline(time.Unix(1, 0))
}

// connect says which port commands go to; nil for none: those that wait are
// refused.
func (a *Adapter) connect(p *port.Port) {
	a.mu.Lock()
	a.open = p
	a.mu.Unlock()
	for p == nil {
		select {
		case o := <-a.queue:
			o.fail(errAbsent)
		default:
			return
		}
	}
}

// polled says that the device speaks only when it is asked.
func (a *Adapter) polled() bool { return len(a.conv.polls) > 0 }

// talk asks the next question, if there is one and the line is free; else it
// says when to look again, zero for never.
func (a *Adapter) talk(p *port.Port, now time.Time) (again time.Time, err error) {
	if a.asked != nil {
		return a.asked.deadline, nil
	}
	next := a.nextPoll(now)
	if len(a.queue) == 0 {
		a.held = time.Time{}
		if next == nil {
			return a.earliestPoll(), nil
		}
	}
	if now.Before(a.notBefore) {
		return a.notBefore, nil
	}
	// A device that talks by itself is not interrupted, if it ever pauses; nor
	// are the last bytes waited for of a frame that has none.
	if free := a.heard.Add(pause(p.Options())); !a.polled() && a.framer.pending() && now.Before(free) {
		if a.held.IsZero() {
			a.held = now
		}
		if over := a.held.Add(longestHeld); now.Before(over) {
			if over.Before(free) {
				free = over
			}
			return free, nil
		}
	}
	if next == nil || a.inARow < ahead {
		select {
		case o := <-a.queue:
			a.inARow++
			if reason := o.Stale(now, o.cmd.MaxAge); reason != "" {
				o.Refuse(reason)
				return now, nil
			}
			return a.say(p, &exchange{order: o, request: o.request}, o.cmd.Timeout)
		default:
		}
	}
	if next == nil {
		return a.earliestPoll(), nil
	}
	a.inARow = 0
	if behind := now.Sub(next.due); behind >= next.Every {
		a.count(func(s *Status) { s.Skipped += uint64(behind / next.Every) })
		next.due = now
	}
	next.due = next.due.Add(next.Every)
	a.count(func(s *Status) { s.Polls++ })
	return a.say(p, &exchange{poll: next, request: next.request}, next.Timeout)
}

// pause is a silence after which a device in the middle of a frame has stopped:
// it would go on within a few characters, and a USB adapter gathers bytes for 16
// ms.
func pause(o port.Options) time.Duration {
	return max(50*time.Millisecond, 20*o.CharTime())
}

// nextPoll returns the poll that has been due for longest, nil for none.
func (a *Adapter) nextPoll(now time.Time) (next *poll) {
	for _, q := range a.conv.polls {
		if !q.due.After(now) && (next == nil || q.due.Before(next.due)) {
			next = q
		}
	}
	return next
}

func (a *Adapter) earliestPoll() (t time.Time) {
	for _, q := range a.conv.polls {
		if t.IsZero() || q.due.Before(t) {
			t = q.due
		}
	}
	return t
}

// say sends a question.
func (a *Adapter) say(p *port.Port, x *exchange, timeout time.Duration) (again time.Time, err error) {
	if err := a.startRate(p); err != nil {
		return again, a.unsaid(x, err)
	}
	if a.polled() {
		// What is there now answers nothing, and the next byte begins an answer.
		if _, err := p.Discard(); err != nil {
			return again, a.unsaid(x, err)
		}
		a.framer.lost()
		a.framer.quiet(func(frame) bool { return true })
	}
	if _, err = p.Write(x.request); err == nil {
		err = p.Drain()
	}
	if err != nil {
		return again, a.unsaid(x, err)
	}
	now := time.Now()
	if o := x.order; o != nil && o.cmd.answer == nil && o.cmd.refused == nil {
		o.Finish(adapters.Result{Outcome: adapters.OutcomeOK})
		a.notBefore = now.Add(timeout) // should it say something all the same
		return now, nil
	}
	x.deadline, x.limit = now.Add(timeout), now.Add(maxReadout)
	a.asked = x
	return x.deadline, nil
}

// unsaid ends an exchange that the port did not take.
func (a *Adapter) unsaid(x *exchange, err error) error {
	if x.order != nil {
		x.order.fail(err)
	}
	return err
}

// expire ends an exchange without an answer. What comes within twice the timeout
// would pass for the answer to the next question.
func (a *Adapter) expire(now time.Time) {
	x := a.asked
	if x == nil || now.Before(x.deadline) {
		return
	}
	a.asked = nil
	a.count(func(s *Status) { s.NoAnswers++ })
	if x.order != nil {
		x.order.Finish(adapters.Result{Outcome: adapters.OutcomeNoAnswer, Reason: errNoAnswer.Error()})
		a.notBefore = now.Add(2 * x.order.cmd.Timeout)
		a.overdue = x.order.cmd
		return
	}
	a.notBefore = now.Add(2 * x.poll.Timeout)
	err := fmt.Errorf("poll %s: %w", x.poll.Name, errNoAnswer)
	a.complain(now, err)
	a.tracker.Bad(now, err)
}

// abandon ends what is under way because the port has gone.
func (a *Adapter) abandon() {
	if x := a.asked; x != nil && x.order != nil {
		// It was sent: perhaps it was done.
		x.order.Finish(adapters.Result{Outcome: adapters.OutcomeNoAnswer, Reason: errAbsent.Error()})
	}
	a.asked = nil
}

// echo is the frame that comes when the line gives back a request; nil for
// none.
func (a *Adapter) echo(request []byte) (body []byte) {
	f, err := a.opts.newFramer()
	if err != nil {
		return nil // cannot be: the options have been checked
	}
	first := func(fr frame) bool {
		if body == nil {
			fr, _ = a.bare(fr)
			body = bytes.Clone(fr.body)
			if checked, err := a.check.verify(fr); err == nil {
				body = bytes.Clone(checked)
			}
		}
		return true
	}
	f.quiet(first)
	f.push(request, first)
	f.quiet(first)
	return body
}

// legible is what a device said as text, or if it is none as "0x" and digits.
func legible(b []byte) string {
	if !utf8.Valid(b) || bytes.ContainsFunc(b, unicode.IsControl) {
		return "0x" + hex.EncodeToString(b)
	}
	return string(b)
}

// answered takes a frame for what it answers; false if that is nothing.
func (a *Adapter) answered(body []byte, at reading.Stamp) bool {
	x := a.asked
	matches := func(re *regexp.Regexp) bool { return re != nil && re.Match(body) }
	if x == nil {
		// A device that talks by itself answers a command late: no reading.
		c := a.overdue
		if c == nil || !at.Wall.Before(a.notBefore) || !matches(c.answer) && !matches(c.refused) {
			return false
		}
		a.overdue = nil
		a.count(func(s *Status) { s.Late++ })
		return true
	}
	switch {
	case x.order != nil && matches(x.order.cmd.refused):
		a.asked = nil
		x.order.Finish(adapters.Result{Outcome: adapters.OutcomeFailed, Reason: errRefused.Error(), Answer: legible(body)})
		return true
	case x.order != nil && matches(x.order.cmd.answer):
		a.asked = nil
		x.order.Finish(adapters.Result{Outcome: adapters.OutcomeOK, Answer: legible(body)})
		return true
	case !x.echoed && bytes.Equal(body, a.echo(x.request)):
		// The line gives back what was sent.
		x.echoed = true
		a.count(func(s *Status) { s.Ignored++ })
		return true
	case x.poll != nil && (x.poll.answer == nil || x.poll.answer.Match(body)):
		if x.poll.dec.ignored(body) {
			a.count(func(s *Status) { s.Ignored++ })
			return true
		}
		a.asked = nil
		a.frame(x.poll.dec, body, at)
		return true
	}
	return false
}
