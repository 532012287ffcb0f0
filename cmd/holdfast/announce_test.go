package main

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/broker/durable"
	"holdfast/broker/message"
	"holdfast/cmd/holdfast/config"
)

func expectTopics(t *testing.T, gw *gateway, filter string, want ...string) {
	t.Helper()
	waitUntil(t, "retained messages "+strings.Join(want, " "), func() bool {
		var topics []string
		for _, m := range gw.g.broker.Retained(filter) {
			topics = append(topics, m.Topic)
		}
		slices.Sort(topics)
		return slices.Equal(topics, want)
	})
}

// puts is how much the gateway had to tell of itself and its devices.
func puts(gw *gateway) (n uint64) {
	for _, d := range gw.g.statuses.Status().Devices {
		n += d.Put
	}
	return n
}

// Devices are announced to Home Assistant while they are configured, and neither
// their announcement nor their status stays when they are not.
func TestDevicesAreAnnouncedAndTakenBack(t *testing.T) {
	const (
		head = "[gateway]\nid = \"gw\"\n[home_assistant]\nenabled = true\nspread = \"0s\"\n[[listener]]\naddress = \"tcp://127.0.0.1:0\"\n"
		port = "[port.bus]\ndevice = \"/dev/nowhere\"\n"
	)
	device := func(name, unit string) string {
		return "[device." + name + "]\nadapter = \"modbus\"\nport = \"bus\"\nunit = " + unit + "\n[[device." + name + ".point]]\nname = \"power\"\nregister = \"holding:1\"\nunit = \"W\"\n"
	}
	file := filepath.Join(t.TempDir(), "h.toml")
	write := func(s string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(head + port + device("one", "1") + device("two", "2"))
	gw := reloadable(t, file)
	t.Cleanup(gw.announced.close)
	data := gw.cfg.Gateway.Data
	reload := func() {
		t.Helper()
		if err := gw.applyReload(t.Context(), t.Context(), func() (config.Config, error) { return loadConfig(file, data, nil) }); err != nil {
			t.Fatal(err)
		}
	}
	const (
		discovery = "homeassistant/device/holdfast_gw/+/config"
		statuses  = "holdfast/gw/device/+/status"
	)
	expectTopics(t, gw, discovery, "homeassistant/device/holdfast_gw/one/config", "homeassistant/device/holdfast_gw/two/config")
	expectTopics(t, gw, statuses, "holdfast/gw/device/one/status", "holdfast/gw/device/two/status")

	// Home Assistant starts: they are announced once more.
	before := puts(gw)
	if err := gw.g.broker.Publish(&message.Message{Topic: "homeassistant/status", Payload: []byte("online"), QoS: 0}, durable.Origin{}, func(error) {}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-gw.announced.births:
	case <-time.After(10 * time.Second):
		t.Fatal("its birth was not heard")
	}
	gw.announced.born()
	<-gw.announced.again
	gw.announce(&gw.cfg, true)
	if n := puts(gw) - before; n < 2 {
		t.Errorf("%d messages after its birth, want 2", n)
	}
	before = puts(gw)
	gw.announce(&gw.cfg, false)
	if n := puts(gw) - before; n != 0 {
		t.Errorf("%d messages though nothing has changed", n)
	}

	// One that says itself what it measures keeps what was announced until it has.
	write(head + port + device("two", "2") + "[device.one]\nadapter = \"modbus\"\nport = \"bus\"\nunit = 1\nprofile = \"sunspec\"\n")
	reload()
	expectTopics(t, gw, discovery, "homeassistant/device/holdfast_gw/one/config", "homeassistant/device/holdfast_gw/two/config")

	write(head + port + device("two", "2"))
	reload()
	expectTopics(t, gw, discovery, "homeassistant/device/holdfast_gw/two/config")
	expectTopics(t, gw, statuses, "holdfast/gw/device/two/status")

	write(strings.Replace(head, "true", "false", 1) + port + device("two", "2"))
	reload()
	expectTopics(t, gw, discovery)
	expectTopics(t, gw, statuses, "holdfast/gw/device/two/status")
}

func TestGatewaysStatusIsThereForLocalClients(t *testing.T) {
	file := filepath.Join(t.TempDir(), "h.toml")
	if err := os.WriteFile(file, []byte("[gateway]\nid = \"gw\"\n[[listener]]\naddress = \"tcp://127.0.0.1:0\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	gw := reloadable(t, file)
	for _, state := range []string{"online", "offline"} {
		gw.tellState(context.Background(), "gw", state, "")
		ms := gw.g.broker.Retained("holdfast/gw/status")
		if len(ms) != 1 || !strings.HasPrefix(string(ms[0].Payload), `{"state":"`+state+`","session":1,"version":`) {
			t.Fatalf("retained: %v", ms)
		}
	}
}
