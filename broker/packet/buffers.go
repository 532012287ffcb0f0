package packet

import (
	"math/bits"
	"sync"
)

// Sizes of the buffers that readers lend each other, in bytes.
const (
	// minLent is also what a connection holds in a burst. It takes about 16
	// packets of 256 bytes with one read.
	minLent = 1 << minLentBits
	// maxLent is the largest kept for others. Larger ones are rare, and left to
	// the garbage collector.
	maxLent     = 1 << maxLentBits
	minLentBits = 12
	maxLentBits = 20
)

// lent holds the buffers nobody needs now, one pool for each power of two.
var lent [maxLentBits - minLentBits + 1]sync.Pool

// borrow returns a buffer of at least n bytes, at most maxLent, and of a power
// of two.
func borrow(n int) *[]byte {
	i := lentIndex(n)
	if b, ok := lent[i].Get().(*[]byte); ok {
		return b
	}
	return new(make([]byte, minLent<<i))
}

// giveBack ends the use of a borrowed buffer.
func giveBack(b *[]byte) { lent[lentIndex(len(*b))].Put(b) }

func lentIndex(n int) int { return bits.Len(uint(max(n, minLent)-1)) - minLentBits }
