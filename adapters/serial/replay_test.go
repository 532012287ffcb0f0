package serial_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/adapters"
	"holdfast/adapters/health"
	"holdfast/adapters/port"
	"holdfast/adapters/reading"
	"holdfast/adapters/serial"
)

// replayed are the beginnings of the messages that a device makes of a capture.
func replayed(t *testing.T, o serial.Options, capture string) (out []string, st serial.Status) {
	t.Helper()
	quiet := slog.New(slog.DiscardHandler)
	po := port.DefaultOptions()
	po.Device = "/dev/none"
	line, err := port.NewLine("tty", po, quiet)
	if err != nil {
		t.Fatal(err)
	}
	messages := make(publisher, 1000)
	outbox, err := adapters.NewOutbox("replay", messages, adapters.DefaultOutboxOptions(), quiet)
	if err != nil {
		t.Fatal(err)
	}
	readings, err := adapters.NewReadings(outbox, "gw", 0, adapters.DefaultReadingsOptions())
	if err != nil {
		t.Fatal(err)
	}
	tracker, err := health.NewMonitor(func(health.Change) {}).Add("scale", health.DefaultOptions())
	if err != nil {
		t.Fatal(err)
	}
	a, err := serial.New("scale", o, line, readings, tracker, reading.NewClock(), quiet)
	if err != nil {
		t.Fatal(err)
	}
	c, err := port.ReadCapture(strings.NewReader("# holdfast capture 1\n" + capture))
	if err != nil {
		t.Fatal(err)
	}
	start := reading.Stamp{Wall: time.Date(2026, 3, 1, 8, 0, 0, 0, time.UTC), Synchronised: true}
	last := port.Chunk{}
	for {
		chunk, err := c.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		a.Replay(chunk, start)
		last.At = chunk.At
	}
	a.Replay(last, start)
	if err := outbox.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	close(messages)
	for m := range messages {
		value, _, _ := strings.Cut(strings.TrimPrefix(string(m.Payload), `{"value":`), ",")
		_, at, _ := strings.Cut(string(m.Payload), `"time":"2026-03-01T08:00:`)
		out = append(out, strings.TrimPrefix(m.Topic, "sensors/scale/")+"="+value+"@"+at[:strings.IndexByte(at, 'Z')])
	}
	return out, a.Status()
}

func TestReplay(t *testing.T) {
	lines := weightOptions()
	lines.Points = lines.Points[:1]
	silence := lines
	silence.Framing, silence.Silence = serial.FramingSilence, 100*time.Millisecond
	polled := lines
	polled.Polls = []serial.Poll{{Name: "w", Request: "W\r\n", Timeout: time.Second}}
	tests := map[string]struct {
		o       serial.Options
		capture string
		want    []string
		check   func(serial.Status) bool
	}{
		"half a frame at first": {
			o:       lines,
			capture: "0.001 < 573d\n0.002 < 316b6720533d790a\n0.5 < 573d 31 35 6b67 20533d79 0d 0a", // W=| 1kg S=y, W=15kg S=y
			want:    []string{"weight=1.5@00.500"},
		},
		"the first byte after silence": {
			o: lines, capture: "0.1 < 573d316b6720533d790a", want: []string{"weight=0.1@00.100"},
		},
		"a frame that pauses": {
			o:       lines,
			capture: "1 < 573d31\n3.5 < 573d326b6720533d790a", // W=1 | W=2kg S=y
			want:    []string{"weight=0.2@03.500"},
			check:   func(s serial.Status) bool { return s.Partial == 1 && s.Garbage == 3 },
		},
		"silence ends frames, the last one too": {
			o:       silence,
			capture: "0.2 < 573d31\n0.25 < 6b6720533d79\n0.5 < 573d326b6720533d79",
			want:    []string{"weight=0.1@00.350", "weight=0.2@00.600"},
		},
		"what was not asked for, and what came too late": {
			o:       polled,
			capture: "0.2 < 573d316b6720533d790a\n1 > 570d0a\n1.2 < 573d326b6720533d790a\n2 > 570d0a\n3.1 < 573d336b6720533d790a",
			want:    []string{"weight=0.2@01.200"},
			check:   func(s serial.Status) bool { return s.Polls == 2 && s.Late == 2 && s.NoAnswers == 1 },
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, st := replayed(t, tt.o, tt.capture)
			if !slices.Equal(got, tt.want) || tt.check != nil && !tt.check(st) {
				t.Errorf("got %q, want %q; %+v", got, tt.want, st)
			}
		})
	}
}
