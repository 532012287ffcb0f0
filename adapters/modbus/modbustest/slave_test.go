package modbustest_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"holdfast/adapters/modbus/modbustest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve runs s on one end of a pipe and returns the other.
func serve(t *testing.T, s *modbustest.Slave) net.Conn {
	t.Helper()
	a, b := net.Pipe()
	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { done <- s.Serve(ctx, b) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve = %v, want nil after cancel", err)
		}
		a.Close()
	})
	if err := a.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return a
}

// raw keeps the terminal layer out of a pty.
func raw(t *testing.T, tty *os.File) {
	t.Helper()
	rc, err := tty.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var ioctlErr error
	err = rc.Control(func(fd uintptr) {
		var tio *unix.Termios
		if tio, ioctlErr = unix.IoctlGetTermios(int(fd), unix.TCGETS); ioctlErr != nil {
			return
		}
		tio.Iflag, tio.Oflag, tio.Lflag = 0, 0, 0
		ioctlErr = unix.IoctlSetTermios(int(fd), unix.TCSETS, tio)
	})
	if err := errors.Join(err, ioctlErr); err != nil {
		t.Fatal(err)
	}
}

func exchange(t *testing.T, rw io.ReadWriter, req, want []byte) {
	t.Helper()
	if _, err := rw.Write(req); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	if _, err := io.ReadFull(rw, got); err != nil {
		t.Fatalf("answer to % x: %v (got % x)", req, err, got)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("answer to % x = % x, want % x", req, got, want)
	}
}

// The request and answer below are written out by hand; their CRCs are those of
// published examples (unit 17, function 3: 76 87 for registers 107 to 109).
func TestSlaveAnswersAPublishedExample(t *testing.T) {
	s := modbustest.New(modbustest.Options{})
	s.Unit(17).SetHolding(107, 0xae41, 0x5652, 0x4340)
	rw := serve(t, s)
	req := []byte{0x11, 0x03, 0x00, 0x6b, 0x00, 0x03, 0x76, 0x87}
	exchange(t, rw, req, []byte{0x11, 0x03, 0x06, 0xae, 0x41, 0x56, 0x52, 0x43, 0x40, 0x49, 0xad})
	// Noise in front is slid over.
	exchange(t, rw, append([]byte{0x00, 0x55}, req...), []byte{0x11, 0x03, 0x06, 0xae, 0x41, 0x56, 0x52, 0x43, 0x40, 0x49, 0xad})
	if st := s.Stats(); st.Requests != 2 || st.Answers != 2 || st.Discarded != 2 {
		t.Errorf("Stats() = %+v, want 2 requests, 2 answers, 2 discarded bytes", st)
	}
}

func TestSlaveOnAPtyStopsCleanly(t *testing.T) {
	master, slave, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	defer slave.Close()
	s := modbustest.New(modbustest.Options{})
	s.Unit(1).SetInput(0, 7)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, master) }()
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("Serve = %v, want nil", err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("Serve goes on after its context ended")
	}
	// The pty is still usable: a device that restarts.
	if err := master.SetReadDeadline(time.Time{}); err != nil {
		t.Errorf("the pty was closed: %v", err)
	}
}

// A gateway that is killed closes its side of the pty; the device goes on.
func TestSlaveOnAPtyOutlivesTheOtherSide(t *testing.T) {
	master, slave, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	s := modbustest.New(modbustest.Options{})
	s.Unit(17).SetHolding(107, 0xae41, 0x5652, 0x4340)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, master) }()
	for range 3 {
		raw(t, slave)
		exchange(t, slave, []byte{0x11, 0x03, 0x00, 0x6b, 0x00, 0x03, 0x76, 0x87},
			[]byte{0x11, 0x03, 0x06, 0xae, 0x41, 0x56, 0x52, 0x43, 0x40, 0x49, 0xad})
		name := slave.Name()
		if err := slave.Close(); err != nil {
			t.Fatal(err)
		}
		if slave, err = os.OpenFile(name, os.O_RDWR|syscall.O_NOCTTY, 0); err != nil {
			t.Fatal(err)
		}
	}
	slave.Close()
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Serve = %v, want nil", err)
	}
}

func TestSlaveOverTCP(t *testing.T) {
	s := modbustest.New(modbustest.Options{Framing: modbustest.TCP})
	u := s.Unit(1)
	u.SetHolding(0, 0)
	seq := uint16(0)
	u.OnRead(func(modbustest.Request) { seq++; u.SetHolding(0, seq) })
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.ServeTCP(ctx, ln) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("ServeTCP = %v, want nil", err)
		}
	}()
	conn, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	req := []byte{0xab, 0xcd, 0, 0, 0, 6, 1, 3, 0, 0, 0, 1}
	exchange(t, conn, req, []byte{0xab, 0xcd, 0, 0, 0, 5, 1, 3, 2, 0, 1})
	exchange(t, conn, req, []byte{0xab, 0xcd, 0, 0, 0, 5, 1, 3, 2, 0, 2})
	u.Fault(modbustest.Fault{WrongTransaction: 1}, 1)
	exchange(t, conn, req, []byte{0xab, 0xce, 0, 0, 0, 5, 1, 3, 2, 0, 3})
}

func TestSlaveWritesAndExceptions(t *testing.T) {
	s := modbustest.New(modbustest.Options{Framing: modbustest.TCP})
	u := s.Unit(9)
	u.SetHolding(10, 1, 2)
	u.SetCoil(0, false, false, false)
	u.Deny(modbustest.Holding, 11, modbustest.DeviceFailure)
	rw := serve(t, s)
	tests := map[string]struct{ pdu, want []byte }{
		"write one register":      {[]byte{6, 0, 10, 0x12, 0x34}, []byte{6, 0, 10, 0x12, 0x34}},
		"write no such register":  {[]byte{6, 0, 99, 0, 0}, []byte{0x86, 2}},
		"write registers":         {[]byte{16, 0, 10, 0, 2, 4, 0, 1, 0, 2}, []byte{16, 0, 10, 0, 2}},
		"write coil":              {[]byte{5, 0, 1, 0xff, 0}, []byte{5, 0, 1, 0xff, 0}},
		"write coil to nonsense":  {[]byte{5, 0, 1, 0x12, 0}, []byte{0x85, 3}},
		"write coils":             {[]byte{15, 0, 0, 0, 3, 1, 5}, []byte{15, 0, 0, 0, 3}},
		"denied register":         {[]byte{3, 0, 10, 0, 2}, []byte{0x83, 4}},
		"hole":                    {[]byte{3, 0, 12, 0, 1}, []byte{0x83, 2}},
		"too many":                {[]byte{3, 0, 0, 0, 126}, []byte{0x83, 3}},
		"past the end":            {[]byte{3, 0xff, 0xff, 0, 2}, []byte{0x83, 2}},
		"function nobody defined": {[]byte{99, 0, 0, 0, 0}, []byte{0xe3, 1}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			mbap := func(pdu []byte) []byte { return append([]byte{0, 7, 0, 0, 0, byte(len(pdu) + 1), 9}, pdu...) }
			exchange(t, rw, mbap(tt.pdu), mbap(tt.want))
		})
	}
}

func TestFloat32Orders(t *testing.T) {
	// 123.456 is 42 f6 e9 79.
	tests := map[string][2]uint16{
		"ABCD": {0x42f6, 0xe979}, "DCBA": {0x79e9, 0xf642}, "BADC": {0xf642, 0x79e9}, "CDAB": {0xe979, 0x42f6},
	}
	for order, want := range tests {
		if got := modbustest.Float32(123.456, order); [2]uint16(got) != want {
			t.Errorf("Float32(123.456, %q) = %04x, want %04x", order, got, want)
		}
	}
}
