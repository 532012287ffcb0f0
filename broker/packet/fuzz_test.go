package packet_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/google/go-cmp/cmp"

	"holdfast/broker/packet"
)

// versionOf makes a version of any byte.
func versionOf(b byte) packet.Version { return versions[int(b)%len(versions)] }

func addGolden(f *testing.F, add func(g golden, version byte)) {
	f.Helper()
	for _, name := range goldenFiles(f) {
		g := readGolden(f, filepath.Join("testdata", name))
		add(g, byte(g.version-packet.V31))
	}
}

// What decodes encodes, and decodes to the same value again. Decoding takes no
// more memory than a fixed multiple of what it reads.
func FuzzDecode(f *testing.F) {
	addGolden(f, func(g golden, version byte) { f.Add(g.frame, version) })
	f.Fuzz(func(t *testing.T, frame []byte, version byte) {
		v := versionOf(version)
		var pub packet.Publish
		p, err := packet.Decode(frame, v, &pub)
		checkAllocated(t, frame, v)
		if err != nil {
			checkError(t, err)
			return
		}
		if n, err := packet.Frame(frame, len(frame)); n != len(frame) || err != nil {
			t.Errorf("Frame(% x) = %d, %v, but it decodes", frame, n, err)
		}
		for _, err := range []error{packet.FromClient(p), packet.FromServer(p)} {
			if err != nil {
				checkError(t, err)
			}
		}
		encoded, err := p.AppendTo(nil, v)
		if err != nil {
			t.Fatalf("AppendTo of %s from % x: %v", render(p), frame, err)
		}
		if len(encoded) > len(frame)+4 {
			t.Errorf("%d bytes became %d: % x from % x", len(frame), len(encoded), encoded, frame)
		}
		again, err := packet.Decode(encoded, v, nil)
		if err != nil {
			t.Fatalf("Decode(% x), encoded from % x: %v", encoded, frame, err)
		}
		if diff := cmp.Diff(p, again); diff != "" {
			t.Errorf("% x encodes to % x, which differs (-first +second):\n%s", frame, encoded, diff)
		}
		if p, ok := p.(*packet.Publish); ok {
			if _, err := packet.ParsePublishProperties(p.Properties); err != nil {
				t.Errorf("ParsePublishProperties(% x) of % x: %v", p.Properties, frame, err)
			}
			if got := p.Size(v); got != len(encoded) {
				t.Errorf("Size = %d of % x, which is %d bytes", got, encoded, len(encoded))
			}
		}
	})
}

func checkError(t *testing.T, err error) {
	t.Helper()
	e, ok := errors.AsType[*packet.Error](err)
	if !ok {
		t.Fatalf("error is a %T, want *packet.Error", err)
	}
	if !e.Reason.Failed() || e.Field == "" || e.Detail == "" {
		t.Errorf("error says too little: %#v", e)
	}
}

// checkAllocated holds decoding to 32 bytes for each byte it reads: the worst
// is a user property, whose 5 bytes become 32 in a slice that grows.
func checkAllocated(t *testing.T, frame []byte, v packet.Version) {
	t.Helper()
	limit := uint64(32*len(frame) + 4096)
	var got uint64
	for range 5 { // others may allocate meanwhile
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, _ = packet.Decode(frame, v, nil)
		runtime.ReadMemStats(&after)
		if got = after.TotalAlloc - before.TotalAlloc; got <= limit {
			return
		}
	}
	t.Errorf("decoding %d bytes allocates %d, want at most %d: % x", len(frame), got, limit, frame)
}

// However a stream is cut, the same packets come out and then the same error.
func FuzzReader(f *testing.F) {
	addGolden(f, func(g golden, version byte) {
		f.Add(g.frame, version, []byte{1})
		f.Add(append(bytes.Clone(g.frame), g.frame...), version, []byte{7, 0, 30})
	})
	f.Fuzz(func(t *testing.T, stream []byte, version byte, cuts []byte) {
		const limit = 1 << 16
		v := versionOf(version)
		want := readDirectly(stream, v, limit)
		for _, size := range []int{0, 1, 100} {
			r := packet.NewReader(&choppy{stream: stream, cuts: cuts}, size)
			r.SetVersion(v)
			r.SetMax(limit)
			if diff := cmp.Diff(want, readAll(r)); diff != "" {
				t.Errorf("reader of size %d, % x cut at %v (-want +got):\n%s", size, stream, cuts, diff)
			}
		}
	})
}

// readDirectly does what a Reader does with all bytes at hand.
func readDirectly(stream []byte, v packet.Version, limit int) (got []string) {
	for len(stream) > 0 {
		// A wrong first byte is found before anything else has come.
		if _, err := packet.Decode([]byte{stream[0], 0}, v, nil); aboutHeader(err) {
			return append(got, describe(err))
		}
		n, err := packet.Frame(stream, limit)
		if err != nil {
			return append(got, describe(err))
		}
		if n == 0 || n > len(stream) {
			return append(got, describe(io.ErrUnexpectedEOF))
		}
		p, err := packet.Decode(stream[:n], v, nil)
		if err != nil {
			return append(got, describe(err))
		}
		if c, ok := p.(*packet.Connect); ok {
			v = c.Version
		}
		got = append(got, render(p))
		stream = stream[n:]
	}
	return append(got, describe(io.EOF))
}

func aboutHeader(err error) bool {
	e, ok := errors.AsType[*packet.Error](err)
	return ok && (e.Field == "fixed header flags" || e.Field == "packet type")
}

func readAll(r *packet.Reader) (got []string) {
	for {
		p, err := r.Next()
		if err != nil {
			return append(got, describe(err))
		}
		got = append(got, render(p))
	}
}

func describe(err error) string { return fmt.Sprintf("%T %v", err, err) }

// choppy gives a stream in pieces whose sizes repeat; a size of 0 is a read
// that gives nothing.
type choppy struct {
	stream []byte
	cuts   []byte
	reads  int
}

func (c *choppy) Read(p []byte) (int, error) {
	if len(c.stream) == 0 {
		return 0, io.EOF
	}
	n := len(c.stream)
	if len(c.cuts) > 0 {
		n = int(c.cuts[c.reads%len(c.cuts)])
	}
	if c.reads++; c.reads%50 == 0 {
		n = max(n, 1)
	}
	n = copy(p, c.stream[:min(n, len(c.stream))])
	c.stream = c.stream[n:]
	return n, nil
}
