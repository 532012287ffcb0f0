package uplink

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"holdfast/broker/client"
	"holdfast/broker/packet"
	"holdfast/storeforward/uplink/dial"
)

// errReturn gives a connection up for a better way.
var errReturn = errors.New("a better address or interface is well again")

// connect tries the ways to the cloud, each once, until one leads to a session.
func (u *Uplink) connect(ctx context.Context) (*client.Conn, error) {
	var said roundError
	if to := u.referred; to != nil {
		u.referred = nil // honoured once, then home
		conn, err := u.reach(ctx, *to)
		if err == nil || ctx.Err() != nil {
			return conn, err
		}
		said = append(said, err)
	}
	ways := u.order()
	all := !slices.ContainsFunc(ways, func(p dial.Path) bool { return !u.spared(p) })
	for _, p := range ways {
		if s := u.spare[p.Rank]; !all && u.spared(p) {
			said = append(said, s.err)
			continue
		}
		conn, err := u.reach(ctx, p)
		if to := u.referral(p, err); to != nil {
			said = append(said, err)
			conn, err = u.reach(ctx, *to)
		}
		if err == nil {
			return conn, nil
		}
		said = append(said, err)
		if ctx.Err() != nil {
			break
		}
		u.spareFor(p, err)
	}
	if len(said) == 1 {
		return nil, said[0]
	}
	return nil, said
}

// order is that of the next attempts.
func (u *Uplink) order() []dial.Path {
	paths := u.dialer.Paths()
	if u.opts.Failover != dial.FailoverRoundRobin {
		return paths
	}
	next := u.turn % len(paths)
	return slices.Concat(paths[next:], paths[:next])
}

// sparing is a way not to be tried for a while: its cloud has refused us, and
// wrong passwords in short order make things worse there. The others need not
// wait for that.
type sparing struct {
	until time.Time
	err   error
}

func (u *Uplink) spared(p dial.Path) bool { return time.Now().Before(u.spare[p.Rank].until) }

func (u *Uplink) spareFor(p dial.Path, err error) {
	delete(u.spare, p.Rank)
	if kind := classify(err); kind == classPerson || kind == classPatience {
		b := newBackoff(u.opts.ReconnectMin, u.opts.ReconnectMax)
		u.spare[p.Rank] = sparing{time.Now().Add(b.long()), err}
	}
}

// home is the way of the configuration that the one in use stands for: the same
// unless the cloud has sent us elsewhere.
func (u *Uplink) home() dial.Path { return u.dialer.Paths()[u.at.Rank] }

// referral is the way the cloud at p sends us, nil for none.
func (u *Uplink) referral(p dial.Path, err error) *dial.Path {
	reference := referral(err)
	if reference == "" {
		return nil
	}
	to, bad := p.Refer(reference)
	if bad != nil {
		u.log.Warn("cloud sends us elsewhere, but not where to", "err", bad)
		return nil
	}
	u.log.Info("cloud sends us elsewhere", "from", p.String(), "to", to.String(), "err", err)
	p.Target = to
	return &p
}

// reach makes one attempt on one way, and remembers it as the one in use.
func (u *Uplink) reach(ctx context.Context, p dial.Path) (*client.Conn, error) {
	u.mu.Lock()
	u.at = p
	u.status.URL, u.status.Interface = p.Target.String(), p.Interface
	u.status.OwnCertificate, u.status.CloudCertificate = certificateStatus(u.status.OwnCertificate, nil), nil
	u.mu.Unlock()
	u.turn = p.Rank + 1
	proto := u.protocols[p.Address()]
	if proto == nil {
		if len(u.protocols) > 2*len(u.dialer.Paths()) { // referred to many
			clear(u.protocols)
		}
		first := newProtocol(&u.opts)
		proto = &first
		u.protocols[p.Address()] = proto
	}
	conn, err := u.open(ctx, p, proto)
	if err != nil {
		if ctx.Err() == nil {
			u.mu.Lock()
			u.status.ConnectFailures++
			u.budget.add(connectBytes)
			u.mu.Unlock()
		}
		if p.Interface != "" {
			err = fmt.Errorf("via %s: %w", p.Interface, err)
		}
	}
	return conn, err
}

// scout watches the better ways while the connection uses at, and returns true
// when the connection is to move to one of them: it has let us through for
// return_after. It goes as far as TLS or WebSocket: a CONNECT would take our
// session over.
func (u *Uplink) scout(ctx context.Context, at dial.Path, patience time.Duration) bool {
	if u.opts.Failover != dial.FailoverPrimary || patience == 0 || at.Rank == 0 {
		return false
	}
	better := u.dialer.Paths()[:at.Rank]
	often := max(patience/scoutings, scoutMin)
	pause := often
	well := make([]time.Time, len(better)) // since when; zero is not
	timer := time.NewTimer(pause)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-ctx.Done():
			return false
		}
		now := time.Now()
		found := false
		for i, p := range better {
			if err := u.probe(ctx, p); err != nil {
				well[i] = time.Time{}
				continue
			}
			found = true
			if well[i].IsZero() {
				well[i] = now
			}
			if now.Sub(well[i]) >= patience {
				u.log.Info("uplink moves back", "from", at.String(), "to", p.String(), "well_for", now.Sub(well[i]))
				return true
			}
			break // one that is less wanted need not be asked
		}
		// A way that stays dead is asked less and less: it costs traffic.
		if pause = min(2*pause, scoutLazy*often); found {
			pause = often
		}
		timer.Reset(pause)
	}
}

const (
	scoutings = 5                // of a way that is well, before the move
	scoutMin  = 10 * time.Second // between two
	scoutLazy = 10               // times that, for one that stays dead
)

func (u *Uplink) probe(ctx context.Context, p dial.Path) error {
	ctx, cancel := context.WithTimeout(ctx, u.opts.ConnectTimeout)
	defer cancel()
	c, err := u.dialer.Dial(ctx, p)
	if err != nil {
		return err
	}
	u.spent(c.Wire())
	return c.Close()
}

// spent counts what went over the wire beside a session: attempts that came to
// nothing, and looks at better ways.
func (u *Uplink) spent(in, out uint64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.status.BytesIn += in
	u.status.BytesOut += out
	u.budget.add(connectBytes + in + out)
}

// mark names the cloud session that the way in use leads to. Packet ids kept
// under another mark mean nothing to this cloud: failover and back, another
// client id, a database of another machine or time. A cluster that shares
// sessions is one cloud, by whatever address.
func (u *Uplink) mark() string {
	addresses := []string{u.at.Address()}
	if u.opts.SharedSession {
		for _, p := range u.dialer.Paths() {
			if !slices.Contains(addresses, p.Address()) {
				addresses = append(addresses, p.Address())
			}
		}
		slices.Sort(addresses)
	}
	return strings.Join(addresses, ",") + u.markEnd()
}

func (u *Uplink) markEnd() string { return "|" + u.opts.clientID() + "|" + u.opts.Epoch }

// remembers says whether m is of the session that the way in use leads to.
func (u *Uplink) remembers(m memory) bool {
	if !u.opts.SharedSession {
		return m.Mark == u.mark()
	}
	addresses, ok := strings.CutSuffix(m.Mark, u.markEnd())
	if !ok {
		return false
	}
	here, _ := strings.CutSuffix(u.mark(), u.markEnd())
	ours := strings.Split(here, ",")
	return slices.ContainsFunc(strings.Split(addresses, ","), func(a string) bool { return slices.Contains(ours, a) })
}

// open makes the attempt: CONNECT on the way p. When the cloud does not know
// 5.0 it is asked again at once for 3.1.1; that it took this is remembered.
func (u *Uplink) open(ctx context.Context, p dial.Path, proto *protocol) (conn *client.Conn, err error) {
	var opened []*dial.Conn
	defer func() {
		if conn != nil {
			opened = opened[:len(opened)-1] // counted while it lasts
		}
		for _, c := range opened {
			u.spent(c.Wire())
		}
	}()
	o := u.clientOptions(p, !u.remembers(u.recall()), func(c *dial.Conn) { opened = append(opened, c) })
	o.Version = proto.version
	conn, err = client.Dial(ctx, proto.humble(o))
	if proto.learn(err) {
		conn, err = client.Dial(ctx, proto.humble(o))
	}
	if err == nil {
		proto.fixed = true
		return conn, nil
	}
	if proto.fixed || !proto.unknown(err) {
		return nil, err
	}
	o.Version = packet.V311
	conn, again := client.Dial(ctx, o)
	if again != nil {
		return nil, fmt.Errorf("%w (5.0 before that: %w)", again, err)
	}
	*proto = protocol{version: packet.V311, fixed: true}
	u.log.Info("cloud speaks 3.1.1, not 5.0", "err", err)
	for i := range u.opts.Routes {
		if u.opts.Routes[i].Direction == DirectionBoth {
			u.log.Warn("route of both directions without no-local: own messages come back once", "topic", u.opts.Routes[i].Filter)
		}
	}
	return conn, nil
}

// learn says whether the cloud has refused our will for what it does not have,
// and would take a humbler one.
func (p *protocol) learn(err error) bool {
	refusal, ok := errors.AsType[*client.ConnackError](err)
	switch {
	case !ok:
		return false
	case refusal.Reason == packet.ReasonRetainNotSupported && !p.noRetain:
		p.noRetain = true
	case refusal.Reason == packet.ReasonQoSNotSupported && !p.noQoS:
		p.noQoS = true
	default:
		return false
	}
	return true
}

// humble takes from the will what the cloud has refused.
func (p *protocol) humble(o client.Options) client.Options {
	if o.Will == nil {
		return o
	}
	will := *o.Will
	will.Retain = will.Retain && !p.noRetain
	if p.noQoS {
		will.QoS = 0
	}
	o.Will = &will
	return o
}
