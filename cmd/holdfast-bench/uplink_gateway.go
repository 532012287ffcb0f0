package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"holdfast/broker/packet"
	"holdfast/storeforward/uplink/relaytest"
)

const (
	uplinkPayload = 64 // bytes of a reading
	uplinkTopics  = 200
	// uplinkInFlight is how many of a publisher may be without an answer, which
	// comes after a round trip to the cloud.
	uplinkInFlight = 200
)

// uplinkTopic has 40 characters.
func uplinkTopic(i int) string {
	return fmt.Sprintf("bench/site-0001/line-%02d/device-%04d/temp", i%20, i%uplinkTopics)
}

// uplinkReading is a payload of 64 bytes that changes as readings do.
func uplinkReading(i int) string {
	at := time.Unix(1_800_000_000, 0).UTC().Add(time.Duration(i) * 50 * time.Millisecond)
	value := 2000 + (i*7+i%uplinkTopics*31)%400
	s := fmt.Sprintf(`{"value":%d.%02d,"unit":"C","time":"%s"}`, value/100, value%100, at.Format("2006-01-02T15:04:05.000Z"))
	return s[:len(s)-1] + strings.Repeat(" ", uplinkPayload-len(s)) + "}"
}

// gatewayKind is one way of having messages carried to the cloud.
type gatewayKind struct {
	name   string
	secure bool
	// config is written to {dir}/conf, with {port}, {dir} and {cloud}
	// (host:port) replaced; command is then run.
	config, command string
	batched         bool // the sink cannot count readings
}

func (b *uplinkBench) kind(name string) gatewayKind {
	k := gatewayKind{name: name}
	rest, secure := strings.CutSuffix(name, " TLS")
	k.secure = secure
	if rest == "mosquitto" {
		ca := ""
		if secure {
			ca = "bridge_cafile {dir}/ca.pem\nbridge_insecure true\n"
		}
		// Its best: no limits, nothing kept on disk.
		k.config = "listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\nuser root\nmax_queued_messages 0\nmax_inflight_messages 0\n" +
			"connection cloud\naddress {cloud}\ntopic bench/# out 1\ncleansession false\nnotifications false\nrestart_timeout 1\ntry_private false\n" + ca
		k.command = b.mosquitto + " -c {dir}/conf"
		return k
	}
	scheme, uplink, route := "mqtt", "", ""
	if secure {
		scheme, uplink = "mqtts", "ca_file = \"{dir}/ca.pem\"\n"
	}
	switch strings.TrimPrefix(rest, "holdfast") {
	case " no alias":
		uplink += "topic_aliases = 0\n"
	case " jsonl":
		k.batched = true
		route = "batch = \"jsonl\"\ncompression = \"none\"\nbatch_topic = \"bench/batch\"\n"
	case " jsonl+zstd":
		k.batched = true
		route = "batch = \"jsonl\"\ncompression = \"zstd\"\nbatch_topic = \"bench/batch\"\n"
	case " cbor+zstd":
		k.batched = true
		route = "batch = \"cbor\"\ncompression = \"zstd\"\nbatch_topic = \"bench/batch\"\n"
	}
	k.config = "[gateway]\ndata = \"{dir}\"\n[store]\nmax_queue_messages = 100000000\n[[listener]]\naddress = \"tcp://127.0.0.1:{port}\"\n" +
		"[uplink.cloud]\nurl = \"" + scheme + "://{cloud}\"\nreconnect_min = \"200ms\"\nreconnect_max = \"400ms\"\nreconnect_spread = \"0s\"\n" + uplink +
		"[[uplink.cloud.route]]\ndirection = \"out\"\nfilter = \"" + livePrefix + "#\"\nlane = 6\n" +
		"[[uplink.cloud.route]]\ndirection = \"out\"\nfilter = \"" + uplinkPrefix + "#\"\n" + route
	k.command = b.holdfast + " run --config {dir}/conf"
	return k
}

// uplinkRun is a gateway, its link and its cloud.
type uplinkRun struct {
	kind  gatewayKind
	cloud *sink
	link  *relaytest.Relay
	proc  *process
}

// account is what a run has used so far.
type account struct {
	cpu      time.Duration // of the gateway
	flash    int64         // bytes the gateway has had written
	up, down int64         // bytes over the link
}

func (r *uplinkRun) account() (a account, err error) {
	if a.cpu, err = r.proc.cpu(); err != nil {
		return a, err
	}
	a.flash, err = writtenBytes(r.proc.cmd.Process.Pid)
	a.up, a.down = r.link.Bytes()
	return a, err
}

// since is what has been used since before.
func (r *uplinkRun) since(before account) (account, error) {
	a, err := r.account()
	return account{a.cpu - before.cpu, a.flash - before.flash, a.up - before.up, a.down - before.down}, err
}

// start brings up everything, with the link down unless up.
func (b *uplinkBench) start(ctx context.Context, k gatewayKind, o relaytest.Options, up bool) (*uplinkRun, error) {
	r := &uplinkRun{kind: k}
	var err error
	if r.cloud, err = newSink(ctx, k.secure); err != nil {
		return nil, err
	}
	if r.link, err = relaytest.New(ctx, r.cloud.l.Addr().String(), o); err != nil {
		r.cloud.close()
		return nil, err
	}
	if !up {
		r.link.Refuse()
	}
	files := map[string]string{"conf": strings.ReplaceAll(k.config, "{cloud}", r.link.Address())}
	if k.secure {
		files["ca.pem"] = string(r.cloud.pem)
	}
	if r.proc, err = (peer{name: k.name, command: k.command}).startWith(ctx, files); err != nil {
		r.link.Close()
		r.cloud.close()
		return nil, err
	}
	if !up {
		return r, nil
	}
	if err := r.connected(ctx); err != nil {
		r.stop()
		return nil, err
	}
	return r, nil
}

// connected waits until the gateway has its session with the cloud, and a
// moment for what it says first.
func (r *uplinkRun) connected(ctx context.Context) error {
	for late := time.Now().Add(stuck); ; {
		r.cloud.mu.Lock()
		there := r.cloud.sessions > 0
		r.cloud.mu.Unlock()
		if err := rest(ctx, time.Second); err != nil || there {
			return err
		}
		if time.Now().After(late) {
			return fmt.Errorf("the gateway does not connect; it said: %s", r.proc.out.Bytes())
		}
	}
}

func (r *uplinkRun) stop() {
	r.proc.stop()
	r.link.Close()
	r.cloud.close()
}

// publish has ten publishers send readings from number from on: n of them,
// perSecond, or as fast as they are acknowledged when that is 0.
func (r *uplinkRun) publish(ctx context.Context, from, n int, perSecond float64) error {
	var wg sync.WaitGroup
	errs := make([]error, storePublishers)
	var next atomic.Int64
	began := time.Now()
	for i := range errs {
		wg.Go(func() { errs[i] = r.publisher(ctx, "load"+strconv.Itoa(i), from, n, &next, perSecond, began) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (r *uplinkRun) publisher(ctx context.Context, id string, from, n int, next *atomic.Int64, perSecond float64, began time.Time) (err error) {
	c, err := connect(ctx, r.proc.addr, id, packet.V311)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	in := packet.NewReader(c, 16<<10)
	in.SetVersion(packet.V311)
	var out []byte
	flying, nextID, over := 0, uint16(0), false
	for !over || flying > 0 {
		for !over && flying < uplinkInFlight {
			i := int(next.Add(1)) - 1
			if over = i >= n; over {
				break
			}
			if perSecond > 0 {
				due := began.Add(time.Duration(float64(i) / perSecond * float64(time.Second)))
				if err := rest(ctx, time.Until(due)); err != nil {
					return err
				}
			}
			nextID = nextID%60_000 + 1
			p := packet.Publish{Topic: []byte(uplinkTopic(from + i)), QoS: 1, PacketID: nextID, Payload: []byte(uplinkReading(from + i))}
			if out, err = p.AppendTo(out, packet.V311); err != nil {
				return err
			}
			flying++
			if perSecond > 0 {
				break // each in a write of its own, as sensors do
			}
		}
		if len(out) > 0 {
			if _, err := c.Write(out); err != nil {
				return err
			}
			out = out[:0]
		}
		if flying == 0 || perSecond > 0 && flying < uplinkInFlight && !over {
			continue
		}
		if err := c.SetReadDeadline(time.Now().Add(stuck)); err != nil {
			return err
		}
		for more := true; more; more = in.More() {
			if _, err := in.Next(); err != nil {
				return fmt.Errorf("%s: %d unanswered: %w", id, flying, err)
			}
			flying--
		}
	}
	return nil
}

// arrived waits until n readings are at the cloud, or, when they come in
// batches, until nothing has come for a while.
func (r *uplinkRun) arrived(ctx context.Context, n int) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	was, moved := int64(0), time.Now()
	for {
		up, _ := r.link.Bytes()
		if up != was {
			was, moved = up, time.Now()
		}
		got, _ := r.cloud.counts()
		quiet := time.Since(moved)
		switch {
		case !r.kind.batched && got >= n, r.kind.batched && got > 0 && quiet > 5*time.Second:
			return nil
		case quiet > stuck:
			return fmt.Errorf("%d of %d arrived; the gateway said: %s", got, n, r.proc.out.Bytes())
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}
