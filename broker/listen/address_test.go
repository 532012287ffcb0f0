package listen

import (
	"strings"
	"testing"
)

func TestParseAddress(t *testing.T) {
	tests := map[string]struct {
		want Address
		err  string
	}{
		"tcp://127.0.0.1:1883":     {want: Address{Network: "tcp", Place: "127.0.0.1:1883"}},
		"mqtt://[::1]:1883":        {want: Address{Network: "tcp", Place: "[::1]:1883"}},
		"tls://0.0.0.0:8883":       {want: Address{Network: "tcp", Place: "0.0.0.0:8883", TLS: true}},
		"mqtts://localhost:0":      {want: Address{Network: "tcp", Place: "localhost:0", TLS: true}},
		"ws://127.0.0.1:8083":      {want: Address{Network: "tcp", Place: "127.0.0.1:8083", WebSocket: true}},
		"wss://127.0.0.1:8084":     {want: Address{Network: "tcp", Place: "127.0.0.1:8084", TLS: true, WebSocket: true}},
		"unix:///run/mqtt":         {want: Address{Network: "unix", Place: "/run/mqtt"}},
		"systemd:holdfast.socket":  {want: Address{Network: "systemd", Place: "holdfast.socket"}},
		"tls+systemd:secure":       {want: Address{Network: "systemd", Place: "secure", TLS: true}},
		"wss+systemd:web":          {want: Address{Network: "systemd", Place: "web", TLS: true, WebSocket: true}},
		"":                         {err: "is not an address"},
		"1883":                     {err: "is not an address"},
		"127.0.0.1:1883":           {err: "is not supported"},
		"tcp:127.0.0.1:1883":       {err: "is not an address"},
		"udp://x:1":                {err: "is not supported"},
		"://x:1":                   {err: "is not supported"},
		"tcp://:1883":              {err: "the host is missing"},
		"tcp://h":                  {err: "is not host:port"},
		"tcp://h:65536":            {err: "is outside 0..65535"},
		"tls://h:mqtt":             {err: "is outside 0..65535"},
		"ws://h:8083/mqtt":         {err: "websocket_paths"},
		"unix://run/mqtt":          {err: "has no absolute path"},
		"unix:/run/mqtt":           {err: "is not an address"},
		"systemd:":                 {err: "has no name"},
		"systemd:///x":             {err: "has no name"},
		"tcp+systemd:x":            {err: "systemd: alone"},
		"unix+systemd:x":           {err: "systemd: alone"},
		"+systemd:x":               {err: "systemd: alone"},
		"systemd+systemd:x":        {err: "is not supported"},
		"unix:///" + longPath(107): {err: "107"},
	}
	for in, tt := range tests {
		t.Run(in, func(t *testing.T) {
			got, err := ParseAddress(in)
			switch {
			case tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)):
				t.Errorf("error %v, want one about %q", err, tt.err)
			case tt.err == "" && (err != nil || got != tt.want):
				t.Errorf("%+v, %v, want %+v", got, err, tt.want)
			}
		})
	}
}

func longPath(n int) string { return strings.Repeat("x", n) }

func TestValidate(t *testing.T) {
	tests := map[string]struct {
		address string
		change  func(*Options)
		want    string // beginning of the error; empty for none
	}{
		"tcp":                {"tcp://h:1", func(*Options) {}, ""},
		"zero values":        {"tcp://h:1", func(o *Options) { *o = Options{} }, ""},
		"no certificate":     {"tls://h:1", func(*Options) {}, "listener.cert_file: is missing"},
		"no key":             {"wss://h:1", func(o *Options) { o.CertFile = "c" }, "listener.key_file: is missing"},
		"key without TLS":    {"ws://h:1", func(o *Options) { o.KeyFile = "k" }, "listener.key_file: is for tls"},
		"CA for nothing":     {"tcp://h:1", func(o *Options) { o.ClientCAFile = "k" }, "listener.client_ca_file: is of no use"},
		"client without TLS": {"tcp://h:1", func(o *Options) { o.ClientCert = "required" }, "listener.client_cert: is for tls"},
		"client without CA": {"tls://h:1", func(o *Options) {
			o.CertFile, o.KeyFile, o.ClientCert = "c", "k", "optional"
		}, "listener.client_ca_file: is missing"},
		"client perhaps":   {"tcp://h:1", func(o *Options) { o.ClientCert = "maybe" }, `listener.client_cert: "maybe" is not`},
		"TLS 1.1":          {"tcp://h:1", func(o *Options) { o.TLSMinVersion = "1.1" }, `listener.tls_min_version: "1.1" is not`},
		"path":             {"ws://h:1", func(o *Options) { o.WebSocketPaths = []string{"mqtt"} }, `listener.websocket_paths: "mqtt" does`},
		"origin":           {"ws://h:1", func(o *Options) { o.WebSocketOrigins = []string{"[a"} }, `listener.websocket_origins: "[a" is not`},
		"origin of no web": {"tcp://h:1", func(o *Options) { o.WebSocketOrigins = []string{"*"} }, "listener.websocket_origins: is for ws"},
		"mode":             {"unix:///s", func(o *Options) { o.SocketMode = "rw" }, `listener.socket_mode: "rw" is not`},
		"mode 0":           {"unix:///s", func(o *Options) { o.SocketMode = "0000" }, `listener.socket_mode: "0000" is not`},
		"owner of TCP":     {"tcp://h:1", func(o *Options) { o.SocketOwner = "root" }, "listener.socket_owner: is for unix"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			a, err := ParseAddress(tt.address)
			if err != nil {
				t.Fatal(err)
			}
			o := DefaultOptions()
			tt.change(&o)
			err = o.Validate(a)
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.HasPrefix(err.Error(), tt.want)) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
}
