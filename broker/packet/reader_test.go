package packet_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"

	"holdfast/broker/packet"
)

// encode returns the packets in wire form, one behind the other.
func encode(tb testing.TB, v packet.Version, packets ...packet.Packet) (b []byte) {
	tb.Helper()
	for _, p := range packets {
		var err error
		if b, err = p.AppendTo(b, v); err != nil {
			tb.Fatalf("AppendTo of %s: %v", render(p), err)
		}
	}
	return b
}

func publishOf(size int) *packet.Publish {
	return &packet.Publish{QoS: 1, PacketID: 1, Topic: []byte("a/b"), Payload: bytes.Repeat([]byte("x"), size)}
}

func TestReaderEndsOnlyBetweenPackets(t *testing.T) {
	whole := encode(t, packet.V5, publishOf(10))
	for n := range len(whole) + 1 {
		r := packet.NewReader(bytes.NewReader(whole[:n]), 0)
		_, err := r.Next()
		want := io.ErrUnexpectedEOF
		switch n {
		case 0:
			want = io.EOF
		case len(whole):
			if err != nil {
				t.Fatalf("Next of a whole packet: %v", err)
			}
			_, err = r.Next()
			want = io.EOF
		}
		if err != want { //nolint:errorlint // io.EOF itself is promised
			t.Errorf("Next after %d of %d bytes = %v, want %v", n, len(whole), err, want)
		}
	}
}

func TestReaderHandsOverEachPacket(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var want []string
	var stream []byte
	for range 300 {
		size := rng.IntN(200)
		if rng.IntN(20) == 0 {
			size = rng.IntN(100_000)
		}
		p := publishOf(size)
		p.PacketID = uint16(1 + rng.IntN(65535))
		want = append(want, render(p))
		stream = append(stream, encode(t, packet.V5, p, &packet.Puback{PacketID: p.PacketID})...)
		want = append(want, render(&packet.Puback{PacketID: p.PacketID}))
	}
	want = append(want, describe(io.EOF))
	readers := map[string]io.Reader{
		"all at once":      bytes.NewReader(stream),
		"byte by byte":     iotest.OneByteReader(bytes.NewReader(stream)),
		"half of it":       iotest.HalfReader(bytes.NewReader(stream)),
		"error with bytes": iotest.DataErrReader(bytes.NewReader(stream)),
		"1460 at a time":   &choppy{stream: bytes.Clone(stream), cuts: []byte{255, 200, 0, 1, 90}},
	}
	for name, stream := range readers {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(want, readAll(packet.NewReader(stream, 0))); diff != "" {
				t.Errorf("packets differ (-want +got):\n%s", diff)
			}
		})
	}
}

func TestReaderTakesVersionFromConnect(t *testing.T) {
	for _, v := range versions {
		stream := encode(t, v,
			&packet.Connect{Version: v, ClientID: "c", CleanStart: true},
			publishOf(3),
			&packet.Subscribe{PacketID: 2, Filters: []packet.Filter{{Filter: "a", QoS: 1}}})
		want := []string{
			render(&packet.Connect{Version: v, ClientID: "c", CleanStart: true}),
			render(publishOf(3)),
			render(&packet.Subscribe{PacketID: 2, Filters: []packet.Filter{{Filter: "a", QoS: 1}}}),
			describe(io.EOF),
		}
		if diff := cmp.Diff(want, readAll(packet.NewReader(bytes.NewReader(stream), 0))); diff != "" {
			t.Errorf("MQTT %s (-want +got):\n%s", v, diff)
		}
	}
}

// recorder notes how much each read asks for.
type recorder struct {
	r     io.Reader
	asked []int
	got   int
}

func (r *recorder) Read(p []byte) (int, error) {
	r.asked = append(r.asked, len(p))
	n, err := r.r.Read(p)
	r.got += n
	return n, err
}

func TestReaderRefusesLargePacketFromItsHeader(t *testing.T) {
	const limit = 1000
	whole := encode(t, packet.V5, publishOf(5000))
	r := packet.NewReader(bytes.NewReader(whole[:3]), 0) // no more ever comes
	r.SetMax(limit)
	for range 2 { // the error stays
		_, err := r.Next()
		e, ok := errors.AsType[*packet.Error](err)
		if !ok || e.Reason != packet.ReasonPacketTooLarge || e.Type != packet.TypePublish {
			t.Fatalf("Next = %v, want reason 0x95 for a PUBLISH", err)
		}
	}

	exact := encode(t, packet.V5, publishOf(1000-13))
	if p := publishOf(1000 - 13); len(exact) != p.Size(packet.V5) {
		t.Fatalf("Size = %d, encoded to %d bytes", p.Size(packet.V5), len(exact))
	}
	for _, size := range []int{len(exact), len(exact) - 1} {
		r = packet.NewReader(bytes.NewReader(exact), 0)
		r.SetMax(size)
		if _, err := r.Next(); (err == nil) != (size == len(exact)) {
			t.Errorf("Next of %d bytes with a maximum of %d: %v", len(exact), size, err)
		}
	}
}

func TestReaderRefusesWrongHeaderWithoutItsBody(t *testing.T) {
	r := packet.NewReader(bytes.NewReader([]byte("GET / HTTP/1.1")), 0)
	if _, err := r.Next(); !errors.Is(err, packet.ErrMalformed) {
		t.Errorf("Next = %v, want %v", err, packet.ErrMalformed)
	}
	r = packet.NewReader(bytes.NewReader([]byte{0x30, 0xff, 0xff, 0xff, 0xff}), 0)
	if _, err := r.Next(); !errors.Is(err, packet.ErrMalformed) {
		t.Errorf("Next = %v, want %v", err, packet.ErrMalformed)
	}
}

func TestReaderBufferFollowsWhatArrives(t *testing.T) {
	const size = 256
	// 256 MiB are announced and 100,000 bytes come: nobody may take memory for
	// the rest.
	header := []byte{0x30, 0xff, 0xff, 0xff, 0x7f, 0, 1, 'a', 0}
	src := &recorder{r: io.MultiReader(bytes.NewReader(header), iotest.HalfReader(bytes.NewReader(make([]byte, 100_000))))}
	r := packet.NewReader(src, size)
	if _, err := r.Next(); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatalf("Next = %v, want %v", err, io.ErrUnexpectedEOF)
	}
	got := 0
	for i, asked := range src.asked {
		if asked > 2*(src.got+size) {
			t.Errorf("read %d asks for %d bytes after %d", i, asked, got)
		}
	}

	// After a large packet the reader waits with its small buffer again.
	large, small := encode(t, packet.V5, publishOf(50_000)), encode(t, packet.V5, publishOf(1))
	src = &recorder{r: io.MultiReader(
		bytes.NewReader(large), bytes.NewReader(small), bytes.NewReader(small), bytes.NewReader(small))}
	r = packet.NewReader(src, size)
	for i := range 4 {
		src.asked = nil
		if _, err := r.Next(); err != nil {
			t.Fatalf("packet %d: %v", i, err)
		}
		t.Logf("packet %d asked for %v", i, src.asked)
	}
	if got := src.asked[0]; got != size {
		t.Errorf("the last read asks for %d bytes, want %d", got, size)
	}
}

func TestReaderReadsMoreAtATimeInABurst(t *testing.T) {
	const size, n = 256, 1000
	src := &recorder{r: bytes.NewReader(bytes.Repeat(encode(t, packet.V5, publishOf(64)), n))}
	r := packet.NewReader(src, size)
	for i := range n {
		if _, err := r.Next(); err != nil {
			t.Fatalf("packet %d: %v", i, err)
		}
	}
	if got, want := len(src.asked), src.got/4096+3; got > want {
		t.Errorf("%d bytes took %d reads, want at most %d", src.got, got, want)
	}
}

func TestReaderMoreSaysWhetherNextWaits(t *testing.T) {
	one := encode(t, packet.V5, publishOf(10))
	r := packet.NewReader(bytes.NewReader(append(bytes.Repeat(one, 3), one[:5]...)), 0)
	for i, want := range []struct {
		more     bool
		buffered int
	}{{true, 2*len(one) + 5}, {true, len(one) + 5}, {false, 5}} {
		if _, err := r.Next(); err != nil {
			t.Fatal(err)
		}
		if r.More() != want.more || r.Buffered() != want.buffered {
			t.Errorf("after packet %d: More = %t, Buffered = %d, want %t, %d", i, r.More(), r.Buffered(), want.more, want.buffered)
		}
	}
}

func TestReaderGoesOnAfterATimeout(t *testing.T) {
	one := encode(t, packet.V5, publishOf(10))
	stream := append(bytes.Clone(one), one...)
	r := packet.NewReader(iotest.TimeoutReader(iotest.HalfReader(bytes.NewReader(stream))), 24)
	var packets, timeouts int
	for {
		_, err := r.Next()
		switch {
		case err == nil:
			packets++
		case errors.Is(err, iotest.ErrTimeout):
			timeouts++
		case errors.Is(err, io.EOF):
			if packets != 2 || timeouts != 1 {
				t.Errorf("%d packets, %d timeouts, want 2 and 1", packets, timeouts)
			}
			return
		default:
			t.Fatal(err)
		}
	}
}

// silentReader never gives anything nor an error.
type silentReader struct{}

func (silentReader) Read([]byte) (int, error) { return 0, nil }

func TestReaderGivesUpOnAStreamThatNeverDelivers(t *testing.T) {
	if _, err := packet.NewReader(silentReader{}, 0).Next(); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("Next = %v, want %v", err, io.ErrNoProgress)
	}
}

// loop repeats a stream for ever.
type loop struct {
	stream []byte
	at     int
}

func (l *loop) Read(p []byte) (int, error) {
	n := copy(p, l.stream[l.at:])
	l.at = (l.at + n) % len(l.stream)
	return n, nil
}

func TestReaderDoesNotAllocateForMessages(t *testing.T) {
	p := publishOf(256)
	p.Properties = encodeProperties(t, packet.PublishProperties{ContentType: "text/plain", User: []packet.UserProperty{{Key: "k", Value: "v"}}})
	p.TopicAlias = 3
	r := packet.NewReader(&loop{stream: encode(t, packet.V5, p, &packet.Puback{PacketID: 1}, &packet.Pubrec{PacketID: 2},
		&packet.Pubrel{PacketID: 2}, &packet.Pubcomp{PacketID: 2}, &packet.Pingreq{})}, 0)
	got := testing.AllocsPerRun(1000, func() {
		if _, err := r.Next(); err != nil {
			t.Fatal(err)
		}
	})
	if got != 0 {
		t.Errorf("Next allocates %v times", got)
	}
}

func encodeProperties(tb testing.TB, p packet.PublishProperties) []byte {
	tb.Helper()
	b, err := p.AppendTo(nil)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

func TestReaderServesStreamsInTurn(t *testing.T) {
	frame := func(payload int) []byte {
		b, err := (&packet.Publish{Topic: []byte("a"), Payload: bytes.Repeat([]byte{'x'}, payload)}).AppendTo(nil, packet.V311)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	r := packet.NewReader(nil, 64)
	for _, size := range []int{10, 100, 5000, 3 << 20} {
		f := frame(size)
		for _, cut := range []int{1, 3, len(f) - 1} {
			r.Reset(bytes.NewReader(f[:cut]), packet.V311, nil)
			if _, err := r.Next(); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatalf("%d of %d bytes: Next = %v, want %v", cut, len(f), err, io.ErrUnexpectedEOF)
			}
			unread, need := r.Unread()
			if len(unread) != cut || cut > 4 && need != len(f) {
				t.Fatalf("Unread = %d bytes of %d, want %d of %d", len(unread), need, cut, len(f))
			}
			kept := bytes.Clone(unread)
			// Another stream in between.
			r.Reset(bytes.NewReader([]byte{0xc0, 0}), packet.V5, nil)
			if p, err := r.Next(); err != nil || p.Type() != packet.TypePingreq {
				t.Fatalf("the stream in between: %v, %v", p, err)
			}
			r.Reset(bytes.NewReader(f[cut:]), packet.V311, kept)
			p, err := r.Next()
			pub, ok := p.(*packet.Publish)
			if err != nil || !ok || len(pub.Payload) != size {
				t.Fatalf("%d and then the rest of %d bytes: %v, %v", cut, len(f), p, err)
			}
		}
	}
}
