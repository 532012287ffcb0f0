package modbus

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/adapters/modbus/modbustest"
	"holdfast/adapters/reading"
)

// A point on change is published when it changes, when it is lost and when it is
// back; one without a rule each time; a coil has names.
func TestPointsAreReportedByTheirRule(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := meter("m", 1, time.Second, 0, 1)
		d.Points[0].Report = reading.Report{Deadband: 5, Heartbeat: time.Minute}
		d.Points = append(d.Points, Point{
			Name: "pump", Register: "coil:0", Enum: map[string]string{"0": "off", "1": "on"}, Report: reading.Report{Report: reading.ReportChange},
		})
		r := newRig(t, options(d))
		u := r.slave.Unit(1)
		u.SetHolding(0, 100, 7)
		u.SetCoil(0, false)
		r.start()
		r.after(10 * time.Second)
		u.SetHolding(0, 105)
		r.after(10 * time.Second)
		u.SetHolding(0, 106)
		u.SetCoil(0, true)
		r.after(10 * time.Second)
		u.Fault(modbustest.Fault{Silent: true}, -1)
		r.after(20 * time.Second)
		u.Fault(modbustest.Fault{}, 0)
		r.after(2 * time.Minute)
		r.stop()
		for point, want := range map[string][]string{
			"p0":   {"100 good", "106 good", "<nil> bad", "106 good", "106 good"},
			"pump": {"off good", "on good", "<nil> bad", "on good"},
		} {
			if got := r.of(point); !slices.Equal(got, want) {
				t.Errorf("%s = %v, want %v", point, got, want)
			}
		}
		if got := len(r.of("p1")); got < 100 {
			t.Errorf("%d readings of a point without a rule, want each", got)
		}
	})
}
