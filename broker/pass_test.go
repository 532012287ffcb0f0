package broker_test

import (
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"

	"holdfast/broker"
	"holdfast/broker/brokertest"
)

// TestMessagesWaitUnharmed: a message that waits for several clients with a full
// window is in RAM once, and its place is used again for a later one when the
// last has it. Each client gets all of them, whole, once, and in order.
func TestMessagesWaitUnharmed(t *testing.T) {
	const subscribers, publishers, each = 3, 3, 400
	b := brokertest.Start(t, nil, func(o *broker.Options) { o.MaxInflight, o.MaxQueued = 3, publishers*each })
	for qos := byte(1); qos <= 2; qos++ {
		t.Run(fmt.Sprint("QoS ", qos), func(t *testing.T) {
			var all sync.WaitGroup
			for i := range subscribers {
				c := brokertest.Connect(t, b.Dial(t), brokertest.V5(fmt.Sprintf("sub%d-%d", qos, i)))
				c.Subscribe(qos, fmt.Sprintf("wait/%d/+", qos))
				all.Go(func() {
					next := make(map[string]int)
					for range publishers * each {
						m := c.Message()
						name := string(m.Topic)
						if want := payloadOf(name, next[name]); string(m.Payload) != want {
							t.Errorf("%s: got %.40q, want %.40q", name, m.Payload, want)
							return
						}
						next[name]++
					}
				})
			}
			for i := range publishers {
				c := brokertest.Connect(t, b.Dial(t), brokertest.V4(fmt.Sprintf("pub%d-%d", qos, i)))
				name := fmt.Sprintf("wait/%d/%d", qos, i)
				all.Go(func() {
					for n := range each {
						c.Publish(qos, false, name, payloadOf(name, n))
					}
				})
			}
			all.Wait()
		})
	}
}

// payloadOf is a payload of a length of its own.
func payloadOf(name string, n int) string {
	return strings.Repeat(name+" "+strconv.Itoa(n)+";", 1+n%7+n%50/49*300)
}
