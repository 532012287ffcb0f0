// Command holdfast-bench loads Holdfast and its peers side by side, in turns,
// and prints what each message cost the broker: CPU seconds per million
// messages from the process's own accounting, messages per second, latency and
// resident memory. With a word before the flags it measures something else: store
// (persistent sessions, beside bare SQLite), uplink (the way to a cloud through a
// link, beside Mosquitto's bridge), wear (bytes written to flash), field (Modbus
// devices, beside pymodbus), or is a peer itself: null (the least that a broker can
// cost).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"holdfast/broker/packet"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "holdfast-bench: "+err.Error())
		os.Exit(1)
	}
}

// peerFlag collects --peer NAME=COMMAND.
type peerFlag []peer

func (f *peerFlag) String() string { return "" }

func (f *peerFlag) Set(s string) error {
	name, command, ok := strings.Cut(s, "=")
	if known := knownPeers()[name]; !ok && known != "" {
		command, ok = known, true
	}
	if !ok || name == "" || command == "" {
		return errors.New("expected NAME=COMMAND, with {port} and {dir} in the command")
	}
	*f = append(*f, peer{name: name, command: command})
	return nil
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) > 0 && args[0] == "null" {
		return runNull(ctx, args[1:], stderr)
	}
	if len(args) > 0 && args[0] == "store" {
		return runStore(ctx, args[1:], stdout, stderr)
	}
	if len(args) > 0 && args[0] == "wear" {
		return runWear(ctx, args[1:], stdout, stderr)
	}
	if len(args) > 0 && args[0] == "uplink" {
		return runUplink(ctx, args[1:], stdout, stderr)
	}
	if len(args) > 0 && args[0] == "field" {
		return runField(ctx, args[1:], stdout, stderr)
	}
	fs := flag.NewFlagSet("holdfast-bench", flag.ContinueOnError)
	fs.SetOutput(stderr)
	var peers peerFlag
	fs.Var(&peers, "peer", "NAME=COMMAND that starts a broker on {port} with its data in {dir}, or one of "+
		strings.Join(slices.Sorted(maps.Keys(knownPeers())), ", ")+"; may be repeated")
	mqtt := fs.String("mqtt", "3.1.1", "protocol version, 3.1.1 or 5.0")
	svg := fs.String("svg", "", "write a chart of the CPU per message to this file")
	only := fs.String("only", "", "run the scenarios whose name contains this")
	rounds := fs.Int("rounds", 3, "rounds; the median counts")
	length := fs.Duration("time", 5*time.Second, "length of one measurement")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	if len(peers) == 0 {
		return errors.New("name at least one --peer")
	}
	if *rounds < 1 || *length < 100*time.Millisecond {
		return errors.New("rounds is at least 1 and time at least 100ms")
	}
	v := packet.V311
	switch *mqtt {
	case "3.1.1":
	case "5.0", "5":
		v = packet.V5
	default:
		return fmt.Errorf("mqtt: %q is not 3.1.1 or 5.0", *mqtt)
	}
	var results []result
	for _, sc := range scenarios(*length, v) {
		if !strings.Contains(sc.name, *only) {
			continue
		}
		for round := range *rounds {
			for _, p := range peers { // in turns, so that a busy moment hits all of them
				r, err := measure(ctx, p, sc)
				if err != nil {
					return fmt.Errorf("%s, %s, round %d: %w", sc.name, p.name, round+1, err)
				}
				fmt.Fprintf(stderr, "%-24s %-12s %s\n", sc.name, p.name, r)
				results = append(results, r)
			}
		}
	}
	if err := report(stdout, peers, results); err != nil || *svg == "" {
		return err
	}
	return os.WriteFile(*svg, chart(peers, results), 0o644) //nolint:gosec // for the README
}
