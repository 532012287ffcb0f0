package main

import (
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"holdfast/broker/durable"
	"holdfast/broker/packet"
	"holdfast/cmd/holdfast/config"
	"holdfast/cmd/holdfast/console"
	"holdfast/storeforward"
)

func queueCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "queue",
		Short: "Look at the queues of the store, and change them",
		Long: `Look at the queues of the store, and change them.

A queue belongs to an uplink, to the persistent session of a client, or to a
shared group with such members. It is named by uplink/NAME, session/CLIENT_ID or
$share/GROUP/FILTER, or by the name alone when only one queue has it.
uplink/NAME/LANE is one lane of an uplink, such as uplink/cloud/7-latest; without
it all lanes are meant.

list, show and export work on a running gateway and, read-only, on the data of
a stopped one. import, drop and replay need a running one.

Exit codes: 0 done, 1 it did not work, 5 no gateway runs and it must.`,
	}
	c.AddCommand(queueList(), queueShow(), queueExport(), queueImport(), queueDrop(), queueReplay())
	return c
}

// place says where the queues are: behind a control socket, or in a file.
type place struct {
	socket, file, data string
	json               bool
}

func (p *place) flags(c *cobra.Command) {
	c.Flags().StringVar(&p.socket, "socket", "", "control socket of the running gateway")
	c.Flags().StringVar(&p.file, "config", "", "configuration file that names data folder and socket (default "+config.DefaultFile+")")
	c.Flags().StringVar(&p.data, "data", "", "data folder, instead of gateway.data")
	c.Flags().BoolVar(&p.json, "json", false, "print JSON")
}

// resolved is what a place comes to: the socket when a gateway answers there,
// the database when none does.
type resolved struct{ socket, path string }

func (p *place) resolve(ctx context.Context) (resolved, error) {
	if p.socket != "" {
		path, err := livePath(ctx, p.socket)
		if err != nil {
			return resolved{}, &exitError{exitNotThere, err}
		}
		return resolved{p.socket, path}, nil
	}
	if p.file == "" && p.data == "" {
		if socket, err := controlSocket(""); err == nil {
			if path, err := livePath(ctx, socket); err == nil {
				return resolved{socket, path}, nil
			}
		}
	}
	cfg, err := loadConfig(p.file, p.data, nil)
	if err != nil {
		return resolved{}, &exitError{exitConfig, err}
	}
	if path, err := livePath(ctx, cfg.Control.Socket); err == nil {
		return resolved{cfg.Control.Socket, path}, nil
	}
	if _, err := os.Stat(cfg.Store.Path); err != nil {
		return resolved{}, &exitError{exitNotThere, fmt.Errorf("no gateway answers at %s and there is no store: %w", cfg.Control.Socket, err)}
	}
	return resolved{"", cfg.Store.Path}, nil
}

// livePath asks a running gateway where its database is.
func livePath(ctx context.Context, socket string) (string, error) {
	body, _, err := console.Get(ctx, socket, "/api/v1/status")
	if err != nil {
		return "", err
	}
	var s struct {
		Store struct{ Path string } `json:"store"`
	}
	if err := json.Unmarshal(body, &s); err != nil {
		return "", fmt.Errorf("ask %s: %w", socket, err)
	}
	return s.Store.Path, nil
}

// live is resolve for what only a running gateway can do.
func (p *place) live(ctx context.Context) (resolved, error) {
	r, err := p.resolve(ctx)
	if err == nil && r.socket == "" {
		err = &exitError{exitNotThere, fmt.Errorf("no gateway runs on %s, and this needs one", filepath.Dir(r.path))}
	}
	return r, err
}

func (r resolved) queues(ctx context.Context) (list []storeforward.QueueInfo, err error) {
	if r.socket == "" {
		return storeforward.ListQueues(ctx, r.path)
	}
	err = console.Stream(ctx, r.socket, "GET", "/api/v1/queues", nil, func(line []byte) error {
		return json.Unmarshal(line, &list)
	})
	return list, err
}

type which struct {
	queue string
	dead  bool
	after uint64
	limit int
}

// each calls fn with the messages of a queue, oldest first.
func (r resolved) each(ctx context.Context, w which, fn func(*console.Record) error) error {
	if r.socket != "" {
		q := url.Values{"queue": {w.queue}, "after": {strconv.FormatUint(w.after, 10)}, "limit": {strconv.Itoa(w.limit)}}
		if w.dead {
			q.Set("dead_letters", "1")
		}
		return console.Stream(ctx, r.socket, "GET", "/api/v1/queues/messages?"+q.Encode(), nil, func(line []byte) error {
			var rec console.Record
			if err := json.Unmarshal(line, &rec); err != nil {
				return err
			}
			return fn(&rec)
		})
	}
	list, err := storeforward.ListQueues(ctx, r.path)
	if err != nil {
		return err
	}
	q, err := console.FindQueue(list, w.queue)
	if err != nil {
		return err
	}
	if w.dead {
		return console.EachDeadLetter(ctx, r.path, q.ID, fn)
	}
	return console.EachMessage(ctx, r.path, q, durable.Seq(w.after), w.limit, fn)
}

func queueList() *cobra.Command {
	var p place
	c := &cobra.Command{
		Use:   "list",
		Short: "List the queues with what they hold",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			r, err := p.resolve(c.Context())
			if err != nil {
				return err
			}
			list, err := r.queues(c.Context())
			if err != nil {
				return err
			}
			if p.json {
				return printJSON(c.OutOrStdout(), list)
			}
			t := tabwriter.NewWriter(c.OutOrStdout(), 0, 8, 2, ' ', 0)
			fmt.Fprintln(t, "queue\tmessages\tbytes\toldest\tdead letters")
			for _, q := range list {
				tell(t, "%s\t%d\t%d\t%s\t%d\n", q.String(), q.Messages, q.Bytes, oldest(q.Oldest), q.DeadLetters)
				for _, l := range q.Lanes {
					tell(t, "%s/%s\t%d\t%d\t%s\t\n", q.String(), l.Lane, l.Messages, l.Bytes, oldest(l.Oldest))
				}
			}
			return t.Flush()
		},
	}
	p.flags(c)
	return c
}

func oldest(at time.Time) string {
	if at.IsZero() {
		return "-"
	}
	return at.Local().Format(time.DateTime)
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(forTerminal(w))
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

func queueShow() *cobra.Command {
	var p place
	var w which
	c := &cobra.Command{
		Use:   "show QUEUE",
		Short: "Show the oldest messages of a queue",
		Example: `  holdfast queue show uplink/cloud
  holdfast queue show cloud --after 1200 --limit 5
  holdfast queue show cloud --dead-letters`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			r, err := p.resolve(c.Context())
			if err != nil {
				return err
			}
			w.queue = args[0]
			if p.json {
				out := forTerminal(c.OutOrStdout())
				return r.each(c.Context(), w, func(rec *console.Record) error { return rec.WriteJSON(out) })
			}
			t := tabwriter.NewWriter(c.OutOrStdout(), 0, 8, 2, ' ', 0)
			fmt.Fprintln(t, "seq\treceived\tqos\tlane\tstate\ttopic\tpayload")
			err = r.each(c.Context(), w, func(rec *console.Record) error {
				state := rec.State
				if packet.ReasonCode(rec.Code).Failed() { // the others were put aside here
					state = "refused: " + packet.ReasonCode(rec.Code).String()
				}
				tell(t, "%d\t%s\t%d\t%s\t%s\t", rec.Seq, rec.Received.Local().Format(time.DateTime), rec.QoS, rec.Lane, state)
				_, err := fmt.Fprintf(t, "%s\t%s\n", cut(rec.Topic, 60), cut(shownPayload(rec), 60))
				return err
			})
			return errors.Join(err, t.Flush())
		},
	}
	p.flags(c)
	w.flags(c)
	c.Flags().IntVar(&w.limit, "limit", 20, "how many; 0 is all")
	return c
}

func (w *which) flags(c *cobra.Command) {
	c.Flags().BoolVar(&w.dead, "dead-letters", false, "the messages that the cloud has refused, instead")
	c.Flags().Uint64Var(&w.after, "after", 0, "only messages behind this sequence number")
}

func shownPayload(r *console.Record) string {
	if r.Payload == nil {
		return fmt.Sprintf("(%d bytes)", len(r.Base64))
	}
	return *r.Payload
}

// cut is a text as it can be shown, and not too wide for its column.
func cut(s string, most int) string {
	s = console.Shown(s)
	if utf8.RuneCountInString(s) <= most {
		return s
	}
	return string([]rune(s)[:most-1]) + "…"
}

func queueExport() *cobra.Command {
	var p place
	var w which
	var format, output string
	c := &cobra.Command{
		Use:   "export QUEUE",
		Short: "Write the messages of a queue as JSON lines or CSV; the queue keeps them",
		Example: `  holdfast queue export uplink/cloud --output backlog.jsonl
  holdfast queue export cloud --format csv > backlog.csv`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if format != "jsonl" && format != "csv" {
				return &exitError{exitUsage, fmt.Errorf("--format %q is not one of jsonl, csv", format)}
			}
			r, err := p.resolve(c.Context())
			if err != nil {
				return err
			}
			w.queue = args[0]
			say := newProgress(c.ErrOrStderr(), "exported")
			write := func(out io.Writer) error { return exportTo(c.Context(), r, w, format, out, say) }
			if output == "" {
				err = write(forTerminal(c.OutOrStdout()))
			} else {
				err = writeFile(output, write)
			}
			if err == nil {
				say.end()
			}
			return err
		},
	}
	p.flags(c)
	w.flags(c)
	c.Flags().StringVar(&format, "format", "jsonl", "jsonl (which import takes) or csv")
	c.Flags().StringVarP(&output, "output", "o", "", "file, which is whole when it is there (default: standard output)")
	c.Flags().IntVar(&w.limit, "limit", 0, "how many; 0 is all")
	return c
}

func exportTo(ctx context.Context, r resolved, w which, format string, out io.Writer, say *progress) error {
	n := int64(0)
	count := func(err error) error {
		n++
		say.at(n)
		return err
	}
	if format == "jsonl" {
		return r.each(ctx, w, func(rec *console.Record) error { return count(rec.WriteJSON(out)) })
	}
	t := csv.NewWriter(out)
	err := t.Write(console.CSVHeader())
	if err == nil {
		err = r.each(ctx, w, func(rec *console.Record) error { return count(rec.WriteCSV(t)) })
	}
	t.Flush()
	return errors.Join(err, t.Error())
}

// writeFile puts a file in place when all of it is on the disk.
func writeFile(name string, write func(io.Writer) error) (err error) {
	f, err := os.CreateTemp(filepath.Dir(name), filepath.Base(name)+".part*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	err = write(f)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}

func queueImport() *cobra.Command {
	var p place
	c := &cobra.Command{
		Use:   "import QUEUE [FILE]",
		Short: "Append the messages of an export to a queue",
		Long: `Append the messages of an export, JSON lines from FILE or standard input, to a
queue, behind what it holds. Times of arrival are kept, and so are intervals of
expiry. Nothing is recognised: what is imported twice is there twice.`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(c *cobra.Command, args []string) (err error) {
			in := c.InOrStdin()
			if len(args) == 2 && args[1] != "-" {
				f, err := os.Open(args[1])
				if err != nil {
					return err
				}
				defer func() { _ = f.Close() }()
				in = f
			}
			return p.order(c, "import", "imported", url.Values{"queue": {args[0]}}, in)
		},
	}
	p.flags(c)
	return c
}

// order has the running gateway do something and reports.
func (p *place) order(c *cobra.Command, what, done string, q url.Values, body io.Reader) error {
	r, err := p.live(c.Context())
	if err != nil {
		return err
	}
	say := newProgress(c.ErrOrStderr(), done)
	n, err := console.Order(c.Context(), r.socket, "/api/v1/queues/"+what+"?"+q.Encode(), body, say.at)
	if err != nil {
		if n > 0 {
			err = fmt.Errorf("%w (%d messages %s before)", err, n, done)
		}
		return err
	}
	if p.json {
		return printJSON(c.OutOrStdout(), map[string]any{"queue": q.Get("queue"), done: n})
	}
	_, err = fmt.Fprintf(c.OutOrStdout(), "%d messages %s\n", n, done)
	return err
}

func queueDrop() *cobra.Command {
	var p place
	var all bool
	var before, filter string
	var upto uint64
	c := &cobra.Command{
		Use:   "drop QUEUE",
		Short: "Drop messages of a queue that have not been sent",
		Long: `Drop messages of a queue. Those that have been sent and wait for their
acknowledgement stay. What is dropped is counted, and is gone; see export.`,
		Example: `  holdfast queue drop cloud --before 2026-11-01
  holdfast queue drop cloud --before 72h --topic 'sensors/+/debug'
  holdfast queue drop session/old-panel --all`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			q := url.Values{"queue": {args[0]}}
			if all == (before != "" || filter != "" || upto != 0) {
				return &exitError{exitUsage, errors.New("say either --all, or what with --before, --upto and --topic")}
			}
			if before != "" {
				at, err := parseTime(before, time.Now())
				if err != nil {
					return &exitError{exitUsage, fmt.Errorf("--before: %w", err)}
				}
				q.Set("before", at.Format(time.RFC3339Nano))
			}
			if upto != 0 {
				q.Set("upto", strconv.FormatUint(upto, 10))
			}
			q.Set("topic", filter)
			return p.order(c, "drop", "dropped", q, nil)
		},
	}
	p.flags(c)
	c.Flags().BoolVar(&all, "all", false, "everything")
	c.Flags().StringVar(&before, "before", "", "received before this time, or longer ago than this (72h)")
	c.Flags().Uint64Var(&upto, "upto", 0, "up to and with this sequence number")
	c.Flags().StringVar(&filter, "topic", "", "of topics that match this filter")
	return c
}

func queueReplay() *cobra.Command {
	var p place
	var since string
	c := &cobra.Command{
		Use:   "replay QUEUE --since TIME",
		Short: "Queue again what was refused, or delivered and is still kept for others",
		Long: `Queue again, behind what the queue holds, the messages it has had since then and
the store still has: those that the cloud refused (dead letters; judged by the
time of the refusal), and those that were delivered and that another queue still
waits for. A message that nobody waits for is deleted and cannot be replayed.`,
		Example: `  holdfast queue replay cloud --since 24h
  holdfast queue replay cloud --since 2026-11-01T06:00:00Z`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			at, err := parseTime(since, time.Now())
			if err != nil {
				return &exitError{exitUsage, fmt.Errorf("--since: %w", err)}
			}
			return p.order(c, "replay", "replayed", url.Values{"queue": {args[0]}, "since": {at.Format(time.RFC3339Nano)}}, nil)
		},
	}
	p.flags(c)
	c.Flags().StringVar(&since, "since", "", "a time, or how long ago (24h); required")
	return c
}

// parseTime takes RFC 3339, a local date and time, a local date, or how long ago.
func parseTime(s string, now time.Time) (time.Time, error) {
	if d, err := time.ParseDuration(s); err == nil {
		return now.Add(-d.Abs()), nil
	}
	if t, err := time.Parse(time.RFC3339Nano, s); err == nil {
		return t, nil
	}
	for _, layout := range []string{time.DateTime, time.DateOnly} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("%q is neither a time (2026-11-01T06:00:00Z, 2026-11-01) nor how long ago (24h)", s)
}

// progress says now and then how far something long is.
type progress struct {
	w     io.Writer
	verb  string
	last  time.Time
	shown bool
	n     int64
}

func newProgress(w io.Writer, verb string) *progress {
	return &progress{w: w, verb: verb, last: time.Now()}
}

func (p *progress) at(n int64) {
	p.n = n
	if now := time.Now(); now.Sub(p.last) >= time.Second {
		p.last, p.shown = now, true
		fmt.Fprintf(p.w, "%d messages %s ...\n", n, p.verb)
	}
}

func (p *progress) end() { fmt.Fprintf(p.w, "%d messages %s\n", p.n, p.verb) }
