package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"holdfast/broker"
	"holdfast/storeforward"
	"holdfast/storeforward/uplink"
)

// evil clears a screen in three ways, begins a line, and is not UTF-8.
const evil = "\x1b[2J\u009b2J\xff\nproblem\tnone\u202e"

// What others have chosen changes nothing on a terminal: reasons of a cloud, names
// of clients.
func TestNothingUnescapedReachesATerminal(t *testing.T) {
	t.Parallel()
	s := gatewayStatus{
		Gateway: evil, Time: time.Now(), Problems: []string{evil}, Broker: broker.Status{Clients: 1},
		Uplinks: []uplink.Status{{Name: "cloud", State: uplink.StateUp, Reason: evil, URL: evil, Interface: evil}},
		Store:   storeforward.Status{Path: evil, State: "ok"},
		Buses:   []busStatus{{Name: evil, Bus: map[string]any{"units": []map[string]string{{"state": evil, "last_error": evil}}}}},
		Devices: []deviceStatus{{Name: evil}},
	}
	var out bytes.Buffer
	if err := s.print(&out); err != nil {
		t.Fatal(err)
	}
	tell(&out, "%s %v\n", evil, errors.New(evil))
	if !utf8.Valid(out.Bytes()) {
		t.Error("not UTF-8")
	}
	for line := range strings.Lines(out.String()) {
		for _, r := range strings.TrimSuffix(line, "\n") {
			if !unicode.IsPrint(r) {
				t.Errorf("%q in %q", r, line)
			}
		}
		if strings.HasPrefix(line, "problem") && !strings.Contains(line, "x1b") {
			t.Errorf("a line of its own: %q", line)
		}
	}
}

// What a terminal is given escapes as JSON does, however it comes in pieces, and
// leaves JSON what it was.
func TestHarmlessText(t *testing.T) {
	t.Parallel()
	if got, want := harmlessText("a\x1b[1m\nü\u009b\xff\U000e0001ok"), `a\u001b[1m`+"\n"+`ü\u009b\xff\udb40\udc01ok`; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	const text = "\x7f\u009bü\U000e0001\u202e\x1b"
	var whole, pieces bytes.Buffer
	if err := printJSON(&whole, text); err != nil {
		t.Fatal(err)
	}
	w := &harmless{w: &pieces}
	for _, b := range whole.Bytes() {
		if _, err := w.Write([]byte{b}); err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range pieces.String() {
		if r != '\n' && !unicode.IsPrint(r) {
			t.Errorf("%q in %q", r, pieces.String())
		}
	}
	var back string
	if err := json.Unmarshal(pieces.Bytes(), &back); err != nil || back != text {
		t.Errorf("%q became %q, %v", text, back, err)
	}
	if forTerminal(io.Discard) != io.Discard {
		t.Error("what is no terminal is changed")
	}
}
