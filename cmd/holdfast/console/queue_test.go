package console

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"holdfast/broker/durable"
	"holdfast/storeforward"
)

func startStore(t *testing.T) (socket string) {
	t.Helper()
	o := storeforward.DefaultOptions()
	o.Path = filepath.Join(t.TempDir(), "holdfast.db")
	store, err := storeforward.Open(t.Context(), o, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	if _, _, err := store.OpenUplink("cloud"); err != nil {
		t.Fatal(err)
	}
	return start(t, Source{Store: store})
}

func lines(t *testing.T, socket, path string) (text []string) {
	t.Helper()
	err := Stream(t.Context(), socket, http.MethodGet, path, nil, func(line []byte) error {
		text = append(text, strings.TrimSpace(string(line)))
		return nil
	})
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return text
}

func order(t *testing.T, socket, path, body string) (int64, error) {
	t.Helper()
	return Order(t.Context(), socket, "/api/v1/queues/"+path, strings.NewReader(body), func(int64) {})
}

// What is exported and imported again is the same, whatever is in it.
func TestExportIsTheSameAfterImport(t *testing.T) {
	socket := startStore(t)
	const first = `{"received":"2026-01-02T03:04:05.000006Z","qos":1,"topic":"a/b","payload":"text \"<\n","from":"me"}` + "\n" +
		`{"received":"2026-01-02T03:04:06Z","qos":2,"topic":"a/c","payload_base64":"/wD+","properties_base64":"AQE=","retain":true,"expiry_seconds":0}` + "\n\n" +
		`{"received":"2026-01-03T00:00:00Z","qos":1,"topic":"a/d"}` // no payload, no end of line
	if n, err := order(t, socket, "import?queue=cloud", first); n != 3 || err != nil {
		t.Fatalf("import = %d, %v", n, err)
	}
	out := lines(t, socket, "/api/v1/queues/messages?queue=cloud")
	if n, err := order(t, socket, "drop?queue=cloud", ""); n != 3 || err != nil {
		t.Fatalf("drop = %d, %v", n, err)
	}
	if n, err := order(t, socket, "import?queue=uplink/cloud", strings.Join(out, "\n")); n != 3 || err != nil {
		t.Fatalf("import again = %d, %v", n, err)
	}
	again := lines(t, socket, "/api/v1/queues/messages?queue=cloud")
	for i := range out {
		var a, b Record
		if err := errors.Join(json.Unmarshal([]byte(out[i]), &a), json.Unmarshal([]byte(again[i]), &b)); err != nil {
			t.Fatal(err)
		}
		if b.Seq <= a.Seq {
			t.Errorf("sequence number %d after %d", b.Seq, a.Seq)
		}
		a.Seq, b.Seq = 0, 0
		if x, y := fmt.Sprintf("%+v", values(a)), fmt.Sprintf("%+v", values(b)); x != y {
			t.Errorf("%s came back as %s", x, y)
		}
	}
	if !strings.Contains(out[1], `"payload_base64":"/wD+"`) || !strings.Contains(out[1], `"expiry_seconds":0`) || !strings.Contains(out[1], `"properties_base64":"AQE="`) {
		t.Errorf("exported %s", out[1])
	}
}

// values follows the pointers.
func values(r Record) []any {
	var payload, expiry any
	if r.Payload != nil {
		payload = *r.Payload
	}
	if r.Expiry != nil {
		expiry = *r.Expiry
	}
	at := r.Received.UnixMicro()
	return []any{at, r.QoS, r.Topic, payload, r.Base64, r.Properties, r.Retain, expiry, r.From}
}

// More than a page, and where to go on.
func TestManyMessagesComeInPages(t *testing.T) {
	socket := startStore(t)
	var body strings.Builder
	for i := range 2*pageRows + 1 {
		fmt.Fprintf(&body, `{"qos":1,"topic":"a","payload":"%d"}`+"\n", i)
	}
	if n, err := order(t, socket, "import?queue=cloud", body.String()); n != 2*pageRows+1 || err != nil {
		t.Fatalf("import = %d, %v", n, err)
	}
	all := lines(t, socket, "/api/v1/queues/messages?queue=cloud")
	if len(all) != 2*pageRows+1 || !strings.Contains(all[len(all)-1], `"payload":"2000"`) {
		t.Errorf("%d messages, the last is %s", len(all), all[len(all)-1])
	}
	var r Record
	if err := json.Unmarshal([]byte(all[9]), &r); err != nil {
		t.Fatal(err)
	}
	if some := lines(t, socket, fmt.Sprintf("/api/v1/queues/messages?queue=cloud&after=%d&limit=3", r.Seq)); len(some) != 3 || some[0] != all[10] {
		t.Errorf("after %d: %v", r.Seq, some)
	}
}

func TestQueueRequestsThatAreWrong(t *testing.T) {
	socket := startStore(t)
	for path, want := range map[string]string{
		"messages?queue=moon":             `queue "moon"`,
		"messages?queue=cloud&after=soon": "not a number",
		"drop":                            "not a number",
	} {
		err := Stream(t.Context(), socket, http.MethodGet, "/api/v1/queues/"+path, nil, func([]byte) error { return nil })
		if err == nil || path != "drop" && !strings.Contains(err.Error(), want) {
			t.Errorf("GET %s: %v, want %q", path, err, want)
		}
	}
	for path, want := range map[string]string{
		"drop?queue=moon":                   `queue "moon"`,
		"drop?queue=cloud&topic=a/%23/b":    "queue uplink/cloud",
		"drop?queue=cloud&before=yesterday": "queue uplink/cloud",
		"replay?queue=cloud":                "queue uplink/cloud",
	} {
		if _, err := order(t, socket, path, ""); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("POST %s: %v, want %q", path, err, want)
		}
	}
	n, err := order(t, socket, "import?queue=cloud", `{"qos":1,"topic":"a"}`+"\n"+`{"qos":0,"topic":"a"}`)
	if n != 1 || err == nil || !strings.Contains(err.Error(), "line 2") {
		t.Errorf("import with QoS 0 = %d, %v", n, err)
	}
}

func TestFindQueue(t *testing.T) {
	t.Parallel()
	list := []storeforward.QueueInfo{
		{ID: 1, Kind: "uplink", Name: "cloud"},
		{ID: 2, Kind: "session", Name: "cloud"},
		{ID: 3, Kind: "session", Name: "pump"},
		{ID: 4, Kind: "session", Name: "$share/g/a/+"},
		{ID: 5, Kind: "group", Name: "$share/g/a/+"},
		{ID: 6, Kind: "session", Name: "x\x1b[2J"},
	}
	for name, want := range map[string]int{"uplink/cloud": 1, "session/cloud": 2, "pump": 3, "session/pump": 3, "session/$share/g/a/+": 4, "$share/g/a/+": 5, "x\x1b[2J": 6, `session/x\x1b[2J`: 6, `x\x1b[2J`: 6} {
		if q, err := FindQueue(list, name); err != nil || int(q.ID) != want {
			t.Errorf("FindQueue(%q) = %d, %v; want %d", name, q.ID, err, want)
		}
	}
	for name, want := range map[string]string{"cloud": "uplink/cloud or session/cloud", "moon": "there is uplink/cloud, session/cloud, session/pump, session/$share/g/a/+, $share/g/a/+, session/x\\x1b[2J"} {
		if _, err := FindQueue(list, name); !errors.Is(err, ErrNoQueue) || !strings.Contains(err.Error(), want) {
			t.Errorf("FindQueue(%q): %v, want %q", name, err, want)
		}
	}
}

func TestCSVHasAColumnForEachField(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	w := csv.NewWriter(&b)
	r := Record{Seq: 7, QoS: 1, Topic: `a,"b"`, Base64: []byte{0xff}, Code: 0x87}
	if err := r.WriteCSV(w); err != nil {
		t.Fatal(err)
	}
	w.Flush()
	rows, err := csv.NewReader(&b).ReadAll()
	if err != nil || len(rows) != 1 || len(rows[0]) != len(CSVHeader()) || rows[0][4] != `a,"b"` || rows[0][6] != "/w==" || rows[0][10] != "0x87" {
		t.Errorf("got %q, %v", rows, err)
	}
}

// Each lane has series of its own, and who has none no trace of the label.
func TestMetricsNameTheLanes(t *testing.T) {
	t.Parallel()
	got := string(openMetrics("holdfast_store", storeforward.Status{Queues: []storeforward.QueueStatus{
		{Kind: "uplink", Name: "cloud", Lane: "7-latest", Messages: 2},
		{Kind: "uplink", Name: "cloud", Lane: "3", Messages: 5},
		{Kind: "session", Name: "pump", Messages: 1},
	}}))
	for _, want := range []string{
		`holdfast_store_queue_messages{queue="uplink cloud 7-latest"} 2`,
		`holdfast_store_queue_messages{queue="uplink cloud 3"} 5`,
		`holdfast_store_queue_messages{queue="session pump"} 1`,
	} {
		if !strings.Contains(got, want+"\n") {
			t.Errorf("metrics have no %s:\n%s", want, got)
		}
	}
}

func TestFindQueueOfALane(t *testing.T) {
	t.Parallel()
	list := []storeforward.QueueInfo{{ID: 1, Kind: "uplink", Name: "cloud", Lanes: []storeforward.LaneInfo{{ID: 4, Lane: "7"}, {ID: 1, Lane: "3"}}}}
	for name, want := range map[string][]durable.QueueID{"cloud": {4, 1}, "uplink/cloud": {4, 1}, "uplink/cloud/7": {4}, "uplink/cloud/3": {1}} {
		if q, err := FindQueue(list, name); err != nil || !slices.Equal(q.Queues(), want) {
			t.Errorf("FindQueue(%q) = %v, %v, want %v", name, q.Queues(), err, want)
		}
	}
	if _, err := FindQueue(list, "uplink/cloud/5"); !errors.Is(err, ErrNoQueue) {
		t.Errorf("a lane that is not there: %v", err)
	}
}

// Clients make up as many names as they like; that many metrics there are not.
func TestMetricsOfManySessionsAreBounded(t *testing.T) {
	type queue struct {
		Name     string `json:"name" metric:"label"`
		Messages int    `json:"messages"`
	}
	var st struct {
		Queues []queue `json:"queues"`
	}
	for i := range 1000 {
		st.Queues = append(st.Queues, queue{Name: fmt.Sprintf("\xff%d", i), Messages: i})
	}
	got := string(openMetrics("holdfast", st))
	if n := strings.Count(got, "_messages{"); n != maxMembers {
		t.Errorf("%d series, want %d", n, maxMembers)
	}
	if !strings.Contains(got, "queues_without_metrics 744\n") || !utf8.ValidString(got) {
		t.Errorf("the others are not counted, or this is no UTF-8:\n%.300s", got)
	}
}
