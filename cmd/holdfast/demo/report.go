package demo

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"text/tabwriter"
	"time"
)

// reporter writes what goes on, each line with the time since the start.
type reporter struct {
	mu     sync.Mutex
	out    io.Writer // guarded by mu
	start  time.Time
	colour bool
}

// The colours of a terminal.
const (
	red    = "31"
	green  = "32"
	yellow = "33"
	bold   = "1"
)

func (r *reporter) paint(code, text string) string {
	if !r.colour {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

// line writes one line.
func (r *reporter) line(format string, args ...any) {
	d := time.Since(r.start)
	r.plain(fmt.Sprintf("%02d:%02d  ", int(d.Minutes()), int(d.Seconds())%60) + fmt.Sprintf(format, args...))
}

// plain writes a line without the time.
func (r *reporter) plain(text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	fmt.Fprintln(r.out, text)
}

// headline begins a part of the script.
func (r *reporter) headline(format string, args ...any) {
	r.line("%s", r.paint(bold, fmt.Sprintf(format, args...)))
}

// progress is the state of everything in one line.
func (r *reporter) progress(st status, fresh bool, delivered int) {
	if !fresh {
		r.line("  gateway %s        delivered %5d", r.paint(red, "does not answer"), delivered)
		return
	}
	u := st.uplink()
	state := fmt.Sprintf("%-12s", u.State)
	if u.State == "up" {
		state = r.paint(green, state)
	} else {
		state = r.paint(red, state)
	}
	var devices []string
	for _, name := range []string{meterName, sensorName} {
		s := st.device(name).State
		if s != "online" {
			s = r.paint(yellow, s)
		}
		devices = append(devices, name+" "+s)
	}
	r.line("  uplink %s  backlog %5d  oldest %5.1f s  delivered %5d  %s",
		state, u.Backlog, u.OldestSeconds, delivered, strings.Join(devices, "  "))
}

// summary writes the table, the notes and the problems, and returns how many
// problems there are.
func (r *reporter) summary(rows []row, notes, problems []string) int {
	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "what\tQoS\tsent\tacknowledged\tarrived\tlost\ttwice\tout of order\t")
	for _, row := range rows {
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t\n", row.what, row.qos, row.sent, row.acked, row.arrived, row.lost, row.twice, row.disorder)
		notes = append(notes, row.notes...)
		problems = append(problems, row.problems...)
	}
	_ = w.Flush() // into memory
	r.plain("")
	r.plain(strings.TrimRight(table.String(), "\n"))
	r.plain("")
	for _, n := range notes {
		r.plain("  " + n)
	}
	for _, p := range problems {
		r.plain(r.paint(red, "! "+p))
	}
	return len(problems)
}
