package listen

import (
	"io"
	"log/slog"
	"net"
	"testing"
	"time"
)

// FuzzWebSocket lets a client say anything, before and after the upgrade:
// Read and Close return, and nothing panics.
func FuzzWebSocket(f *testing.F) {
	good := request(nil)
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"), []byte{})
	f.Add([]byte{}, frame(fin|opBinary, []byte("abc")))
	f.Add([]byte{}, append(frame(opBinary, []byte("abc")), frame(fin|opPing, []byte("x"))...))
	f.Add([]byte{}, append(frame(opBinary, nil), frame(fin|opContinuation, []byte("x"))...))
	f.Add([]byte{}, frame(fin|opClose, []byte{3, 0xE8}))
	f.Add([]byte{}, frame(fin|opText, []byte("abc")))
	f.Add([]byte{}, frame(fin|rsv1|opBinary, []byte("abc")))
	f.Fuzz(func(t *testing.T, before, after []byte) {
		if len(before) == 0 {
			before = good
		}
		client, server := net.Pipe()
		e := &Endpoint{opts: DefaultOptions(), log: slog.New(slog.DiscardHandler)}
		c := e.webSocket(server)
		done := make(chan struct{}, 2)
		go func() {
			_, _ = io.Copy(io.Discard, client)
			done <- struct{}{}
		}()
		go func() {
			_, _ = client.Write(before)
			_, _ = client.Write(after)
			client.Close()
			done <- struct{}{}
		}()
		_ = c.SetReadDeadline(time.Now().Add(patience))
		buf := make([]byte, 7)
		var err error
		for total := 0; err == nil; {
			var n int
			n, err = c.Read(buf)
			if total += n; n < 0 || n > len(buf) || total > len(before)+len(after) {
				t.Fatalf("Read returned %d bytes, %d in all of %d", n, total, len(before)+len(after))
			}
		}
		c.Close()
		c.Close()
		<-done
		<-done
	})
}
