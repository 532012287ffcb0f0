package uplink

import (
	"testing"
	"testing/synctest"
	"time"

	"holdfast/broker/packet"
	"holdfast/storeforward/storetest"
)

// many is a number of failures that a test does not live to see the end of.
const many = 1 << 30

// While the disk fails QoS 1 is safe by the cloud's acknowledgement.
func TestDiskFailsAndQoS1GoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := storetest.NewDisk()
		r := newRigOn(t, disk)
		p := r.cloud.welcome(t, packet.Connack{})
		p.subscribed()
		synctest.Wait()
		disk.FailWrites(0, many)
		for range 3 {
			safe := r.put("s/a", "1", 1)
			q := p.expectPublish("1", 1, false)
			pass(time.Minute / 2)
			select {
			case <-safe:
				t.Error("safe with neither disk nor cloud")
			default:
			}
			p.send(&packet.Puback{PacketID: q.PacketID})
			<-safe
		}
		disk.Heal()
	})
}

// The link breaks while the store cannot make PUBREC or PUBCOMP durable: the
// session is taken up when it can, and nothing that was finished goes out
// again.
func TestDiskFailsInTheMiddleOfQoS2(t *testing.T) {
	for _, at := range []string{"PUBREC", "PUBCOMP"} {
		t.Run(at, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				disk := storetest.NewDisk()
				r := newRigOn(t, disk)
				p := r.cloud.welcome(t, packet.Connack{})
				p.subscribed()
				r.put("s/a", "1", 2)
				id := p.expectPublish("1", 2, false).PacketID
				if at == "PUBCOMP" {
					p.send(&packet.Pubrec{PacketID: id})
					expect[*packet.Pubrel](p)
				}
				synctest.Wait()
				disk.FailWrites(0, many)
				if at == "PUBREC" {
					p.send(&packet.Pubrec{PacketID: id})
				} else {
					p.send(&packet.Pubcomp{PacketID: id})
				}
				p.quiet() // no PUBREL before it is durable
				p.cut()
				p = r.cloud.acceptWith(t, packet.Connack{SessionPresent: true})
				if q := p.next(); q != nil {
					t.Errorf("got %s while the store is busy", show(q))
				}
				disk.Heal()
				for up := false; !up; {
					p = r.cloud.acceptWith(t, packet.Connack{SessionPresent: true})
					if q, ok := p.next().(*packet.Publish); ok { // the birth
						p.send(&packet.Puback{PacketID: q.PacketID})
						up = true
					}
				}
				if at == "PUBREC" {
					expect[*packet.Pubrel](p)
					p.send(&packet.Pubcomp{PacketID: id})
				}
				p.quiet()
				if st := r.up.Status(); st.Backlog != 0 || st.InFlight != 0 || st.StoreErrors == 0 {
					t.Errorf("backlog %d in flight %d store errors %d", st.Backlog, st.InFlight, st.StoreErrors)
				}
			})
		})
	}
}
