package serial_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/adapters/port"
	"holdfast/adapters/serial"
)

// baud is the rate that the other end of the rig's line is set to: the kernel
// keeps it for a pseudo terminal too.
func (r *rig) baud() int {
	tio, err := unix.IoctlGetTermios(int(r.master.Fd()), unix.TCGETS)
	if err != nil {
		return 0
	}
	return map[uint32]int{
		unix.B300: 300, unix.B600: 600, unix.B2400: 2400, unix.B4800: 4800, unix.B9600: 9600, unix.B19200: 19200,
	}[tio.Cflag&unix.CBAUD]
}

// at waits until the line has that rate.
func (r *rig) at(baud int) bool {
	end := time.After(patience)
	for r.baud() != baud {
		select {
		case <-time.After(time.Millisecond):
		case <-end:
			return false
		}
	}
	return true
}

func meterOptions() serial.Options {
	o := serial.DefaultOptions()
	o.Framing, o.Format, o.MaxLength = serial.FramingIEC62056, serial.FormatOBIS, 4096
	o.Polls = []serial.Poll{{Name: "readout", Request: "/?!\r\n", Every: 50 * time.Millisecond}}
	o.Points = []serial.Point{{Name: "imported", Field: "1.8.0"}}
	return o
}

// meterData is what a meter says, with its block check: one in which digits have
// been swapped has a wrong one.
func meterData(energy string) string {
	data := "F.F(00)\r\n0.0.0(50123456)\r\n1.8.0(" + energy + "*kWh)\r\n!\r\n\x03"
	bcc := byte(0)
	for _, c := range []byte(data) {
		bcc ^= c
	}
	return "\x02" + data + string(bcc)
}

// A meter of each mode is asked at 300 baud, confirmed where it waits for that, and
// heard at the rate it has offered; the next time all begins at 300 baud again.
func TestSignOn(t *testing.T) {
	tests := map[string]struct {
		ident  string
		rate   int
		acks   []string
		echoes bool
	}{
		"mode A":                        {ident: "/SLB SL7000\r\n", rate: 300},
		"mode B":                        {ident: "/LGZDZMB120\r\n", rate: 4800},
		"mode C":                        {ident: "/LGZ5ZMF100AC.M29\r\n", rate: 9600, acks: []string{"\n\x06050"}},
		"mode C at 300 baud":            {ident: "/ISK0MT171-0133\r\n", rate: 300, acks: []string{"\n\x06000"}},
		"mode C and a head that echoes": {ident: "/ACE3k260V01.18\r\n", rate: 2400, acks: []string{"\n\x06030"}, echoes: true},
		"mode C, eight bits and parity": {ident: "\xafLGZ\xb5ZMF100AC.M29\r\n", rate: 9600, acks: []string{"\n\x06050"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := startAt(t, port.DriverBugst, 300, meterOptions())
			times := 0
			data := func() string {
				if !r.at(tt.rate) {
					t.Errorf("line has %d baud, want %d", r.baud(), tt.rate)
				}
				times++
				return meterData([]string{"00012.34", "00012.35", "00012.36"}[min(times, 3)-1])
			}
			a := r.answer(func(request string) string {
				echo := ""
				if tt.echoes {
					echo = strings.TrimPrefix(request, "\n") + "\r\n"
				}
				switch {
				case request == "/?!" || request == "\n/?!":
					if !r.at(300) {
						t.Errorf("asked at %d baud", r.baud())
					}
					if len(tt.acks) > 0 {
						return echo + tt.ident
					}
					r.master.WriteString(echo + tt.ident)
					return data()
				case slices.Contains(tt.acks, request):
					return echo + "\x00" + data() // and a glitch
				}
				t.Errorf("meter was told %q", request)
				return ""
			})
			r.await("sensors/scale/imported", `{"value":12.34,"unit":"kWh"`)
			r.await("sensors/scale/imported", `{"value":12.35,"unit":"kWh"`)
			if s := r.adapter.Status(); s.NoAnswers > 0 || s.Checksum > 0 || s.Late > 0 || s.Rejected > 0 {
				t.Errorf("%+v after %q", s, a.requests())
			}
		})
	}
}

// A meter that stops in the middle, and one whose block check is wrong, make no
// reading; the next attempt begins at the first rate.
func TestSignOnThatFails(t *testing.T) {
	o := meterOptions()
	o.Polls[0].Timeout = 300 * time.Millisecond
	r := startAt(t, port.DriverBugst, 300, o)
	tries := 0
	r.answer(func(request string) string {
		if request != "\n\x06050" {
			if !r.at(300) {
				t.Errorf("asked at %d baud", r.baud())
			}
			return "/LGZ5ZMF100AC.M29\r\n"
		}
		r.at(9600)
		tries++
		good, hurt := []byte(meterData("00012.34")), []byte(meterData("00012.34"))
		switch tries {
		case 1:
			return string(good[:30])
		case 2:
			hurt[40] ^= 1
			return string(hurt)
		}
		return string(good)
	})
	r.await("sensors/scale/imported", `{"value":12.34,`)
	if s := r.adapter.Status(); s.NoAnswers != 2 || s.Checksum != 1 || s.Readings != 1 {
		t.Errorf("%+v", s)
	}
}

// A meter that speaks by itself is heard without a question (mode D).
func TestIEC62056ByItself(t *testing.T) {
	o := meterOptions()
	o.Polls = nil
	eachDriver(t, o, func(r *rig) {
		r.open(1)
		r.say("/EMH4\\@01LZQJL0014F\r\n\r\n1-0:1.8.0*255(000123.4*kWh)\r\n!\r\n", `{"value":123.4,"unit":"kWh"`)
		if s := r.adapter.Status(); s.Rejected > 0 {
			r.t.Errorf("%+v", s)
		}
	})
}
