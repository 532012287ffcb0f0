package modbus

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/adapters/modbus/modbustest"
)

// What goes wrong in the field, and the tests of it.
var field = map[string][]string{
	"a late answer must never become another register's value":                   {"TestALateAnswerIsNeverAnotherValue", "TestAfterATimeoutTheUnitIsLeftAlone"},
	"one dead unit must not slow the bus":                                        {"TestDeadUnitsDoNotSlowTheOthers", "TestAFlappingUnitDoesNotSlowTheOthers"},
	"a down unit is probed with its cheapest request, within a tenth of the bus": {"TestProbesAreCheapAndWithinATenth", "TestAUnitGoesDownAndComesBack"},
	"what is asked of a down unit from outside fails at once":                    {"TestDoToADownUnitFailsAtOnce"},
	"state is per bus and unit":                                                  {"TestAUnitOfAnotherBusIsAnother", "TestTwoDevicesOfOneUnitShareItsQuarantine"},
	"an error of one unit does not reopen the port or fail the cycle":            {"TestErrorsOfOneUnitAreItsOwn"},
	"one bad register does not fail its block":                                   {"TestBusFindsTheRefusedRegister", "TestBusRemembersACulpritInAGap", "TestASilentRegisterIsSetApart"},
	"t3.5, the pause of a unit, the pause on changing units, warm-up":            {"TestBusKeepsItsPauses"},
	"t1.5 is not enforced: USB adapters batch bytes":                             {"TestAnAnswerInPiecesIsOne"},
	"the timeout counts from the end of the transmission":                        {"TestTheTimeoutCountsFromTheEndOfTheRequest"},
	"some adapters echo":                                                        {"TestBusStripsEchoAndSlidesOverNoise", "TestEchoThatIsAPerfectAnswer"},
	"one noise byte before a frame must not kill it":                            {"TestAnswerIsFoundBehindNoise"},
	"types and orders, with the same meaning for signed and unsigned":           {"TestDecodeEveryTypeInEveryOrder", "TestDeviceOrderHoldsForAllWidths"},
	"bit fields, enums, scale without noise, invalid and NaN are null, never 0": {"TestDecodeNumbers"},
	"coalescing, at most 125 registers or 2000 bits, never across a hole":       {"TestPlanJoinsPoints", "TestPlanKeepsTheLimits", "TestPlanHoldsEveryPointOnce"},
	"values carry quality and source time":                                      {"TestBusPollsInRhythm", "TestComputedPointsFollowTheirInputs"},
	"report every, on change, by deadband, with a heartbeat":                    {"TestReport", "TestPointsAreReportedByTheirRule"},
	"requests from outside go ahead of polls, capped":                           {"TestRequestsFromOutsideHaveTheirShare"},
	"fair to all, with what cannot be met foretold":                             {"TestAnOverloadedBusIsFairAndForetold", "TestWarningsForetellTheLoad"},
	"the bus is used for what the protocol allows":                              {"TestAFullMapUsesTheBus"},
	"a SunSpec walk": {"TestSunSpecWalk"},
}

func TestTheFieldIsTested(t *testing.T) {
	there := map[string]bool{}
	for _, pattern := range []string{"*_test.go", "profile/*_test.go", "../reading/*_test.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			t.Fatalf("no files %s: %v", pattern, err)
		}
		for _, f := range files {
			text, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range regexp.MustCompile(`(?m)^func (Test\w+)\(`).FindAllSubmatch(text, -1) {
				there[string(m[1])] = true
			}
		}
	}
	for line, tests := range field {
		for _, name := range tests {
			if !there[name] {
				t.Errorf("%s: there is no %s", line, name)
			}
		}
	}
}

// A known product keeps its state per unit number: there unit 1 of a dead bus
// mutes unit 1 of another.
func TestAUnitOfAnotherBusIsAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dead := newRig(t, options(meter("m", 1, time.Second, 0)))
		alive := newRig(t, options(meter("m", 1, time.Second, 0)))
		alive.slave.Unit(1).SetHolding(0, 7)
		dead.start()
		alive.start()
		alive.after(time.Minute - 500*time.Millisecond)
		dead.stop()
		alive.stop()
		if good, bad := alive.count("m"); good != 60 || bad != 0 {
			t.Errorf("%d good and %d bad readings, want 60 and 0", good, bad)
		}
		if a, d := alive.unit().State, dead.unit().State; a != UnitUp || d != UnitDown {
			t.Errorf("states = %v and %v, want up and down", a, d)
		}
	})
}

// Whatever one unit does, the port stays open and the other one is read each
// time it is due.
func TestErrorsOfOneUnitAreItsOwn(t *testing.T) {
	faults := map[string]modbustest.Fault{
		"silent":         {Silent: true},
		"garbled":        {CorruptCRC: true},
		"exception":      {Exception: modbustest.DeviceFailure},
		"wrong function": {WrongFunction: 4},
		"cut":            {Cut: 3},
		"noise":          {NoiseBefore: []byte{1, 2, 3}, Cut: 20},
		"twice":          {Twice: true},
	}
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, options(meter("bad", 1, 5*time.Second, 0), meter("good", 2, 5*time.Second, 0)))
				r.slave.Unit(1).SetHolding(0, 1)
				r.slave.Unit(2).SetHolding(0, 2)
				r.slave.Unit(1).Fault(fault, -1)
				r.start()
				r.after(10*time.Minute - time.Second)
				r.stop()
				if good, bad := r.count("good"); good != 120 || bad != 0 {
					t.Errorf("the other unit has %d good and %d bad readings, want 120 and 0", good, bad)
				}
				if r.opened != 1 {
					t.Errorf("the port was opened %d times, want once", r.opened)
				}
			})
		})
	}
}

// A USB adapter hands over what it has every 16 ms, in the middle of a frame
// too.
func TestAnAnswerInPiecesIsOne(t *testing.T) {
	for at := 1; at < 9; at++ {
		t.Run(fmt.Sprint("after byte ", at), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, options(meter("m", 1, time.Second, 0, 1)))
				u := r.slave.Unit(1)
				u.SetHolding(0, 1, 2)
				u.Fault(modbustest.Fault{SplitAfter: at, SplitPause: 16 * time.Millisecond}, -1)
				r.start()
				r.after(10*time.Second - 500*time.Millisecond)
				r.stop()
				if got := r.of("p1"); len(got) != 10 || got[9] != "2 good" {
					t.Errorf("p1 = %v, want ten good readings", got)
				}
				if st := r.unit(); st.Garbled+st.Timeouts != 0 {
					t.Errorf("status = %+v, want nothing garbled and no timeouts", st)
				}
			})
		})
	}
}

// On a slow line a request takes its time; the timeout is for the unit.
func TestTheTimeoutCountsFromTheEndOfTheRequest(t *testing.T) {
	for delay, want := range map[time.Duration]string{48 * time.Millisecond: "1 good", 60 * time.Millisecond: "<nil> bad"} {
		t.Run(delay.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := meter("m", 1, time.Second, 0)
				d.Timeout = 50 * time.Millisecond
				d.Retries = new(0)
				r := newRig(t, options(d))
				u := r.slave.Unit(1)
				u.SetHolding(0, 1)
				// 8 characters of request and 7 of answer are 17 ms more.
				u.Fault(modbustest.Fault{Delay: delay}, -1)
				r.start()
				r.after(500 * time.Millisecond)
				r.stop()
				if got := r.of("p0"); len(got) != 1 || got[0] != want {
					t.Errorf("p0 = %v after %v, want %s", got, delay, want)
				}
			})
		})
	}
}
