package adapters_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/adapters"
	"holdfast/broker/message"
)

// desk is a receiver with its answers, each as "device result reason repeated".
type desk struct {
	*adapters.Receiver
	answers []string
}

func newDesk(tb testing.TB) *desk {
	tb.Helper()
	d := &desk{}
	d.Receiver = adapters.NewReceiver(func(device string, m *message.Message) {
		var r adapters.Result
		if err := json.Unmarshal(m.Payload, &r); err != nil || r.Device != device || m.Topic != "answers" {
			tb.Errorf("answer for %s on %s: %s: %v", device, m.Topic, m.Payload, err)
		}
		d.answers = append(d.answers, strings.TrimSpace(fmt.Sprintln(r.Outcome, r.Reason, r.ID, r.Repeated)))
	}, slog.New(slog.DiscardHandler))
	return d
}

func TestReceiver(t *testing.T) {
	command := func(payload, correlation string) adapters.Command {
		return adapters.Command{
			Topic: "s/m/p/set", Payload: []byte(payload), Correlation: []byte(correlation), From: "c",
			Received: time.Now(), AnswerTopic: "answers",
		}
	}
	take := func(d *desk, c adapters.Command, id string) *adapters.Order {
		return d.Take(c, "m", "p", id, 10*time.Second)
	}
	ok := adapters.Result{Outcome: adapters.OutcomeOK, Value: 1.5}
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t)
		// The same id again: while it is under way, and after.
		o := take(d, command("1", ""), "a")
		if o == nil || take(d, command("1", ""), "a") != nil {
			t.Fatal("the second of an id was taken, or the first was not")
		}
		o.Finish(ok)
		if take(d, command("1", ""), "a") != nil {
			t.Error("it was taken again")
		}
		// Correlation data is an id too; another topic, client or id is another command.
		take(d, command("2", "x"), "").Finish(ok)
		if take(d, command("2", "x"), "") != nil {
			t.Error("known correlation data was taken again")
		}
		other := command("1", "")
		other.From = "d"
		take(d, other, "a").Finish(adapters.Result{Outcome: adapters.OutcomeFailed, Reason: "down"})
		// An id with other contents is nobody's repetition.
		if take(d, command("9", ""), "a") != nil {
			t.Error("an id was taken for another command")
		}
		// Without an id each is one of its own.
		for range 2 {
			take(d, command("3", ""), "").Finish(adapters.Result{Outcome: adapters.OutcomeMismatch, Read: math.NaN()})
		}
		late := command("4", "")
		late.Received = late.Received.Add(-time.Minute)
		retained := command("5", "")
		retained.Retain, retained.AnswerRefused = true, true
		for _, c := range []adapters.Command{late, retained} {
			if take(d, c, "") != nil {
				t.Error("a stale command was taken")
			}
		}
		if take(d, command("6", ""), strings.Repeat("i", 200)) != nil {
			t.Error("an id of 200 bytes was taken")
		}
		want := []string{
			"ok  a false", "ok  a true", "ok   false", "ok   true", "failed down a false",
			"refused the id was that of another command a false", "mismatch   false", "mismatch   false",
			"refused too old  false", "refused " + adapters.StaleRetained + "  false", "refused the id is too long  false",
		}
		if got := fmt.Sprintf("%q", d.answers); got != fmt.Sprintf("%q", want) {
			t.Errorf("answers %s, want %q", got, want)
		}
		status := adapters.CommandStatus{Received: 12, OK: 2, Refused: 4, Failed: 1, Mismatch: 2, Repeated: 3, Stale: 2, Redirected: 1}
		if got := d.Status(); got != status {
			t.Errorf("status %+v, want %+v", got, status)
		}
		// After its time an id is free again.
		<-time.After(11 * time.Minute)
		if take(d, command("1", ""), "a") == nil {
			t.Error("an id is known for ever")
		}
	})
}

// What is remembered is bounded: the oldest goes.
func TestReceiverRemembersSoMuch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t)
		for i := range 3000 {
			c := adapters.Command{Topic: "t", Correlation: fmt.Append(nil, i), Received: time.Now(), AnswerTopic: "answers"}
			if d.Take(c, "m", "p", "", time.Second) == nil {
				t.Fatalf("command %d was known", i)
			}
		}
		for i, known := range map[int]bool{0: false, 1900: false, 2100: true, 2999: true} {
			c := adapters.Command{Topic: "t", Correlation: fmt.Append(nil, i), Received: time.Now(), AnswerTopic: "answers"}
			if got := d.Take(c, "m", "p", "", time.Second) == nil; got != known {
				t.Errorf("command %d known: %v, want %v", i, got, known)
			}
		}
	})
}
