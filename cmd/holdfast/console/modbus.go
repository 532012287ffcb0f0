package console

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"holdfast/adapters/modbus"
	"holdfast/broker/listen"
)

// ErrNoBus means that no Modbus bus runs on a port.
var ErrNoBus = errors.New("no Modbus bus runs on this port")

// BusInfo is a Modbus bus of the running gateway.
type BusInfo struct {
	Port string `json:"port"`
	// Device is as configured: a path, a selector, or the address of a peer.
	Device string `json:"device"`
}

// Buses are the Modbus buses of a running gateway.
type Buses interface {
	Buses() []BusInfo
	// Ask makes a request on the bus of a port, or returns ErrNoBus.
	Ask(ctx context.Context, port string, r modbus.Request, timeout time.Duration) ([]byte, error)
}

// busAPI lets the command line use the buses that the gateway holds.
type busAPI struct {
	buses Buses
	log   *slog.Logger
}

func (a busAPI) register(mux *http.ServeMux) {
	mux.HandleFunc("GET /api/v1/modbus", a.list)
	mux.HandleFunc("POST /api/v1/modbus", a.ask)
}

func (a busAPI) list(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(a.buses.Buses()) // the client went away
}

// busRequest is a request as it goes over the control socket.
type busRequest struct {
	Request pdu           `json:"request"`
	Timeout time.Duration `json:"timeout_ns"`
}

// pdu is a modbus.Request in JSON.
type pdu struct {
	Unit      byte            `json:"unit_id"`
	Function  modbus.Function `json:"function"`
	Addr      uint16          `json:"address"`
	Count     uint16          `json:"count"`
	WriteAddr uint16          `json:"write_address,omitempty"`
	Data      []byte          `json:"data,omitempty"`
}

// busAnswer is what became of it: data, the unit's exception, or one of
// busErrors by its name, with the whole text.
type busAnswer struct {
	Data      []byte           `json:"data,omitempty"`
	Exception modbus.Exception `json:"exception,omitempty"`
	Kind      string           `json:"kind,omitempty"`
	Error     string           `json:"error,omitempty"`
}

// busErrors are the outcomes that callers tell apart, by their names on the
// socket.
var busErrors = map[string]error{
	"no_answer": modbus.ErrNoAnswer, "garbled": modbus.ErrGarbled, "mismatch": modbus.ErrMismatch, "malformed": modbus.ErrMalformed,
	"busy": modbus.ErrBusy, "down": modbus.ErrDown, "not_open": modbus.ErrNotOpen, "lost": modbus.ErrLost, "too_late": context.DeadlineExceeded,
}

// maxBusRequest bounds the body of a request: the longest PDU as base64.
const maxBusRequest = 4 << 10

// askTime is how long a request may wait for the bus.
const askTime = 15 * time.Second

func (a busAPI) ask(w http.ResponseWriter, r *http.Request) {
	var q busRequest
	if err := json.NewDecoder(io.LimitReader(r.Body, maxBusRequest)).Decode(&q); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if q.Timeout < 0 || q.Timeout > time.Minute {
		http.Error(w, fmt.Sprintf("timeout %v is outside 0s..1m", q.Timeout), http.StatusBadRequest)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), askTime)
	defer cancel()
	port := r.URL.Query().Get("port")
	data, err := a.buses.Ask(ctx, port, modbus.Request(q.Request), q.Timeout)
	if errors.Is(err, ErrNoBus) {
		http.Error(w, fmt.Sprintf("port %s: %v", Shown(port), err), http.StatusNotFound)
		return
	}
	if q.Request.Function.Writes() {
		who, _ := r.Context().Value(askerKey{}).(string)
		outcome := "done"
		if err != nil {
			outcome = err.Error()
		}
		a.log.Info("modbus write asked for on the control socket", "user", who, "adapter", port, "unit_id", q.Request.Unit,
			"function", q.Request.Function.String(), "address", q.Request.Addr, "count", q.Request.Count,
			"data", hex.EncodeToString(q.Request.Data), "outcome", outcome)
	}
	out := busAnswer{Data: data}
	if err != nil {
		out.Error = err.Error()
		if e, ok := errors.AsType[*modbus.ExceptionError](err); ok {
			out.Exception = e.Code
		}
		for kind, e := range busErrors {
			if errors.Is(err, e) {
				out.Kind = kind
			}
		}
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(out) // the client went away
}

type askerKey struct{}

// withAsker notes who opened a connection to the control socket.
func withAsker(ctx context.Context, c net.Conn) context.Context {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	return context.WithValue(ctx, askerKey{}, listen.UserOf(u))
}

// ListBuses asks the gateway that listens on the control socket for its Modbus
// buses.
func ListBuses(ctx context.Context, socket string) (list []BusInfo, err error) {
	body, code, err := Get(ctx, socket, "/api/v1/modbus")
	switch {
	case err != nil:
		return nil, err
	case code != http.StatusOK:
		return nil, fmt.Errorf("ask %s: %s", socket, strings.TrimSpace(string(body)))
	}
	return list, json.Unmarshal(body, &list)
}

// AskBus makes a request on a bus of the gateway that listens on the control
// socket. Its errors are those of [modbus.Bus.Do].
func AskBus(ctx context.Context, socket, port string, r modbus.Request, timeout time.Duration) ([]byte, error) {
	body, err := json.Marshal(busRequest{pdu(r), timeout})
	if err != nil {
		return nil, err
	}
	var a busAnswer
	err = Stream(ctx, socket, http.MethodPost, "/api/v1/modbus?port="+url.QueryEscape(port), strings.NewReader(string(body)), func(line []byte) error {
		return json.Unmarshal(line, &a)
	})
	switch {
	case err != nil:
		return nil, err
	case a.Exception != 0:
		return nil, &modbus.ExceptionError{Function: r.Function, Code: a.Exception}
	case busErrors[a.Kind] != nil:
		return nil, &remoteError{a.Error, busErrors[a.Kind]}
	case a.Error != "":
		return nil, errors.New(a.Error)
	}
	return a.Data, nil
}

// remoteError is an error of the gateway with the one it wrapped there.
type remoteError struct {
	text string
	err  error
}

// Error is what the gateway said.
func (e *remoteError) Error() string { return e.text }

// Unwrap is the error that callers test for.
func (e *remoteError) Unwrap() error { return e.err }
