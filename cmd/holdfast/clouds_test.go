//go:build integration

package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// installed finds a program, also where only root looks.
func installed(t *testing.T, name, from string) string {
	t.Helper()
	for _, path := range []string{name, "/usr/sbin/" + name} {
		if found, err := exec.LookPath(path); err == nil {
			return found
		}
	}
	t.Fatalf("%s is not installed: %s", name, from)
	return ""
}

// mosquittoCloud is Debian's broker.
func mosquittoCloud(t *testing.T) outageCloud {
	t.Helper()
	path := installed(t, "mosquitto", "apt-get install mosquitto")
	c := outageCloud{address: freeAddress(t), commands: true}
	_, port, _ := net.SplitHostPort(c.address)
	config := filepath.Join(t.TempDir(), "mosquitto.conf")
	// With more waiting than in flight 2.0.11 lets new ones overtake.
	text := fmt.Sprintf("listener %s 127.0.0.1\nallow_anonymous true\nuser root\nmax_queued_messages 0\nmax_inflight_messages 20000\n", port)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	startDaemon(t, path, "-c", config)
	waitUntil(t, "mosquitto", func() bool { return answers(c.address) })
	return c
}

// rabbitCloud is RabbitMQ with its MQTT plugin, which speaks 3.1.1.
func rabbitCloud(t *testing.T) outageCloud {
	t.Helper()
	// What is in the path is a wrapper that changes the user.
	const path = "/usr/lib/rabbitmq/bin/rabbitmq-server"
	installed(t, path, "apt-get install rabbitmq-server")
	dir := t.TempDir()
	c := outageCloud{address: freeAddress(t), username: "guest", password: "guest", commands: true}
	_, port, _ := net.SplitHostPort(c.address)
	_, amqp, _ := net.SplitHostPort(freeAddress(t))
	_, distribution, _ := net.SplitHostPort(freeAddress(t))
	for name, text := range map[string]string{
		"rabbitmq.conf":   "listeners.tcp.default = 127.0.0.1:" + amqp + "\nmqtt.listeners.tcp.default = 127.0.0.1:" + port + "\nmqtt.prefetch = 1000\n",
		"enabled_plugins": "[rabbitmq_mqtt].\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for key, value := range map[string]string{
		"HOME": dir, "RABBITMQ_NODENAME": "holdfast" + port + "@localhost", "RABBITMQ_DIST_PORT": distribution,
		"RABBITMQ_CONFIG_FILE": filepath.Join(dir, "rabbitmq.conf"), "RABBITMQ_ENABLED_PLUGINS_FILE": filepath.Join(dir, "enabled_plugins"),
		"RABBITMQ_MNESIA_BASE": dir, "RABBITMQ_LOG_BASE": dir, "RABBITMQ_PID_FILE": filepath.Join(dir, "pid"),
		"ERL_EPMD_ADDRESS": "127.0.0.1",
	} {
		t.Setenv(key, value)
	}
	_, ports, _ := net.SplitHostPort(freeAddress(t))
	t.Setenv("ERL_EPMD_PORT", ports)
	// Erlang would leave its port mapper behind.
	startDaemon(t, installed(t, "epmd", "apt-get install erlang-base"), "-port", ports)
	d := startDaemon(t, path)
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(d.out.String())
		}
	})
	waitUpTo(t, time.Minute, "RabbitMQ", func() bool { return answers(c.address) })
	return c
}

func TestMosquittoOutages(t *testing.T) {
	outages(t, "holdfast", mosquittoCloud(t), number("HOLDFAST_OUTAGES", 10))
}

func TestRabbitMQOutages(t *testing.T) {
	outages(t, "holdfast", rabbitCloud(t), number("HOLDFAST_OUTAGES", 10))
}
