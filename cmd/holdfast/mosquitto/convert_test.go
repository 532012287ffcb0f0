package mosquitto

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/pelletier/go-toml/v2"
)

func TestConvert(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		in    string
		want  string   // part of the TOML
		notes []string // parts of the notes
	}{
		"nothing":                   {in: "# all defaults\n", want: ""},
		"the default, said":         {in: "allow_anonymous true\n", want: `address = "tcp://127.0.0.1:1883"` + "\n" + `anonymous = "loopback"`},
		"listener":                  {in: "listener 1883\n", want: `address = "tcp://[::]:1883"` + "\n" + `anonymous = "never"`},
		"listener with an address":  {in: "listener 1883 192.0.2.1\nallow_anonymous true\n", want: `address = "tcp://192.0.2.1:1883"` + "\n" + `anonymous = "always"`},
		"old listener":              {in: "port 1884\nbind_address localhost\n", want: `address = "tcp://localhost:1884"`},
		"unix":                      {in: "listener 0 /run/mqtt.sock\n", want: `address = "unix:///run/mqtt.sock"`},
		"websockets":                {in: "listener 9001\nprotocol websockets\n", want: `address = "ws://[::]:9001"`},
		"tls":                       {in: "listener 8883\ncertfile /c\nkeyfile /k\ntls_version tlsv1.3\n", want: "address = \"tls://[::]:8883\"\nanonymous = \"never\"\ncert_file = \"/c\"\nkey_file = \"/k\"\ntls_min_version = \"1.3\""},
		"client certificates":       {in: "listener 8883\ncertfile /c\nkeyfile /k\ncafile /ca\nrequire_certificate true\nuse_identity_as_username true\n", want: "client_cert = \"required\"\nclient_ca_file = \"/ca\"\nidentity = \"certificate_cn\""},
		"ca without certificates":   {in: "listener 8883\ncertfile /c\nkeyfile /k\ncafile /ca\n", want: "key_file", notes: []string{"4: cafile: is of no use without require_certificate true"}},
		"old TLS":                   {in: "listener 8883\ncertfile /c\nkeyfile /k\ntls_version tlsv1.1\n", want: "key_file", notes: []string{"4: tls_version: 1.2 is the oldest"}},
		"no port":                   {in: "listener x\n", notes: []string{`1: listener: "x" is not a port`}},
		"per listener":              {in: "per_listener_settings true\nlistener 1\nallow_anonymous true\nlistener 2\npassword_file /p\n", want: "address = \"tcp://[::]:1\"\nanonymous = \"always\"\n\n[[listener]]\naddress = \"tcp://[::]:2\"\nanonymous = \"never\"", notes: []string{"5: password_file: Holdfast has one"}},
		"mount point":               {in: "listener 1\nmount_point x\n", want: "listener", notes: []string{"2: mount_point: clients of all listeners see the same topics"}},
		"users":                     {in: "password_file /p w\n", want: "[access]\npassword_file = \"/p w\"\n\n[[access.rule]]\nallow = [\"read\", \"write\"]\ntopics = [\"#\", \"$SYS/#\"]"},
		"users and ACL":             {in: "password_file /p\nacl_file /a\n", want: "[access]\npassword_file = \"/p\"\nacl_file = \"/a\"\n"},
		"ACL alone":                 {in: "acl_file /a\n", want: "acl_file = \"/a\"", notes: []string{"1: acl_file: Mosquitto believes any user name"}},
		"bounds":                    {in: "max_inflight_messages 20\nmax_keepalive 600\nmax_packet_size 2048\npersistent_client_expiration 2w\nsys_interval 0\n", want: "[broker]\nmax_inflight = 20\nmax_keep_alive = \"600s\"\nmax_packet_size = 2048\nmax_session_expiry = \"336h\"\nsys_interval = \"0s\""},
		"no bound":                  {in: "max_queued_messages 0\n", want: "max_queued = 10000000", notes: []string{"1: max_queued_messages: bounds what waits in RAM"}},
		"two bounds that are one":   {in: "max_packet_size 5000\nmessage_size_limit 4000\n", want: "max_packet_size = 5000", notes: []string{"2: message_size_limit: says the same"}},
		"no number":                 {in: "max_inflight_messages many\n", notes: []string{`1: max_inflight_messages: "many" is not a number`}},
		"bound of a listener":       {in: "listener 1\nmax_connections 7\nlistener 2\n", want: "max_connections = 7", notes: []string{"2: max_connections: is one bound for all"}},
		"persistence":               {in: "persistence true\npersistence_location /var/lib/mosquitto/\n", notes: []string{"1: persistence: Holdfast always", "2: persistence_location: "}},
		"unknown":                   {in: "\n\nfancy\x1b yes\n", notes: []string{"3: fancy?: is not known"}},
		"bridge":                    {in: "connection up\naddress cloud.example.com\ntopic sensors/# out 1\ntopic cmd/# in 2 \"\" site/7/\n", want: "[uplink.up]\nurl = \"mqtt://cloud.example.com:1883\"\n\n[[uplink.up.route]]\ndirection = \"out\"\nfilter = \"sensors/#\"\nqos = 1\n\n[[uplink.up.route]]\ndirection = \"in\"\nfilter = \"cmd/#\"\nprefix = \"site/7/\"\nqos = 2\n"},
		"bridge with TLS":           {in: "connection up\naddress c:8884\nbridge_cafile /ca\nbridge_certfile /c\nbridge_keyfile /k\nremote_clientid me\nremote_username env:x\nremote_password p\"w\nbridge_protocol_version mqttv50\nkeepalive_interval 30\nrestart_timeout 5 60\nnotifications false\n", want: "url = \"mqtts://c:8884\"\nclient_id = \"me\"\nusername = \"text:env:x\"\npassword = \"p\\\"w\"\nca_file = \"/ca\"\ncert_file = \"/c\"\nkey_file = \"/k\"\nprotocol = \"5.0\"\nkeep_alive = \"30s\"\nstatus_topic = \"\"\nreconnect_min = \"5s\"\nreconnect_max = \"60s\"", notes: []string{"8: remote_password: stands in the TOML now"}},
		"bridge to IPv6":            {in: "connection up\naddress [2001:db8::1]:1884\n", want: `url = "mqtt://[2001:db8::1]:1884"`},
		"bridge to two":             {in: "connection up\naddresses a b:1884\nround_robin false\n", want: "urls = [\"mqtt://a:1883\", \"mqtt://b:1884\"]\n", notes: []string{"2: addresses: each change between them begins a new session"}},
		"bridge in turns":           {in: "connection up\naddresses a b\nround_robin true\nbridge_cafile /ca\nbridge_alpn mqtt\nbridge_bind_address 192.0.2.7\nbridge_tcp_user_timeout 30000\n", want: "urls = [\"mqtts://a:8883\", \"mqtts://b:8883\"]\nca_file = \"/ca\"\nfailover = \"round_robin\"\nalpn = [\"mqtt\"]\nsource_address = \"192.0.2.7\"\ntcp_user_timeout = \"30000ms\"\n", notes: []string{"2: addresses: "}},
		"bridge from a name":        {in: "connection up\naddress a\nbridge_bind_address eth0\nbridge_tcp_user_timeout 5\n", want: "uplink", notes: []string{"3: bridge_bind_address: \"eth0\" is not an IP address", "4: bridge_tcp_user_timeout: "}},
		"bridge without an address": {in: "connection up\ntopic # out\n", notes: []string{"1: connection: has no address"}},
		"bridge called oddly":       {in: "connection my cloud/1\naddress c\n", want: "[uplink.my-cloud-1]", notes: []string{"1: connection: is called my-cloud-1"}},
		"bridge, QoS 0":             {in: "connection up\naddress c\ntopic a/#\n", want: "direction = \"out\"\nfilter = \"a/#\"\nqos = 0", notes: []string{"3: topic: QoS 0 is not kept"}},
		"bridge, one topic":         {in: "connection up\naddress c\ntopic \"\" out 1 a b\n", want: "uplink", notes: []string{"3: topic: names one topic by its prefixes"}},
		"bridge, wrong topic":       {in: "connection up\naddress c\ntopic a/# up 1\n", want: "uplink", notes: []string{"3: topic: is not: topic FILTER"}},
		"bridge, lazy":              {in: "connection up\naddress c\nstart_type lazy\ncleansession true\nlocal_username x\n", want: "uplink", notes: []string{"3: start_type: ", "4: cleansession: ", "5: local_username: "}},
		"bridge, usual":             {in: "connection up\naddress c\nstart_type automatic\ncleansession false\ntry_private true\n", want: "uplink"},
		"bridge option of nobody":   {in: "remote_username x\n", notes: []string{"1: remote_username: belongs to a connection"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, notes := Convert(tt.in)
			if !strings.Contains(got, tt.want) || tt.want == "" && got != "" {
				t.Errorf("got\n%s\nwant in it\n%s", got, tt.want)
			}
			if len(notes) != len(tt.notes) {
				t.Errorf("notes %v, want %q", notes, tt.notes)
				return
			}
			for i, n := range notes {
				if !strings.Contains(n.String(), tt.notes[i]) {
					t.Errorf("note %q, want %q in it", n, tt.notes[i])
				}
			}
		})
	}
}

// Whatever the file holds, what comes out is TOML, and every note is one line.
func FuzzConvert(f *testing.F) {
	f.Add("listener 8883\ncertfile \"x\nconnection a\naddress b\ntopic \\ out 1 \" '\n")
	f.Add("password_file env:x\x00\nmax_connections -1\npersistent_client_expiration 9y\n")
	f.Add("connection \x1b[1m\naddress [::1]:x:y\nremote_password \\u0000\n")
	f.Fuzz(func(t *testing.T, in string) {
		if !utf8.ValidString(in) {
			return
		}
		text, notes := Convert(in)
		var values map[string]any
		if err := toml.Unmarshal([]byte(text), &values); err != nil {
			t.Errorf("%q became\n%s\n%v", in, text, err)
		}
		for _, n := range notes {
			if strings.ContainsAny(n.String(), "\n\r\x00") {
				t.Errorf("note %q", n)
			}
		}
	})
}
