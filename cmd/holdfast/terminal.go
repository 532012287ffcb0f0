package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"holdfast/cmd/holdfast/console"
)

// tell is [fmt.Fprintf] for people: a text among args may have been chosen by
// others, and comes out as it can be shown. What is amiss with w shows when it is
// flushed.
func tell(w io.Writer, format string, args ...any) {
	shown := make([]any, len(args))
	for i, a := range args {
		switch v := a.(type) {
		case string:
			a = console.Shown(v)
		case error:
			a = console.Shown(v.Error())
		case fmt.Stringer:
			a = console.Shown(v.String())
		}
		shown[i] = a
	}
	fmt.Fprintf(w, format, shown...)
}

// forTerminal keeps what goes to a terminal from moving its cursor; a file or a
// pipe is given all as it is.
func forTerminal(w io.Writer) io.Writer {
	f, ok := w.(*os.File)
	if !ok {
		return w
	}
	if fi, err := f.Stat(); err != nil || fi.Mode()&os.ModeCharDevice == 0 {
		return w
	}
	return &harmless{w: w}
}

// harmless escapes what cannot be printed, as JSON does: of that it changes no
// value.
type harmless struct {
	w    io.Writer
	part []byte // of a character whose end has not come
}

// Write implements [io.Writer].
func (h *harmless) Write(b []byte) (int, error) {
	var out []byte
	in := append(h.part, b...)
	for len(in) > 0 && utf8.FullRune(in) {
		r, n := utf8.DecodeRune(in)
		switch {
		case r == utf8.RuneError && n == 1:
			out = fmt.Appendf(out, `\x%02x`, in[0])
		case r == '\n' || r == '\t' || unicode.IsPrint(r):
			out = append(out, in[:n]...)
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			out = fmt.Appendf(out, `\u%04x\u%04x`, high, low)
		default:
			out = fmt.Appendf(out, `\u%04x`, r)
		}
		in = in[n:]
	}
	h.part = append([]byte(nil), in...)
	if _, err := h.w.Write(out); err != nil {
		return 0, err
	}
	return len(b), nil
}

// harmlessText is s with what cannot be printed escaped, but for the ends of lines.
func harmlessText(s string) string {
	var b strings.Builder
	_, _ = (&harmless{w: &b}).Write([]byte(s)) // a Builder takes everything
	return b.String()
}
