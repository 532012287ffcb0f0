package uplink

import (
	"testing"

	"pgregory.net/rapid"
)

// run sends so many messages by what next chooses and returns the bytes of each
// lane.
func (s *scheduler) run(messages int, head func(lane int) int) (bytes []int) {
	bytes = make([]int, len(s.credit))
	for range messages {
		i := s.next(func(lane int) (int, bool) { return head(lane), true })
		if i < 0 {
			break
		}
		bytes[i] += head(i)
		s.sent(i, head(i))
	}
	return bytes
}

func TestHighestLaneGoesFirst(t *testing.T) {
	s := newScheduler(3)
	left := []int{2, 1, 2}
	var got []int
	for {
		i := s.next(func(lane int) (int, bool) { return 10 * min(left[lane], 1), true })
		if i < 0 {
			break
		}
		left[i]--
		got = append(got, i)
		s.sent(i, 10)
	}
	want := []int{0, 0, 1, 2, 2}
	for i := range want {
		if len(got) != len(want) || got[i] != want[i] {
			t.Fatalf("order %v, want %v", got, want)
		}
	}
}

func TestEachWaitingLaneHasItsShare(t *testing.T) {
	tests := map[string][]int{ // sizes of the messages of each lane, all waiting always
		"two lanes, equal":         {100, 100},
		"large ones in the last":   {50, 100_000},
		"large ones in the first":  {100_000, 50},
		"all sixteen":              {100, 100, 100, 100, 100, 100, 100, 100, 100, 100, 100, 100, 100, 100, 100, 100},
		"in between nothing waits": {100, 0, 0, 70},
	}
	for name, sizes := range tests {
		t.Run(name, func(t *testing.T) {
			s := newScheduler(len(sizes))
			bytes := s.run(200_000, func(lane int) int { return sizes[lane] })
			sum := 0
			for _, b := range bytes {
				sum += b
			}
			rest := sum
			for i, b := range bytes[1:] {
				rest -= b
				if sizes[i+1] > 0 && float64(b+sizes[i+1]) < float64(sum)/minShare*0.9 {
					t.Errorf("lane %d has %d of %d bytes, want at least one of %d", i+1, b, sum, minShare)
				}
			}
			if float64(rest) < float64(sum)*0.75 {
				t.Errorf("the first lane has %d of %d bytes, want three quarters", rest, sum)
			}
		})
	}
}

// Whatever waits: something is sent, only from a lane that has something, and a
// lane that waits all the time gets its share of all that is sent.
func TestSchedulerNeverStarves(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 16).Draw(t, "lanes")
		always := rapid.IntRange(0, n-1).Draw(t, "always")
		size := rapid.IntRange(1, 1000).Draw(t, "size")
		s := newScheduler(n)
		total, own, largest := 0, 0, 0
		for range 2000 {
			heads, may := make([]int, n), make([]bool, n)
			for i := range heads {
				may[i] = i == always || rapid.Bool().Draw(t, "may")
				if rapid.Bool().Draw(t, "waits") {
					heads[i] = rapid.IntRange(1, 1000).Draw(t, "head")
				}
			}
			heads[always] = size
			i := s.next(func(lane int) (int, bool) { return heads[lane], may[lane] })
			if i < 0 || heads[i] == 0 || !may[i] {
				t.Fatalf("lane %d of %v", i, heads)
			}
			s.sent(i, heads[i])
			total += heads[i]
			largest = max(largest, heads[i])
			if i == always {
				own += heads[i]
			}
		}
		// What it is owed at any time is one message and what all others are due
		// at the same moment.
		if slack := size + n*largest; own+slack < total/minShare/2 {
			t.Errorf("lane %d has %d of %d bytes", always, own, total)
		}
	})
}
