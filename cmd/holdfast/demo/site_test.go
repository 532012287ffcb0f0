package demo

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/cmd/holdfast/config"
)

func testSite(t *testing.T, cloud string) *site {
	t.Helper()
	u, err := url.Parse(cloud)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	g, err := newSite("demo-1", "/bin/false", dir, dir, "holdfast-demo-1/", "127.0.0.1:4321", u)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range g.env {
		key, value, _ := strings.Cut(e, "=")
		t.Setenv(key, value)
	}
	return g
}

// The configuration the demo writes is one the gateway takes.
func TestConfigIsValid(t *testing.T) {
	tests := map[string]struct {
		cloud, url, name, user, secret string
	}{
		"plain":         {cloud: "mqtt://127.0.0.1:1883", url: "mqtt://127.0.0.1:4321"},
		"tcp":           {cloud: "tcp://127.0.0.1", url: "mqtt://127.0.0.1:4321"},
		"with password": {cloud: "mqtt://me:s%22cret@h:1883", url: "mqtt://127.0.0.1:4321", user: "me", secret: `s"cret`},
		"TLS":           {cloud: "ssl://broker.example.com:8883", url: "mqtts://127.0.0.1:4321", name: "broker.example.com"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			g := testSite(t, tt.cloud)
			cfg, err := config.Load(g.config)
			if err != nil {
				t.Fatalf("Load: %v", err)
			}
			up := cfg.Uplinks["cloud"]
			if up.URL != tt.url || up.ServerName != tt.name || up.Username != tt.user || up.Password != tt.secret || len(up.Routes) != 3 {
				t.Errorf("uplink = %+v", up)
			}
			if len(cfg.Devices) != 2 || len(cfg.Ports) != 2 || cfg.Control.Socket != g.socket || cfg.Gateway.ID != "demo-1" {
				t.Errorf("config = %+v", cfg)
			}
			for device, names := range points {
				var got []string
				if d := cfg.Devices[device]; d.Modbus != nil {
					for _, p := range d.Modbus.Points {
						got = append(got, p.Name)
					}
				} else if d.Serial != nil {
					for _, p := range d.Serial.Points {
						got = append(got, p.Name)
					}
				}
				if strings.Join(got, " ") != strings.Join(names, " ") {
					t.Errorf("points of %s = %v, want %v", device, got, names)
				}
			}
			text, err := os.ReadFile(g.config)
			if err != nil || tt.secret != "" && strings.Contains(string(text), "cret") {
				t.Errorf("the file shows the password, or %v", err)
			}
		})
	}
}

func TestCountersOfSeveralLives(t *testing.T) {
	g := testSite(t, "mqtt://h")
	now := time.Now()
	g.lives = make([]life, 2)
	for _, answer := range []struct {
		life int
		body string
	}{
		{0, `{"session":7,"devices":[{"name":"boiler","put":10,"acknowledged":4,"bad":1}]}`},
		{1, `{"session":8,"devices":[]}`},
		{1, `{"session":8,"uplinks":[{"state":"up","backlog":3}],"devices":[{"name":"boiler","put":5,"acknowledged":5,"bad":2,"dropped":1,"failed":1}]}`},
		// Asked before the kill, and late.
		{0, `{"session":7,"devices":[{"name":"boiler","put":20,"acknowledged":18,"bad":1,"new_key":{}}],"extra":1}`},
	} {
		if err := g.take(answer.life, []byte(answer.body), now); err != nil {
			t.Fatal(err)
		}
	}
	want := deviceStatus{Put: 25, Acknowledged: 23, Bad: 3, Dropped: 1, Failed: 1}
	if got := g.counters("boiler"); got != want {
		t.Errorf("counters = %+v, want %+v", got, want)
	}
	if ns := g.sessions(); !slices.Equal(ns, []uint64{7, 8}) {
		t.Errorf("sessions = %v, want 7, 8", ns)
	}
	st, fresh := g.status()
	if !fresh || st.uplink().Backlog != 3 || st.device("nobody").State != "unknown" {
		t.Errorf("status = %+v, fresh %v", st, fresh)
	}
	if err := g.take(1, []byte("no"), now); err == nil {
		t.Error("take of something else = nil")
	}
	empty := status{}
	if empty.uplink().State != "unknown" {
		t.Errorf("uplink of an empty status = %+v", empty.uplink())
	}
}

func TestWatch(t *testing.T) {
	g := testSite(t, "mqtt://h")
	if err := g.poll(t.Context()); err == nil {
		t.Error("poll with nobody there = nil")
	}
	l, err := net.Listen("unix", g.socket)
	if err != nil {
		t.Fatal(err)
	}
	asked := make(chan struct{}, 100)
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/api/v1/status" {
			http.NotFound(w, r)
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"session": 3})
		asked <- struct{}{}
	})}
	served := make(chan struct{})
	go func() { _ = srv.Serve(l); close(served) }()
	g.lives = make([]life, 1)
	ctx, cancel := context.WithCancel(t.Context())
	watched := make(chan struct{})
	go func() { g.watch(ctx); close(watched) }()
	<-asked
	<-asked
	cancel()
	<-watched
	srv.Close()
	<-served
	if ns := g.sessions(); !slices.Equal(ns, []uint64{3}) {
		t.Errorf("sessions = %v, want 3", ns)
	}
}

func TestTemporaryPathsFitASocket(t *testing.T) {
	// sun_path has room for 107 bytes; os.MkdirTemp adds ten digits.
	path := filepath.Join("/var/folders/zz/zyxvpxvq6csfxvn_n0000000000000/T", "holdfast-demo-4294967295", "gw.sock")
	if len(path) > 107 {
		t.Errorf("%s has %d bytes", path, len(path))
	}
}
