package broker_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/broker"
	"holdfast/broker/brokertest"
	"holdfast/broker/listen"
	"holdfast/broker/packet"
)

// hostileCase is one case of testdata/hostile/*.txt: what a hostile client
// sends, and how the specification wants that answered.
//
//	case: a sentence
//	# where that is written
//	version: 5                     what its packets are: 3, 4 or 5
//	listener: pipe                 or websocket; pipe if it is not said
//	option: receive_maximum = 2    of the broker, by its TOML name
//	sessions: 1                    that the hostile client leaves behind; else none
//
//	connect                        sends a plain CONNECT, and takes its CONNACK
//	connect keep                   the same with a session that outlives it
//	upgrade                        becomes a WebSocket
//	> 30 03 "ab"*10 # comment      sends bytes and texts; neighbouring lines in one piece
//	< DISCONNECT 0x81              the next answer, see answerOf
//	closed                         there is no further answer, and the connection ends at once
//	open                           there is no further answer, and the connection lives
//	cut                            the client is gone without a word
//	dial                           it comes again
//	pass 10s                       time passes
//	publish 1 hostile text         the well-behaved client publishes: QoS, topic, payload
//	will text                      the well-behaved client gets the hostile one's will
type hostileCase struct {
	file, name, cites string
	version           packet.Version
	listener          string
	options           []string
	sessions          int
	steps             []hostileStep
}

type hostileStep struct {
	verb, rest string
	bytes      []byte
	line       int
}

const fewestHostileCases = 300

func readHostile(tb testing.TB) []*hostileCase {
	tb.Helper()
	paths, err := filepath.Glob("testdata/hostile/*.txt")
	if err != nil {
		tb.Fatal(err)
	}
	var all []*hostileCase
	names := map[string]bool{}
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			tb.Fatal(err)
		}
		cases, err := parseHostile(strings.TrimSuffix(filepath.Base(path), ".txt"), string(b))
		if err != nil {
			tb.Fatalf("%s:%v", path, err)
		}
		for _, c := range cases {
			if id := c.file + "/" + c.name; names[id] {
				tb.Fatalf("%s: two cases are called %q", path, c.name)
			} else {
				names[id] = true
			}
			if !strings.Contains(c.cites, "§") && !strings.Contains(c.cites, "Holdfast") {
				tb.Fatalf("%s: case %q cites no section", path, c.name)
			}
			if !slices.ContainsFunc(c.steps, func(s hostileStep) bool { return s.verb == "closed" || s.verb == "open" }) {
				tb.Fatalf("%s: case %q says neither closed nor open", path, c.name)
			}
		}
		all = append(all, cases...)
	}
	if len(all) < fewestHostileCases {
		tb.Fatalf("testdata/hostile holds %d cases, want at least %d", len(all), fewestHostileCases)
	}
	return all
}

func parseHostile(file, content string) ([]*hostileCase, error) {
	var all []*hostileCase
	var c *hostileCase
	n := 0
	for text := range strings.Lines(content) {
		n++
		text = strings.TrimSpace(text)
		key, value, _ := strings.Cut(text, ": ")
		if c == nil && key != "case" {
			if text != "" && text[0] != '#' {
				return nil, fmt.Errorf("%d: %q stands before the first case", n, text)
			}
			continue
		}
		var err error
		switch {
		case text == "":
		case text[0] == '#':
			c.cites += text
		case key == "case":
			c = &hostileCase{file: file, name: value, listener: "pipe"}
			all = append(all, c)
		case key == "version":
			var v int
			v, err = strconv.Atoi(value)
			c.version = packet.Version(v)
		case key == "listener":
			c.listener = value
		case key == "option":
			c.options = append(c.options, value)
		case key == "sessions":
			c.sessions, err = strconv.Atoi(value)
		case text[0] == '>':
			err = c.send(text[1:], n)
		default:
			verb, rest, _ := strings.Cut(text, " ")
			c.steps = append(c.steps, hostileStep{verb: verb, rest: rest, line: n})
		}
		if err != nil {
			return nil, fmt.Errorf("%d: %w", n, err)
		}
	}
	return all, nil
}

// hostileToken is hex digits or a text in Go's form, with how often it comes.
var hostileToken = regexp.MustCompile(`^\s*(?:((?:[0-9a-f]{2})+)|("(?:[^"\\]|\\.)*"))(?:\*(\d+))?`)

func (c *hostileCase) send(text string, line int) error {
	var b []byte
	for text = strings.TrimSpace(text); text != "" && text[0] != '#'; text = strings.TrimSpace(text) {
		m := hostileToken.FindStringSubmatch(text)
		if m == nil {
			return fmt.Errorf("%q is neither hex nor a text", text)
		}
		piece, err := hex.DecodeString(m[1])
		if m[2] != "" {
			var s string
			s, err = strconv.Unquote(m[2])
			piece = []byte(s)
		}
		times := 1
		if err == nil && m[3] != "" {
			times, err = strconv.Atoi(m[3])
		}
		if err != nil {
			return fmt.Errorf("%q: %w", m[0], err)
		}
		b = append(b, bytes.Repeat(piece, times)...)
		text = text[len(m[0]):]
	}
	if last := len(c.steps) - 1; last >= 0 && c.steps[last].verb == ">" {
		c.steps[last].bytes = append(c.steps[last].bytes, b...)
		return nil
	}
	c.steps = append(c.steps, hostileStep{verb: ">", bytes: b, line: line})
	return nil
}

// change sets what the case's option lines say.
func (c *hostileCase) change(tb testing.TB) func(*broker.Options) {
	tb.Helper()
	return func(o *broker.Options) {
		for _, line := range c.options {
			key, value, _ := strings.Cut(line, " = ")
			if err := setOption(o, key, value); err != nil {
				tb.Fatalf("option %s: %v", line, err)
			}
		}
	}
}

func setOption(o *broker.Options, key, value string) error {
	v := reflect.ValueOf(o).Elem()
	for i := range v.NumField() {
		if v.Type().Field(i).Tag.Get("toml") != key {
			continue
		}
		if d, err := time.ParseDuration(value); err == nil && v.Field(i).Type() == reflect.TypeFor[time.Duration]() {
			v.Field(i).SetInt(int64(d))
			return nil
		}
		if v.Field(i).Kind() == reflect.String {
			v.Field(i).SetString(value)
			return nil
		}
		n, err := strconv.Atoi(value)
		v.Field(i).SetInt(int64(n))
		return err
	}
	return errors.New("there is no such option")
}

// TestHostile plays the corpus: each case against a broker of its own, in one
// piece, byte by byte, and, unless time has to pass, over TCP on a readiness
// loop; with a well-behaved client beside it.
func TestHostile(t *testing.T) {
	t.Parallel()
	for _, c := range readHostile(t) {
		for _, how := range []string{"whole", "byte by byte"} {
			t.Run(c.file+"/"+c.name+"/"+how, func(t *testing.T) {
				t.Parallel()
				if c.listener == "websocket" {
					playHostile(t, c, how != "whole")
				} else {
					synctest.Test(t, func(t *testing.T) { playHostile(t, c, how != "whole") })
				}
			})
		}
		if c.listener == "pipe" && !slices.ContainsFunc(c.steps, func(s hostileStep) bool { return s.verb == "pass" }) {
			t.Run(c.file+"/"+c.name+"/on a loop", func(t *testing.T) {
				t.Parallel()
				tcp := *c
				tcp.listener = "tcp"
				playHostile(t, &tcp, false)
			})
		}
	}
}

// stage is one case being played.
type stage struct {
	*testing.T

	c       *hostileCase
	b       *brokertest.Broker
	good    *brokertest.Client
	bad     *hostileClient
	bitwise bool
	sent    time.Time
}

func playHostile(t *testing.T, c *hostileCase, bitwise bool) {
	t.Helper()
	s := &stage{T: t, c: c, b: brokertest.New(t, nil, c.change(t)), bitwise: bitwise, sent: time.Now()}
	s.good = brokertest.Connect(t, s.b.Pipe(), brokertest.V5("good"))
	s.good.Subscribe(2, "good")
	dial := func() net.Conn { return s.b.Pipe() }
	switch c.listener {
	case "websocket":
		dial = serveHostile(t, s.b, "ws://127.0.0.1:0")
	case "tcp":
		dial = serveHostile(t, s.b, "tcp://127.0.0.1:0")
	}
	s.bad = newHostileClient(dial(), c)
	defer func() { s.bad.close() }()
	for _, step := range c.steps {
		if t.Failed() {
			return
		}
		if step.verb == "dial" {
			s.bad.close()
			s.bad = newHostileClient(dial(), c)
			s.sent = time.Now()
			continue
		}
		s.play(step)
	}
	s.bad.close()
	// Nobody else has noticed, and nothing is left of it.
	for qos := range byte(3) {
		if r := s.good.Publish(qos, false, "good", fmt.Sprint(qos)); r != 0 {
			t.Errorf("the good client's QoS %d was answered with %v", qos, r)
		}
	}
	if got := strings.Join(s.good.Messages(3), ""); got != "012" {
		t.Errorf("the good client got %q, want 012", got)
	}
	if c.listener == "pipe" {
		pass(2 * time.Second)
		synctest.Wait()
		if st := s.b.Status(); st.Connections != 1 || st.Sessions != 1+c.sessions {
			t.Errorf("%d connections and %d sessions, want 1 and %d", st.Connections, st.Sessions, 1+c.sessions)
		}
	}
}

func (s *stage) play(step hostileStep) {
	s.Helper()
	where := fmt.Sprintf("testdata/hostile/%s.txt:%d", s.c.file, step.line)
	switch step.verb {
	case "connect":
		p := brokertest.V5("hostile")
		p.Version = s.c.version
		if step.rest == "keep" {
			p = brokertest.Keep(p, 600)
		}
		b, err := p.AppendTo(nil, p.Version)
		if err != nil {
			s.Fatal(err)
		}
		s.bad.send(b, false)
		if got := s.bad.next(); !strings.HasPrefix(got, "CONNACK 0x00") {
			s.Fatalf("%s: got %s, want CONNACK 0x00", where, got)
		}
	case "upgrade":
		s.bad.send([]byte(upgradeRequest), false)
		if got := s.bad.next(); got != "http 101" {
			s.Fatalf("%s: got %s, want http 101", where, got)
		}
	case ">":
		s.bad.send(step.bytes, s.bitwise)
		s.sent = time.Now()
	case "<":
		if got := s.bad.next(); got != step.rest {
			s.Errorf("%s: got %s, want %s", where, got, step.rest)
		}
	case "closed":
		if got := s.bad.next(); got != "" {
			s.Errorf("%s: got %s, want the end", where, got)
		} else if d := time.Since(s.sent); d > 2*time.Second {
			s.Errorf("%s: ended after %v", where, d)
		}
	case "open":
		s.bad.sendFrame([]byte{0xc0, 0})
		if got := s.bad.next(); got != "PINGRESP" {
			s.Errorf("%s: got %s, want PINGRESP", where, got)
		}
	case "cut":
		s.bad.close()
		if s.c.listener == "pipe" {
			synctest.Wait()
		}
	case "pass":
		d, err := time.ParseDuration(step.rest)
		if err != nil {
			s.Fatalf("%s: %v", where, err)
		}
		pass(d)
		s.sent = time.Now()
	case "publish":
		f := strings.Fields(step.rest)
		s.good.Publish(f[0][0]-'0', false, f[1], f[2])
	case "will":
		if got := string(s.good.Message().Payload); got != step.rest {
			s.Errorf("%s: got %q, want the will %q", where, got, step.rest)
		}
	default:
		s.Fatalf("%s: what is %q?", where, step.verb)
	}
}

// hostileClient sends bytes, and turns what comes back into text.
type hostileClient struct {
	nc        net.Conn
	version   packet.Version
	webSocket bool
	answers   chan string // closed when the connection has ended
	done      chan struct{}
}

// An answer of a case is one of a few hundred; no case gets more than a
// thousand, and one that does would wait here for its test to look.
const hostileAnswers = 1000

func newHostileClient(nc net.Conn, c *hostileCase) *hostileClient {
	h := &hostileClient{
		nc: nc, version: c.version, webSocket: c.listener == "websocket",
		answers: make(chan string, hostileAnswers), done: make(chan struct{}),
	}
	go h.read()
	return h
}

func (h *hostileClient) close() {
	h.nc.Close()
	<-h.done
}

// send writes; that the broker has hung up shows in the answers.
func (h *hostileClient) send(b []byte, bitwise bool) {
	_ = h.nc.SetWriteDeadline(time.Now().Add(10 * time.Second))
	if !bitwise || len(b) > 4096 {
		_, _ = h.nc.Write(b)
		return
	}
	for i := range b {
		if _, err := h.nc.Write(b[i : i+1]); err != nil {
			return
		}
	}
}

// sendFrame sends a packet in whatever the connection is made of.
func (h *hostileClient) sendFrame(b []byte) {
	if h.webSocket {
		b = append([]byte{0x82, 0x80 | byte(len(b)), 0, 0, 0, 0}, b...)
	}
	h.send(b, false)
}

// next returns the next answer, "" for the end of the connection.
func (h *hostileClient) next() string {
	select {
	case a := <-h.answers:
		return a
	case <-time.After(5 * time.Second):
		return "nothing"
	}
}

func (h *hostileClient) read() {
	defer close(h.done)
	defer close(h.answers)
	r := bufio.NewReader(h.nc)
	if h.webSocket {
		h.readWebSocket(r)
		return
	}
	var rest []byte
	piece := make([]byte, 4096)
	for {
		n, err := r.Read(piece)
		rest = h.packets(append(rest, piece[:n]...))
		if err != nil {
			break
		}
	}
	if len(rest) > 0 {
		h.answers <- fmt.Sprintf("half a packet % x", rest)
	}
}

// packets takes whole packets from the front of b.
func (h *hostileClient) packets(b []byte) (rest []byte) {
	for {
		n, err := packet.Frame(b, 0)
		if err != nil {
			h.answers <- fmt.Sprintf("% x: %v", b, err)
			return nil
		}
		if n == 0 || n > len(b) {
			return b
		}
		p, err := packet.Decode(b[:n], h.version, nil)
		if err != nil {
			h.answers <- fmt.Sprintf("% x: %v", b[:n], err)
		} else {
			h.answers <- answerOf(p)
		}
		b = b[n:]
	}
}

// answerOf writes a packet as the corpus does.
func answerOf(p packet.Packet) string {
	codes := func(reasons []packet.ReasonCode) (s string) {
		for _, r := range reasons {
			s += fmt.Sprintf(" 0x%02x", byte(r))
		}
		return s
	}
	name := p.Type().String()
	switch p := p.(type) {
	case *packet.Connack:
		if p.SessionPresent {
			name += " present"
		}
		return name + codes([]packet.ReasonCode{p.Reason})
	case *packet.Publish:
		s := fmt.Sprintf("%s %s QoS %d", name, p.Topic, p.QoS)
		if p.QoS > 0 {
			s += fmt.Sprintf(" id %d", p.PacketID)
		}
		if p.Dup {
			s += " dup"
		}
		if p.Retain {
			s += " retain"
		}
		return fmt.Sprintf("%s %q", s, p.Payload)
	case *packet.Puback:
		return fmt.Sprintf("%s %d%s", name, p.PacketID, codes([]packet.ReasonCode{p.Reason}))
	case *packet.Pubrec:
		return fmt.Sprintf("%s %d%s", name, p.PacketID, codes([]packet.ReasonCode{p.Reason}))
	case *packet.Pubrel:
		return fmt.Sprintf("%s %d%s", name, p.PacketID, codes([]packet.ReasonCode{p.Reason}))
	case *packet.Pubcomp:
		return fmt.Sprintf("%s %d%s", name, p.PacketID, codes([]packet.ReasonCode{p.Reason}))
	case *packet.Suback:
		return fmt.Sprintf("%s %d%s", name, p.PacketID, codes(p.Reasons))
	case *packet.Unsuback:
		return fmt.Sprintf("%s %d%s", name, p.PacketID, codes(p.Reasons))
	case *packet.Disconnect:
		return name + codes([]packet.ReasonCode{p.Reason})
	case *packet.Auth:
		return name + codes([]packet.ReasonCode{p.Reason})
	default:
		return name
	}
}

const upgradeRequest = "GET /mqtt HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
	"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"

// readWebSocket reads the answer to the upgrade, then frames (RFC 6455 §5.2).
func (h *hostileClient) readWebSocket(r *bufio.Reader) {
	answer, err := http.ReadResponse(r, nil)
	if err != nil {
		return
	}
	defer answer.Body.Close()
	h.answers <- fmt.Sprintf("http %d", answer.StatusCode)
	if answer.StatusCode != http.StatusSwitchingProtocols {
		_, _ = io.Copy(io.Discard, r)
		return
	}
	var rest []byte
	for {
		var head [2]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return
		}
		n := int(head[1])
		if n >= 126 {
			h.answers <- "a long frame"
			return
		}
		payload := make([]byte, n)
		if _, err := io.ReadFull(r, payload); err != nil {
			return
		}
		switch head[0] {
		case 0x82:
			rest = h.packets(append(rest, payload...))
		case 0x88:
			code := 0
			if n >= 2 {
				code = int(payload[0])<<8 | int(payload[1])
			}
			h.answers <- fmt.Sprintf("close %d", code)
			h.nc.Close() // or the broker would wait a second for an answer
		case 0x8a:
			h.answers <- fmt.Sprintf("pong %q", payload)
		default:
			h.answers <- fmt.Sprintf("frame % x", head)
		}
	}
}

// serveHostile opens a listener for a broker.
func serveHostile(t *testing.T, b *brokertest.Broker, address string) (dial func() net.Conn) {
	t.Helper()
	e, err := listen.Open(t.Context(), address, listen.DefaultOptions(), nil, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	l := e.Listeners()[0]
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := b.Serve(context.Background(), l, broker.Listener{Name: address}); err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	t.Cleanup(func() {
		b.Stop(t)
		wg.Wait()
	})
	return func() net.Conn {
		var d net.Dialer
		nc, err := d.DialContext(t.Context(), "tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		return nc
	}
}

// TestHostileTogether sends the whole corpus at one broker, many at once, while
// two well-behaved clients keep up their conversation.
func TestHostileTogether(t *testing.T) {
	b := brokertest.Start(t, nil)
	sub := brokertest.Connect(t, b.Dial(t), brokertest.V5("sub"))
	sub.Subscribe(2, "talk")
	pub := brokertest.Connect(t, b.Dial(t), brokertest.V4("pub"))
	cases := make(chan *hostileCase)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for c := range cases {
				shout(t, b, c)
			}
		})
	}
	for i, c := range readHostile(t) {
		if c.listener == "websocket" {
			continue
		}
		cases <- c
		want := fmt.Sprint(i)
		if r := pub.Publish(byte(i%3), false, "talk", want); r != 0 {
			t.Errorf("message %d was answered with %v", i, r)
		}
		if got := string(sub.Message().Payload); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	close(cases)
	wg.Wait()
	if n := len(sub.Silent()) + len(pub.Silent()); n > 0 {
		t.Errorf("%d packets came that nobody asked for", n)
	}
}

// shout sends what a case sends, one connection for each, and does not listen.
func shout(t *testing.T, b *brokertest.Broker, c *hostileCase) {
	t.Helper()
	h := newHostileClient(b.Dial(t), c)
	defer func() { h.close() }()
	p := &packet.Connect{Version: c.version, CleanStart: true, ClientID: c.name[:min(len(c.name), 23)]}
	for _, step := range c.steps {
		switch step.verb {
		case ">":
			h.send(step.bytes, false)
		case "connect":
			if connect, err := p.AppendTo(nil, c.version); err == nil {
				h.send(connect, false)
			}
		case "dial":
			h.close()
			h = newHostileClient(b.Dial(t), c)
		}
	}
}
