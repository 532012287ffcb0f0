package console

import (
	"net/http"
	"runtime/pprof"
	"strconv"
	"time"
)

// maxProfile is the longest that a profile of the processor is taken for.
const maxProfile = 5 * time.Minute

// registerProfiles serves profiles for `go tool pprof`, for whoever may open the
// socket anyway: curl --unix-socket SOCKET http://holdfast/debug/pprof/heap. The
// paths are those of net/http/pprof, whose pages would weigh 150 kB in the binary.
func registerProfiles(mux *http.ServeMux) {
	mux.HandleFunc("GET /debug/pprof/profile", processorProfile)
	mux.HandleFunc("GET /debug/pprof/{name}", func(w http.ResponseWriter, r *http.Request) {
		p := pprof.Lookup(r.PathValue("name"))
		if p == nil {
			http.Error(w, "no such profile; there are profile, heap, allocs, goroutine, block, mutex and threadcreate", http.StatusNotFound)
			return
		}
		debug, _ := strconv.Atoi(r.FormValue("debug")) // 0, the binary form, unless asked otherwise
		w.Header().Set("Content-Type", "application/octet-stream")
		if debug != 0 {
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		}
		_ = p.WriteTo(w, debug) // who asked has gone
	})
}

// processorProfile takes a profile of the processor for ?seconds=30.
func processorProfile(w http.ResponseWriter, r *http.Request) {
	d := 30 * time.Second
	if s := r.FormValue("seconds"); s != "" {
		n, err := strconv.Atoi(s)
		if d = time.Duration(n) * time.Second; err != nil || n < 1 || d > maxProfile {
			http.Error(w, "seconds is a number from 1 to 300", http.StatusBadRequest)
			return
		}
	}
	// The server would end the answer before the profile is there.
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(d + time.Minute))
	w.Header().Set("Content-Type", "application/octet-stream")
	if err := pprof.StartCPUProfile(w); err != nil {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		http.Error(w, err.Error(), http.StatusConflict)
		return
	}
	select {
	case <-time.After(d):
	case <-r.Context().Done():
	}
	pprof.StopCPUProfile()
}
