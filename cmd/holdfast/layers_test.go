package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// layers says who may import whom. A name ending in "/..." stands for the
// package before it and all below. What a package imports of others' modules
// is written down too: a dependency that spreads shows up in review.
//
// The three columns (broker, adapters, storeforward) never import each other;
// cmd/holdfast is where they meet.
var layers = map[string]struct {
	own   []string // packages of ours
	third []string // modules of others
}{
	// Leaves: values and bytes.
	"broker/message": {},
	"broker/durable": {own: []string{"broker/message"}},
	"broker/cbor":    {},
	"broker/packet":  {},
	"broker/scram":   {},
	"broker/topic":   {},

	// The one who speaks MQTT outwards.
	"broker/client": {own: []string{"broker/message", "broker/packet", "broker/scram", "broker/topic"}},

	// broker: local clients.
	"broker":            {own: []string{"broker/durable", "broker/message", "broker/packet", "broker/topic"}, third: []string{"golang.org/x/sys"}},
	"broker/access":     {own: []string{"broker", "broker/message", "broker/packet", "broker/scram", "broker/topic"}, third: []string{"golang.org/x/crypto"}},
	"broker/brokertest": {own: []string{"broker/..."}},
	"broker/listen":     {third: []string{"github.com/coder/websocket", "github.com/coreos/go-systemd/v22"}},

	// adapters: the field.
	"adapters":                   {own: []string{"adapters/health", "adapters/port", "adapters/reading", "broker/message"}},
	"adapters/reading":           {own: []string{"broker/cbor"}, third: []string{"golang.org/x/sys"}},
	"adapters/discovery":         {own: []string{"adapters", "broker/message"}},
	"adapters/health":            {own: []string{"adapters/reading", "broker/message"}},
	"adapters/port":              {third: []string{"go.bug.st/serial", "github.com/tarm/goserial", "golang.org/x/sys"}},
	"adapters/serial":            {own: []string{"adapters", "adapters/health", "adapters/port", "adapters/reading", "broker/message"}},
	"adapters/modbus":            {own: []string{"adapters", "adapters/health", "adapters/port", "adapters/reading", "broker/message"}},
	"adapters/modbus/profile":    {own: []string{"adapters", "adapters/modbus", "adapters/reading"}},
	"adapters/modbus/survey":     {own: []string{"adapters/modbus", "adapters/modbus/profile"}},
	"adapters/modbus/server":     {own: []string{"adapters/modbus", "adapters/port", "adapters/reading"}},
	"adapters/modbus/modbustest": {own: []string{"adapters/modbus", "adapters/port"}, third: []string{"github.com/creack/pty", "golang.org/x/sys"}},

	// storeforward: what must not be lost, and its way to the cloud. The
	// disk that fails (storetest) works below SQLite and knows no schema.
	"storeforward":                  {own: []string{"broker/durable", "broker/message", "broker/packet", "broker/topic"}, third: []string{"github.com/mattn/go-sqlite3", "golang.org/x/sys"}},
	"storeforward/storetest":        {third: []string{"github.com/mattn/go-sqlite3", "github.com/psanford/sqlite3vfs"}},
	"storeforward/uplink/relaytest": {},
	"storeforward/pack":             {own: []string{"broker/cbor"}, third: []string{"github.com/klauspost/compress"}},
	"storeforward/sparkplug":        {own: []string{"broker/client", "broker/durable", "broker/message", "broker/packet", "broker/topic", "storeforward", "storeforward/uplink/dial"}, third: []string{"google.golang.org/protobuf"}},
	"storeforward/uplink":           {own: []string{"broker/client", "broker/durable", "broker/message", "broker/packet", "broker/topic", "storeforward", "storeforward/pack", "storeforward/uplink/dial"}},
	"storeforward/uplink/dial":      {third: []string{"github.com/coder/websocket", "golang.org/x/sys"}}, // no MQTT

	// Wiring: imported by nobody but the command itself.
	"cmd/holdfast":           {own: []string{"..."}, third: []string{"github.com/coreos/go-systemd/v22", "github.com/spf13/cobra", "golang.org/x/sys"}},
	"cmd/holdfast/config":    {own: []string{"adapters/...", "broker/...", "storeforward/..."}, third: []string{"github.com/pelletier/go-toml/v2"}},
	"cmd/holdfast/mosquitto": {},
	"cmd/holdfast/console":   {own: []string{"adapters/...", "broker/...", "cmd/holdfast/config", "storeforward/..."}},
	"cmd/holdfast/doctor":    {own: []string{"adapters/...", "cmd/holdfast/config"}, third: []string{"golang.org/x/sys"}},
	"cmd/holdfast/demo":      {own: []string{"adapters/...", "broker/...", "cmd/holdfast/config", "cmd/holdfast/console", "storeforward/..."}, third: []string{"github.com/creack/pty", "golang.org/x/sys"}},

	// The load generator knows bytes, no broker.
	"cmd/holdfast-bench": {own: []string{"adapters/modbus/modbustest", "broker/packet", "storeforward/uplink/relaytest"}, third: []string{"github.com/mattn/go-sqlite3", "golang.org/x/sys"}},

	// A tool of the packagers: what is inside the binary, and its licences.
	"packaging/modules": {},
}

// doubles are what a test may import beyond its package's own imports: what
// behaves badly on purpose, and the ends that such tests talk to.
var doubles = []string{
	"adapters/modbus/modbustest", "adapters/port", "adapters/reading", "broker/brokertest",
	"broker/client", "broker/durable", "broker/listen", "broker/message", "broker/packet", "broker/topic", "storeforward/storetest", "storeforward/uplink/relaytest",
}

// listed is what this test reads of `go list -json`.
type listed struct {
	ImportPath                         string
	Imports, TestImports, XTestImports []string
}

func TestLayers(t *testing.T) {
	t.Parallel()
	for _, p := range list(t) {
		name := strings.TrimPrefix(p.ImportPath, "holdfast/")
		rule, ok := layers[name]
		if !ok {
			t.Errorf("%s has no row in the table: choose its layer (README, The map)", name)
			continue
		}
		for _, imported := range p.Imports {
			own, isOwn := strings.CutPrefix(imported, "holdfast/")
			switch {
			case isOwn && !slices.ContainsFunc(rule.own, func(r string) bool { return covers(r, own) }):
				t.Errorf("%s imports %s, which its layer may not", name, own)
			case !isOwn && !standard(imported) && !slices.ContainsFunc(rule.third, func(r string) bool { return covers(r+"/...", imported) }):
				t.Errorf("%s imports %s, which the table does not list for it", name, imported)
			}
		}
		allowed := slices.Concat(rule.own, doubles, []string{name})
		for _, imported := range slices.Concat(p.TestImports, p.XTestImports) {
			own, isOwn := strings.CutPrefix(imported, "holdfast/")
			if isOwn && !slices.ContainsFunc(allowed, func(r string) bool { return covers(r, own) }) {
				t.Errorf("a test of %s imports %s, which is neither its layer's nor a test double", name, own)
			}
		}
	}
}

// covers says whether rule, which may end in "...", includes the path.
func covers(rule, path string) bool {
	prefix, all := strings.CutSuffix(rule, "...")
	return path == strings.TrimSuffix(prefix, "/") || all && strings.HasPrefix(path, prefix)
}

// standard says whether an import path is the standard library's: those have
// no dot in their first element.
func standard(path string) bool {
	first, _, _ := strings.Cut(path, "/")
	return !strings.Contains(first, ".")
}

func list(t *testing.T) []listed {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-tags", "integration", "-json=ImportPath,Imports,TestImports,XTestImports", "holdfast/...")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var packages []listed
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		switch err := dec.Decode(&p); {
		case errors.Is(err, io.EOF):
			return packages
		case err != nil:
			t.Fatalf("decode go list: %v", err)
		}
		packages = append(packages, p)
	}
}
