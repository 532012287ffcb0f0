package broker

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"
	"unicode"
)

// guardedLog stands between the broker and its logger, because strangers say
// much of what is logged: client ids, topics, addresses. Nothing of it gets
// through unescaped or at any length, and no message comes more often than a
// disk can bear.
type guardedLog struct {
	slog.Handler

	lines *logLines
}

// A message of Info and above comes logBurst times, and then logRate times a
// second: 5 MB an hour, whatever the clients do. Debug is asked for.
const (
	logBurst = 100
	logRate  = 2
)

// logLines counts lines by message; those are constants of the code.
type logLines struct {
	mu sync.Mutex
	m  map[string]*logLine // guarded by mu
}

type logLine struct {
	bucket bucket
	held   int // not written since the last one that was
}

func guardLog(log *slog.Logger) *slog.Logger {
	return slog.New(guardedLog{log.Handler(), &logLines{m: make(map[string]*logLine)}})
}

// Handle writes the record, or counts that it did not.
func (g guardedLog) Handle(ctx context.Context, r slog.Record) error {
	held := 0
	if r.Level >= slog.LevelInfo {
		var ok bool
		if held, ok = g.lines.due(r.Message); !ok {
			return nil
		}
	}
	clean := slog.NewRecord(r.Time, r.Level, r.Message, r.PC)
	r.Attrs(func(a slog.Attr) bool {
		clean.AddAttrs(printableAttr(a))
		return true
	})
	if held > 0 {
		clean.AddAttrs(slog.Int("not_logged_before", held))
	}
	return g.Handler.Handle(ctx, clean)
}

// WithAttrs keeps the guard.
func (g guardedLog) WithAttrs(attrs []slog.Attr) slog.Handler {
	return guardedLog{g.Handler.WithAttrs(attrs), g.lines}
}

// WithGroup keeps the guard.
func (g guardedLog) WithGroup(name string) slog.Handler {
	return guardedLog{g.Handler.WithGroup(name), g.lines}
}

// due says whether a line may be written, and how many were not before it.
func (l *logLines) due(message string) (held int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	x := l.m[message]
	if x == nil {
		x = &logLine{}
		l.m[message] = x
	}
	if !x.bucket.take(time.Now(), logRate, logBurst) {
		x.held++
		return 0, false
	}
	held, x.held = x.held, 0
	return held, true
}

func printableAttr(a slog.Attr) slog.Attr {
	switch v := a.Value.Resolve(); v.Kind() {
	case slog.KindString:
		return slog.String(a.Key, printable(v.String()))
	case slog.KindAny:
		if err, ok := v.Any().(error); ok && err != nil {
			return slog.String(a.Key, printable(err.Error()))
		}
	default:
	}
	return a
}

// maxPrintable is how much of a text is logged, in bytes: a topic of a plant
// fits.
const maxPrintable = 256

// printable escapes what cannot be printed, and cuts what is long. What comes
// out is graphic characters only, so that no handler has to escape it again.
func printable(s string) string {
	fits := len(s) <= maxPrintable
	for _, r := range s {
		if r == unicode.ReplacementChar || r == '\\' || !unicode.IsPrint(r) {
			fits = false
			break
		}
	}
	if fits {
		return s
	}
	var b strings.Builder
	for i, r := range s {
		if b.Len() >= maxPrintable {
			fmt.Fprintf(&b, "... (%d bytes)", len(s))
			break
		}
		switch {
		case r == unicode.ReplacementChar && s[i] != 0xef:
			fmt.Fprintf(&b, `\x%02x`, s[i]) // no UTF-8
		case r == '\\' || r == unicode.ReplacementChar || !unicode.IsPrint(r):
			fmt.Fprintf(&b, `\u{%x}`, r)
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}
