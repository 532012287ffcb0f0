package broker_test

import (
	"fmt"
	"io"
	"net"
	"testing"

	"holdfast/broker/brokertest"
	"holdfast/broker/packet"
)

// BenchmarkFanIn is 20 publishers to one subscriber, 100-byte payloads, clean
// sessions, over loopback TCP; one operation is one message delivered. QoS 1
// publishers have up to 64 unacknowledged.
func BenchmarkFanIn(b *testing.B) {
	for qos := byte(0); qos <= 2; qos++ {
		b.Run(fmt.Sprintf("QoS%d_100B", qos), func(b *testing.B) {
			const publishers = 20
			br := brokertest.Start(b, nil)
			sub := benchClient(b, br, "sub")
			sub.write(b, &packet.Subscribe{PacketID: 1, Filters: []packet.Filter{{Filter: "bench/#", QoS: qos}}})
			sub.until(b, packet.TypeSuback, 1)
			each := (b.N/publishers/benchBatch + 1) * benchBatch
			// The broker drops QoS 0 for who reads too slowly, and at QoS 1 and
			// 2 drops who reads too slowly: batches on their way are bounded.
			sub.credit = make(chan struct{}, 20)
			b.ReportAllocs()
			b.SetBytes(100)
			b.ResetTimer()
			for i := range publishers {
				p := benchClient(b, br, fmt.Sprint("pub", i))
				p.credit = sub.credit
				go p.publish(qos, fmt.Sprintf("bench/%d", i), each)
			}
			sub.until(b, packet.TypePublish, publishers*each)
		})
	}
}

// BenchmarkFanOut is one publisher to 100 subscribers at QoS 1; one operation
// is one message delivered.
func BenchmarkFanOut(b *testing.B) {
	const subscribers = 100
	br := brokertest.Start(b, nil)
	each := b.N/subscribers + 1
	done := make(chan struct{}, subscribers)
	for i := range subscribers {
		sub := benchClient(b, br, fmt.Sprint("sub", i))
		sub.write(b, &packet.Subscribe{PacketID: 1, Filters: []packet.Filter{{Filter: "bench", QoS: 1}}})
		sub.until(b, packet.TypeSuback, 1)
		go func() {
			sub.until(b, packet.TypePublish, each)
			done <- struct{}{}
		}()
	}
	pub := benchClient(b, br, "pub")
	b.ReportAllocs()
	b.SetBytes(100)
	b.ResetTimer()
	go pub.publish(1, "bench", each)
	for range subscribers {
		<-done
	}
}

// BenchmarkDrain is a persistent session that comes back to what has gathered at
// QoS 1; one operation is one message. The store is one in memory: the most that
// any store lets a client have.
func BenchmarkDrain(b *testing.B) {
	br := brokertest.Start(b, nil)
	away := benchSession(b, br, "away")
	away.write(b, &packet.Subscribe{PacketID: 1, Filters: []packet.Filter{{Filter: "bench", QoS: 1}}})
	away.until(b, packet.TypeSuback, 1)
	away.write(b, &packet.Disconnect{})
	_, _ = io.Copy(io.Discard, away.nc)
	pub := benchClient(b, br, "pub")
	published := make(chan struct{})
	go func() {
		pub.acknowledged(b.N)
		close(published)
	}()
	m := &packet.Publish{QoS: 1, Topic: []byte("bench"), Payload: make([]byte, 100), PacketID: 1}
	for range b.N {
		pub.write(b, m)
		m.PacketID = m.PacketID%60_000 + 1
	}
	<-published
	b.ReportAllocs()
	b.SetBytes(100)
	b.ResetTimer()
	benchSession(b, br, "away").until(b, packet.TypePublish, b.N)
}

// acknowledged waits until n publications are.
func (c *bench) acknowledged(n int) {
	for ; n > 0; n-- {
		if p, err := c.r.Next(); err != nil || p.Type() != packet.TypePuback {
			return
		}
	}
}

// benchBatch is how many messages a publisher sends with one write.
const benchBatch = 64

type bench struct {
	nc     net.Conn
	r      *packet.Reader
	credit chan struct{} // one for each batch on its way; nil for no bound
	got    int
}

func benchClient(b *testing.B, br *brokertest.Broker, id string) *bench {
	b.Helper()
	return benchConnect(b, br, brokertest.V4(id))
}

// benchSession is a client whose session outlives its connection.
func benchSession(b *testing.B, br *brokertest.Broker, id string) *bench {
	b.Helper()
	p := brokertest.V4(id)
	p.CleanStart = false
	return benchConnect(b, br, p)
}

func benchConnect(b *testing.B, br *brokertest.Broker, p *packet.Connect) *bench {
	b.Helper()
	c := &bench{nc: br.Dial(b)}
	b.Cleanup(func() { c.nc.Close() })
	c.r = packet.NewReader(c.nc, 64<<10)
	c.r.SetVersion(packet.V311)
	c.write(b, p)
	c.until(b, packet.TypeConnack, 1)
	return c
}

func (c *bench) write(b *testing.B, p packet.Packet) {
	b.Helper()
	frame, err := p.AppendTo(nil, packet.V311)
	if err == nil {
		_, err = c.nc.Write(frame)
	}
	if err != nil {
		b.Fatal(err)
	}
}

// until reads n packets of that type, acknowledging publications.
func (c *bench) until(b *testing.B, t packet.Type, n int) {
	b.Helper()
	var out []byte
	for n > 0 {
		if !c.r.More() && len(out) > 0 {
			if _, err := c.nc.Write(out); err != nil {
				b.Error(err)
				return
			}
			out = out[:0]
		}
		p, err := c.r.Next()
		if err != nil {
			b.Error(err)
			return
		}
		if p.Type() == t {
			n--
		}
		switch p := p.(type) {
		case *packet.Publish:
			if c.got++; c.credit != nil && c.got%benchBatch == 0 {
				<-c.credit
			}
			switch p.QoS {
			case 1:
				out, _ = (&packet.Puback{PacketID: p.PacketID}).AppendTo(out, packet.V311)
			case 2:
				out, _ = (&packet.Pubrec{PacketID: p.PacketID}).AppendTo(out, packet.V311)
			}
		case *packet.Pubrel:
			out, _ = (&packet.Pubcomp{PacketID: p.PacketID}).AppendTo(out, packet.V311)
		}
	}
	_, _ = c.nc.Write(out)
}

// publish sends n messages, at most 64 of them unacknowledged.
func (c *bench) publish(qos byte, topic string, n int) {
	const window = benchBatch
	m := &packet.Publish{QoS: qos, Topic: []byte(topic), Payload: make([]byte, 100)}
	var out []byte
	inflight, paid := 0, 0
	id := uint16(0)
	if c.credit == nil {
		paid = n // all of it
	}
	for sent := 0; sent < n || inflight > 0; {
		if c.credit != nil && sent == paid*benchBatch && sent < n && inflight < window {
			c.credit <- struct{}{}
			paid++
		}
		for sent < n && inflight < window && sent < paid*benchBatch {
			if id++; id == 0 {
				id = 1
			}
			m.PacketID = id
			out, _ = m.AppendTo(out, packet.V311)
			sent++
			inflight++
		}
		if qos == 0 {
			inflight = 0
		}
		if _, err := c.nc.Write(out); err != nil {
			return
		}
		out = out[:0]
		for qos > 0 && (inflight == window || sent == n && inflight > 0 || c.r.More()) {
			p, err := c.r.Next()
			if err != nil {
				return
			}
			switch p := p.(type) {
			case *packet.Puback, *packet.Pubcomp:
				inflight--
			case *packet.Pubrec:
				out, _ = (&packet.Pubrel{PacketID: p.PacketID}).AppendTo(out, packet.V311)
			}
			if len(out) > 0 && !c.r.More() {
				break
			}
		}
	}
	_, _ = io.Copy(io.Discard, c.nc)
}
