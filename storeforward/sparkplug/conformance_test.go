package sparkplug

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/broker/packet"
)

// server is a scripted MQTT server for one node: what it reads is in seen.
type server struct {
	t       *testing.T
	version packet.Version
	nc      net.Conn
	reader  *packet.Reader
	connect *packet.Connect
}

// newServer has a gateway connect to a server that speaks only that version.
func newServer(t *testing.T, v packet.Version, change func(*Options)) (*gateway, *server) {
	t.Helper()
	ours, theirs := net.Pipe()
	s := &server{t: t, version: v, nc: ours, reader: packet.NewReader(ours, 4096)}
	g := newGateway(t, func(o *Options) {
		o.Protocol = map[packet.Version]string{packet.V5: "5.0", packet.V311: "3.1.1"}[v]
		used := false
		o.Dial = func(context.Context, string, string) (net.Conn, error) {
			if used {
				return nil, net.ErrClosed
			}
			used = true
			return theirs, nil
		}
		if change != nil {
			change(o)
		}
	})
	g.run()
	s.connect, _ = s.next().(*packet.Connect)
	if s.connect == nil {
		t.Fatal("no CONNECT")
	}
	s.reader.SetVersion(v)
	s.send(&packet.Connack{})
	return g, s
}

func (s *server) next() packet.Packet {
	s.t.Helper()
	p, err := s.reader.Next()
	if err != nil {
		s.t.Fatal(err)
	}
	return p
}

func (s *server) send(p packet.Packet) {
	s.t.Helper()
	b, err := p.AppendTo(nil, s.version)
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := s.nc.Write(b); err != nil {
		s.t.Fatal(err)
	}
}

// subscribed reads the SUBSCRIBE and answers it.
func (s *server) subscribed() (filters []packet.Filter) {
	s.t.Helper()
	p, ok := s.next().(*packet.Subscribe)
	if !ok {
		s.t.Fatal("no SUBSCRIBE")
	}
	filters = slices.Clone(p.Filters)
	s.send(&packet.Suback{PacketID: p.PacketID, Reasons: make([]packet.ReasonCode, len(filters))})
	return filters
}

func (s *server) published(topic string, qos byte) *Payload {
	s.t.Helper()
	p, ok := s.next().(*packet.Publish)
	if !ok || string(p.Topic) != topic || p.QoS != qos || p.Retain {
		s.t.Fatalf("%+v, want a message of %s at QoS %d, not retained", p, topic, qos)
	}
	d, err := Parse(p.Payload)
	if err != nil {
		s.t.Fatal(err)
	}
	return d
}

// The CONNECT, its will, the subscriptions, what is published first and how a node
// leaves, in both versions of MQTT.
func TestSession(t *testing.T) {
	for name, v := range map[string]packet.Version{"5.0": packet.V5, "3.1.1": packet.V311} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, s := newServer(t, v, nil)
				c := s.connect
				if !c.CleanStart || c.Properties.SessionExpiry != nil && *c.Properties.SessionExpiry != 0 {
					t.Errorf("not a clean session: %+v", c)
				}
				if c.Will == nil || c.Will.Topic != "spBv1.0/plant/NDEATH/gw" || c.Will.QoS != 1 || c.Will.Retain {
					t.Fatalf("will %+v", c.Will)
				}
				death := bareDeath(t, c.Will.Payload)
				var filters []string
				for _, f := range s.subscribed() {
					if f.QoS != 1 {
						t.Errorf("%s at QoS %d", f.Filter, f.QoS)
					}
					filters = append(filters, f.Filter)
				}
				if !slices.Equal(filters, []string{"spBv1.0/plant/NCMD/gw", "spBv1.0/plant/DCMD/gw/#"}) {
					t.Errorf("subscribed to %q", filters)
				}
				birth := s.published("spBv1.0/plant/NBIRTH/gw", 0)
				if m := birth.Metrics[0]; !birth.HasSeq || birth.Seq != 0 || m.Name != "bdSeq" || m.Type != Int64 || m.Value != death || m.HasAlias {
					t.Errorf("birth %+v, its death has %v", birth, death)
				}
				if m := birth.Metrics[1]; m.Name != "Node Control/Rebirth" || m.Type != Boolean || m.Value != false || m.HasAlias {
					t.Errorf("rebirth %+v", m)
				}
				stopped := make(chan struct{})
				go func() {
					defer close(stopped)
					g.close()
				}()
				if v == packet.V5 {
					if d, ok := s.next().(*packet.Disconnect); !ok || d.Reason != packet.ReasonDisconnectWithWill {
						t.Errorf("left with %+v", d)
					}
				} else {
					last := s.published("spBv1.0/plant/NDEATH/gw", 1)
					if len(last.Metrics) != 1 || last.HasSeq || last.Metrics[0].Value != death {
						t.Errorf("left with %+v", last)
					}
					if d, ok := s.next().(*packet.Disconnect); !ok {
						t.Errorf("after the death %+v", d)
					}
				}
				s.nc.Close()
				<-stopped
			})
		})
	}
}

// bareDeath checks the payload of a death and returns its number.
func bareDeath(t *testing.T, payload []byte) any {
	t.Helper()
	d, err := Parse(payload)
	if err != nil {
		t.Fatal(err)
	}
	if d.HasSeq || len(d.Metrics) != 1 || d.Metrics[0].Name != "bdSeq" || d.Metrics[0].Type != Int64 {
		t.Fatalf("death %+v", d)
	}
	return d.Metrics[0].Value
}

// With a primary host nothing is published before its STATE says online, on its
// own topic and not on that of another host.
func TestNothingBeforeThePrimaryHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, s := newServer(t, packet.V5, func(o *Options) { o.PrimaryHost = "scada" })
		filters := s.subscribed()
		if len(filters) != 4 || filters[2].Filter != "spBv1.0/STATE/scada" || filters[3].Filter != "STATE/scada" {
			t.Errorf("subscribed to %+v", filters)
		}
		state := func(host, payload string) {
			s.send(&packet.Publish{Topic: []byte("spBv1.0/STATE/" + host), Payload: []byte(payload), Retain: true})
		}
		now := time.Now().UnixMilli()
		for _, payload := range []string{`{"online":false,"timestamp":%d}`, `{"timestamp":%d}`, `{"online":"true","timestamp":%d}`} {
			state("scada", fmt.Sprintf(payload, now-1000))
		}
		state("other", fmt.Sprintf(`{"online":true,"timestamp":%d}`, now))
		state("scada", fmt.Sprintf(`{"online":true,"timestamp":%d}`, now-2000)) // older than the death
		synctest.Wait()
		if s := g.node.Status(); s.NodeBirths != 0 || s.State != StateWaiting {
			t.Errorf("%d births, %s", s.NodeBirths, s.State)
		}
		state("scada", fmt.Sprintf(`{"online":true,"timestamp":%d}`, now))
		s.published("spBv1.0/plant/NBIRTH/gw", 0)
		state("scada", fmt.Sprintf(`{"online":false,"timestamp":%d}`, now)) // not older: it counts
		if d, ok := s.next().(*packet.Disconnect); !ok || d.Reason != packet.ReasonDisconnectWithWill {
			t.Errorf("left with %+v", d)
		}
		s.nc.Close()
		g.close()
	})
}

// The next server is tried when the host is not at this one.
func TestServersAreWalked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var hosts []string
		open := 0
		g := newGateway(t, func(o *Options) {
			o.PrimaryHost, o.URL, o.URLs = "scada", "", []string{"mqtt://a:1", "mqtt://b:1"}
			dial := o.Dial
			o.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
				hosts = append(hosts, address)
				if open++; open > 1 {
					t.Error("two connections at once")
				}
				c, err := dial(ctx, network, address)
				return &closing{c, func() { open-- }}, err
			}
		})
		g.run()
		pass(3 * time.Minute)
		g.close()
		if len(hosts) < 3 || hosts[0] != "a:1" || hosts[1] != "b:1" || hosts[2] != "a:1" {
			t.Errorf("dialled %q", hosts)
		}
	})
}

// closing is a connection that tells when it is closed.
type closing struct {
	net.Conn

	closed func()
}

func (c *closing) Close() error {
	if c.closed != nil {
		c.closed()
		c.closed = nil
	}
	return c.Conn.Close()
}

// What a birth and the data after it have to have, metric by metric.
func TestMetricsOfBirthsAndData(t *testing.T) {
	for _, aliases := range []bool{true, false} {
		t.Run(fmt.Sprintf("aliases %v", aliases), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newGateway(t, func(o *Options) { o.Aliases = aliases })
				g.site.about = []Metric{{Name: "Properties/Software", Type: String, Value: "Holdfast"}}
				g.run()
				for i, topic := range []string{"a/x", "a/y", "b/x"} {
					g.publish("sensors/"+topic, []string{"1", "bad", `"on"`}[i])
				}
				pass(time.Minute)
				for range 3 {
					g.publish("sensors/a/x", "2")
				}
				pass(time.Minute)
				synctest.Wait()
				seen, last := map[uint64]string{}, time.Time{}
				for _, p := range g.watcher.Rest() {
					parts := strings.Split(string(p.Topic), "/")
					d, err := Parse(p.Payload)
					if err != nil || p.QoS != 0 || p.Retain || !d.HasSeq || d.Timestamp.After(time.Now()) || time.Since(d.Timestamp) > time.Hour {
						t.Fatalf("%s: QoS %d, %+v, %v", p.Topic, p.QoS, d, err)
					}
					for i, m := range d.Metrics {
						if i > 0 && m.Timestamp.Before(d.Metrics[i-1].Timestamp) {
							t.Errorf("%s: %s is older than what is before it", p.Topic, m.Name)
						}
						birth := strings.HasSuffix(parts[2], "BIRTH")
						own := parts[2] == "NBIRTH"
						switch {
						case m.Timestamp.IsZero() || m.Timestamp.After(time.Now()):
							t.Errorf("%s %s: timestamp %v", p.Topic, m.Name, m.Timestamp)
						case birth && (m.Name == "" || m.Type == Unknown || m.Type > lastType):
							t.Errorf("%s: %+v", p.Topic, m)
						case birth && !own && m.HasAlias != aliases, !birth && m.HasAlias != aliases, !birth && (m.Name == "") != aliases:
							t.Errorf("%s: name %q and alias %v", p.Topic, m.Name, m.HasAlias)
						case !birth && aliases && m.Type != Unknown:
							t.Errorf("%s: data has the type %s", p.Topic, m.Type)
						}
						if birth && m.HasAlias {
							if seen[m.Alias] != "" && seen[m.Alias] != parts[4]+m.Name {
								t.Errorf("alias %d stands for %s and %s", m.Alias, seen[m.Alias], m.Name)
							}
							seen[m.Alias] = parts[4] + m.Name
						}
						if !birth && !m.Historical {
							if m.Timestamp.Before(last) {
								t.Errorf("%v after %v", m.Timestamp, last)
							}
							last = m.Timestamp
						}
						if q := m.Properties; q != nil && (q.Keys[0] != "Quality" || q.Values[0].Type != Int32 || q.Values[0].Value != uint32(0) && q.Values[0].Value != uint32(192) || len(q.Keys) != len(q.Values)) {
							t.Errorf("%s: properties %+v", p.Topic, q)
						}
					}
				}
				g.close()
			})
		})
	}
}
