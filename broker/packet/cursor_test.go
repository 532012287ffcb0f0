package packet

import (
	"errors"
	"testing"
)

// Nothing but a packet of 256 MiB reaches this limit from outside.
func TestBuilderRefusesMoreThanALengthCanSay(t *testing.T) {
	for _, n := range []int{128, MaxSize + 1} { // the memory of the second is never touched
		w := builder{b: make([]byte, 1+n, 5+n)}
		w.shut(1)
		_, err := w.done(nil, TypeSuback)
		e, ok := errors.AsType[*Error](err)
		switch {
		case n <= MaxSize && err != nil:
			t.Errorf("%d bytes: %v", n, err)
		case n > MaxSize && (!ok || e.Reason != ReasonPacketTooLarge || e.Type != TypeSuback):
			t.Errorf("%d bytes: %v, want reason 0x95", n, err)
		}
	}
}
