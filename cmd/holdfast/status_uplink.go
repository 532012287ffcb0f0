package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"holdfast/storeforward/uplink"
)

// printUplink says how the link is, which way it goes and what that carries, what
// waits for it and for how long still, what it has cost, and what ends soon.
func printUplink(w io.Writer, now time.Time, u *uplink.Status) {
	tell(w, "uplink\t%s\t%s for %s%s", u.Name, u.State.Words(), since(now, u.Since), because(u.Reason))
	if !u.NextAttempt.IsZero() {
		tell(w, ", next attempt in %s", since(u.NextAttempt, now))
	}
	tell(w, "\n\t\t%s%s%s; round trip %d ms; out %s, in %s; resent %d, possible duplicates %d\n",
		u.URL, via(u.Interface), peer(u), int(u.RoundTrip*1000), size(u.BytesOut), size(u.BytesIn), u.Resends, u.Duplicates)
	if u.Rate > 0 {
		tell(w, "\t\twindow %s, carries %s a second\n", size(int64(u.WindowBytes)), size(int64(u.Rate)))
	}
	tell(w, "\t\tbacklog %d messages, %s, oldest %s%s; sent %d, acknowledged %d, in flight %d of %d; refused %d, dropped %s\n",
		u.Backlog, size(u.BacklogBytes), seconds(u.BacklogAge), drained(u, u.BacklogAge, u.DrainSeconds),
		u.MessagesOut, u.Acked, u.InFlight, u.Window, u.Refused, reasons(u.Dropped))
	for _, l := range u.Lanes {
		if l.Backlog > 0 && l.Backlog < u.Backlog { // in one lane it is as above
			tell(w, "\t\tlane %s: backlog %d messages, %s, oldest %s%s\n",
				l.Lane, l.Backlog, size(l.BacklogBytes), seconds(l.BacklogAge), drained(u, l.BacklogAge, l.DrainSeconds))
		}
	}
	if u.Batches > 0 {
		tell(w, "\t\tbatches %d with %d messages, %.0f %% of their bytes saved\n", u.Batches, u.Batched, 100*u.BatchSaving)
	}
	if b := u.Budget; b != nil {
		var used []string
		if b.DayBudget > 0 {
			used = append(used, spent(b.DayBytes, b.DayBudget, "today", b.DayEnds))
		}
		if b.MonthBudget > 0 {
			used = append(used, spent(b.MonthBytes, b.MonthBudget, "this month", b.MonthEnds))
		}
		tell(w, "\t\tdata %s: %s\n", strings.Join(used, ", "), b.Words())
	}
	printCertificate(w, "its", u.OwnCertificate)
	printCertificate(w, "the cloud's", u.CloudCertificate)
}

// drained says how long a backlog lasts; nothing where that is not known.
func drained(u *uplink.Status, age, seconds float64) string {
	const long = 60 // seconds, that no measurement lasts
	switch {
	case u.State != uplink.StateUp:
		return ""
	case seconds > 0:
		return ", drained in about " + roughly(seconds)
	case age > long && u.Budget != nil && u.Budget.Short():
		return ", waits for the data budget"
	case age > long && u.AckedRate > 0:
		return ", not getting less"
	default:
		return ""
	}
}

// roughly is a duration that is not known better.
func roughly(s float64) string {
	const day = 24 * time.Hour
	switch d := time.Duration(min(s, (100*day).Seconds()) * float64(time.Second)); {
	case d < 2*time.Minute:
		return max(d.Round(time.Second), time.Second).String()
	case d < 2*time.Hour:
		return fmt.Sprintf("%.0f minutes", d.Minutes())
	case d < 2*day:
		return fmt.Sprintf("%.0f hours", d.Hours())
	default:
		return fmt.Sprintf("%.0f days", d.Hours()/24)
	}
}

// spent is what is used of a data budget, and when there is a new one.
func spent(used, budget int64, period string, ends time.Time) string {
	return fmt.Sprintf("%s of %s %s (%.0f %%, until %s)", size(used), size(budget), period,
		100*float64(used)/float64(budget), ends.Format(time.DateTime))
}

func printCertificate(w io.Writer, whose string, c *uplink.CertificateStatus) {
	switch {
	case c == nil:
	case c.Error != "":
		tell(w, "\t\t%s certificate cannot be used: %s\n", whose, c.Error)
	case c.Warning != "":
		tell(w, "\t\t%s certificate %s\n", whose, c.Warning)
	case !c.NotAfter.IsZero():
		tell(w, "\t\t%s certificate is valid until %s\n", whose, c.NotAfter.Format(time.DateOnly))
	}
}

func via(name string) string {
	if name == "" {
		return ""
	}
	return " via " + name
}

// peer is who is at the other end; nothing while nobody is.
func peer(u *uplink.Status) string {
	if u.Remote == "" {
		return ""
	}
	return " (" + u.Remote + ", MQTT " + u.Protocol + ")"
}

// reasons is how many were dropped, and of what.
func reasons(counts map[string]uint64) string {
	var n uint64
	var parts []string
	for _, reason := range sorted(counts) {
		if c := counts[reason]; c > 0 {
			n += c
			parts = append(parts, fmt.Sprintf("%s %d", reason, c))
		}
	}
	return strconv.FormatUint(n, 10) + because(strings.Join(parts, ", "))
}

// size is an amount of bytes with three or four digits.
func size[N int64 | uint64](bytes N) string {
	if bytes < 10_000 {
		return strconv.FormatInt(int64(bytes), 10) + " bytes"
	}
	n := float64(bytes) / 1000
	for _, unit := range [...]string{"kB", "MB"} {
		if n < 1000 {
			return fmt.Sprintf("%.1f %s", n, unit)
		}
		n /= 1000
	}
	return fmt.Sprintf("%.1f GB", n)
}
