package demo

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"
)

// progressEvery is the pause between two progress lines.
const progressEvery = 2 * time.Second

func (d *demo) watchProgress(ctx context.Context) {
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			st, fresh := d.site.status()
			d.report.progress(st, fresh, d.checker.delivered())
		}
	}
}

// await waits for something to become true, at most as long as patience, and
// gives up when a process that must run has ended.
func (d *demo) await(ctx context.Context, what string, patience time.Duration, is func() bool) error {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !is() {
		if err := d.alive(); err != nil {
			return fmt.Errorf("wait for %s: %w", what, err)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-timer.C:
			return fmt.Errorf("waited %v in vain for %s", patience, what)
		case <-tick.C:
		}
	}
	return nil
}

func (d *demo) alive() error {
	errs := []error{running(d.cloud)}
	if d.site != nil {
		errs = append(errs, d.site.alive())
	}
	if d.field != nil {
		select {
		case err := <-d.field.failed:
			errs = append(errs, err)
		default:
		}
	}
	return errors.Join(errs...)
}

// pause lets time pass.
func (d *demo) pause(ctx context.Context, span time.Duration) error {
	end := time.Now().Add(span)
	return d.await(ctx, "time to pass", span+time.Minute, func() bool { return !time.Now().Before(end) })
}

// script is what happens, in order.
func (d *demo) script(ctx context.Context) error {
	cloud := "a second holdfast"
	if d.opts.Cloud != "" {
		cloud = "the broker you named"
	}
	d.report.headline("a gateway with a Modbus meter, a serial sensor and a local publisher; the cloud is %s", cloud)
	if err := d.await(ctx, "the gateway and its devices to come up", 30*time.Second, func() bool {
		_, offline := d.local.state()
		return offline == nil && d.gatewayStates.now() == "online" && d.devicesAre("online")
	}); err != nil {
		return d.explain(err)
	}
	working, stopWork := context.WithCancel(ctx)
	defer stopWork()
	worked := make(chan struct{})
	go func() { // ends with working, and is waited for below
		defer close(worked)
		d.press(working)
	}()
	defer func() { stopWork(); <-worked }()

	d.report.headline("all is well: readings, QoS 1 and QoS 2 go to the cloud, a command comes back")
	d.command()
	if err := d.pause(ctx, 3*time.Second); err != nil {
		return err
	}
	steps := []func(context.Context) error{d.outage, d.firstCut, d.drain, d.secondCut, d.drain}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return d.explain(err)
		}
	}
	stopWork()
	<-worked
	return d.explain(d.finish(ctx))
}

// explain adds to a failure what the parts say.
func (d *demo) explain(err error) error {
	if err == nil || errors.Is(err, context.Canceled) {
		return err
	}
	_, local := d.local.state()
	_, upstream := d.upstream.state()
	st, fresh := d.site.status()
	detail := fmt.Sprintf("uplink %s %s; states at the cloud: gateway %s, %s %s, %s %s", st.uplink().State, st.uplink().Reason,
		&d.gatewayStates, meterName, d.deviceStates[meterName], sensorName, d.deviceStates[sensorName])
	if !fresh {
		detail += "; the gateway does not answer on " + d.site.socket
	}
	if local != nil {
		local = fmt.Errorf("publisher: %w", local)
	}
	if upstream != nil {
		upstream = fmt.Errorf("subscriber at the cloud: %w", upstream)
	}
	return errors.Join(fmt.Errorf("%w (%s)", err, detail), local, upstream)
}

func (d *demo) devicesAre(state string) bool {
	for _, s := range d.deviceStates {
		if s.now() != state {
			return false
		}
	}
	return true
}

// outage unplugs the sensor and lets the meter fall silent, and sees the cloud
// hear of it.
func (d *demo) outage(ctx context.Context) error {
	d.report.headline("the sensor is unplugged, the meter falls silent")
	from := time.Now()
	before := d.site.counters(meterName).Bad
	if err := d.field.sensor.plug.unplug(); err != nil {
		return fmt.Errorf("unplug the sensor: %w", err)
	}
	d.field.meter.slave.SetMute(true)
	if err := d.await(ctx, "the cloud to hear that both devices are not online", 30*time.Second, func() bool {
		for _, s := range d.deviceStates {
			if s.now() == "online" {
				return false
			}
		}
		return true
	}); err != nil {
		return err
	}
	d.report.headline("both are back")
	if err := d.field.sensor.plug.plugIn(); err != nil {
		return fmt.Errorf("plug the sensor in: %w", err)
	}
	d.field.meter.slave.SetMute(false)
	if err := d.await(ctx, "both devices to be online again", time.Minute, func() bool { return d.devicesAre("online") }); err != nil {
		return err
	}
	if err := d.site.poll(ctx); err != nil {
		return fmt.Errorf("ask the gateway after the outage: %w", err)
	}
	d.unheard = d.site.counters(meterName).Bad - before
	d.gap(from, "on its way when the device fell silent", meterName)
	d.gap(from, "said while nobody had the port open", sensorName)
	return nil
}

// gap says that readings of devices may be missing from then until now.
func (d *demo) gap(from time.Time, why string, devices ...string) {
	const margin = time.Second // a reading on its way at either end
	for _, name := range devices {
		d.gaps[name] = append(d.gaps[name], window{from: from.Add(-margin), to: time.Now().Add(margin), why: why})
	}
}

// firstCut freezes the link: nobody is told, both sides must find out.
func (d *demo) firstCut(ctx context.Context) error {
	d.report.headline("the link is cut for %v: nothing passes, nobody is told", d.opts.Cut)
	mark := d.gatewayStates.mark()
	d.cuts = append(d.cuts, window{from: time.Now(), why: "the link was cut"})
	d.relay.Freeze()
	d.command()
	if err := d.pause(ctx, d.opts.Cut); err != nil {
		return err
	}
	return d.restore(ctx, mark)
}

// secondCut resets the link, and kills the gateway in the middle.
func (d *demo) secondCut(ctx context.Context) error {
	d.report.headline("the link is cut again for %v, this time with a reset", d.opts.Cut)
	mark := d.gatewayStates.mark()
	d.cuts = append(d.cuts, window{from: time.Now(), why: "the link was cut and the gateway killed"})
	d.relay.Refuse()
	if err := d.pause(ctx, d.opts.Cut/2); err != nil {
		return err
	}
	d.command()
	// What is polled now is a lower bound of what is acknowledged at the kill.
	if err := d.site.poll(ctx); err != nil {
		return fmt.Errorf("ask the gateway before the kill: %w", err)
	}
	st, _ := d.site.status()
	killed := time.Now()
	if err := d.site.process.kill(); err != nil {
		return err
	}
	d.report.headline("SIGKILL for the gateway, with a backlog of %d; it starts again", st.uplink().Backlog)
	if err := d.site.start(); err != nil {
		return err
	}
	if err := d.await(ctx, "the gateway to be back", 30*time.Second, func() bool {
		again, fresh := d.site.status()
		return fresh && again.device(meterName).Put > 0 && again.device(sensorName).Put > 0
	}); err != nil {
		return err
	}
	// The kill takes what was in memory, at most a window of the store before
	// it, and until the ports are open again nobody listens.
	d.gap(killed.Add(-time.Second), "in memory at the kill, or said while the gateway was down", meterName, sensorName)
	if err := d.pause(ctx, d.opts.Cut-time.Since(d.cuts[len(d.cuts)-1].from)); err != nil {
		return err
	}
	return d.restore(ctx, mark)
}

// restore opens the link; by now the cloud must have heard that the gateway is
// gone, and will hear that it is back.
func (d *demo) restore(ctx context.Context, mark int) error {
	told := d.gatewayStates.since(mark, func(s string) bool { return s == "offline" })
	d.report.headline("the link is back")
	if err := d.relay.Restore(); err != nil {
		return err
	}
	if !told {
		return errors.New("the cloud never heard that the gateway was offline")
	}
	return d.await(ctx, "the cloud to hear that the gateway is online", 30*time.Second, func() bool { return d.gatewayStates.now() == "online" })
}

// drain waits until everything there was has arrived.
func (d *demo) drain(ctx context.Context) error {
	start := time.Now()
	most := int64(0)
	if err := d.await(ctx, "the backlog to drain", time.Minute, func() bool {
		st, fresh := d.site.status()
		u := st.uplink()
		most = max(most, u.Backlog)
		// A handful is always on its way.
		return fresh && u.State == "up" && u.Backlog < 50 && u.OldestSeconds < 2
	}); err != nil {
		return err
	}
	d.report.line("  the backlog of %d is gone after %.1f s", most, time.Since(start).Seconds())
	d.cuts[len(d.cuts)-1].to = time.Now()
	return d.pause(ctx, 2*time.Second)
}

// finish lets everything arrive, counts, and stops the gateway in good order.
func (d *demo) finish(ctx context.Context) error {
	d.report.headline("the publisher stops; the last messages arrive")
	var late error
	if err := d.await(ctx, "the last acknowledgements", 20*time.Second, func() bool {
		return d.strokes.open()+d.energy.open()+d.orders.open() == 0
	}); err != nil {
		late = errors.Join(late, err)
	}
	if err := d.site.poll(ctx); err != nil {
		return fmt.Errorf("ask the gateway before the stop: %w", err)
	}
	acked := map[string]uint64{}
	for name := range points {
		acked[name] = d.site.counters(name).Acknowledged
	}
	// If they do not come, the verdict will say which.
	if err := d.await(ctx, "the last messages", 20*time.Second, func() bool {
		return d.checker.distinct(topicStrokes, 1) >= len(d.strokes.entries().acked) &&
			d.checker.distinct(topicEnergy, 2) >= len(d.energy.entries().acked) &&
			d.commands.distinct(topicCommands, 2) >= len(d.orders.entries().acked) &&
			d.readingsArrived(meterName) >= acked[meterName] && d.readingsArrived(sensorName) >= acked[sensorName]
	}); err != nil {
		if ctx.Err() != nil {
			return err
		}
		late = errors.Join(late, err)
	}
	if late != nil {
		d.report.line("  %v", late)
	}
	mark := d.gatewayStates.mark()
	stopping := time.Now()
	if err := d.site.process.stop(20 * time.Second); err != nil {
		return err
	}
	d.site.process = nil
	if err := d.await(ctx, "the cloud to hear that the gateway has stopped", 10*time.Second, func() bool {
		return d.gatewayStates.since(mark, func(s string) bool { return s == "offline" })
	}); err != nil {
		return err
	}
	d.gap(stopping, "the gateway was stopped", meterName, sensorName)
	return nil
}

// readingsArrived is how many different readings of a device there are.
func (d *demo) readingsArrived(name string) (n uint64) {
	for _, p := range points[name] {
		topic := "sensors/" + name + "/" + p
		n += uint64(d.checker.distinct(topic, 1) + d.checker.distinct(topic+badValue, 1))
	}
	return n
}

// verdict compares what arrived with what was acknowledged.
func (d *demo) verdict() error {
	strokes := d.checker.published(topicStrokes, 1, d.strokes.entries(), d.cuts)
	energy := d.checker.published(topicEnergy, 2, d.energy.entries(), d.cuts)
	orders := d.commands.published(topicCommands, 2, d.orders.entries(), d.cuts)
	orders.what += " (back)"
	rows := []row{strokes, energy}
	for _, name := range []string{meterName, sensorName} {
		rows = append(rows, d.checker.readings(d.device(name), d.cuts))
	}
	rows = append(rows, orders)

	var problems []string
	d.checker.mu.Lock()
	problems = append(problems, d.checker.strange...)
	d.checker.mu.Unlock()
	d.commands.mu.Lock()
	problems = append(problems, d.commands.strange...)
	d.commands.mu.Unlock()
	for what, l := range map[string]*link{"the gateway": d.local, "the cloud": d.upstream} {
		if lost, _ := l.state(); lost > 0 {
			problems = append(problems, fmt.Sprintf("%s forgot a session of ours %d times", what, lost))
		}
	}
	if ns := d.site.sessions(); len(ns) != 2 || ns[1] <= ns[0] {
		problems = append(problems, fmt.Sprintf("the gateway's session numbers were %v, want two that grow", ns))
	}
	notes := []string{"the gateway as the cloud saw it: " + d.gatewayStates.String()}
	for _, name := range []string{meterName, sensorName} {
		notes = append(notes, name+" as the cloud saw it: "+d.deviceStates[name].String())
	}
	bad := d.report.summary(rows, notes, problems)
	d.report.plain("")
	if bad > 0 {
		d.report.plain(d.report.paint(red, "NOT kept: see above"))
		return fmt.Errorf("the demo found %s", count(bad, "problem"))
	}
	d.report.plain(d.report.paint(green, "Kept: nothing acknowledged was lost, QoS 2 came exactly once, order held."))
	return nil
}

// device is what the checker needs to know of a device.
func (d *demo) device(name string) device {
	sum := d.site.counters(name)
	out := device{
		name: name, put: sum.Put, acked: sum.Acknowledged, dropped: sum.Dropped + sum.Failed, gaps: d.gaps[name],
	}
	if name == meterName { // a sensor that speaks by itself cannot answer too late
		out.bad = sum.Bad - d.unheard
	}
	for i, p := range points[name] {
		topic := "sensors/" + name + "/" + p
		if i == len(points[name])-1 {
			out.counter = topic
		} else {
			out.points = append(out.points, topic)
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	out.times = maps.Clone(d.times[name])
	return out
}
