package uplink

import (
	"container/heap"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/broker/client"
	"holdfast/broker/packet"
	"holdfast/storeforward/uplink/dial"
)

// Every failure has its class: how soon, and who can help.
func TestClassesOfFailures(t *testing.T) {
	connack := func(r packet.ReasonCode) error {
		return fmt.Errorf("connect: %w", &client.ConnackError{Reason: r})
	}
	gone := func(r packet.ReasonCode) error { return &client.DisconnectError{Reason: r} }
	alert := &net.OpError{Op: "remote error", Err: errors.New("tls: expired certificate")}
	tests := map[string]struct {
		err   error
		want  class
		state State
	}{
		"network down":             {errDown, classSoon, StateBackingOff},
		"refused by TCP":           {syscall.ECONNREFUSED, classSoon, StateBackingOff},
		"reset":                    {fmt.Errorf("read: %w", syscall.ECONNRESET), classEnded, StateBackingOff},
		"end":                      {fmt.Errorf("read: %w", io.EOF), classEnded, StateBackingOff},
		"no PINGRESP":              {client.ErrKeepAlive, classSoon, StateBackingOff},
		"no acknowledgements":      {errStuck, classSoon, StateBackingOff},
		"CONNACK unspecified":      {connack(0x80), classSoon, StateBackingOff},
		"CONNACK unavailable":      {connack(0x88), classEnded, StateBackingOff},
		"CONNACK busy":             {connack(0x89), classPatience, StateBackingOff},
		"CONNACK quota":            {connack(0x97), classPatience, StateBackingOff},
		"CONNACK rate":             {connack(0x9F), classPatience, StateBackingOff},
		"CONNACK elsewhere":        {connack(0x9C), classEnded, StateBackingOff},
		"CONNACK version":          {connack(0x84), classPerson, StateAuthRefused},
		"CONNACK client id":        {connack(0x85), classPerson, StateAuthRefused},
		"CONNACK password":         {connack(0x86), classPerson, StateAuthRefused},
		"CONNACK not authorized":   {connack(0x87), classPerson, StateAuthRefused},
		"CONNACK banned":           {connack(0x8A), classPerson, StateAuthRefused},
		"CONNACK method":           {connack(0x8C), classPerson, StateAuthRefused},
		"CONNACK retain":           {connack(0x9A), classPerson, StateAuthRefused},
		"CONNACK QoS":              {connack(0x9B), classPerson, StateAuthRefused},
		"DISCONNECT shutting down": {gone(0x8B), classEnded, StateBackingOff},
		"DISCONNECT taken over":    {gone(0x8E), classTwin, StateBackingOff},
		"DISCONNECT admin":         {gone(0x98), classPatience, StateBackingOff},
		"DISCONNECT rate":          {gone(0x96), classPatience, StateBackingOff},
		"DISCONNECT connect time":  {gone(0xA0), classEnded, StateBackingOff},
		"DISCONNECT keep alive":    {gone(0x8D), classSoon, StateBackingOff},
		"DISCONNECT not allowed":   {gone(0x87), classPerson, StateAuthRefused},
		"proxy":                    {fmt.Errorf("proxy: %w", dial.ErrProxyLogin), classPerson, StateAuthRefused},
		"unknown authority":        {x509.UnknownAuthorityError{}, classPerson, StateCertificate},
		"another name":             {x509.HostnameError{Certificate: &x509.Certificate{}}, classPerson, StateCertificate},
		"ours is refused":          {fmt.Errorf("read CONNACK: %w", alert), classPerson, StateCertificate},
		"the best of two":          {roundError{connack(0x87), errDown}, classSoon, StateAuthRefused},
		"two without hope":         {roundError{connack(0x87), connack(0x86)}, classPerson, StateAuthRefused},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := classify(tt.err); got != tt.want {
				t.Errorf("class %d, want %d", got, tt.want)
			}
			if got := (&Uplink{}).stateAfter(tt.err, time.Now()); got != tt.state {
				t.Errorf("state %s, want %s", got, tt.state)
			}
		})
	}
}

func TestPausesByClass(t *testing.T) {
	o := DefaultOptions()
	busy := &client.ConnackError{Reason: packet.ReasonServerBusy}
	tests := map[string]struct {
		err         error
		held        time.Duration
		least, most time.Duration
	}{
		"an attempt that failed":         {errDown, -1, o.ReconnectMin, 3 * o.ReconnectMin},
		"a link that broke":              {client.ErrKeepAlive, time.Hour, o.ReconnectMin, 3 * o.ReconnectMin},
		"ended by the cloud, held":       {io.EOF, time.Hour, o.ReconnectMin, o.ReconnectSpread},
		"ended by the cloud, soon":       {io.EOF, time.Second, o.ReconnectMin, 3 * o.ReconnectMin},
		"an attempt the cloud hung up":   {io.EOF, -1, o.ReconnectMin, 3 * o.ReconnectMin},
		"busy":                           {busy, -1, o.ReconnectMax / 2, o.ReconnectMax},
		"refused":                        {&client.ConnackError{Reason: packet.ReasonNotAuthorized}, -1, o.ReconnectMax / 2, o.ReconnectMax},
		"taken over":                     {&client.DisconnectError{Reason: packet.ReasonSessionTakenOver}, time.Hour, o.ReconnectMax / 2, o.ReconnectMax},
		"no acknowledgements, the store": {errStore, 10 * time.Second, o.ReconnectMin, 3 * o.ReconnectMin},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			longest := time.Duration(0)
			for range 300 {
				r := newRecovery(&o)
				d := r.after(tt.err, tt.held, time.Now())
				if d < tt.least || d > tt.most {
					t.Fatalf("pause %v, want %v to %v", d, tt.least, tt.most)
				}
				longest = max(longest, d)
			}
			if longest < tt.most*8/10 {
				t.Errorf("longest of 300 pauses is %v: they are not spread up to %v", longest, tt.most)
			}
		})
	}
}

// site is one gateway of the simulation.
type site struct {
	r    recovery
	at   time.Duration // of its next attempt
	fail error         // what the attempt before ended with
}

type sites []*site

func (s *sites) Len() int           { return len(*s) }
func (s *sites) Less(i, j int) bool { return (*s)[i].at < (*s)[j].at }
func (s *sites) Swap(i, j int)      { (*s)[i], (*s)[j] = (*s)[j], (*s)[i] }
func (s *sites) Push(x any)         { *s = append(*s, x.(*site)) }
func (s *sites) Pop() (x any) {
	x = (*s)[len(*s)-1]
	*s = (*s)[:len(*s)-1]
	return x
}

// Ten thousand gateways lose their region in one moment and do not come back in
// one: neither does any second see more than a few of a hundred of them, nor
// does a cloud that takes only some drown in attempts, nor are they long away.
func TestTenThousandGatewaysComeBack(t *testing.T) {
	const gateways = 10_000
	busy := &client.ConnackError{Reason: packet.ReasonServerBusy}
	tests := map[string]struct {
		lost     error         // how the link ended
		outage   time.Duration // how long nobody gets in
		down     error         // what attempts end with meanwhile
		takes    time.Duration // and after which time
		capacity int           // connections a second the cloud takes; 0: any
		peak     int           // attempts in any second at most, from the cloud's return on
		within   time.Duration // of its return, all are back
	}{
		"the broker restarts": {
			lost: io.EOF, outage: time.Second, down: syscall.ECONNREFUSED,
			peak: gateways / 12, within: 16 * time.Second,
		},
		"the broker says goodbye": {
			lost: &client.DisconnectError{Reason: packet.ReasonServerShuttingDown}, outage: 3 * time.Second, down: syscall.ECONNREFUSED,
			peak: gateways / 8, within: 20 * time.Second,
		},
		"the region is dark for half an hour": {
			lost: client.ErrKeepAlive, outage: 30 * time.Minute, down: errDown, takes: 20 * time.Second,
			peak: gateways / 40, within: 3 * time.Minute,
		},
		"the network refuses for ten minutes": {
			lost: syscall.ECONNRESET, outage: 10 * time.Minute, down: syscall.ECONNREFUSED,
			peak: gateways / 30, within: 2*time.Minute + time.Second,
		},
		"a cloud that takes a hundred a second": {
			lost: io.EOF, outage: time.Second, down: syscall.ECONNREFUSED, capacity: 100,
			peak: gateways / 12, within: 6 * time.Minute,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			o := DefaultOptions()
			draw := rand.New(rand.NewPCG(1, 2)).Int64N
			start := time.Now()
			var away sites
			for range gateways {
				s := &site{r: newRecovery(&o)}
				s.r.pause.draw = draw
				s.at = s.r.after(tt.lost, time.Hour, start)
				away = append(away, s)
			}
			heap.Init(&away)
			attempts, taken := map[int]int{}, map[int]int{}
			var last time.Duration
			for len(away) > 0 {
				s := away[0]
				second := int(s.at / time.Second)
				switch {
				case s.at < tt.outage:
					s.fail, s.at = tt.down, s.at+tt.takes
				case tt.capacity > 0 && taken[second] >= tt.capacity:
					attempts[second]++
					s.fail = busy
				default:
					attempts[second]++
					taken[second]++
					last = s.at
					heap.Pop(&away)
					continue
				}
				s.at += s.r.after(s.fail, -1, start.Add(s.at))
				heap.Fix(&away, 0)
			}
			peak, when := 0, 0
			for second, n := range attempts {
				if n > peak {
					peak, when = n, second
				}
			}
			back := last - tt.outage
			t.Logf("at most %d attempts in a second (second %d after the loss), all back %v after the cloud", peak, when, back.Round(time.Second))
			if peak > tt.peak {
				t.Errorf("%d attempts in one second, want at most %d", peak, tt.peak)
			}
			if back > tt.within {
				t.Errorf("the last is back after %v, want %v", back, tt.within)
			}
		})
	}
}

// A cloned card: each connection takes the other's session over. It is said in
// plain words, in the status and while the link is up, and the pauses grow so
// that each holds it for minutes.
func TestTwinsAreRecognised(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		var pauses []time.Duration
		for i := range 6 {
			p := r.cloud.welcome(t, packet.Connack{SessionPresent: i > 0})
			if i == 0 {
				p.subscribed()
			}
			pass(time.Second)
			synctest.Wait()
			if st := r.up.Status(); (st.Twin != "") != (i >= 2) || st.State != StateUp || st.Takeovers != uint64(i) {
				t.Errorf("after %d take-overs, up: twin %q takeovers %d state %s", i, st.Twin, st.Takeovers, st.State)
			}
			p.send(&packet.Disconnect{Reason: packet.ReasonSessionTakenOver})
			p.gone()
			synctest.Wait()
			st := r.up.Status()
			pauses = append(pauses, time.Until(st.NextAttempt))
			want := `another connection uses our client id`
			if i >= 1 {
				want = fmt.Sprintf(`another gateway connects with our client id "gw": it took the session over %d times since `, i+1)
			}
			if st.State != StateBackingOff || !strings.HasPrefix(st.Reason, want) {
				t.Errorf("after %d take-overs: state %s reason %q", i+1, st.State, st.Reason)
			}
		}
		for i := 2; i < len(pauses); i++ {
			if pauses[i] > twinPauseMax || pauses[i] < min(pauses[i-1], twinPauseMax)/2 {
				t.Errorf("pauses %v", pauses)
			}
		}
		if last := pauses[len(pauses)-1]; last < 2*time.Minute {
			t.Errorf("last pause %v: nobody can look at that", last)
		}
		// It is over when the other one is gone for long.
		r.cloud.welcome(t, packet.Connack{SessionPresent: true})
		pass(twinMemory + time.Second)
		if st := r.up.Status(); st.Twin != "" || st.State != StateUp {
			t.Errorf("an hour later: twin %q state %s", st.Twin, st.State)
		}
	})
}

// 3.1.1 names no take-over: a cloud that lets us in and hangs up, again and
// again, is what can be seen of it.
func TestTwinsIn311(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) { o.Protocol = Protocol311 })
		p := r.cloud.acceptWith(t, packet.Connack{}) // ends the old session
		p.gone()
		for i := range bounces {
			p := r.cloud.welcome(t, packet.Connack{SessionPresent: i > 0})
			pass(10 * time.Second)
			if st := r.up.Status(); st.Twin != "" {
				t.Errorf("after %d: twin %q", i, st.Twin)
			}
			p.cut()
		}
		synctest.Wait()
		st := r.up.Status()
		if !strings.Contains(st.Twin, "either another gateway connects with our client id") || st.Reason != st.Twin {
			t.Errorf("twin %q, reason %q", st.Twin, st.Reason)
		}
		// A link that holds clears the suspicion.
		p = r.cloud.welcome(t, packet.Connack{SessionPresent: true})
		pass(bounceTime)
		p.cut()
		synctest.Wait()
		if st := r.up.Status(); st.Twin != "" {
			t.Errorf("after a link that held: twin %q", st.Twin)
		}
	})
}

// Three uplinks, one to a host that is dead, one to one that swallows all, one
// that is well: the last notices nothing, and the stop of all is prompt.
func TestUplinksDoNotDisturbEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil) // the one that is well
		dead, hole := newCloud(), newCloud()
		dead.setRefuse(syscall.ECONNREFUSED) // the hole takes nobody: dials hang
		others := map[string]*Uplink{}
		stops := map[string]func(error){}
		ended := map[string]chan struct{}{}
		for name, c := range map[string]*cloud{"dead": dead, "hole": hole} {
			o := testOptions()
			o.Dial = c.dial
			u, err := New(name, o, r.store, r.local, r.up.log)
			if err != nil {
				t.Fatal(err)
			}
			ctx, stop := newCancel()
			others[name], stops[name], ended[name] = u, stop, make(chan struct{})
			go func() {
				defer close(ended[name])
				if err := u.Run(ctx); err != nil {
					t.Errorf("Run: %v", err)
				}
			}()
		}
		p := r.cloud.welcome(t, packet.Connack{})
		p.subscribed()
		began := time.Now()
		for i := range 1000 {
			// For all three at once, as the broker appends.
			safe := r.putAll(fmt.Sprintf("%d", i), r.up, others["dead"], others["hole"])
			q := p.expectPublish(fmt.Sprintf("%d", i), 1, false)
			p.send(&packet.Puback{PacketID: q.PacketID})
			if i%100 == 99 {
				<-safe
			}
		}
		if d := time.Since(began); d > 30*time.Second {
			t.Errorf("a thousand messages took %v", d)
		}
		if n := r.backlog(); n != 0 {
			t.Errorf("backlog %d", n)
		}
		for name, u := range others {
			if n, _ := r.store.Backlog(u.Queue()); n != 1000 {
				t.Errorf("backlog of %s is %d, want 1000", name, n)
			}
		}
		if st := others["hole"].Status(); st.State != StateConnecting && st.State != StateBackingOff {
			t.Errorf("state of the hole is %s", st.State)
		}
		pass(time.Minute)
		p.quiet()
		began = time.Now()
		for name := range others {
			stops[name](errors.New("stop"))
			<-ended[name]
		}
		if d := time.Since(began); d > time.Second {
			t.Errorf("the stop of two that are down took %v", d)
		}
		if st := r.up.Status(); st.State != StateUp || st.Acked != 1000 || st.Connects != 1 {
			t.Errorf("the well one: state %s acked %d connects %d", st.State, st.Acked, st.Connects)
		}
	})
}

// The clock floor makes a suspicion a certainty.
func TestClockBeforeTheFloorIsWrong(t *testing.T) {
	u := &Uplink{}
	u.opts.ClockFloor = time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)
	cert := &x509.Certificate{NotBefore: time.Date(2026, 7, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)}
	err := x509.CertificateInvalidError{Cert: cert, Reason: x509.Expired}
	tests := map[string]struct {
		now  time.Time
		want string
	}{
		"before the floor": {time.Date(1970, 1, 1, 0, 0, 7, 0, time.UTC), "our clock is wrong: it says 1970-01-01 00:00:07, and it is later than 2026-06-01 00:00:00"},
		"behind it":        {time.Date(2026, 6, 2, 0, 0, 0, 0, time.UTC), "our clock is wrong (2026-06-02 00:00:00), or the cloud's certificate is not valid before 2026-07-01 00:00:00"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := u.explain(err, tt.now); got != tt.want {
				t.Errorf("explain() = %q, want %q", got, tt.want)
			}
		})
	}
}

func TestCertificatesAreWarnedOfWeeksBefore(t *testing.T) {
	const day = 24 * time.Hour
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	tests := map[string]struct {
		life, age time.Duration
		want      string
	}{
		"a year, fresh":          {365 * day, day, ""},
		"a year, 22 days left":   {365 * day, 343 * day, ""},
		"a year, 20 days left":   {365 * day, 345 * day, "expires in 20 days, on 2027-01-01 00:00:00"},
		"a year, hours left":     {365 * day, 364*day + 18*time.Hour, "expires in 6 hours, on 2027-01-01 00:00:00"},
		"expired":                {365 * day, 366 * day, "expired on 2027-01-01 00:00:00"},
		"not yet":                {365 * day, -time.Hour, "is not valid before 2026-01-01 00:00:00, or our clock is wrong (2025-12-31 23:00:00)"},
		"90 days, renewed at 60": {90 * day, 61 * day, ""},
		"six days, fresh":        {6 * day, 4 * day, ""},
		"six days, last quarter": {6 * day, 5 * day, "expires in 24 hours, on 2026-01-07 00:00:00"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c := CertificateStatus{NotBefore: start, NotAfter: start.Add(tt.life)}
			if got := c.warn(start.Add(tt.age)); got != tt.want {
				t.Errorf("warn() = %q, want %q", got, tt.want)
			}
		})
	}
}

// PINGREQs measure the round trip where nothing else does.
func TestRoundTripFromPings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) { o.StatusTopic = "" })
		p := r.cloud.accept(t)
		p.send(&packet.Connack{})
		p.subscribedSlowly(t, 300*time.Millisecond)
		if st := r.up.Status(); st.RoundTrip < 0.299 || st.RoundTrip > 0.301 {
			t.Errorf("round trip %vs, want 0.3", st.RoundTrip)
		}
	})
}
