package packet_test

import (
	"testing"

	"holdfast/broker/packet"
)

type benchmarkCase struct {
	name string
	v    packet.Version
	p    *packet.Publish
}

// benchmarkCases are named like v5_256B.
func benchmarkCases(b *testing.B) (cases []benchmarkCase) {
	b.Helper()
	properties := encodeProperties(b, packet.PublishProperties{
		ContentType: "application/json", User: []packet.UserProperty{{Key: "unit", Value: "l/min"}},
	})
	for _, c := range []struct {
		name string
		v    packet.Version
		size int
	}{
		{"v311_16B", packet.V311, 16},
		{"v311_256B", packet.V311, 256},
		{"v311_4KiB", packet.V311, 4096},
		{"v5_16B", packet.V5, 16},
		{"v5_256B", packet.V5, 256},
		{"v5_4KiB", packet.V5, 4096},
	} {
		p := publishOf(c.size)
		p.Topic, p.Properties = []byte("sensors/boiler/flow"), properties
		cases = append(cases, benchmarkCase{c.name, c.v, p})
	}
	return cases
}

func BenchmarkDecodePublish(b *testing.B) {
	for _, c := range benchmarkCases(b) {
		b.Run(c.name, func(b *testing.B) {
			frame := encode(b, c.v, c.p)
			b.SetBytes(int64(len(frame)))
			b.ReportAllocs()
			var pub packet.Publish
			for b.Loop() {
				if _, err := packet.Decode(frame, c.v, &pub); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkEncodePublish(b *testing.B) {
	for _, c := range benchmarkCases(b) {
		b.Run(c.name, func(b *testing.B) {
			buf := make([]byte, 0, c.p.Size(c.v))
			b.SetBytes(int64(cap(buf)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := c.p.AppendTo(buf, c.v); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkSharedPublish(b *testing.B) {
	for _, c := range benchmarkCases(b) {
		b.Run(c.name, func(b *testing.B) {
			shared, err := c.p.Share(c.v)
			if err != nil {
				b.Fatal(err)
			}
			buf := make([]byte, 0, shared.Size())
			b.SetBytes(int64(cap(buf)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := shared.AppendTo(buf, false, 1, false, 7); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkReader reads from a stream that always has more.
func BenchmarkReader(b *testing.B) {
	for _, c := range benchmarkCases(b) {
		b.Run(c.name, func(b *testing.B) {
			stream := encode(b, c.v, c.p)
			r := packet.NewReader(&loop{stream: stream}, 0)
			r.SetVersion(c.v)
			b.SetBytes(int64(len(stream)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := r.Next(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkReadPuback(b *testing.B) {
	b.Run("v5_4B", func(b *testing.B) {
		r := packet.NewReader(&loop{stream: encode(b, packet.V5, &packet.Puback{PacketID: 7})}, 0)
		b.ReportAllocs()
		for b.Loop() {
			if _, err := r.Next(); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkEncodePuback(b *testing.B) {
	b.Run("v5_4B", func(b *testing.B) {
		p := &packet.Puback{PacketID: 7}
		buf := make([]byte, 0, 16)
		b.ReportAllocs()
		for b.Loop() {
			if _, err := p.AppendTo(buf, packet.V5); err != nil {
				b.Fatal(err)
			}
		}
	})
}
