package storeforward

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"holdfast/broker/durable"
)

// cut cuts the power in the middle of what the store is doing.
func (w *world) cut() error {
	w.disk.CutAfter(w.c.pick(30, "calls"))
	for range w.c.pick(6, "steps before the cut") {
		w.step()
	}
	old := w.s
	next := w.disk.Cut(w.r)
	w.countOmitted()
	w.pump()
	w.epoch++
	w.cuts++
	w.disconnectAll()
	_ = old.Close() // its disk is gone
	w.disk.Unplug()
	w.disk = next
	w.unknown()
	return w.open()
}

// restart closes the store properly and opens it again.
func (w *world) restart() error {
	w.disk.Heal()
	w.countOmitted()
	if err := w.s.Close(); err != nil {
		return fmt.Errorf("close: %w", err)
	}
	w.pump()
	w.epoch++
	w.disconnectAll()
	w.unknown()
	return w.open()
}

// countOmitted: what a policy leaves out of a queue is counted durably with the
// next commit only, since nothing of it is written.
func (w *world) countOmitted() {
	for _, p := range w.peers {
		p.omitted += w.dropped(p)[reasonNewest] - p.before
	}
}

func (w *world) disconnectAll() {
	for _, p := range w.peers {
		p.conn = nil
		clear(p.unanswered)
		clear(p.answered)
	}
}

// unknown: what was under way may have been done or not.
func (w *world) unknown() {
	if w.wills.last != w.wills.acked {
		w.wills.last = w.wills.acked + 2 // either way from now on
		w.wills.acked += 2
		w.wills.last++
	}
}

// drain connects everybody and lets everything arrive.
func (w *world) drain() error {
	w.disk.Heal()
	time.Sleep(2 * reserveEvery) //nolint:forbidigo // the bubble's time
	if w.damaged {
		time.Sleep(2 * repairEvery) //nolint:forbidigo // the bubble's time
	}
	for _, p := range w.peers {
		if p.conn != nil && w.c.pick(2, "stay") == 0 {
			continue // as it is, with what it has been promised to be told
		}
		p.conn = w.connect(p, 50)
		if err := w.s.Attach(p.q, p.conn); err != nil {
			return err
		}
	}
	for range 400 {
		w.pump()
		left := int64(0)
		for _, p := range w.peers {
			for p.conn.read(1) || p.conn.read(2) {
				continue
			}
			for range 60 {
				p.conn.send1()
				p.conn.send2()
			}
			n, _ := w.s.Backlog(p.q)
			left += n
		}
		for _, p := range w.pubs {
			for id, e := range p.out {
				if e.received && !e.waiting {
					w.release(p, id, e)
				} else if !e.received && !e.waiting {
					w.publish2(p, id, e)
				}
				left++
			}
		}
		w.settleAll()
		time.Sleep(w.opts.CommitWindow + w.opts.MinCommitInterval + time.Millisecond) //nolint:forbidigo // the bubble's time
		w.settleAll()
		if left == 0 {
			return nil
		}
	}
	return fmt.Errorf("the backlog does not drain: %+v", w.s.Status())
}

// verdict says what was promised and not kept.
func (w *world) verdict() error {
	missing := map[*peer][]string{}
	for _, p := range w.pubs {
		for _, m := range p.sent {
			for _, to := range m.to {
				n := to.got[m.payload]
				if m.acked && n == 0 {
					missing[to] = append(missing[to], m.payload)
				}
				if m.qos == 2 && n > 1 {
					w.failf("%s came to %s %d times with QoS 2", m.payload, to.name, n)
				}
			}
		}
	}
	w.countOmitted()
	w.checkStates()
	w.checkDeadLetters(missing)
	for _, p := range w.peers {
		d := w.dropped(p)
		w.drops += p.omitted + d[reasonOldest] + d[reasonThin]
		licence := p.omitted + d[reasonOldest] + d[reasonThin]
		if p.policy.Policy == "" || p.policy.Policy == durable.PolicyRefuse || p.policy.Policy == durable.PolicyWait {
			licence = 0
		}
		licence += d[reasonAge]
		if list := missing[p]; uint64(len(list)) > licence {
			w.failf("lost: %v to %s were acknowledged and never came; %d were dropped by policy %q", list, p.name, licence, p.policy.Policy)
		}
		for payload := range p.unanswered {
			w.failf("%s was sent to %s, not answered, and did not come again", payload, p.name)
		}
	}
	return errors.Join(w.errs...)
}

// checkDeadLetters: what the cloud has refused is kept. What it has only refused and
// is not, is missing: a power cut may have taken the refusal back.
func (w *world) checkDeadLetters(missing map[*peer][]string) {
	kept, payloads := map[durable.Seq]bool{}, map[string]bool{}
	cloud := w.peers[0]
	err := w.s.DeadLetters(context.Background(), cloud.q, func(d DeadLetter) error {
		kept[d.Seq] = true
		payloads[strings.TrimRight(string(d.Message.Payload), ".")] = true
		if d.Code != 0x99 || d.Message.Topic == "" {
			return fmt.Errorf("dead letter %+v", d)
		}
		return nil
	})
	if err != nil {
		w.failf("dead letters: %v", err)
	}
	for _, lane := range []*peer{cloud, w.lanes.alarms, w.lanes.latest} {
		for _, seq := range lane.refused {
			if !kept[seq] {
				w.failf("lost: dead letter %d", seq)
			}
		}
		for _, p := range w.pubs {
			for _, m := range p.sent {
				if m.acked && lane.rejected[m.payload] && !payloads[m.payload] {
					missing[lane] = append(missing[lane], m.payload+" (only refused)")
				}
			}
		}
	}
}

// run is one life: steps, cuts, restarts, and at the end everything must have
// arrived.
func (w *world) run() (err error) {
	if err := w.open(); err != nil {
		return err
	}
	if err := w.populate(); err != nil {
		return err
	}
	defer func() {
		if w.s != nil {
			_ = w.s.Close()
			w.disk.Unplug()
		}
	}()
	for range 3 + w.c.pick(3, "cuts") {
		for range w.c.pick(40, "steps") {
			w.step()
		}
		var err error
		if w.c.pick(6, "restart") == 0 {
			err = w.restart()
		} else {
			err = w.cut()
		}
		if err != nil {
			return errors.Join(append(w.errs, err)...)
		}
	}
	for range w.c.pick(20, "last steps") {
		w.step()
	}
	if err := w.drain(); err != nil {
		return errors.Join(append(w.errs, err)...)
	}
	return w.verdict()
}
