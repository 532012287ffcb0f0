package dial

import (
	"strings"
	"testing"
	"time"
)

func TestTargets(t *testing.T) {
	tests := map[string]struct{ in, want, err string }{
		"plain":            {in: "mqtt://h", want: "mqtt://h:1883"},
		"tcp":              {in: "tcp://h:7", want: "tcp://h:7"},
		"TLS":              {in: "mqtts://h", want: "mqtts://h:8883"},
		"IPv6":             {in: "mqtts://[2001:db8::1]:443", want: "mqtts://[2001:db8::1]:443"},
		"WebSocket":        {in: "ws://h", want: "ws://h:80/mqtt"},
		"its path":         {in: "wss://h/some/where?token=7", want: "wss://h:443/some/where?token=7"},
		"the root":         {in: "wss://h:8443/", want: "wss://h:8443/"},
		"no host":          {in: "mqtt://", err: "has no host"},
		"no scheme":        {in: "h:1883", err: "scheme"},
		"path":             {in: "mqtt://h/x", err: "behind the host"},
		"user":             {in: "mqtt://u:secret@h", err: "username and password"},
		"port":             {in: "mqtt://h:0", err: "1..65535"},
		"port of a letter": {in: "mqtt://u:secret@h:x", err: "cannot be read"},
		"fragment":         {in: "wss://h/#x", err: "fragment"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := ParseTarget(tt.in)
			if tt.err == "" && (err != nil || got.String() != tt.want) {
				t.Errorf("ParseTarget(%q) = %s, %v, want %s", tt.in, got, err, tt.want)
			}
			if tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err) || strings.Contains(err.Error(), "secret")) {
				t.Errorf("ParseTarget(%q) = %v, want %q", tt.in, err, tt.err)
			}
		})
	}
}

func TestServerReferences(t *testing.T) {
	from := Target{Scheme: "mqtts", Host: "a", Port: "8884", TLS: true}
	tests := map[string]struct{ in, want string }{ // empty: refused
		"host":         {"b.example", "mqtts://b.example:8884"},
		"with a port":  {"b.example:443", "mqtts://b.example:443"},
		"a list":       {" b.example:1 c.example:2", "mqtts://b.example:1"},
		"IPv6":         {"[2001:db8::7]:8883", "mqtts://[2001:db8::7]:8883"},
		"empty":        {"", ""},
		"another URL":  {"mqtt://b.example", ""},
		"a path":       {"b.example/x", ""},
		"a user":       {"u:p@b.example", ""},
		"control code": {"b\x00c", ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := from.Refer(tt.in)
			if tt.want == "" {
				if err == nil {
					t.Errorf("Refer(%q) = %s, want an error", tt.in, got)
				}
				return
			}
			if err != nil || got.String() != tt.want || !got.TLS {
				t.Errorf("Refer(%q) = %s, %v, want %s", tt.in, got, err, tt.want)
			}
		})
	}
}

func TestOptionsNameTheKey(t *testing.T) {
	tests := map[string]struct {
		change func(o *Options)
		want   string // empty: valid
	}{
		"defaults":            {func(*Options) {}, ""},
		"several":             {func(o *Options) { o.URL, o.URLs = "", []string{"mqtt://a", "wss://b"} }, ""},
		"both":                {func(o *Options) { o.URLs = []string{"mqtt://b"} }, "uplink.urls: goes without url"},
		"twice":               {func(o *Options) { o.URL, o.URLs = "", []string{"mqtt://a", "mqtt://a:1883"} }, "uplink.urls[1]: a:1883 is in the list"},
		"one is wrong":        {func(o *Options) { o.URL, o.URLs = "", []string{"mqtt://a", "ftp://b"} }, `uplink.urls[1]: scheme "ftp"`},
		"too many":            {func(o *Options) { o.URL, o.URLs = "", make([]string, 17) }, "uplink.urls: has 17"},
		"failover":            {func(o *Options) { o.Failover = "random" }, "uplink.failover:"},
		"return_after":        {func(o *Options) { o.ReturnAfter = time.Second }, "uplink.return_after: 1s is outside"},
		"ALPN without TLS":    {func(o *Options) { o.ALPN = []string{"mqtt"} }, "uplink.alpn: means nothing without"},
		"ALPN":                {func(o *Options) { o.URL, o.ALPN = "wss://h", []string{"mqtt", ""} }, "uplink.alpn[1]:"},
		"PSK":                 {func(o *Options) { o.PSK = "00ff" }, "uplink.psk: pre-shared keys are not offered: Go's TLS does not have them"},
		"HTTP proxy":          {func(o *Options) { o.Proxy = "http://p:3128" }, ""},
		"SOCKS proxy":         {func(o *Options) { o.Proxy, o.ProxyUsername = "socks5://p:1080", "u" }, ""},
		"proxy with TLS":      {func(o *Options) { o.Proxy = "https://p:3128" }, "uplink.proxy: TLS to the proxy"},
		"proxy without port":  {func(o *Options) { o.Proxy = "http://p" }, "uplink.proxy: is not"},
		"proxy with a user":   {func(o *Options) { o.Proxy = "http://u:secret@p:1" }, "uplink.proxy: carries a user"},
		"user without proxy":  {func(o *Options) { o.ProxyUsername = "u" }, "uplink.proxy_username:"},
		"password alone":      {func(o *Options) { o.Proxy, o.ProxyPassword = "http://p:1", "p" }, "uplink.proxy_password: needs"},
		"interfaces":          {func(o *Options) { o.Interfaces = []string{"eth0", "wwan0"} }, ""},
		"no such name":        {func(o *Options) { o.Interfaces = []string{"eth0", "a-name-that-is-too-long"} }, "uplink.interfaces[1]:"},
		"interface twice":     {func(o *Options) { o.Interfaces = []string{"eth0", "eth0"} }, "uplink.interfaces[1]: eth0 is in the list"},
		"source":              {func(o *Options) { o.SourceAddress = "192.0.2.7" }, ""},
		"source is a name":    {func(o *Options) { o.SourceAddress = "eth0" }, "uplink.source_address:"},
		"source, interfaces":  {func(o *Options) { o.SourceAddress, o.Interfaces = "192.0.2.7", []string{"eth0"} }, "uplink.source_address: goes without"},
		"tcp_user_timeout":    {func(o *Options) { o.TCPUserTimeout = time.Millisecond }, "uplink.tcp_user_timeout:"},
		"tcp_keep_alive":      {func(o *Options) { o.TCPKeepAlive = 1500 * time.Millisecond }, "uplink.tcp_keep_alive:"},
		"tcp_notsent_lowat":   {func(o *Options) { o.TCPNotSentLowat = 1 }, "uplink.tcp_notsent_lowat: 1 is outside"},
		"certificate, no TLS": {func(o *Options) { o.CertFile, o.KeyFile = "c", "k" }, "uplink.cert_file: means nothing"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			o := DefaultOptions()
			o.URL = "mqtt://h"
			tt.change(&o)
			err := o.Validate()
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("Validate() = %v, want %q", err, tt.want)
			}
			if err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("a password in %v", err)
			}
		})
	}
}

// All ways to the most wanted address come before the next address: its session
// is worth more than a cheaper link.
func TestPathsInOrder(t *testing.T) {
	o := DefaultOptions()
	o.URLs, o.Interfaces = []string{"mqtt://a", "mqtt://b"}, []string{"eth0", "wwan0"}
	var got []string
	for i, p := range New(o).Paths() {
		if p.Rank != i {
			t.Errorf("path %d has rank %d", i, p.Rank)
		}
		got = append(got, p.String())
	}
	want := "mqtt://a:1883 via eth0, mqtt://a:1883 via wwan0, mqtt://b:1883 via eth0, mqtt://b:1883 via wwan0"
	if strings.Join(got, ", ") != want {
		t.Errorf("paths %s, want %s", strings.Join(got, ", "), want)
	}
}
