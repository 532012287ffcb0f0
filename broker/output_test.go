package broker

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"holdfast/broker/packet"
)

// TestLoneAcknowledgementWakesNoLoop: the answer to a client that has one message
// in flight is written by who made it safe; of several each is left to the loop,
// which writes them together. A loop that is awake does it anyway.
func TestLoneAcknowledgementWakesNoLoop(t *testing.T) {
	tests := map[string]struct {
		inFlight int
		awake    bool
		want     int // bytes, before the loop has its turn
	}{
		"one":               {inFlight: 1, want: 4},
		"one, loop awake":   {inFlight: 1, awake: true},
		"two":               {inFlight: 2, want: 0},
		"three, loop awake": {inFlight: 3, awake: true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			b := &Broker{opts: DefaultOptions()}
			l, err := newLoop(b)
			if err != nil {
				t.Fatal(err)
			}
			defer l.close()
			l.asleep.Store(!test.awake)
			fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := errors.Join(unix.Close(fds[0]), unix.Close(fds[1])); err != nil {
					t.Error(err)
				}
			}()
			c := &conn{b: b, version: packet.V311}
			s := &sock{c: c, loop: l, fd: fds[0]}
			c.sock.Store(s)
			c.out.c, c.out.sock = c, s
			c.line.to = c
			acks := make([]ack, test.inFlight)
			for i := range acks {
				acks[i] = ack{packetID: uint16(i + 1), qos: 1, counted: true}
				if !c.line.push(&acks[i], len(acks)) {
					t.Fatal("refused")
				}
			}
			read := func() int {
				var b [64]byte
				n, err := unix.Read(fds[1], b[:])
				if err != nil && !errors.Is(err, unix.EAGAIN) {
					t.Fatal(err)
				}
				return max(n, 0)
			}
			c.line.finish(&acks[0], packet.ReasonSuccess, nil)
			if got := read(); got != test.want {
				t.Errorf("%d bytes after the first, want %d", got, test.want)
			}
			for i := range acks[1:] {
				c.line.finish(&acks[1+i], packet.ReasonSuccess, nil)
			}
			posted := len(l.posted)
			if wake := test.want == 0; (posted > 0) != wake {
				t.Errorf("%d connections posted to the loop, want %v", posted, wake)
			}
			c.out.flush() // the loop's turn
			if got := read(); test.want+got != 4*test.inFlight {
				t.Errorf("%d bytes after the loop's turn, want %d", got, 4*test.inFlight-test.want)
			}
		})
	}
}
