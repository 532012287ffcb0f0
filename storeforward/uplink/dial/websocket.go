package dial

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"

	"github.com/coder/websocket"
)

// webSocketConn is a WebSocket as a stream of bytes: packets may span frames
// and share them (MQTT 5.0 §6 [MQTT-6.0.0-2]). Deadlines are those of the
// connection below; the library is given contexts that never end, since it
// would drop the connection with them.
type webSocketConn struct {
	net.Conn // below
	ws       *websocket.Conn
	message  io.Reader // being read; belongs to who reads
	writing  sync.Mutex
}

// upgrade turns nc, on which TLS is done, into a WebSocket. There is no
// compression: it costs more memory than the uplink, and lengths would tell
// about payloads.
func upgrade(ctx context.Context, nc net.Conn, to Target) (net.Conn, error) {
	once := func(context.Context, string, string) (net.Conn, error) {
		if nc == nil {
			return nil, errors.New("the server sends us elsewhere") // one connection, one request
		}
		c := nc
		nc = nil
		return c, nil
	}
	below := nc
	transport := &http.Transport{DialContext: once} // no Proxy: no environment
	defer transport.CloseIdleConnections()
	ws, resp, err := websocket.Dial(ctx, "ws://"+to.Address()+to.Path, &websocket.DialOptions{
		HTTPClient: &http.Client{
			Transport:     transport,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		Subprotocols:    []string{"mqtt"}, // MQTT 5.0 §6 [MQTT-6.0.0-3]
		CompressionMode: websocket.CompressionDisabled,
	})
	if resp != nil && resp.Body != nil && err != nil {
		_ = resp.Body.Close()
	}
	if err != nil {
		return nil, err
	}
	if ws.Subprotocol() != "mqtt" {
		_ = ws.CloseNow()
		return nil, errors.New("the server does not speak the subprotocol mqtt")
	}
	ws.SetReadLimit(-1) // frames are not kept; packets have their own limit
	return &webSocketConn{Conn: below, ws: ws}, nil
}

// Read reads the payload of binary frames.
func (c *webSocketConn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		if c.message == nil {
			kind, r, err := c.ws.Reader(context.Background())
			switch {
			case websocket.CloseStatus(err) != -1:
				return 0, io.EOF
			case err != nil:
				return 0, err
			case kind != websocket.MessageBinary: // MQTT 5.0 §6 [MQTT-6.0.0-1]
				return 0, errors.New("the server sent a text frame")
			}
			c.message = r
		}
		n, err := c.message.Read(p)
		if errors.Is(err, io.EOF) {
			c.message, err = nil, nil
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

// Write sends p as one binary frame.
func (c *webSocketConn) Write(p []byte) (int, error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	if err := c.ws.Write(context.Background(), websocket.MessageBinary, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Close ends the connection at once.
func (c *webSocketConn) Close() error { return c.ws.CloseNow() }
