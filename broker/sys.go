package broker

import (
	"math"
	"runtime/metrics"
	"strconv"
	"time"

	"holdfast/broker/message"
)

// sysTree is what the $SYS tick remembers from one time to the next. It belongs
// to the session clock's goroutine.
type sysTree struct {
	last    map[string]string // value published under each name
	scratch []byte
	at      time.Time // of the previous tick
	loads   [len(loadNames)]load
	clients int    // most at once
	heap    uint64 // most at once
	sample  [1]metrics.Sample
}

// load is how fast a counter grows, per minute: averages over 1, 5 and 15
// minutes that decay as a Unix load average does.
type load struct {
	count   uint64
	average [len(loadSpans)]float64
}

var loadNames = [...]string{
	"messages/received", "messages/sent", "publish/received", "publish/sent", "publish/dropped",
	"bytes/received", "bytes/sent", "sockets", "connections",
}

var loadSpans = [...]struct {
	name    string
	minutes float64
}{{"1min", 1}, {"5min", 5}, {"15min", 15}}

// loadTopics are made once: the tick allocates for values that have changed,
// and for nothing else.
var loadTopics = func() (ts [len(loadNames)][len(loadSpans)]string) {
	for i, name := range loadNames {
		for j, span := range loadSpans {
			ts[i][j] = sysPrefix + "load/" + name + "/" + span.name
		}
	}
	return ts
}()

const sysPrefix = "$SYS/broker/"

// publishSys renews the $SYS topics under Mosquitto's names, so that what
// reads those reads these, and as Mosquitto those only whose values have
// changed. They are retained in RAM only: the store has no interest in a number
// that is old in ten seconds.
func (b *Broker) publishSys() {
	st, now := b.Status(), time.Now()
	t := &b.sys
	if t.last == nil {
		t.last, t.at = make(map[string]string), b.begun
		b.tell("version", b.opts.Version, now)
		b.tell("timestamp", b.opts.Built, now)
	}
	t.clients = max(t.clients, st.Clients)
	heap := t.heapBytes()
	t.heap = max(t.heap, heap)
	t.scratch = strconv.AppendInt(t.scratch[:0], int64(st.Uptime/time.Second), 10)
	b.tellBytes("uptime", append(t.scratch, " seconds"...), now)

	dropped := st.DroppedSlow + st.DroppedQueueFull + st.DroppedTooLarge + st.DroppedDenied
	for _, x := range [...]struct {
		name  string
		value uint64
	}{
		{"clients/total", uint64(st.Sessions)},
		{"clients/connected", uint64(st.Clients)},
		{"clients/active", uint64(st.Clients)}, // Mosquitto's former names
		{"clients/disconnected", uint64(max(0, st.Sessions-st.Clients))},
		{"clients/inactive", uint64(max(0, st.Sessions-st.Clients))},
		{"clients/maximum", uint64(t.clients)},
		{"clients/expired", st.SessionsExpired},
		{"messages/received", st.PacketsIn},
		{"messages/sent", st.PacketsOut},
		{"messages/inflight", uint64(st.Inflight)},
		{"messages/stored", uint64(st.StoredMessages)},
		{"store/messages/count", uint64(st.StoredMessages)},
		{"store/messages/bytes", uint64(st.StoredBytes)},
		{"publish/messages/received", st.MessagesIn},
		{"publish/messages/sent", st.MessagesOut},
		{"publish/messages/dropped", dropped},
		{"publish/bytes/received", st.PayloadIn},
		{"publish/bytes/sent", st.PayloadOut},
		{"bytes/received", st.BytesIn},
		{"bytes/sent", st.BytesOut},
		{"retained messages/count", uint64(st.Retained)},
		{"subscriptions/count", uint64(max(0, st.Subscriptions))},
		{"shared_subscriptions/count", uint64(max(0, st.SharedSubscriptions))},
		{"heap/current", heap},
		{"heap/maximum", t.heap},
	} {
		t.scratch = strconv.AppendUint(t.scratch[:0], x.value, 10)
		b.tellBytes(x.name, t.scratch, now)
	}
	b.publishLoads([len(loadNames)]uint64{
		st.PacketsIn, st.PacketsOut, st.MessagesIn, st.MessagesOut, dropped,
		st.BytesIn, st.BytesOut, st.Accepted, st.Connects,
	}, now)
	b.clock.after(b.opts.SysInterval, b.publishSys)
}

// publishLoads moves the averages on to now. As Mosquitto's, a value that has
// moved by less than 0.01 is left as it is.
func (b *Broker) publishLoads(counts [len(loadNames)]uint64, now time.Time) {
	t := &b.sys
	minutes := now.Sub(t.at).Minutes()
	t.at = now
	for i, count := range counts {
		l := &t.loads[i]
		grown := count - l.count
		l.count = count
		for j, span := range loadSpans {
			if minutes > 0 {
				keep := math.Exp(-minutes / span.minutes)
				rate := float64(grown) / minutes
				l.average[j] = rate + keep*(l.average[j]-rate)
			}
			t.scratch = strconv.AppendFloat(t.scratch[:0], l.average[j], 'f', 2, 64)
			b.tellTopic(loadTopics[i][j], t.scratch, now)
		}
	}
}

// heapBytes is the live heap and what the collector has not yet taken. Unlike
// runtime.ReadMemStats it stops nothing.
func (t *sysTree) heapBytes() uint64 {
	t.sample[0].Name = "/memory/classes/heap/objects:bytes"
	metrics.Read(t.sample[:])
	if t.sample[0].Value.Kind() != metrics.KindUint64 {
		return 0
	}
	return t.sample[0].Value.Uint64()
}

// TellSys publishes what others know, retained in RAM as the rest of $SYS, under
// $SYS/broker/name; an empty value takes the topic away. It does nothing with $SYS
// off, and when the broker does not run.
func (b *Broker) TellSys(name, value string) {
	if b.opts.SysInterval > 0 && b.open() {
		b.publishRAM(sysPrefix+name, []byte(value), time.Now())
	}
}

func (b *Broker) tell(name, value string, now time.Time) { b.tellBytes(name, []byte(value), now) }

func (b *Broker) tellBytes(name string, value []byte, now time.Time) {
	if b.sys.last[name] != string(value) { // before the topic is put together
		b.sys.last[name] = string(value)
		b.publishRAM(sysPrefix+name, value, now)
	}
}

func (b *Broker) tellTopic(topic string, value []byte, now time.Time) {
	if b.sys.last[topic] != string(value) {
		b.sys.last[topic] = string(value)
		b.publishRAM(topic, value, now)
	}
}

// publishRAM retains a message outside of the store, so nothing can fail.
func (b *Broker) publishRAM(name string, value []byte, now time.Time) {
	m := &message.Message{Topic: name, Payload: append([]byte(nil), value...), Retain: true, Received: now}
	_ = b.route(&job{m: m, ram: true})
}
