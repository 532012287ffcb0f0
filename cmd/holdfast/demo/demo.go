package demo

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"holdfast/broker/packet"
	"holdfast/storeforward/uplink/relaytest"
)

// Options say what the demo runs with. Binary and Out are needed.
type Options struct {
	// Binary is the holdfast executable, for the gateway and the cloud.
	Binary string
	// Cloud is the URL of a broker to use as the cloud, mqtt://host:1883 or
	// mqtts://host:8883; empty means a second holdfast.
	Cloud string
	// Keep leaves the files and logs where they are, and says where.
	Keep bool
	// Out gets the report, Colour says that it is a terminal.
	Out    io.Writer
	Colour bool
	// Cut is how long the link is cut, each time; 0 means 20 s.
	Cut time.Duration
}

// defaultCut is long enough for the cloud to notice by itself (keep alive 5 s,
// will delay 1 s) and for a backlog one can see.
const defaultCut = 20 * time.Second

// demo is one run.
type demo struct {
	opts   Options
	report reporter
	dir    string
	logs   string
	prefix string // of the topics at the cloud, ends in a slash

	cloudURL string
	cloud    *process // nil with --cloud
	relay    *relaytest.Relay
	site     *site
	field    *field

	checker  *checker // at the cloud
	commands *checker // at the local broker
	upstream *link    // the subscriber at the cloud; it also gives the commands
	local    *link    // the publisher at the gateway; it also takes the commands
	strokes  journal
	energy   journal
	orders   journal

	gatewayStates states
	deviceStates  map[string]*states

	mu    sync.Mutex
	times map[string]map[uint64]time.Time // guarded by mu; device to number to when it was read

	cuts []window            // the script's
	gaps map[string][]window // the script's; by device

	// unheard is how many requests were in vain while the meter was silent.
	unheard uint64 // the script's

	cleanups []func(context.Context) error // in the order of the start
	wg       sync.WaitGroup                // goroutines that end with the run's context
}

// Run runs the demo. The error says what failed, or that something acknowledged
// was lost, doubled or out of order; it is the context's cause when that ends
// first. When Run returns, everything it has started has ended and its files are
// gone, except the logs of the two processes when something failed.
func Run(ctx context.Context, opts Options) (err error) {
	if opts.Cut == 0 {
		opts.Cut = defaultCut
	}
	d := &demo{
		opts: opts, report: reporter{out: opts.Out, start: time.Now(), colour: opts.Colour},
		checker: newChecker(), commands: newChecker(),
		deviceStates: map[string]*states{meterName: {}, sensorName: {}},
		times:        map[string]map[uint64]time.Time{meterName: {}, sensorName: {}},
		gaps:         map[string][]window{},
	}
	life, end := context.WithCancel(ctx)
	defer func() {
		end()
		d.wg.Wait()
		err = errors.Join(err, d.cleanUp(context.WithoutCancel(ctx), err))
	}()
	if err := d.start(life); err != nil {
		return err
	}
	if err := d.script(life); err != nil {
		return err
	}
	return d.verdict()
}

// start brings everything up but the devices' first readings.
func (d *demo) start(ctx context.Context) error {
	token := make([]byte, 3)
	_, _ = rand.Read(token) // never fails
	id := "demo-" + hex.EncodeToString(token)
	d.prefix = "holdfast-" + id + "/"
	var err error
	if d.dir, err = os.MkdirTemp("", "holdfast-demo-"); err != nil {
		return fmt.Errorf("temporary folder: %w", err)
	}
	if d.logs, err = os.MkdirTemp("", "holdfast-demo-logs-"); err != nil {
		return fmt.Errorf("temporary folder: %w", err)
	}
	cloud, err := d.startCloud()
	if err != nil {
		return err
	}
	if d.relay, err = relaytest.New(ctx, cloud.Host, relaytest.Options{}); err != nil {
		return err
	}
	d.cleanups = append(d.cleanups, func(context.Context) error { d.relay.Close(); return nil })

	d.upstream = newLink(d.cloudURL, id+"-checker", []packet.Filter{
		{Filter: d.prefix + "sensors/#", QoS: 1},
		{Filter: d.prefix + "meters/#", QoS: 2},
		{Filter: "holdfast/" + id + "/#", QoS: 1},
	}, d.arrived)
	subscribed := make(chan struct{})
	d.wg.Go(func() { d.upstream.run(ctx, subscribed) })
	if err := d.await(ctx, "the cloud at "+cloud.Host, 20*time.Second, func() bool {
		select {
		case <-subscribed:
			return true
		default:
			return false
		}
	}); err != nil {
		_, why := d.upstream.state()
		return errors.Join(err, why)
	}
	if d.site, err = newSite(id, d.opts.Binary, d.dir, d.logs, d.prefix, d.relay.Address(), cloud); err != nil {
		return err
	}
	if d.opts.Cloud != "" {
		d.cleanups = append(d.cleanups, d.forgetCloud)
	}
	fieldCtx, unplug := context.WithCancel(ctx)
	if d.field, err = startField(fieldCtx, d.site.meterPort(), d.site.sensorPort()); err != nil {
		unplug()
		return err
	}
	d.cleanups = append(d.cleanups, func(context.Context) error { unplug(); return d.field.close() })
	if err := d.site.start(); err != nil {
		return err
	}
	d.cleanups = append(d.cleanups, func(context.Context) error { return d.site.process.stop(20 * time.Second) })
	d.wg.Go(func() { d.site.watch(ctx) })
	d.local = newLink("mqtt://"+d.site.address, "press", []packet.Filter{{Filter: topicCommands, QoS: 2}}, d.ordered)
	d.wg.Go(func() { d.local.run(ctx, nil) })
	d.wg.Go(func() { d.watchProgress(ctx) })
	return nil
}

// startCloud starts a second holdfast, or takes the user's broker.
func (d *demo) startCloud() (*url.URL, error) {
	d.cloudURL = d.opts.Cloud
	if d.opts.Cloud == "" {
		address, err := freeAddress()
		if err != nil {
			return nil, err
		}
		d.cloudURL = "mqtt://" + address
		d.cloud, err = startProcess("cloud", d.opts.Binary, filepath.Join(d.logs, "cloud.log"), nil,
			"run", "--listen", "tcp://"+address, "--data", filepath.Join(d.dir, "cloud"))
		if err != nil {
			return nil, err
		}
		d.cleanups = append(d.cleanups, func(context.Context) error { return d.cloud.stop(20 * time.Second) })
	}
	u, err := url.Parse(d.cloudURL)
	if err != nil || u.Hostname() == "" { // the error repeats the URL, password and all
		return nil, errors.New("--cloud: expected something like mqtt://host:1883")
	}
	if u.Port() == "" {
		port := "1883"
		switch u.Scheme {
		case "mqtts", "ssl", "tls":
			port = "8883"
		}
		u.Host = net.JoinHostPort(u.Hostname(), port)
	}
	return u, nil
}

// forgetCloud leaves nothing behind at a broker that is not ours.
func (d *demo) forgetCloud(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	status := "holdfast/" + d.site.id
	return errors.Join(
		forget(ctx, d.cloudURL, d.site.id, nil),
		forget(ctx, d.cloudURL, d.site.id+"-checker", []string{
			status + "/status", status + "/device/" + meterName + "/status", status + "/device/" + sensorName + "/status",
		}))
}

// cleanUp ends what is left in the reverse order of the start; failed is why
// the run ended.
func (d *demo) cleanUp(ctx context.Context, failed error) error {
	var errs []error
	for _, undo := range slices.Backward(d.cleanups) {
		errs = append(errs, undo(ctx))
	}
	err := errors.Join(errs...)
	interrupted := errors.Is(failed, context.Canceled)
	switch {
	case d.dir == "" || d.logs == "":
	case d.opts.Keep:
		d.report.plain("files: " + d.dir + "\nlogs:  " + d.logs)
		return err
	case (failed != nil || err != nil) && !interrupted:
		d.report.plain("logs of the two processes: " + d.logs)
	default:
		err = errors.Join(err, os.RemoveAll(d.logs))
	}
	if d.dir != "" {
		err = errors.Join(err, os.RemoveAll(d.dir))
	}
	return err
}

// freeAddress is a loopback address nobody listens on just now.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // nothing to wait for
	if err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	return l.Addr().String(), l.Close()
}
