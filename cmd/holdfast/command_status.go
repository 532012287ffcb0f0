package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"holdfast/adapters/port"
	"holdfast/cmd/holdfast/config"
	"holdfast/cmd/holdfast/console"
	"holdfast/storeforward/sparkplug"
)

func statusCommand() *cobra.Command {
	var socket string
	var asJSON, exitCode bool
	c := &cobra.Command{
		Use:   "status",
		Short: "Show what the running gateway is doing and what is wrong",
		Long: `Show what the running gateway is doing and what is wrong.

Exit codes: 0 it answered (with --exit-code: and is healthy), 4 it is not
healthy, 5 no gateway answers on the socket.`,
		Example: `  holdfast status
  holdfast status --json | jq .uplinks
  holdfast status --exit-code --socket /run/holdfast/holdfast.sock`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			path, err := controlSocket(socket)
			if err != nil {
				return &exitError{exitNotThere, err}
			}
			body, code, err := console.Get(c.Context(), path, "/api/v1/status")
			if err != nil {
				return &exitError{exitNotThere, err}
			}
			if code != http.StatusOK {
				return fmt.Errorf("%s answered %d: %s", path, code, body)
			}
			if err := printStatus(c.OutOrStdout(), body, asJSON); err != nil {
				return err
			}
			if !exitCode {
				return nil
			}
			text, code, err := console.Get(c.Context(), path, "/healthz")
			switch {
			case err != nil:
				return &exitError{exitNotThere, err}
			case code != http.StatusOK:
				return &exitError{exitUnhealthy, errors.New(string(bytes.TrimSpace(text)))}
			}
			return nil
		},
	}
	c.Flags().StringVar(&socket, "socket", "", "control socket (default: the one of the service, or of "+config.DefaultFile+")")
	c.Flags().BoolVar(&asJSON, "json", false, "print the snapshot as JSON")
	c.Flags().BoolVar(&exitCode, "exit-code", false, "exit with 4 when the gateway is not healthy")
	return c
}

// controlSocket finds the socket of the gateway on this machine.
func controlSocket(flag string) (string, error) {
	if flag != "" {
		return flag, nil
	}
	const service = "/run/holdfast/holdfast.sock"
	if _, err := os.Stat(service); err == nil {
		return service, nil
	}
	if cfg, err := config.Load(config.DefaultFile); err == nil {
		return cfg.Control.Socket, nil
	}
	cfg := config.Default()
	cfg.Resolve()
	if _, err := os.Stat(cfg.Control.Socket); err == nil {
		return cfg.Control.Socket, nil
	}
	return "", fmt.Errorf("no gateway found at %s or %s; name its socket with --socket (in its data folder: DIR/%s)",
		service, cfg.Control.Socket, filepath.Base(cfg.Control.Socket))
}

func printStatus(w io.Writer, body []byte, asJSON bool) error {
	if asJSON {
		var out bytes.Buffer
		if err := json.Indent(&out, body, "", "  "); err != nil {
			return fmt.Errorf("status: %w", err)
		}
		_, err := out.WriteTo(forTerminal(w))
		return err
	}
	var s gatewayStatus
	if err := json.Unmarshal(body, &s); err != nil {
		return fmt.Errorf("status: %w", err)
	}
	return s.print(w)
}

// print writes the snapshot for people.
func (s *gatewayStatus) print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	tell(t, "gateway\t%s\t%s, session %d, up %s, clock %s\n", s.Gateway, s.Version, s.Session, seconds(s.Uptime), s.Clock)
	for i := range s.Uplinks {
		printUplink(t, s.Time, &s.Uplinks[i])
	}
	for i := range s.Nodes {
		printNode(t, s.Time, &s.Nodes[i])
	}
	for _, b := range s.Buses {
		tell(t, "port\t%s\t%s", b.Name, b.Supervisor.State)
		if b.Supervisor.Failures > 0 {
			tell(t, ", ended %d times, last: %s", b.Supervisor.Failures, b.Supervisor.LastError)
		}
		fmt.Fprintln(t)
		printLine(t, s.Time, b.Bus)
	}
	for _, d := range s.Devices {
		tell(t, "device\t%s\t%s for %s%s\n", d.Name, d.State, since(s.Time, d.Since), because(d.Reason))
		tell(t, "\t\treadings %d, safe %d, dropped %d; polls good %d, bad %d\n",
			d.Put, d.Acknowledged, d.Dropped+d.Failed, d.Good, d.Bad)
	}
	for i := range s.Servers {
		printServer(t, "modbus server", &s.Servers[i])
	}
	for i := range s.Gateways {
		printServer(t, "modbus gateway", &s.Gateways[i])
	}
	tell(t, "store\t\t%s, %s\n", s.Store.State, s.Store.Path)
	tell(t, "\t\t%d messages, %s in queues; %d retained; file %s; %d commits, %d failed\n",
		s.Store.Messages, size(s.Store.Bytes), s.Store.Retained, size(s.Store.FileBytes), s.Store.Commits, s.Store.CommitErrors)
	b := &s.Broker
	tell(t, "broker\t\t%d clients, %d sessions, %d subscriptions; in %d, out %d messages; refused %d, denied %d, dropped %d\n",
		b.Clients, b.Sessions, b.Subscriptions, b.MessagesIn, b.MessagesOut, b.Refused, b.Denied,
		b.DroppedSlow+b.DroppedQueueFull+b.DroppedTooLarge+b.DroppedExpired+b.DroppedDenied)
	if b.SessionsUnstored > 0 {
		tell(t, "\t\t%d times a session ended with its connection for want of a disk\n", b.SessionsUnstored)
	}
	tell(t, "\t\tconnections refused %d, sent to another server %d, not accepted for want of descriptors %d; too slow and disconnected %d, stuck %d\n",
		b.ConnectsRefused, b.Redirected, b.AcceptErrors, b.TooSlow, b.Stuck)
	a := &s.Access
	tell(t, "access\t%s\t%d users, %d rules; log-ins %d, anonymous %d, failed %d, slowed down %d\n",
		openOrClosed(a.Closed), a.Users, a.Rules, a.Logins, a.Anonymous, a.Failures, a.Throttled)
	if len(s.Problems) == 0 {
		fmt.Fprintln(t, "all well")
	}
	for _, p := range s.Problems {
		tell(t, "problem\t%s\n", p)
	}
	return t.Flush()
}

func printServer(w io.Writer, kind string, s *serverStatus) {
	exceptions := uint64(0)
	for _, n := range s.Exceptions {
		exceptions += n
	}
	if l := s.Line; l != nil {
		tell(w, "%s\t%s\t%s at %s; requests %d, with an exception %d; answers %d, too late %d, broadcasts %d; of others %d, garbled %d\n",
			kind, s.Name, s.Supervisor.State, s.Address, s.Requests, exceptions, l.Answers, l.Late, l.Broadcasts, l.Foreign, l.Garbled)
	} else {
		tell(w, "%s\t%s\t%s at %s; %d connected; requests %d, with an exception %d; turned away %d\n",
			kind, s.Name, s.Supervisor.State, s.Address, s.Connections, s.Requests, exceptions, s.Refused+s.Full)
	}
	if v := s.Values; v != nil {
		tell(w, "\t\tvalues good %d, uncertain %d, bad %d, none yet %d; writes %d, failed %d\n",
			v.Good, v.Uncertain, v.Bad, v.Never, v.Writes, v.WritesFailed)
	}
}

func printNode(w io.Writer, now time.Time, n *sparkplug.Status) {
	tell(w, "sparkplug\t%s\t%s for %s%s; %s/%s at %s, bdSeq %d\n",
		n.Name, n.State, since(now, n.Since), because(n.Reason), n.Group, n.Node, n.URL, n.BirthNumber)
	tell(w, "\t\t%d devices, %d metrics; values sent %d, historical %d, confirmed %d; waiting %d messages, %s\n",
		n.Devices, n.Metrics, n.Live+n.Historical, n.Historical, n.Confirmed, n.BacklogMessages, size(n.BacklogBytes))
	if n.Skipped+n.Refused+n.BadCommand > 0 {
		tell(w, "\t\tmessages without a reading %d, values refused %d, commands refused %d\n", n.Skipped, n.Refused, n.BadCommand)
	}
}

// fieldLine is what people want to know of the status of either adapter.
type fieldLine struct {
	Port *port.Status `json:"port"`
	// Of modbus.Status.
	Load float64 `json:"load"`
	Pace struct {
		Demand float64 `json:"demand"`
	} `json:"pace"`
	Stray uint64 `json:"stray_bytes"`
	Units []struct {
		UnitID    int       `json:"unit_id"`
		State     string    `json:"state"`
		Since     time.Time `json:"since"`
		LastError string    `json:"last_error"`
		Requests  uint64    `json:"requests"`
		Timeouts  uint64    `json:"timeouts"`
		Garbled   uint64    `json:"garbled"`
	} `json:"units"`
	// Of serial.Status.
	Frames     *uint64 `json:"frames"`
	Rejected   uint64  `json:"rejected"`
	Partial    uint64  `json:"partial"`
	Checksum   uint64  `json:"checksum_errors"`
	Resyncs    uint64  `json:"resyncs"`
	Garbage    uint64  `json:"garbage_bytes"`
	LastReject string  `json:"last_reject"`
	Polls      uint64  `json:"polls"`
	NoAnswers  uint64  `json:"no_answers"`
	Late       uint64  `json:"late"`
}

// printLine says how the line itself is: noise and silence are found here, not
// at the device. status has been through JSON; what it does not have is left out.
func printLine(w io.Writer, now time.Time, status any) {
	var l fieldLine
	b, err := json.Marshal(status)
	if err != nil || json.Unmarshal(b, &l) != nil {
		return
	}
	if p := l.Port; p != nil {
		why := p.LastError
		if p.State == "open" {
			why = ""
		}
		tell(w, "\t\t%s %s for %s%s", p.Device, p.State, since(now, p.Since), because(why))
		if lost := p.Unplugged + p.StuckWrites + p.Errors; lost > 0 {
			tell(w, "; unplugged %d times, stuck %d, failed %d", p.Unplugged, p.StuckWrites, p.Errors)
		}
		fmt.Fprintln(w)
	}
	if l.Frames != nil {
		tell(w, "\t\tframes %d, rejected %d, wrong checksum %d, cut short %d; out of step %d times, garbage %d bytes%s\n",
			*l.Frames, l.Rejected, l.Checksum, l.Partial, l.Resyncs, l.Garbage, because(l.LastReject))
		if l.Polls > 0 {
			tell(w, "\t\tasked %d times, no answer %d, answers too late %d\n", l.Polls, l.NoAnswers, l.Late)
		}
		return
	}
	tell(w, "\t\tin use %.0f %% of the time, wanted %.0f %%, stray %d bytes\n", 100*l.Load, 100*l.Pace.Demand, l.Stray)
	for _, u := range l.Units {
		why := u.LastError
		if u.State == "up" {
			why = ""
		}
		tell(w, "\tunit %d\t%s for %s%s; asked %d, no answer %d, garbled %d\n",
			u.UnitID, u.State, since(now, u.Since), because(why), u.Requests, u.Timeouts, u.Garbled)
	}
}

func openOrClosed(closed bool) string {
	if closed {
		return "closed"
	}
	return "open"
}

func because(reason string) string {
	if reason == "" {
		return ""
	}
	return " (" + reason + ")"
}

func since(now, then time.Time) string {
	if then.IsZero() {
		return "ever"
	}
	return now.Sub(then).Round(time.Second).String()
}

func seconds(s float64) string {
	return time.Duration(s * float64(time.Second)).Round(time.Second).String()
}
