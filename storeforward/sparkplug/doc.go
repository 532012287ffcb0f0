// Package sparkplug speaks Sparkplug B 3.0 to hosts: the payloads ([Payload],
// [Metric]) as they are on the wire, and the topics.
//
// Encoding is this package's own, over protowire: the schema of Sparkplug B is
// small and frozen, and generated code would bring the reflection of a whole
// protobuf runtime into the binary.
//
// [Parse] takes bytes from strangers. It copies what it keeps, bounds nesting,
// and returns errors that say which field they are about; unknown fields are
// passed over, as the schema's extensions ask for.
package sparkplug
