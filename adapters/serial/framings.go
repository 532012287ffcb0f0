package serial

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// framings make a framer of the options that are theirs. Errors begin with the
// key.
var framings = map[string]func(o *Options) (framer, error){
	FramingDelimiter: func(o *Options) (framer, error) {
		delim, err := bytesOf("delimiter", o.Delimiter, 1, 8)
		if err != nil {
			return nil, err
		}
		return newDelimiterFramer(delim, o.MaxLength), nil
	},
	FramingFixed:    newFixedFramer,
	FramingLength:   newLengthFramer,
	FramingStartEnd: newStartEndFramer,
	FramingSLIP: func(o *Options) (framer, error) {
		return newEndsFramer(slipOptions(o.MaxLength)), nil
	},
	FramingCOBS: func(o *Options) (framer, error) {
		return newCOBSFramer(o.MaxLength), nil
	},
	FramingSML: func(o *Options) (framer, error) {
		return newSMLFramer(o.MaxLength), nil
	},
	FramingIEC62056: func(o *Options) (framer, error) {
		return newIECFramer(o.MaxLength), nil
	},
	FramingSilence: func(o *Options) (framer, error) {
		if o.Silence < time.Millisecond || o.Silence > time.Minute {
			return nil, fmt.Errorf("silence: %v is outside 1ms..1m", o.Silence)
		}
		return newSilenceFramer(o.MaxLength), nil
	},
	FramingRegexp: func(o *Options) (framer, error) {
		// The pattern is tried again and again on what has come: a longer
		// buffer would cost a small board too much.
		const most = 4096
		if o.MaxLength > most {
			return nil, fmt.Errorf("max_length: %d is outside 1..%d for framing %q", o.MaxLength, most, o.Framing)
		}
		if o.FramePattern == "" {
			return nil, fmt.Errorf("frame_pattern: is missing; framing %q needs one", o.Framing)
		}
		f, err := newRegexpFramer(o.FramePattern, o.MaxLength)
		if err != nil {
			return nil, fmt.Errorf("frame_pattern: %w", err)
		}
		return f, nil
	},
}

// newHeaderFramer makes what framings "fixed" and "length" share.
func newHeaderFramer(o *Options) (*headerFramer, error) {
	sync, err := bytesOf("sync", o.Sync, 0, 8)
	if err != nil {
		return nil, err
	}
	// Split wrongly once, such frames would be split wrongly for ever.
	if len(sync) == 0 && o.Check == "" && len(o.Polls) == 0 {
		return nil, fmt.Errorf("sync: framing %q needs sync, check or polls, to be back in step after a byte is lost", o.Framing)
	}
	return &headerFramer{sync: sync, head: max(1, len(sync)), max: o.MaxLength, checked: o.Check != "", skip: true}, nil
}

func newFixedFramer(o *Options) (framer, error) {
	f, err := newHeaderFramer(o)
	if err != nil {
		return nil, err
	}
	if o.Length < f.head || o.Length > o.MaxLength {
		return nil, fmt.Errorf("length: %d is outside %d..max_length", o.Length, f.head)
	}
	n := o.Length
	f.size = func([]byte) int { return n }
	return f, nil
}

func newLengthFramer(o *Options) (framer, error) {
	f, err := newHeaderFramer(o)
	if err != nil {
		return nil, err
	}
	var order binary.ByteOrder
	switch o.LengthOrder {
	case OrderBig:
		order = binary.BigEndian
	case OrderLittle:
		order = binary.LittleEndian
	default:
		return nil, fmt.Errorf(`length_order: %q is neither "big" nor "little"`, o.LengthOrder)
	}
	if o.LengthOffset < 0 || o.LengthOffset > 255 {
		return nil, fmt.Errorf("length_offset: %d is outside 0..255", o.LengthOffset)
	}
	if o.LengthAdjust < -65536 || o.LengthAdjust > 65536 {
		return nil, fmt.Errorf("length_adjust: %d is outside -65536..65536", o.LengthAdjust)
	}
	at, end, adjust := o.LengthOffset, o.LengthOffset+o.LengthSize, int64(o.LengthAdjust)
	var read func(b []byte) int64
	switch o.LengthSize {
	case 1:
		read = func(b []byte) int64 { return int64(b[0]) }
	case 2:
		read = func(b []byte) int64 { return int64(order.Uint16(b)) }
	case 4:
		read = func(b []byte) int64 { return int64(order.Uint32(b)) }
	default:
		return nil, fmt.Errorf("length_size: %d is none of 1, 2, 4", o.LengthSize)
	}
	f.head = max(f.head, end)
	if f.head > o.MaxLength {
		return nil, fmt.Errorf("max_length: %d is less than the %d bytes that say how long a frame is", o.MaxLength, f.head)
	}
	most := int64(o.MaxLength)
	f.size = func(head []byte) int {
		return int(min(most+1, max(-1, read(head[at:end])+adjust))) // an int has 32 bits on some boards
	}
	return f, nil
}

func newStartEndFramer(o *Options) (framer, error) {
	e := endsOptions{xor: byte(o.EscapeXor), trailer: o.Trailer, max: o.MaxLength}
	var err error
	if e.start, err = bytesOf("start", o.Start, 1, 8); err != nil {
		return nil, err
	}
	if e.end, err = bytesOf("end", o.End, 1, 8); err != nil {
		return nil, err
	}
	if o.Trailer < 0 || o.Trailer > 16 {
		return nil, fmt.Errorf("trailer: %d is outside 0..16", o.Trailer)
	}
	if o.EscapeXor < 0 || o.EscapeXor > 255 {
		return nil, fmt.Errorf("escape_xor: %d is outside 0..255", o.EscapeXor)
	}
	if o.Escape == "" {
		if o.EscapeXor != 0 {
			return nil, errors.New("escape_xor: has no use without escape")
		}
		return newEndsFramer(e), nil
	}
	escape, err := bytesOf("escape", o.Escape, 1, 1)
	if err != nil {
		return nil, err
	}
	e.escaped, e.escape = true, escape[0]
	pair := len(e.start) == 2 && len(e.end) == 2
	switch {
	case pair && e.start[0] == e.escape && e.end[0] == e.escape:
		if e.start[1] == e.escape || e.end[1] == e.escape || e.start[1] == e.end[1] {
			return nil, errors.New("escape: start, end and a doubled escape must differ")
		}
		if e.xor != 0 {
			return nil, errors.New("escape_xor: has no use with start and end that begin with escape")
		}
	case len(e.start) == 1 && len(e.end) == 1:
		if e.start[0] == e.escape || e.end[0] == e.escape {
			return nil, errors.New("escape: is start or end as well")
		}
	default:
		return nil, errors.New("escape: needs start and end to be one byte each, or two of which the first is the escape")
	}
	return newEndsFramer(e), nil
}
