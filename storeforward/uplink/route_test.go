package uplink

import (
	"math"
	"strings"
	"testing"
	"time"
)

func TestRoutesMapTopics(t *testing.T) {
	routes := []Route{
		{Direction: DirectionOut, Filter: "alarm/#", Prefix: "site/7/", QoS: new(2)},
		{Direction: DirectionBoth, Filter: "shared/+", Prefix: "fleet/", LocalPrefix: "here/", Retain: RetainStrip},
		{Direction: DirectionOut, Filter: "#", Prefix: "site/7/all/", QoS: new(0)},
		{Direction: DirectionIn, Filter: "#", Prefix: "cmd/7/"},
	}
	for i := range routes {
		if err := routes[i].validate("gw"); err != nil {
			t.Fatalf("route %d: %v", i, err)
		}
	}
	out, in := compile(routes, "gw")
	tests := map[string]struct {
		in    bool
		topic string
		want  string
		qos   byte
		strip bool
	}{
		"out with a prefix":                 {topic: "alarm/door", want: "site/7/alarm/door", qos: 2},
		"out with both prefixes":            {topic: "here/shared/x", want: "fleet/shared/x", qos: 2, strip: true},
		"the first route wins":              {topic: "alarm", want: "site/7/alarm", qos: 2},
		"a later route takes the rest":      {topic: "sensors/a", want: "site/7/all/sensors/a", qos: 0},
		"no wildcard covers $SYS":           {topic: "$SYS/uptime"},
		"in with a prefix":                  {in: true, topic: "cmd/7/valve", want: "valve", qos: 2},
		"in with both prefixes":             {in: true, topic: "fleet/shared/x", want: "here/shared/x", qos: 2, strip: true},
		"in with nothing behind the prefix": {in: true, topic: "cmd/7"},
		"in from elsewhere":                 {in: true, topic: "cmd/8/valve"},
		"in cannot reach $SYS":              {in: true, topic: "cmd/7/$SYS/uptime"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w, got := out.find(tt.topic)
			if tt.in {
				w, got = in.inbound(tt.topic)
			}
			if got != tt.want {
				t.Fatalf("%q became %q, want %q", tt.topic, got, tt.want)
			}
			if w != nil && (w.qos != tt.qos || w.strip != tt.strip) {
				t.Errorf("%q: qos %d strip %v, want %d %v", tt.topic, w.qos, w.strip, tt.qos, tt.strip)
			}
		})
	}
}

func TestValidateNamesTheKey(t *testing.T) {
	tests := map[string]struct {
		change func(*Options)
		want   string
	}{
		"defaults":              {func(*Options) {}, ""},
		"no url":                {func(o *Options) { o.URL = "" }, "uplink.url: is missing"},
		"http":                  {func(o *Options) { o.URL = "http://x" }, `uplink.url: scheme "http"`},
		"password in the url":   {func(o *Options) { o.URL = "mqtt://u:secret@x" }, "uplink.url: carries a user"},
		"broken url":            {func(o *Options) { o.URL = "mqtt://u:secret@x:port" }, "uplink.url: cannot be read"},
		"password alone":        {func(o *Options) { o.Password = "secret" }, "uplink.password:"},
		"insecure without tls":  {func(o *Options) { o.Insecure = true }, "uplink.insecure:"},
		"certificate alone":     {func(o *Options) { o.URL = "mqtts://x"; o.CertFile = "c" }, "uplink.cert_file:"},
		"protocol":              {func(o *Options) { o.Protocol = "4" }, "uplink.protocol:"},
		"keep alive too short":  {func(o *Options) { o.KeepAlive = 1 }, "uplink.keep_alive:"},
		"window zero":           {func(o *Options) { o.Window = 0 }, "uplink.window: 0 is outside 1..65535"},
		"batch zero":            {func(o *Options) { o.Batch = 0 }, "uplink.batch: 0 is outside 1..1000"},
		"reconnect upside down": {func(o *Options) { o.ReconnectMax = o.ReconnectMin / 2 }, "uplink.reconnect_max:"},
		"status topic":          {func(o *Options) { o.StatusTopic = "a/#" }, "uplink.status_topic:"},
		"route direction":       {func(o *Options) { o.Routes[0].Direction = "up" }, `uplink.route[0].direction: "up"`},
		"route filter":          {func(o *Options) { o.Routes[1].Filter = "a/#/b" }, "uplink.route[1].filter:"},
		"route shared":          {func(o *Options) { o.Routes[0].Filter = "$share/g/a" }, "uplink.route[0].filter:"},
		"route prefix":          {func(o *Options) { o.Routes[0].Prefix = "a/+/" }, "uplink.route[0].prefix:"},
		"route prefix no slash": {func(o *Options) { o.Routes[0].Prefix = "a"; o.Routes[0].Filter = "#" }, "uplink.route[0].prefix:"},
		"route qos":             {func(o *Options) { o.Routes[0].QoS = new(3) }, "uplink.route[0].qos: 3 is outside 0..2"},
		"route retain":          {func(o *Options) { o.Routes[0].Retain = "no" }, "uplink.route[0].retain:"},
		"rename without all":    {func(o *Options) { o.Routes[0].Filter, o.Routes[0].Rename = "a/+/+", "b/{2}" }, "uplink.route[0].rename: {1} is missing"},
		"rename of what is not": {func(o *Options) { o.Routes[0].Filter, o.Routes[0].Rename = "a/+", "{1}/{2}" }, "uplink.route[0].rename: {2}: the filter has no"},
		"rename twice":          {func(o *Options) { o.Routes[0].Filter, o.Routes[0].Rename = "a/+", "{1}/{1}" }, "uplink.route[0].rename: {1}: "},
		"rename in a level":     {func(o *Options) { o.Routes[0].Filter, o.Routes[0].Rename = "a/+", "x{1}" }, `uplink.route[0].rename: level "x{1}"`},
		"rename of # inside":    {func(o *Options) { o.Routes[0].Filter, o.Routes[0].Rename = "a/#", "{1}/x" }, `uplink.route[0].rename: {1} stands for "#"`},
		"rename to a filter":    {func(o *Options) { o.Routes[0].Filter, o.Routes[0].Rename = "a", "b/+" }, "uplink.route[0].rename: "},
		"budget below 0":        {func(o *Options) { o.MonthBudget = -1 }, "uplink.month_budget: -1 is outside"},
		"a month of 31 days":    {func(o *Options) { o.MonthBegins = 31 }, "uplink.month_begins: 31 is outside 1..28"},
		"stages upside down":    {func(o *Options) { o.BudgetThin = 0.3 }, "uplink.budget_thin: 0.3 is outside 0.5..1"},
		"a share that is none":  {func(o *Options) { o.BudgetBatch = math.NaN() }, "uplink.budget_batch: NaN is outside 0..1"},
		"a user that is none":   {func(o *Options) { o.Username = "a\x00" }, "uplink.username: is not a valid"},
		"a long password":       {func(o *Options) { o.Username, o.Password = "a", strings.Repeat("x", 65536) }, "uplink.password: is longer"},
		"a lane that is none":   {func(o *Options) { o.BudgetLane = 8 }, "uplink.budget_lane: 8 is outside 0..7"},
		"drain rate":            {func(o *Options) { o.DrainRate = -1 }, "uplink.drain_rate: -1"},
		"will topic":            {func(o *Options) { o.WillTopic = "a/{reason}" }, "uplink.will_topic: {reason} stands for nothing"},
		"birth topic":           {func(o *Options) { o.BirthTopic = "a/{gateway}/+" }, "uplink.birth_topic: "},
		"birth payload":         {func(o *Options) { o.BirthPayload = "{stat}" }, "uplink.birth_payload: {stat} stands for nothing"},
		"qos0":                  {func(o *Options) { o.Routes[0].QoS0 = "wait" }, "uplink.route[0].qos0:"},
		"qos0 without QoS":      {func(o *Options) { o.Routes[0].QoS0, o.Routes[0].QoS = QoS0Keep, new(0) }, "uplink.route[0].qos0: "},
		"batch format":          {func(o *Options) { o.Routes[0].Batch = "xml" }, `uplink.route[0].batch: "xml" is not one of`},
		"batch in":              {func(o *Options) { o.Routes[1].Batch = "cbor" }, "uplink.route[1].batch: is for direction"},
		"batch without QoS":     {func(o *Options) { o.Routes[0].Batch, o.Routes[0].QoS = "cbor", new(0) }, "uplink.route[0].batch: needs acknowledgements"},
		"batch compression":     {func(o *Options) { o.Routes[0].Batch, o.Routes[0].Compression = "cbor", "lzma" }, "uplink.route[0].compression:"},
		"batch topic":           {func(o *Options) { o.Routes[0].Batch, o.Routes[0].BatchTopic = "cbor", "a/{gatway}" }, "uplink.route[0].batch_topic: "},
		"batch too large":       {func(o *Options) { o.Routes[0].Batch, o.Routes[0].BatchBytes = "cbor", 1<<21 }, "uplink.route[0].batch_bytes: "},
		"batch too long":        {func(o *Options) { o.Routes[0].Batch, o.Routes[0].BatchMessages = "cbor", 1<<21 }, "uplink.route[0].batch_messages: "},
		"batch too late":        {func(o *Options) { o.Routes[0].Batch, o.Routes[0].BatchDelay = "cbor", 1<<60 }, "uplink.route[0].batch_delay: "},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			o := testOptions()
			tt.change(&o)
			err := o.Validate()
			if tt.want == "" {
				if err != nil {
					t.Fatalf("Validate() = %v, want nil", err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("Validate() = %v, want %q in it", err, tt.want)
			}
			if strings.Contains(err.Error(), "secret") {
				t.Errorf("Validate() shows a password: %v", err)
			}
		})
	}
}

func TestRouteKeysOutOfRange(t *testing.T) {
	out := Route{Direction: DirectionOut, Filter: "s/#"}
	tests := map[string]struct {
		change func(*Route)
		want   string // in the error, "" for none
	}{
		"highest lane":         {func(r *Route) { r.Lane = new(7) }, ""},
		"lowest lane":          {func(r *Route) { r.Lane = new(0) }, ""},
		"lane above":           {func(r *Route) { r.Lane = new(8) }, "lane: 8 is outside 0..7"},
		"lane below":           {func(r *Route) { r.Lane = new(-1) }, "lane: -1 is outside 0..7"},
		"latest of QoS 1":      {func(r *Route) { r.Latest, r.QoS = true, new(1) }, ""},
		"latest of any QoS":    {func(r *Route) { r.Latest = true }, ""},
		"latest of QoS 2":      {func(r *Route) { r.Latest, r.QoS = true, new(2) }, "latest: needs qos = 1"},
		"latest of QoS 0":      {func(r *Route) { r.Latest, r.QoS = true, new(0) }, "latest: needs qos = 1"},
		"an hour":              {func(r *Route) { r.Expiry = time.Hour }, ""},
		"expiry of less":       {func(r *Route) { r.Expiry = 1500 * time.Millisecond }, "expiry: 1.5s is not whole seconds"},
		"expiry below nothing": {func(r *Route) { r.Expiry = -time.Second }, "expiry: -1s is not whole seconds"},
		"expiry beyond MQTT":   {func(r *Route) { r.Expiry = 1 << 32 * time.Second }, "is not whole seconds up to"},
		"lane in":              {func(r *Route) { r.Direction, r.Lane = DirectionIn, new(3) }, `lane: means nothing for direction "in"`},
		"latest in":            {func(r *Route) { r.Direction, r.Latest = DirectionIn, true }, `latest: means nothing for direction "in"`},
		"expiry in":            {func(r *Route) { r.Direction, r.Expiry = DirectionIn, time.Hour }, `expiry: means nothing for direction "in"`},
		"expiry both ways":     {func(r *Route) { r.Direction, r.Expiry = DirectionBoth, time.Hour }, ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			r := out
			test.change(&r)
			err := r.validate("gw")
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("validate: %v, want %q", err, test.want)
			}
		})
	}
}
