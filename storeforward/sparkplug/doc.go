// Package sparkplug is a Sparkplug B 3.0 edge node: a session of its own with a
// host's broker, in which the gateway's devices are born, tell what they measure
// and die. A [Node] takes readings from a queue in the store, so that what was
// measured while the host was away goes as historical values, and sees them as they
// are published ([Node.Observe]), so that the newest go first. What a reading is,
// and how a device is commanded, it knows from its [Site].
//
// The payloads ([Payload], [Metric]) are encoded here, over protowire: the schema
// of Sparkplug B is small and frozen, and generated code would bring the reflection
// of a whole protobuf runtime into the binary. [Parse] takes bytes from strangers.
// It copies what it keeps, bounds nesting, and returns errors that say which field
// they are about; unknown fields are passed over, as the schema's extensions ask
// for.
//
// It never publishes locally, buffers nothing of other nodes, and sends at QoS 0
// what Sparkplug wants at QoS 0: a value is finished in the store when the server
// has answered a PINGREQ that came after it.
//
// [Node.Run] is the caller's goroutine; while it is connected there is one more,
// which reads. Errors to test for: [ErrMalformed], [ErrNested].
package sparkplug
