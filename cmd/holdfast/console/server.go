package console

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"holdfast/broker/listen"
	"holdfast/storeforward"
)

// Source is where the console gets its answers; the functions are called from
// many goroutines.
type Source struct {
	// Status returns a snapshot that encodes to JSON; its numbers become the
	// metrics.
	Status func() any
	// Healthy returns what is wrong, or nil.
	Healthy func() error
	// Store is where the queues are; nil when there are none to be asked for.
	Store *storeforward.Store
	// Sessions are those of the broker's clients; nil for none.
	Sessions Sessions
	// Buses are the Modbus buses; nil for none.
	Buses Buses
}

// Listen opens the control socket at path, for the owner and the group only.
// A socket that a killed process left behind is replaced, one that answers is
// not.
func Listen(ctx context.Context, path string) (net.Listener, error) {
	if len(path) > 107 { // sun_path, unix(7)
		return nil, fmt.Errorf("control socket %s: the path is longer than 107 bytes", path)
	}
	if err := listen.RemoveDeadSocket(ctx, path); err != nil {
		return nil, fmt.Errorf("control socket %s: %w", path, err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	if err := os.Chmod(path, 0o660); err != nil { //nolint:gosec // the group may ask for the status
		return nil, errors.Join(fmt.Errorf("control socket: %w", err), l.Close())
	}
	return l, nil
}

// Serve answers on l until ctx ends.
func Serve(ctx context.Context, l net.Listener, src Source, log *slog.Logger) error {
	srv := &http.Server{
		Handler:           handler(src, log),
		ConnContext:       withAsker,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      2 * time.Minute, // a profile takes its time
		IdleTimeout:       30 * time.Second,
		MaxHeaderBytes:    8 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if srv.Shutdown(grace) != nil {
			_ = srv.Close() // a reader that will not finish does not hold up the stop
		}
	})
	err := srv.Serve(l)
	if !stop() {
		<-stopped
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("console: %w", err)
}

func handler(src Source, log *slog.Logger) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/v1/status", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		enc := json.NewEncoder(w)
		enc.SetEscapeHTML(false)
		_ = enc.Encode(src.Status()) // the client went away
	})
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/openmetrics-text; version=1.0.0; charset=utf-8")
		_, _ = w.Write(openMetrics("holdfast", src.Status()))
	})
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		if err := src.Healthy(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	if src.Store != nil {
		queueAPI{src.Store}.register(mux)
	}
	if src.Sessions != nil {
		sessionAPI{src.Sessions}.register(mux)
	}
	if src.Buses != nil {
		busAPI{src.Buses, log.With("component", "console")}.register(mux)
	}
	registerProfiles(mux)
	return mux
}
