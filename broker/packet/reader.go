package packet

import "io"

// Sizes of a Reader's own buffer, in bytes.
const (
	defaultSize = 512
	minSize     = 16 // holds a fixed header and the smaller answers
)

// Reader reads packets from a stream. It is for one goroutine. While it has
// nothing unread it holds on to a small buffer only; whatever larger ones it
// needs, it borrows, grows as bytes really arrive, and gives back.
type Reader struct {
	r       io.Reader
	version Version
	limit   int
	users   int     // user properties a packet may have, 0 for any number
	size    int     // of own
	own     []byte  // the small buffer, made when first needed
	lent    *[]byte // what buf is borrowed from, nil if it is not
	// buf[start:end] is unread; the packet that Next returned last is before
	// start. buf is own, or borrowed, or one of more than maxLent.
	buf        []byte
	start, end int
	// need is the size of the packet at start; 0 if that is not known yet.
	need int
	// burst says that the last read brought more than own would have held.
	burst bool
	err   error // of a packet, after which the stream makes no sense
	// burdened says that an acknowledgement below has more than its packet id.
	burdened bool

	publish Publish
	puback  Puback
	pubrec  Pubrec
	pubrel  Pubrel
	pubcomp Pubcomp
}

// NewReader returns a reader with a buffer of that size, in bytes, while idle;
// 0 takes the default of 512. It takes packets up to the largest there is, see
// [Reader.SetMax], and reads as 5.0 until it has seen a CONNECT or
// [Reader.SetVersion] is called.
func NewReader(r io.Reader, size int) *Reader {
	if size <= 0 {
		size = defaultSize
	}
	return &Reader{r: r, size: max(size, minSize), version: V5}
}

// SetVersion says how the following packets are to be read. A CONNECT does it
// too, to the version it asks for.
func (r *Reader) SetVersion(v Version) { r.version = v }

// SetMax refuses packets larger than n bytes, header included, with reason
// 0x95 and before memory is taken for them; 0 refuses none (MQTT 5.0
// §3.1.2.11.4, §3.2.2.3.6).
func (r *Reader) SetMax(n int) { r.limit = n }

// Reset begins anew on another stream of that version, of which unread was read
// before: it is copied. A reader that serves many streams in turn takes over
// from where each of them stood, see [Reader.Unread].
func (r *Reader) Reset(src io.Reader, v Version, unread []byte) {
	r.r, r.version, r.err, r.need, r.burst = src, v, nil, 0, false
	r.start, r.end = 0, 0
	switch n := len(unread); {
	case n <= r.size:
		r.useOwn()
	case n <= maxLent:
		r.useLent(n)
	default:
		r.use(make([]byte, n), nil)
	}
	r.end = copy(r.buf, unread)
}

// Unread is what has been read of packets to come, valid until the following
// call. need is the size of the first of them in bytes, 0 if that cannot be said
// yet.
func (r *Reader) Unread() (b []byte, need int) { return r.buf[r.start:r.end], r.need }

// SetMaxUserProperties refuses packets with more than n user properties, with
// reason 0x97 and before memory is taken for them; 0 refuses none.
func (r *Reader) SetMaxUserProperties(n int) { r.users = n }

// Buffered returns the number of bytes read from the stream that belong to
// packets to come.
func (r *Reader) Buffered() int { return r.end - r.start }

// More says whether a further packet is there in full, so that Next will not
// wait. Answers can be held back until it says no.
func (r *Reader) More() bool {
	n, err := Frame(r.buf[r.start:r.end], r.limit)
	return r.err == nil && err == nil && n > 0 && n <= r.Buffered()
}

// Next returns the next packet. Its byte slices point into the reader's buffer
// and are valid until the following call; so are *Publish, *Puback, *Pubrec,
// *Pubrel and *Pubcomp themselves, which are used again. It returns io.EOF only
// between packets, and io.ErrUnexpectedEOF inside one. Errors about the packet
// are of type [*Error], and final; other errors come from the stream as they
// are, and Next may be called again after a timeout.
func (r *Reader) Next() (Packet, error) {
	if r.err != nil {
		return nil, r.err
	}
	for {
		if p := r.quick(); p != nil {
			return p, nil
		}
		frame, err := r.frame()
		if err != nil {
			r.err = err
			return nil, err
		}
		if frame != nil {
			p, err := decode(frame, r.version, targets{&r.publish, &r.puback, &r.pubrec, &r.pubrel, &r.pubcomp, r.users})
			if err != nil {
				r.err = err
				return nil, err
			}
			switch p := p.(type) {
			case *Connect:
				r.version = p.Version
			case *Puback, *Pubrec, *Pubrel, *Pubcomp:
				r.burdened = true
			}
			return p, nil
		}
		if err := r.fill(); err != nil {
			return nil, err
		}
	}
}

// frame takes the next packet from the buffer; nil if it is not there in full.
func (r *Reader) frame() ([]byte, error) {
	unread := r.buf[r.start:r.end]
	if len(unread) == 0 {
		return nil, nil
	}
	if err := checkHeader(unread[0], r.version); err != nil {
		err.Type = Type(unread[0] >> 4)
		return nil, err
	}
	n, err := Frame(unread, r.limit)
	if err != nil {
		return nil, err
	}
	if r.need = n; n == 0 || n > len(unread) {
		return nil, nil
	}
	r.start += n
	r.need = 0
	return unread[:n:n], nil
}

// fill reads once, or more often if nothing comes.
func (r *Reader) fill() error {
	r.makeRoom()
	for range 100 { // as bufio: a stream that never delivers is broken
		n, err := r.r.Read(r.buf[r.end:])
		r.end += n
		if n > 0 {
			r.burst = n > r.size || r.end == len(r.buf)
			return nil
		}
		if err == io.EOF && r.Buffered() > 0 {
			return io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
	}
	return io.ErrNoProgress
}

// makeRoom sees to it that there is room to read into. With nothing unread it
// goes back to the small buffer, or to a moderate one in a burst.
func (r *Reader) makeRoom() {
	switch {
	case r.Buffered() == 0 && (!r.burst || len(r.buf) > max(minLent, r.size)):
		r.start, r.end = 0, 0
		r.useOwn()
	case r.burst && len(r.buf) < minLent:
		r.useLent(minLent)
	case r.Buffered() == 0:
		r.start, r.end = 0, 0
	case r.end < len(r.buf):
	case r.need <= len(r.buf): // then something before start is done with
		r.end = copy(r.buf, r.buf[r.start:r.end])
		r.start = 0
	default:
		// At most twice what has really come, and never at once what a header
		// announces: that may be 256 MiB of nothing.
		if n := min(2*len(r.buf), r.need); n <= maxLent {
			r.useLent(n)
		} else {
			r.use(make([]byte, n), nil)
		}
	}
}

func (r *Reader) useOwn() {
	if r.own == nil {
		r.own = make([]byte, r.size)
	}
	r.use(r.own, nil)
}

func (r *Reader) useLent(n int) {
	b := borrow(n)
	r.use(*b, b)
}

// use moves what is unread to buf and gives the old buffer back.
func (r *Reader) use(buf []byte, from *[]byte) {
	if r.lent != nil || len(r.buf) > r.size {
		r.publish = Publish{} // or it would keep the old buffer
	}
	r.end = copy(buf, r.buf[r.start:r.end])
	r.start = 0
	if r.lent != nil {
		giveBack(r.lent)
	}
	r.buf, r.lent = buf, from
}
