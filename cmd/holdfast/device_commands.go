package main

import (
	"slices"
	"strings"
	"time"

	"holdfast/adapters"
	"holdfast/broker"
	"holdfast/broker/packet"
)

const (
	// commandQueue is how many commands wait for one adapter. It hands them on
	// to its devices at once: more than this is a client that has gone wild.
	commandQueue = 64
	// maxCommand is the most a command may weigh, in bytes.
	maxCommand = 64 << 10
)

// localCommands is how an adapter hears the commands that the broker routes.
type localCommands struct {
	b *broker.Broker
	// name is the adapter's, for the log.
	name string
	// own are the beginnings of topics that the gateway itself publishes on,
	// each with its slash: nobody is answered there, for an answer must not pass
	// for a reading, a status or a command.
	own []string
}

// Subscribe is part of adapters.Commands.
func (l localCommands) Subscribe(filters []string, handler func(adapters.Command)) (cancel func(), err error) {
	x, err := l.b.OpenInbox(broker.InboxOptions{Name: l.name, Queue: commandQueue, MaxSize: maxCommand}, filters, func(in broker.Incoming) {
		handler(l.command(in))
	})
	if err != nil {
		return nil, err
	}
	return x.Close, nil
}

// command is what a message asks for. The answer goes where the publisher wants
// it if that may read it there; any client could else have the gateway publish
// where it may not itself.
func (l localCommands) command(in broker.Incoming) adapters.Command {
	c := adapters.Command{
		Topic: in.Topic, Payload: in.Payload, QoS: in.QoS, Retain: in.Retain, From: in.From, User: in.User,
		Received: in.Received, HasExpiry: in.HasExpiry, Expiry: time.Duration(in.Expiry) * time.Second,
		AnswerTopic: in.Topic + "/result",
	}
	asked, err := packet.ParsePublishProperties(in.Properties)
	if err != nil {
		return c // cannot be: they were checked when the message came
	}
	c.Correlation = asked.CorrelationData
	if asked.ResponseTopic != "" && asked.ResponseTopic != c.AnswerTopic {
		if l.mayAnswer(in.From, asked.ResponseTopic) {
			c.AnswerTopic = asked.ResponseTopic
		} else {
			c.AnswerRefused = true
		}
	}
	answer := packet.PublishProperties{
		HasPayloadFormat: true, PayloadFormat: 1, ContentType: "application/json", CorrelationData: asked.CorrelationData,
	}
	c.AnswerProperties, _ = answer.AppendTo(nil) // it was decoded a moment ago
	return c
}

func (l localCommands) mayAnswer(from, name string) bool {
	return !strings.HasPrefix(name, "$") &&
		!slices.ContainsFunc(l.own, func(own string) bool { return strings.HasPrefix(name, own) }) &&
		l.b.MayReceive(from, name)
}
