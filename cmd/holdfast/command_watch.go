package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"holdfast/broker/client"
	"holdfast/broker/packet"
	"holdfast/cmd/holdfast/config"
	"holdfast/storeforward/uplink/dial"
)

type watchOptions struct {
	dial.Options
	username, passwordFile, gateway string
	json, once, exitCode            bool
	settle                          time.Duration
}

func watchCommand() *cobra.Command {
	o := watchOptions{Options: dial.DefaultOptions()}
	cmd := &cobra.Command{
		Use:   "watch URL",
		Short: "Follow gateways at a cloud's broker: who is alive, and since when",
		Long: `Follow any number of gateways at a broker that they are connected to, and say who
is alive: first how things are, then each change.

A device is reachable if its gateway is online, it is itself, and both tell of the
same session. A gateway that dies says so by its will; its devices are unreachable
from then on, without a message of theirs.

The URL is mqtt://, mqtts://, ws:// or wss://; a user name may stand in it.`,
		Example: `  holdfast watch mqtts://broker.example.com --username ops --password-file ~/.mqtt
  holdfast watch mqtt://127.0.0.1 --once --exit-code`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			o.URL = args[0]
			if u, err := url.Parse(o.URL); err == nil && u.User != nil {
				if o.username == "" {
					o.username = u.User.Username()
				}
				u.User = nil
				o.URL = u.String()
			}
			if err := o.Options.Validate(); err != nil {
				return &exitError{exitUsage, errors.New(strings.TrimPrefix(err.Error(), "uplink."))}
			}
			return watch(c.Context(), &o, c.OutOrStdout(), c.ErrOrStderr())
		},
	}
	f := cmd.Flags()
	f.StringVarP(&o.username, "username", "u", "", "user name")
	f.StringVar(&o.passwordFile, "password-file", "", "file with the password")
	f.StringVar(&o.CAFile, "ca-file", "", "certificates to check the broker's against (PEM)")
	f.StringVar(&o.CertFile, "cert-file", "", "our own certificate (PEM)")
	f.StringVar(&o.KeyFile, "key-file", "", "and its key")
	f.StringVar(&o.gateway, "gateway", "+", "one gateway only")
	f.BoolVar(&o.json, "json", false, "a JSON object a line")
	f.BoolVar(&o.once, "once", false, "say how things are, and end")
	f.BoolVar(&o.exitCode, "exit-code", false, fmt.Sprintf("with --once: end with %d unless all are online", exitUnhealthy))
	f.DurationVar(&o.settle, "settle", time.Second, "with --once: how long to wait for what the broker has kept")
	return cmd
}

// maxWatchPause is the longest pause between connections.
const maxWatchPause = time.Minute

func watch(ctx context.Context, o *watchOptions, out, errs io.Writer) error {
	password := ""
	if o.passwordFile != "" {
		b, err := os.ReadFile(o.passwordFile)
		if err != nil {
			return fmt.Errorf("password: %w", err)
		}
		password = strings.TrimRight(string(b), "\r\n")
	}
	dialer := dial.New(o.Options)
	f := new(gateways)
	show := shownAlive(out, o.json)
	pause := time.Second
	for first := true; ; first = false {
		began := time.Now()
		err := watchOnce(ctx, o, dialer, password, f, func(ls []alive) error {
			if o.once {
				return nil
			}
			return show(ls)
		})
		if ctx.Err() != nil {
			break // asked to end
		}
		switch {
		case o.once && err == nil:
			if err := show(f.all()); err != nil {
				return err
			}
			for _, l := range f.all() {
				if o.exitCode && l.State != stateOnline {
					return &exitError{code: exitUnhealthy}
				}
			}
			return nil
		case first || o.once:
			return err
		}
		if time.Since(began) > maxWatchPause {
			pause = time.Second // it had held
		}
		tell(errs, "connection lost: %s; again in %s\n", err, pause)
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, maxWatchPause)
	}
	return nil //nolint:nilerr // it was asked to end
}

// watchOnce is one connection.
func watchOnce(ctx context.Context, o *watchOptions, dialer *dial.Dialer, password string, f *gateways, changed func([]alive) error) error {
	path := dialer.Paths()[0]
	conn, err := client.Dial(ctx, client.Options{
		URL: "mqtt://" + path.Address(), Username: o.username, Password: password, CleanStart: true, KeepAlive: time.Minute,
		Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			c, err := dialer.Dial(ctx, path)
			if err != nil {
				return nil, err // not a nil *dial.Conn
			}
			return c, nil
		},
	})
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	subscribed := make(chan struct{}, 1) // once is enough
	var settled atomic.Bool
	if o.once {
		wg.Go(func() {
			select {
			case <-subscribed:
			case <-ctx.Done():
				return
			}
			select {
			case <-time.After(o.settle):
				settled.Store(true)
				_ = conn.Close(ctx, packet.ReasonSuccess)
			case <-ctx.Done():
			}
		})
	}
	subscribe := &packet.Subscribe{PacketID: 1, Filters: []packet.Filter{
		{Filter: config.GatewayStatusTopic(o.gateway), QoS: 1},
		{Filter: config.DeviceStatusTopic(o.gateway, "+"), QoS: 1},
	}}
	if err := conn.Queue(subscribe); err != nil {
		return err
	}
	conn.Flush()
	err = conn.Run(ctx, func(p packet.Packet) error {
		switch p := p.(type) {
		case *packet.Suback:
			for i, r := range p.Reasons[:min(len(p.Reasons), len(subscribe.Filters))] {
				if r.Failed() {
					return fmt.Errorf("the broker refuses %s: %v", subscribe.Filters[i].Filter, r)
				}
			}
			select {
			case subscribed <- struct{}{}:
			default:
			}
		case *packet.Publish:
			if err := changed(f.follow(string(p.Topic), p.Payload)); err != nil {
				return err
			}
			if p.QoS == 1 {
				return conn.Queue(&packet.Puback{PacketID: p.PacketID})
			}
		}
		return nil
	})
	if settled.Load() {
		return nil
	}
	return err
}

// shownAlive returns what prints lines.
func shownAlive(out io.Writer, asJSON bool) func([]alive) error {
	if asJSON {
		enc := json.NewEncoder(forTerminal(out))
		return func(ls []alive) error {
			for _, l := range ls {
				if err := enc.Encode(l); err != nil {
					return err
				}
			}
			return nil
		}
	}
	return func(ls []alive) error {
		t := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
		for _, l := range ls {
			name := l.Gateway
			if l.Device != "" {
				name += "/" + l.Device
			}
			when := ""
			if !l.Since.IsZero() {
				when = "since " + l.Since.Local().Format("2006-01-02 15:04:05")
			}
			tell(t, "%s\t%s\t%s%s\n", name, l.State, when, because(l.Reason))
		}
		return t.Flush()
	}
}
