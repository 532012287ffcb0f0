package uplink

// minShare is the share of a lane that waits while higher ones are never done: one
// byte of so many. A queue of each kind in every lane would leave three quarters
// to the highest.
const minShare = 64

// scheduler chooses the lane that sends next. Lane 0 of its count goes first, and
// has the link for itself but for the minimum share of each other lane that waits:
// what a lane sends earns the others credit, and one that has enough for its next
// message sends that. A lane that has nothing to send saves nothing up. Where
// nobody else waits any lane has the whole link.
//
// It knows sizes and nothing else: what may be sent at all, and at what pace, is
// for the caller to say.
type scheduler struct {
	// credit in bytes of the link, that is, minShare times what it is worth.
	credit []int
	// heads are the sizes of what waits, as last told; 0 is nothing. Those that
	// may not go yet are stalled.
	heads   []int
	stalled []bool
}

func newScheduler(lanes int) scheduler {
	return scheduler{credit: make([]int, lanes), heads: make([]int, lanes), stalled: make([]bool, lanes)}
}

// next returns the lane to send from, -1 when none may send. head says how many
// bytes the next message of a lane has, 0 for none, and whether it may go now: a
// lane that may not saves credit for that one message.
func (s *scheduler) next(head func(lane int) (bytes int, may bool)) int {
	first, due := -1, -1
	for i := range s.credit {
		n, may := head(i)
		s.heads[i], s.stalled[i] = n, !may
		switch {
		case n == 0:
			s.credit[i] = 0
		case !may:
		case first < 0:
			first = i
		case due < 0 && s.credit[i] >= minShare*n:
			due = i
		}
	}
	if due >= 0 {
		return due
	}
	return first
}

// sent says that a lane has sent that many bytes.
func (s *scheduler) sent(lane, bytes int) {
	s.credit[lane] = max(0, s.credit[lane]-minShare*bytes)
	for i, n := range s.heads {
		switch {
		case i == lane || n == 0:
		case s.stalled[i]:
			s.credit[i] = max(s.credit[i], min(s.credit[i]+bytes, minShare*n))
		default:
			s.credit[i] += bytes
		}
	}
}
