package console

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"holdfast/broker"
)

// Sessions are the sessions of a running broker.
type Sessions interface {
	Sessions() []broker.SessionInfo
	EndSession(ctx context.Context, clientID string) error
}

// sessionAPI answers for the sessions of clients.
type sessionAPI struct{ sessions Sessions }

func (a sessionAPI) register(mux *http.ServeMux) {
	mux.HandleFunc("GET /api/v1/sessions", a.list)
	mux.HandleFunc("POST /api/v1/sessions/end", a.end)
}

func (a sessionAPI) list(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(a.sessions.Sessions()) // the client went away
}

// endTime is how long the end of a session may take to be on the disk.
const endTime = 30 * time.Second

func (a sessionAPI) end(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), endTime)
	defer cancel()
	id := r.URL.Query().Get("client_id")
	err := a.sessions.EndSession(ctx, id)
	if errors.Is(err, broker.ErrNoSession) { // it may be written as it is shown
		for _, s := range a.sessions.Sessions() {
			if Shown(s.ClientID) == id {
				id = s.ClientID
				err = a.sessions.EndSession(ctx, id)
				break
			}
		}
	}
	switch {
	case errors.Is(err, broker.ErrNoSession):
		http.Error(w, err.Error(), http.StatusNotFound)
	case err != nil:
		http.Error(w, err.Error(), http.StatusInternalServerError)
	default:
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(struct {
			ClientID string `json:"client_id"`
		}{id}) // the client went away
	}
}
