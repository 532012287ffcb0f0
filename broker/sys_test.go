package broker_test

import (
	"fmt"
	"math"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/broker"
	"holdfast/broker/brokertest"
)

// sysReader subscribes to all of $SYS/broker and keeps the latest values.
type sysReader struct {
	*brokertest.Client

	values map[string]string
	news   int
}

func readSys(t *testing.T, b *brokertest.Broker) *sysReader {
	t.Helper()
	r := &sysReader{Client: brokertest.Connect(t, b.Pipe(), brokertest.V5("sys")), values: make(map[string]string)}
	r.Subscribe(0, "$SYS/#")
	r.collect(t, true)
	return r
}

// collect takes what has come. What was there when it subscribed has the RETAIN
// flag, what comes later has not (MQTT 5.0 §3.3.1.3).
func (r *sysReader) collect(t *testing.T, retained bool) {
	t.Helper()
	synctest.Wait()
	r.news = 0
	for _, p := range r.Rest() {
		if p.Retain != retained {
			t.Errorf("%s: RETAIN %v", p.Topic, p.Retain)
		}
		r.values[string(p.Topic)] = string(p.Payload)
		r.news++
	}
}

func (r *sysReader) expect(t *testing.T, want map[string]string) {
	t.Helper()
	for name, value := range want {
		if got := r.values["$SYS/broker/"+name]; got != value {
			t.Errorf("%s = %q, want %q", name, got, value)
		}
	}
}

// What others know is there for who subscribes later, and goes when it is taken away.
func TestTellSys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := sysBroker(t)
		synctest.Wait() // for the first tick
		const name = "connection/cloud/state"
		b.TellSys(name, "0")
		r := readSys(t, b)
		r.expect(t, map[string]string{name: "0"})
		b.TellSys(name, "1")
		r.collect(t, false)
		r.expect(t, map[string]string{name: "1"})
		b.TellSys(name, "")
		r.collect(t, false)
		late := brokertest.Connect(t, b.Pipe(), brokertest.V5("late"))
		late.Subscribe(0, "$SYS/broker/connection/#")
		late.Silent()
		off := brokertest.New(t, nil)
		off.TellSys(name, "1")
		if n := off.Status().Retained; n != 0 {
			t.Errorf("%d topics of a $SYS that is off", n)
		}
	})
}

func sysBroker(t *testing.T) *brokertest.Broker {
	t.Helper()
	return brokertest.New(t, nil, func(o *broker.Options) {
		o.SysInterval, o.Version, o.Built = 10*time.Second, "holdfast version 1", "2026-01-01T00:00:00Z"
		o.Stored = func() (int64, int64) { return 7, 700 }
	})
}

// A dashboard for Mosquitto finds the names it knows, at once.
func TestSysNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := sysBroker(t)
		synctest.Wait()
		r := readSys(t, b)
		names := []string{
			"version", "timestamp", "uptime",
			"clients/total", "clients/connected", "clients/disconnected", "clients/active", "clients/inactive", "clients/maximum", "clients/expired",
			"messages/received", "messages/sent", "messages/inflight", "messages/stored", "store/messages/count", "store/messages/bytes",
			"publish/messages/received", "publish/messages/sent", "publish/messages/dropped", "publish/bytes/received", "publish/bytes/sent",
			"bytes/received", "bytes/sent", "retained messages/count", "subscriptions/count", "shared_subscriptions/count",
			"heap/current", "heap/maximum",
		}
		for _, x := range []string{"messages/received", "messages/sent", "publish/received", "publish/sent", "publish/dropped", "bytes/received", "bytes/sent", "sockets", "connections"} {
			for _, span := range []string{"1min", "5min", "15min"} {
				names = append(names, "load/"+x+"/"+span)
			}
		}
		for _, name := range names {
			if _, ok := r.values["$SYS/broker/"+name]; !ok {
				t.Errorf("there is no $SYS/broker/%s", name)
			}
		}
		if len(r.values) != len(names) {
			t.Errorf("%d topics, want %d", len(r.values), len(names))
		}
		r.expect(t, map[string]string{"version": "holdfast version 1", "timestamp": "2026-01-01T00:00:00Z", "uptime": "0 seconds", "clients/connected": "0", "store/messages/bytes": "700"})
	})
}

func TestSysValues(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := sysBroker(t)
		synctest.Wait()
		r := readSys(t, b)
		p := brokertest.Connect(t, b.Pipe(), brokertest.V5("p"))
		kept := brokertest.Connect(t, b.Pipe(), brokertest.Keep(brokertest.V5("kept"), 15))
		kept.Subscribe(1, "$share/g/t")
		kept.Kill()
		slow := brokertest.Raw(t, b.Pipe(), 5)
		slow.SetManual(true)
		slow.Try(brokertest.V5("slow"))
		slow.Subscribe(1, "a")
		for i := range 5 {
			p.Publish(1, true, "a", strconv.Itoa(10+i))
		}
		pass(10 * time.Second)
		r.collect(t, false)
		r.expect(t, map[string]string{
			"uptime": "10 seconds", "clients/total": "4", "clients/connected": "3", "clients/disconnected": "1", "clients/maximum": "3",
			"clients/expired": "0", "subscriptions/count": "3", "shared_subscriptions/count": "1",
			// CONNECT and PUBLISH; SUBSCRIBE
			"messages/received": fmt.Sprint(4 + 5 + 3), "publish/messages/received": "5", "publish/bytes/received": "10",
			"messages/inflight": "5",
		})
		if got := r.values["$SYS/broker/retained messages/count"]; got == "" || got == "0" {
			t.Errorf("retained messages/count = %q", got)
		}
		pass(10 * time.Second)
		r.collect(t, false)
		r.expect(t, map[string]string{"clients/total": "3", "clients/disconnected": "0", "clients/expired": "1", "clients/maximum": "3", "shared_subscriptions/count": "0"})
	})
}

// Loads are averages per minute; at an even rate they come to it, each in its
// time, and go down again.
func TestSysLoads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := sysBroker(t)
		synctest.Wait()
		r := readSys(t, b)
		p := brokertest.Connect(t, b.Pipe(), brokertest.V5("p"))
		load := func(span string) float64 {
			x, err := strconv.ParseFloat(r.values["$SYS/broker/load/publish/received/"+span], 64)
			if err != nil {
				t.Error(err)
			}
			return x
		}
		near := func(what string, got, want float64) {
			if math.Abs(got-want) > 0.01*120+0.1 {
				t.Errorf("%s is %.2f, want about %.2f", what, got, want)
			}
		}
		// Twenty every ten seconds for five minutes.
		for range 30 {
			for range 20 {
				p.Publish(0, false, "t", "x")
			}
			p.Silent()
			pass(10 * time.Second)
			r.collect(t, false)
		}
		near("1min", load("1min"), 120*(1-math.Exp(-5)))
		near("5min", load("5min"), 120*(1-math.Exp(-1)))
		near("15min", load("15min"), 120*(1-math.Exp(-1.0/3)))
		for range 6 {
			pass(10 * time.Second)
			r.collect(t, false)
		}
		near("1min a minute later", load("1min"), 120*(1-math.Exp(-5))*math.Exp(-1))
	})
}

// What has not changed is not published again.
func TestSysIsQuiet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := sysBroker(t)
		synctest.Wait()
		r := readSys(t, b)
		pass(2 * time.Hour) // all averages have come to rest
		r.collect(t, false)
		pass(10 * time.Second)
		r.collect(t, false)
		if _, ok := r.values["$SYS/broker/uptime"]; !ok || r.news > 20 {
			t.Errorf("%d values in ten quiet seconds", r.news)
		}
		if got := r.values["$SYS/broker/uptime"]; got != "7210 seconds" {
			t.Errorf("uptime = %q", got)
		}
	})
}

func TestSysOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t, nil)
		pass(time.Minute)
		if r := readSys(t, b); len(r.values) > 0 {
			t.Errorf("got %v", r.values)
		}
	})
}
