package adapters

import (
	"time"

	"holdfast/broker/message"
)

// The way of a command:
//
//	route --> [queue] --goroutine of Subscribe--> handler --> the device's bus
//	                                                              |
//	whoever asked <-- route <-- Publisher <-- Outbox <-- Command.Answer

// Command is one message that asks a device for something. It is immutable.
type Command struct {
	// Topic is where it was published, Payload what it says.
	Topic   string
	Payload []byte
	// QoS and Retain are the publisher's. A message with the RETAIN flag is
	// never to be executed: see [Command.Stale].
	QoS    byte
	Retain bool
	// From is the client id of the publisher, an uplink's name for what came
	// from the cloud, and User its user name; empty without one. They are for
	// logs: the right to publish on Topic has been checked by the broker.
	From, User string
	// Correlation is what MQTT 5.0 calls correlation data (§3.3.2.3.6): the
	// publisher's mark of this request; nil without one.
	Correlation []byte
	// Received is when the gateway took it; for how long it holds from then is
	// Expiry, if HasExpiry (the message expiry interval of MQTT 5.0).
	Received  time.Time
	Expiry    time.Duration
	HasExpiry bool
	// AnswerTopic is where the answer goes: the response topic of the request
	// (MQTT 5.0 §3.3.2.3.5) if its publisher may be answered there, else Topic
	// with "/result" behind it. AnswerProperties go with it: the correlation
	// data, in wire form.
	AnswerTopic      string
	AnswerProperties []byte
	// AnswerRefused says that the publisher asked for an answer where it may
	// not be answered.
	AnswerRefused bool
}

// Commands is where an adapter hears what is wanted of its devices; the
// gateway's router is one.
type Commands interface {
	// Subscribe has handler called for every message published on a topic that
	// matches one of the filters, from now until cancel, in the order of their
	// arrival and from one goroutine. Nothing is kept for a handler that is not
	// there, retained messages of before are not handed over. Handler may wait
	// for lines, not for a bus: a bounded number of commands waits for it, the
	// rest is dropped and counted. Cancel, which handler must not call, returns
	// when handler is not called any more.
	Subscribe(filters []string, handler func(Command)) (cancel func(), err error)
}

// Commanded is an adapter that takes commands.
type Commanded interface {
	Adapter
	// TakeCommands subscribes to what the devices are told; stop ends that. It
	// is called before the first Run, and stop after the last: between two Runs
	// the commands are there to be refused.
	TakeCommands(c Commands) (stop func(), err error)
}

// Why a command is not executed, whatever it says.
const (
	StaleRetained = "retained: a command is to be published without the RETAIN flag"
	StaleExpired  = "expired"
	StaleTooOld   = "too old"
)

// Stale says why a command must not be executed at now, whatever it says; empty
// if nothing is against it. It is to be asked before every step that cannot be
// taken back. A retained command would come again with each reconnect of the
// cloud; one that has waited longer than its publisher's interval or maxAge is
// for a plant that has gone on meanwhile.
func (c *Command) Stale(now time.Time, maxAge time.Duration) (reason string) {
	age := now.Sub(c.Received)
	switch {
	case c.Retain:
		return StaleRetained
	case c.HasExpiry && age >= c.Expiry:
		return StaleExpired
	case age > maxAge:
		return StaleTooOld
	}
	return ""
}

// Answer is the message that tells what became of the command, ready for an
// [Outbox]. It is never retained.
func (c *Command) Answer(payload []byte) *message.Message {
	return &message.Message{
		Topic: c.AnswerTopic, Payload: payload, Properties: c.AnswerProperties,
		QoS: 1, Received: time.Now(),
	}
}
