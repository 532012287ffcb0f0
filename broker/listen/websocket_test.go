package listen

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"

	"holdfast/broker/brokertest"
	"holdfast/broker/packet"
)

// Opcodes of RFC 6455 §5.2.
const (
	opContinuation = 0x0
	opText         = 0x1
	opBinary       = 0x2
	opClose        = 0x8
	opPing         = 0x9
	opPong         = 0xA
)

const (
	fin  = 0x80
	rsv1 = 0x40
)

// frame is a client's frame: first is the byte with flags and opcode.
func frame(first byte, payload []byte) []byte {
	key := [4]byte{0x12, 0x34, 0x56, 0x78}
	b := []byte{first}
	switch n := len(payload); {
	case n < 126:
		b = append(b, 0x80|byte(n))
	case n < 65536:
		b = binary.BigEndian.AppendUint16(append(b, 0x80|126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, 0x80|127), uint64(n))
	}
	b = append(b, key[:]...)
	for i, c := range payload {
		b = append(b, c^key[i%4])
	}
	return b
}

// request is a good upgrade request, with lines replaced or added by header name.
func request(change map[string]string) []byte {
	lines := map[string]string{
		"": "GET /mqtt HTTP/1.1", "Host": "gateway:8083", "Connection": "Upgrade", "Upgrade": "websocket",
		"Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Protocol": "mqtt",
	}
	for k, v := range change {
		if v == "-" {
			delete(lines, k)
			continue
		}
		lines[k] = v
	}
	var b strings.Builder
	b.WriteString(lines[""] + "\r\n")
	for k, v := range lines {
		if k != "" {
			b.WriteString(k + ": " + v + "\r\n")
		}
	}
	return []byte(b.String() + "\r\n")
}

// rawSocket is a WebSocket client that sends whatever it is told to.
type rawSocket struct {
	net.Conn

	t  *testing.T
	in *bufio.Reader
}

// reply is the server's answer to a request.
type reply struct {
	status               int
	protocol, extensions string
	text                 string // of a refusal
}

func ask(t *testing.T, nc net.Conn, req []byte) (*rawSocket, reply) {
	t.Helper()
	if _, err := nc.Write(req); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(nc)
	resp, err := http.ReadResponse(in, nil)
	if err != nil {
		t.Fatalf("answer to %q: %v", req, err)
	}
	defer resp.Body.Close()
	r := reply{status: resp.StatusCode, protocol: resp.Header.Get("Sec-WebSocket-Protocol"), extensions: resp.Header.Get("Sec-WebSocket-Extensions")}
	if r.status != http.StatusSwitchingProtocols {
		text, _ := io.ReadAll(resp.Body) // a reset may follow what the server did not read
		r.text = string(text)
	}
	return &rawSocket{nc, t, in}, r
}

// openSocket is a WebSocket that has been opened.
func openSocket(t *testing.T, nc net.Conn) *rawSocket {
	t.Helper()
	s, r := ask(t, nc, request(nil))
	if r.status != http.StatusSwitchingProtocols {
		t.Fatalf("answer %+v", r)
	}
	return s
}

func (s *rawSocket) send(frames ...[]byte) {
	s.t.Helper()
	for _, f := range frames {
		if _, err := s.Write(f); err != nil {
			s.t.Fatal(err)
		}
	}
}

// next reads a frame of the server.
func (s *rawSocket) next() (first byte, payload []byte, err error) {
	var head [2]byte
	if _, err := io.ReadFull(s.in, head[:]); err != nil {
		return 0, nil, err
	}
	if head[1]&0x80 != 0 {
		return 0, nil, errors.New("the server masks")
	}
	n := uint64(head[1])
	switch n {
	case 126:
		var b [2]byte
		if _, err := io.ReadFull(s.in, b[:]); err != nil {
			return 0, nil, err
		}
		n = uint64(binary.BigEndian.Uint16(b[:]))
	case 127:
		var b [8]byte
		if _, err := io.ReadFull(s.in, b[:]); err != nil {
			return 0, nil, err
		}
		n = binary.BigEndian.Uint64(b[:])
	}
	payload = make([]byte, n)
	_, err = io.ReadFull(s.in, payload)
	return head[0], payload, err
}

// packets reads binary frames until there are n packets of MQTT 5.0.
func (s *rawSocket) packets(n int) []packet.Packet {
	s.t.Helper()
	var all []byte
	for {
		var found []packet.Packet
		for rest := all; ; {
			size, err := packet.Frame(rest, 1<<20)
			if err != nil {
				s.t.Fatal(err)
			}
			if size == 0 || size > len(rest) {
				break
			}
			p, err := packet.Decode(rest[:size], packet.V5, nil)
			if err != nil {
				s.t.Fatal(err)
			}
			found, rest = append(found, p), rest[size:]
		}
		if len(found) >= n {
			return found
		}
		first, payload, err := s.next()
		if err != nil || first != fin|opBinary {
			s.t.Fatalf("frame %#x % x, %v, want a binary one; had %d packets of %d", first, payload, err, len(found), n)
		}
		all = append(all, payload...)
	}
}

// closed reads until the close frame, answers it, and returns its status.
func (s *rawSocket) closed() websocket.StatusCode {
	s.t.Helper()
	for {
		first, payload, err := s.next()
		if err != nil {
			s.t.Fatalf("no close frame: %v", err)
		}
		if first != fin|opClose {
			continue
		}
		_, _ = s.Write(frame(fin|opClose, payload)) // may meet a closed connection
		if _, err := s.in.ReadByte(); err == nil {
			s.t.Error("something follows the close frame")
		}
		if len(payload) < 2 {
			return websocket.StatusNoStatusRcvd
		}
		return websocket.StatusCode(binary.BigEndian.Uint16(payload))
	}
}

func encode(t *testing.T, ps ...packet.Packet) []byte {
	t.Helper()
	var b []byte
	for _, p := range ps {
		var err error
		if b, err = p.AppendTo(b, packet.V5); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

// mqttOver opens whatever the address speaks, and returns what carries MQTT.
func mqttOver(t *testing.T, e *Endpoint, address string, ca *authority) net.Conn {
	t.Helper()
	config := &tls.Config{RootCAs: ca.pool, ServerName: "localhost"}
	scheme, _, _ := strings.Cut(address, ":")
	switch scheme {
	case "tls":
		nc, err := handshake(t, e, config)
		if err != nil {
			t.Fatal(err)
		}
		return nc
	case "ws", "wss":
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}}
		ctx, cancel := context.WithCancel(context.Background())
		t.Cleanup(cancel)
		ws, resp, err := websocket.Dial( //nolint:bodyclose // the body of a 101 is the connection
			ctx, scheme+"://"+e.addr().String()+"/mqtt", &websocket.DialOptions{
				HTTPClient: client, Subprotocols: []string{"mqtt"}, CompressionMode: websocket.CompressionContextTakeover,
			})
		if err != nil {
			t.Fatal(err)
		}
		if got := resp.Header.Get("Sec-WebSocket-Extensions"); got != "" {
			t.Errorf("the server agrees to %q", got)
		}
		nc := websocket.NetConn(ctx, ws, websocket.MessageBinary)
		t.Cleanup(func() { nc.Close() })
		return nc
	default:
		return dial(t, e)
	}
}

func TestWebSocketCarriesMQTT(t *testing.T) {
	ca := newAuthority(t, "plant CA")
	for _, address := range []string{"ws://127.0.0.1:0", "wss://127.0.0.1:0"} {
		t.Run(address, func(t *testing.T) {
			o := DefaultOptions()
			if strings.HasPrefix(address, "wss") {
				o = ca.secured(t)
			}
			e := openEndpoint(t, address, o)
			serve(t, e)
			for _, connect := range []*packet.Connect{brokertest.V5("five"), brokertest.V4("four")} {
				c := brokertest.Connect(t, mqttOver(t, e, address, ca), connect)
				c.Subscribe(2, "a/#")
				for qos := byte(0); qos <= 2; qos++ {
					for _, payload := range []string{"", "x", strings.Repeat("y", 70_000)} {
						c.Publish(qos, false, "a/b", payload)
						if got := c.Message(); string(got.Payload) != payload || got.QoS != qos {
							t.Errorf("QoS %d, %d bytes came back as QoS %d, %d bytes", qos, len(payload), got.QoS, len(got.Payload))
						}
					}
				}
				c.Disconnect(0)
			}
			if st := e.Status(); st.Upgrades != 2 || st.UpgradesRefused+st.FrameErrors+st.TextFrames != 0 {
				t.Errorf("status %+v", st)
			}
		})
	}
}

func TestUpgrade(t *testing.T) {
	many := strings.Repeat("X-Long: "+strings.Repeat("y", 1000)+"\r\n", 9)
	tests := map[string]struct {
		change   map[string]string
		options  func(*Options)
		status   int
		protocol string
	}{
		"mqtt":                       {status: 101, protocol: "mqtt"},
		"3.1":                        {change: map[string]string{"Sec-WebSocket-Protocol": "mqttv3.1"}, status: 101, protocol: "mqttv3.1"},
		"3.1 and mqtt":               {change: map[string]string{"Sec-WebSocket-Protocol": "mqttv3.1, mqtt"}, status: 101, protocol: "mqtt"},
		"letters count":              {change: map[string]string{"Sec-WebSocket-Protocol": "MQTT,mqtt"}, status: 101, protocol: "mqtt"},
		"MQTT":                       {change: map[string]string{"Sec-WebSocket-Protocol": "MQTT"}, status: 400},
		"another subprotocol":        {change: map[string]string{"Sec-WebSocket-Protocol": "chat"}, status: 400},
		"no subprotocol":             {change: map[string]string{"Sec-WebSocket-Protocol": "-"}, status: 400},
		"root":                       {change: map[string]string{"": "GET / HTTP/1.1"}, status: 101, protocol: "mqtt"},
		"query":                      {change: map[string]string{"": "GET /mqtt?a=b HTTP/1.1"}, status: 101, protocol: "mqtt"},
		"another path":               {change: map[string]string{"": "GET /mqtt/ HTTP/1.1"}, status: 404},
		"own path":                   {change: map[string]string{"": "GET /broker HTTP/1.1"}, options: func(o *Options) { o.WebSocketPaths = []string{"/broker"} }, status: 101, protocol: "mqtt"},
		"default path is off":        {options: func(o *Options) { o.WebSocketPaths = []string{"/broker"} }, status: 404},
		"POST":                       {change: map[string]string{"": "POST /mqtt HTTP/1.1"}, status: 405},
		"HTTP/1.0":                   {change: map[string]string{"": "GET /mqtt HTTP/1.0"}, status: 426},
		"a page":                     {change: map[string]string{"Upgrade": "-", "Connection": "-"}, status: 426},
		"another upgrade":            {change: map[string]string{"Upgrade": "h2c"}, status: 426},
		"old version":                {change: map[string]string{"Sec-WebSocket-Version": "8"}, status: 400},
		"no key":                     {change: map[string]string{"Sec-WebSocket-Key": "-"}, status: 400},
		"short key":                  {change: map[string]string{"Sec-WebSocket-Key": "AAAA"}, status: 400},
		"no host":                    {change: map[string]string{"Host": "-"}, status: 400},
		"body":                       {change: map[string]string{"Content-Length": "5"}, status: 400},
		"chunked body":               {change: map[string]string{"Transfer-Encoding": "chunked"}, status: 400},
		"not HTTP":                   {change: map[string]string{"": "hello"}, status: 400},
		"compression is not agreed":  {change: map[string]string{"Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits"}, status: 101, protocol: "mqtt"},
		"too many headers":           {change: map[string]string{"X": "y\r\n" + many + "Z: z"}, status: 431},
		"a long line":                {change: map[string]string{"": "GET /" + strings.Repeat("a", 2*maxHeader)}, status: 431},
		"same origin":                {change: map[string]string{"Origin": "http://gateway:8083"}, status: 101, protocol: "mqtt"},
		"another origin":             {change: map[string]string{"Origin": "https://evil.example"}, status: 403},
		"an origin that is welcome":  {change: map[string]string{"Origin": "https://hmi.example"}, options: func(o *Options) { o.WebSocketOrigins = []string{"https://*.example"} }, status: 101, protocol: "mqtt"},
		"an origin by another road":  {change: map[string]string{"Origin": "http://hmi.example"}, options: func(o *Options) { o.WebSocketOrigins = []string{"https://*.example"} }, status: 403},
		"any origin":                 {change: map[string]string{"Origin": "null"}, options: func(o *Options) { o.WebSocketOrigins = []string{"*"} }, status: 101, protocol: "mqtt"},
		"no origin of its own":       {change: map[string]string{"Origin": "null"}, status: 403},
		"two origins":                {change: map[string]string{"Origin": "http://gateway:8083\r\nOrigin: https://evil.example"}, status: 403},
		"a name pointed at this one": {change: map[string]string{"Host": "evil.example:8083", "Origin": "http://evil.example:8083"}, status: 403},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			o := DefaultOptions()
			if tt.options != nil {
				tt.options(&o)
			}
			e := openEndpoint(t, "ws://127.0.0.1:0", o)
			b := serve(t, e)
			s, r := ask(t, dial(t, e), request(tt.change))
			if r.status != tt.status || r.protocol != tt.protocol || r.extensions != "" {
				t.Fatalf("answer %+v, want %d %q", r, tt.status, tt.protocol)
			}
			if tt.status != http.StatusSwitchingProtocols {
				if tt.status != 431 && r.text == "" {
					t.Error("the refusal does not say why")
				}
				b.Stop(t)
				if st := e.Status(); st.UpgradesRefused != 1 || st.Upgrades != 0 {
					t.Errorf("status %+v", st)
				}
				return
			}
			s.send(frame(fin|opBinary, encode(t, brokertest.V5("x"))))
			if ack, ok := s.packets(1)[0].(*packet.Connack); !ok || ack.Reason.Failed() {
				t.Errorf("CONNACK %+v", ack)
			}
		})
	}
}

func TestOrigins(t *testing.T) {
	tests := map[string]struct {
		origin, host string
		secure       bool
		patterns     []string
		want         bool
	}{
		"no browser":                  {"", "10.0.0.5:8083", false, nil, true},
		"own address":                 {"http://10.0.0.5:8083", "10.0.0.5:8083", false, nil, true},
		"own IPv6 address":            {"http://[fd00::5]:8083", "[fd00::5]:8083", false, nil, true},
		"localhost":                   {"http://localhost:8083", "localhost:8083", false, nil, true},
		"letters":                     {"http://LocalHost:8083", "localhost:8083", false, nil, true},
		"own name":                    {"http://gw.plant.example:8083", "gw.plant.example:8083", false, nil, true},
		"another port":                {"http://10.0.0.5", "10.0.0.5:8083", false, nil, false},
		"name of anybody":             {"http://evil.example:8083", "evil.example:8083", false, nil, false},
		"name behind a certificate":   {"https://gw2.plant.example", "gw2.plant.example", true, nil, true},
		"list":                        {"http://hmi.example", "10.0.0.5:8083", false, []string{"a", "hmi.example"}, true},
		"list with a port":            {"http://hmi.example:80", "10.0.0.5:8083", false, []string{"hmi.example"}, false},
		"list with letters":           {"http://HMI.example", "10.0.0.5:8083", false, []string{"http://hmi.Example"}, true},
		"star within a host":          {"http://evil.example.net", "10.0.0.5:8083", false, []string{"*.example"}, false},
		"not a URL":                   {"http://[", "10.0.0.5:8083", false, []string{"http://*"}, false},
		"null is no empty host":       {"null", "10.0.0.5:8083", false, []string{"?*", "null"}, false},
		"all":                         {"null", "10.0.0.5:8083", false, []string{"*"}, true},
		"an empty host is not ours":   {"http://", "", false, nil, false},
		"star does not cross schemes": {"https://x.example", "h", false, []string{"http://*"}, false},
	}
	for name, tt := range tests {
		e := Endpoint{opts: Options{WebSocketOrigins: tt.patterns}, hostName: "gw.plant.example"}
		if got := e.allowsOrigin(tt.origin, tt.host, tt.secure); got != tt.want {
			t.Errorf("%s: origin %q at %q: %t, want %t", name, tt.origin, tt.host, got, tt.want)
		}
	}
}

// MQTT 5.0 §6 [MQTT-6.0.0-2]: packets and frames have nothing to do with each
// other.
func TestPacketsAndFrames(t *testing.T) {
	stream := encode(t, brokertest.V5("meter"),
		&packet.Subscribe{PacketID: 1, Filters: []packet.Filter{{Filter: "a"}}},
		&packet.Publish{Topic: []byte("a"), Payload: []byte(strings.Repeat("z", 300))}, &packet.Pingreq{})
	const answers = 4 // CONNACK, SUBACK, PUBLISH, PINGRESP
	tests := map[string]func(s *rawSocket){
		"all in one frame": func(s *rawSocket) { s.send(frame(fin|opBinary, stream)) },
		"a frame for each byte": func(s *rawSocket) {
			for i := range stream {
				s.send(frame(fin|opBinary, stream[i:i+1]))
			}
		},
		"a frame sent byte by byte": func(s *rawSocket) {
			f := frame(fin|opBinary, stream)
			for i := range f {
				s.send(f[i : i+1])
			}
		},
		"one message of many frames": func(s *rawSocket) {
			s.send(frame(opBinary, stream[:1]))
			for i := 1; i < len(stream)-1; i++ {
				s.send(frame(opContinuation, stream[i:i+1]))
			}
			s.send(frame(fin|opContinuation, stream[len(stream)-1:]))
		},
		"pings, pongs and empty frames between": func(s *rawSocket) {
			s.send(frame(fin|opBinary, nil), frame(fin|opPing, []byte("?")), frame(fin|opPong, nil))
			if first, payload, err := s.next(); err != nil || first != fin|opPong || string(payload) != "?" {
				s.t.Fatalf("answer to a ping: %#x %q %v", first, payload, err)
			}
			s.send(frame(opBinary, stream[:20]), frame(opContinuation, nil), frame(fin|opPong, []byte("!")))
			s.send(frame(fin|opContinuation, stream[20:21]), frame(fin|opBinary, stream[21:]))
		},
		"a frame that never ends": func(s *rawSocket) {
			// Its length is 2^62; what it holds is served as it comes.
			f := frame(fin|opBinary, make([]byte, 70_000))[:14]
			binary.BigEndian.PutUint64(f[2:], 1<<62)
			masked := frame(fin|opBinary, append(stream, encode(s.t, &packet.Publish{
				Topic: []byte("b"), Payload: make([]byte, 4000),
			})...))
			s.send(f, masked[8:])
		},
	}
	for name, send := range tests {
		t.Run(name, func(t *testing.T) {
			e := openEndpoint(t, "ws://127.0.0.1:0", DefaultOptions())
			serve(t, e)
			s := openSocket(t, dial(t, e))
			send(s)
			got := s.packets(answers)
			var kinds []string
			for _, p := range got {
				kinds = append(kinds, p.Type().String())
			}
			if fmt.Sprint(kinds) != "[CONNACK SUBACK PUBLISH PINGRESP]" && fmt.Sprint(kinds) != "[CONNACK SUBACK PINGRESP PUBLISH]" {
				t.Errorf("answers %v", kinds)
			}
		})
	}
}

// What a client may not send ends its connection, and nothing else.
func TestForbiddenFrames(t *testing.T) {
	tooLong := frame(fin|opBinary, make([]byte, 70_000))
	binary.BigEndian.PutUint64(tooLong[2:], 1<<63)
	unmasked := []byte{fin | opBinary, 2, 0xC0, 0x00}
	tests := map[string]struct {
		frames [][]byte
		status websocket.StatusCode
		text   bool
	}{
		"text":                          {[][]byte{frame(fin|opText, []byte("hello"))}, websocket.StatusUnsupportedData, true},
		"empty text":                    {[][]byte{frame(fin|opText, nil)}, websocket.StatusUnsupportedData, true},
		"text in parts":                 {[][]byte{frame(opText, []byte("hel"))}, websocket.StatusUnsupportedData, true},
		"compressed":                    {[][]byte{frame(fin|rsv1|opBinary, []byte{0x63, 0, 0})}, websocket.StatusProtocolError, false},
		"reserved bit":                  {[][]byte{frame(fin|0x10|opBinary, nil)}, websocket.StatusProtocolError, false},
		"reserved opcode":               {[][]byte{frame(fin|0x3, nil)}, websocket.StatusProtocolError, false},
		"reserved control opcode":       {[][]byte{frame(fin|0xB, nil)}, websocket.StatusProtocolError, false},
		"not masked":                    {[][]byte{unmasked}, websocket.StatusProtocolError, false},
		"continuation of nothing":       {[][]byte{frame(fin|opContinuation, []byte("x"))}, websocket.StatusProtocolError, false},
		"a message in another":          {[][]byte{frame(opBinary, []byte{0xC0}), frame(fin|opBinary, []byte{0})}, websocket.StatusProtocolError, false},
		"ping in parts":                 {[][]byte{frame(opPing, []byte("x"))}, websocket.StatusProtocolError, false},
		"long ping":                     {[][]byte{frame(fin|opPing, make([]byte, 126))}, websocket.StatusProtocolError, false},
		"close with one byte":           {[][]byte{frame(fin|opClose, []byte{3})}, websocket.StatusProtocolError, false},
		"close with a forbidden status": {[][]byte{frame(fin|opClose, []byte{3, 0xED})}, websocket.StatusProtocolError, false},
		"length beyond 63 bits":         {[][]byte{tooLong[:14]}, websocket.StatusProtocolError, false},
	}
	for name, tt := range tests {
		for _, connected := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, connected %t", name, connected), func(t *testing.T) {
				e := openEndpoint(t, "ws://127.0.0.1:0", DefaultOptions())
				b := serve(t, e)
				other := brokertest.Connect(t, mqttOver(t, e, "ws:", newAuthority(t, "-")), brokertest.V5("other"))
				s := openSocket(t, dial(t, e))
				if connected {
					s.send(frame(fin|opBinary, encode(t, brokertest.V5("meter"))))
					s.packets(1)
				}
				s.send(tt.frames...)
				if got := s.closed(); got != tt.status {
					t.Errorf("closed with %d, want %d", got, tt.status)
				}
				other.Subscribe(0, "a")
				other.Publish(1, false, "a", "x")
				other.Message()
				b.Stop(t)
				st := e.Status()
				if tt.text && (st.TextFrames != 1 || st.FrameErrors != 0) || !tt.text && (st.TextFrames != 0 || st.FrameErrors != 1) {
					t.Errorf("status %+v", st)
				}
			})
		}
	}
}

// The DISCONNECT of the broker reaches the client, whatever ended the
// connection, and the close frame follows.
func TestLastWords(t *testing.T) {
	tests := map[string]struct {
		end  func(t *testing.T, b *brokertest.Broker, s *rawSocket)
		want packet.ReasonCode
	}{
		"shutdown": {func(t *testing.T, b *brokertest.Broker, _ *rawSocket) {
			t.Helper()
			go b.Stop(t)
		}, packet.ReasonServerShuttingDown},
		"second CONNECT": {func(t *testing.T, _ *brokertest.Broker, s *rawSocket) {
			t.Helper()
			s.send(frame(fin|opBinary, encode(t, brokertest.V5("meter"))))
		}, packet.ReasonProtocolError},
		"packet too large": {func(t *testing.T, _ *brokertest.Broker, s *rawSocket) {
			t.Helper()
			// Known from its header; 4 MB of it are on their way.
			big := encode(t, &packet.Publish{Topic: []byte("a"), Payload: make([]byte, 4<<20)})
			go func() { _, _ = s.Write(frame(fin|opBinary, big)) }()
		}, packet.ReasonPacketTooLarge},
		"takeover": {func(t *testing.T, b *brokertest.Broker, _ *rawSocket) {
			t.Helper()
			brokertest.Connect(t, b.Pipe(), brokertest.V5("meter"))
		}, packet.ReasonSessionTakenOver},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			e := openEndpoint(t, "ws://127.0.0.1:0", DefaultOptions())
			b := serve(t, e)
			s := openSocket(t, dial(t, e))
			s.send(frame(fin|opBinary, encode(t, brokertest.V5("meter"))))
			s.packets(1)
			tt.end(t, b, s)
			got, ok := s.packets(1)[0].(*packet.Disconnect)
			if !ok || got.Reason != tt.want {
				t.Fatalf("got %+v, want a DISCONNECT with %v", got, tt.want)
			}
			if first, payload, err := s.next(); err != nil || first != fin|opClose {
				t.Fatalf("frame %#x % x, %v, want a close frame", first, payload, err)
			}
		})
	}
}

// onPipe is a WebSocket over net.Pipe, opened, for synctest.
func onPipe(t *testing.T) (*webSocketConn, *rawSocket, *Endpoint) {
	t.Helper()
	client, server := net.Pipe()
	e := &Endpoint{opts: DefaultOptions(), log: logger(t)}
	c := e.webSocket(server)
	t.Cleanup(func() {
		client.Close()
		c.Close()
	})
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := c.Read(make([]byte, 1)); err != nil {
			t.Error(err)
		}
	})
	s := openSocket(t, client)
	s.send(frame(fin|opBinary, []byte("x")))
	wg.Wait()
	return c, s, e
}

func TestDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s, _ := onPipe(t)
		buf := make([]byte, 8)
		// A read deadline that passes breaks nothing.
		for _, d := range []time.Duration{-time.Hour, 0, time.Minute} {
			if err := c.SetReadDeadline(time.Now().Add(d)); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Read(buf); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("after %s: %v, want %v", d, err, os.ErrDeadlineExceeded)
			}
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, payload, err := s.next(); err != nil || string(payload) != "bye" {
				t.Errorf("after the deadline %q, %v was written", payload, err)
			}
			s.send(frame(fin|opBinary, []byte("abc")))
		})
		if _, err := c.Write([]byte("bye")); err != nil {
			t.Error(err)
		}
		if err := c.SetReadDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
		if n, err := c.Read(buf); err != nil || string(buf[:n]) != "abc" {
			t.Errorf("read %q, %v", buf[:n], err)
		}
		wg.Wait()
		// A deadline wakes a Read that waits.
		wg.Go(func() {
			if _, err := c.Read(buf); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("woken with %v, want %v", err, os.ErrDeadlineExceeded)
			}
		})
		synctest.Wait()
		if err := c.SetReadDeadline(time.Unix(1, 0)); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
		// And a Write that is stuck.
		if err := c.SetWriteDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write(make([]byte, 1<<16)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("stuck write: %v, want %v", err, os.ErrDeadlineExceeded)
		}
	})
}

func TestCloseWaitsForNobodyLong(t *testing.T) {
	t.Run("the client does not answer", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c, s, _ := onPipe(t)
			go func() { _, _, _ = s.next() }()
			begun := time.Now()
			if err := c.Close(); err != nil {
				t.Error(err)
			}
			if d := time.Since(begun); d != closeGrace {
				t.Errorf("Close took %s, want %s", d, closeGrace)
			}
		})
	})
	t.Run("the client answers", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c, s, _ := onPipe(t)
			go func() {
				if _, payload, err := s.next(); err == nil {
					_, _ = s.Write(frame(fin|opClose, payload))
				}
			}()
			begun := time.Now()
			if err := c.Close(); err != nil {
				t.Error(err)
			}
			if d := time.Since(begun); d != 0 {
				t.Errorf("Close took %s", d)
			}
		})
	})
	t.Run("a write is stuck", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c, _, _ := onPipe(t)
			var wg sync.WaitGroup
			wg.Go(func() {
				if _, err := c.Write(make([]byte, 1<<16)); err == nil {
					t.Error("written to nobody")
				}
			})
			synctest.Wait()
			begun := time.Now()
			_ = c.Close() // only how long counts
			wg.Wait()
			if d := time.Since(begun); d != 0 {
				t.Errorf("Close took %s", d)
			}
		})
	})
	t.Run("again, from elsewhere", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c, _, _ := onPipe(t)
			var wg sync.WaitGroup
			wg.Go(func() { _ = c.Close() })
			synctest.Wait() // in its grace
			begun := time.Now()
			_ = c.Close()
			wg.Wait()
			if d := time.Since(begun); d != 0 {
				t.Errorf("Close took %s", d)
			}
		})
	})
	t.Run("before the upgrade", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			client, server := net.Pipe()
			defer client.Close()
			c := (&Endpoint{opts: DefaultOptions(), log: logger(t)}).webSocket(server)
			var wg sync.WaitGroup
			wg.Go(func() {
				if _, err := c.Read(make([]byte, 1)); err == nil {
					t.Error("read from nobody")
				}
			})
			synctest.Wait()
			begun := time.Now()
			if err := c.Close(); err != nil {
				t.Error(err)
			}
			wg.Wait()
			if d := time.Since(begun); d != 0 {
				t.Errorf("Close took %s", d)
			}
		})
	})
}

// Ends of all kinds are told as those of a TCP connection are.
func TestEnds(t *testing.T) {
	tests := map[string]struct {
		end  func(s *rawSocket)
		want error
	}{
		"close frame":          {func(s *rawSocket) { s.send(frame(fin|opClose, []byte{3, 0xE8})) }, io.EOF},
		"close without status": {func(s *rawSocket) { s.send(frame(fin|opClose, nil)) }, io.EOF},
		"going away":           {func(s *rawSocket) { s.send(frame(fin|opClose, []byte{3, 0xE9})) }, io.EOF},
		"no close frame":       {func(s *rawSocket) { s.Close() }, io.ErrUnexpectedEOF},
		"in a frame":           {func(s *rawSocket) { s.send(frame(fin|opBinary, []byte("abc"))[:7]); s.Close() }, io.ErrUnexpectedEOF},
		"in a message":         {func(s *rawSocket) { s.send(frame(opBinary, nil)); s.Close() }, io.ErrUnexpectedEOF},
		"in a header":          {func(s *rawSocket) { s.send([]byte{fin | opBinary}); s.Close() }, io.ErrUnexpectedEOF},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, s, e := onPipe(t)
				go func() {
					tt.end(s)
					_, _ = io.Copy(io.Discard, s.in) // the answer to a close frame
				}()
				buf := make([]byte, 8)
				var err error
				for err == nil {
					_, err = c.Read(buf)
				}
				if !errors.Is(err, tt.want) {
					t.Errorf("Read: %v, want %v", err, tt.want)
				}
				if st := e.Status(); st.FrameErrors != 0 {
					t.Errorf("status %+v", st)
				}
			})
		})
	}
}

// A proxy on this machine does not make its clients ones of this machine.
func TestProxied(t *testing.T) {
	for _, key := range []string{"X-Forwarded-For", "Forwarded", "X-Real-IP", "Via"} {
		e := openEndpoint(t, "ws://127.0.0.1:0", DefaultOptions())
		b := serve(t, e)
		s, r := ask(t, dial(t, e), request(map[string]string{key: "203.0.113.9"}))
		if r.status != http.StatusSwitchingProtocols {
			t.Fatalf("answer %+v", r)
		}
		s.send(frame(fin|opBinary, encode(t, brokertest.V5("meter"))))
		if ack, ok := s.packets(1)[0].(*packet.Connack); !ok || ack.Reason != packet.ReasonNotAuthorized {
			t.Errorf("%s: CONNACK %+v, want %v: the listener lets in nameless clients of this machine only", key, ack, packet.ReasonNotAuthorized)
		}
		s.closed()
		b.Stop(t)
	}
}
