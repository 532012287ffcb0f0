package pack

import (
	"math"
	"time"
	"unicode/utf8"

	"holdfast/broker/cbor"
)

const (
	// selfDescribed is the tag 55799 (RFC 8949 §3.4.6).
	selfDescribed = "\xd9\xd9\xf7"
	// A record has three elements, or more.
	leastElements, mostElements = 3, 6
)

func appendBlob(b, p []byte) []byte {
	major := byte(cbor.Bytes)
	if utf8.Valid(p) {
		major = cbor.Text
	}
	return append(cbor.AppendHead(b, major, uint64(len(p))), p...)
}

// appendCBOR appends a record; topics and last are those of the batch so far.
func appendCBOR(b []byte, r *Record, topics map[string]uint64, last *int64) []byte {
	n := leastElements
	switch {
	case len(r.Properties) > 0:
		n = mostElements
	case r.HasExpiry:
		n = 5
	case r.QoS > 0:
		n = 4
	}
	b = cbor.AppendHead(b, cbor.Array, uint64(n))
	if i, known := topics[r.Topic]; known {
		b = cbor.AppendHead(b, cbor.Uint, i)
	} else {
		topics[r.Topic] = uint64(len(topics))
		b = append(cbor.AppendHead(b, cbor.Text, uint64(len(r.Topic))), r.Topic...)
	}
	at := r.Time.UnixMilli()
	b = cbor.AppendInt(b, at-*last)
	*last = at
	b = appendBlob(b, r.Payload)
	if n > 3 {
		b = cbor.AppendHead(b, cbor.Uint, uint64(r.QoS))
	}
	if n > 4 {
		if r.HasExpiry {
			b = cbor.AppendHead(b, cbor.Uint, uint64(r.Expiry))
		} else {
			b = append(b, cbor.Null)
		}
	}
	if n > 5 {
		b = append(cbor.AppendHead(b, cbor.Bytes, uint64(len(r.Properties))), r.Properties...)
	}
	return b
}

// cborReader takes elements from the front of b.
type cborReader struct{ b []byte }

func (c *cborReader) head() (major byte, n uint64, err error) {
	major, n, _, rest, err := cbor.Head(c.b)
	if err != nil {
		return 0, 0, wrong("%v", err)
	}
	c.b = rest
	return major, n, nil
}

func (c *cborReader) expect(what string, want byte) (uint64, error) {
	major, n, err := c.head()
	if err == nil && major != want {
		err = wrong("%s is of CBOR type %d, want %d", what, major, want)
	}
	return n, err
}

func (c *cborReader) cut(n uint64) ([]byte, error) {
	if n > uint64(len(c.b)) {
		return nil, wrong("it is cut off")
	}
	p := c.b[:n:n]
	c.b = c.b[n:]
	return p, nil
}

// blob takes bytes, or text if that is allowed.
func (c *cborReader) blob(what string, text bool) ([]byte, error) {
	major, n, err := c.head()
	switch {
	case err != nil:
		return nil, err
	case major != cbor.Bytes && (!text || major != cbor.Text):
		return nil, wrong("%s is of CBOR type %d", what, major)
	}
	return c.cut(n)
}

// null takes a null if there is one.
func (c *cborReader) null() bool {
	if len(c.b) > 0 && c.b[0] == cbor.Null {
		c.b = c.b[1:]
		return true
	}
	return false
}

func (c *cborReader) topic(topics *[]string) (string, error) {
	major, n, err := c.head()
	switch {
	case err != nil:
		return "", err
	case major == cbor.Uint && n < uint64(len(*topics)):
		return (*topics)[n], nil
	case major == cbor.Uint:
		return "", wrong("topic %d of %d", n, len(*topics))
	case major != cbor.Text:
		return "", wrong("topic is of CBOR type %d", major)
	}
	p, err := c.cut(n)
	if err != nil {
		return "", err
	}
	*topics = append(*topics, string(p))
	return string(p), nil
}

func (c *cborReader) time(last *int64) (time.Time, error) {
	major, n, err := c.head()
	switch {
	case err != nil:
		return time.Time{}, err
	case n > 1<<53:
		return time.Time{}, wrong("time %d is too far away", n)
	case major == cbor.Uint:
		*last += int64(n)
	case major == cbor.Nint:
		*last += -1 - int64(n)
	default:
		return time.Time{}, wrong("time is of CBOR type %d", major)
	}
	return time.UnixMilli(*last).UTC(), nil
}

func (c *cborReader) record(topics *[]string, last *int64) (r Record, err error) {
	n, err := c.expect("record", cbor.Array)
	if err != nil {
		return r, err
	}
	if n < leastElements || n > mostElements {
		return r, wrong("a record of %d elements", n)
	}
	if r.Topic, err = c.topic(topics); err != nil {
		return r, err
	}
	if r.Time, err = c.time(last); err != nil {
		return r, err
	}
	if r.Payload, err = c.blob("payload", true); err != nil {
		return r, err
	}
	if n > 3 {
		qos, err := c.expect("qos", cbor.Uint)
		if err != nil || qos > 2 {
			return r, wrong("qos %d: %v", qos, err)
		}
		r.QoS = byte(qos)
	}
	if n > 4 && !c.null() {
		expiry, err := c.expect("expiry", cbor.Uint)
		if err != nil || expiry > math.MaxUint32 {
			return r, wrong("expiry %d: %v", expiry, err)
		}
		r.HasExpiry, r.Expiry = true, uint32(expiry)
	}
	if n > 5 {
		if r.Properties, err = c.blob("properties", false); err != nil {
			return r, err
		}
	}
	return r, nil
}

func readCBOR(b []byte, fn func(Record) error) error {
	c := cborReader{b[len(selfDescribed):]}
	n, err := c.expect("batch", cbor.Array)
	if err != nil {
		return err
	}
	var topics []string
	var last int64
	for range n {
		r, err := c.record(&topics, &last)
		if err != nil {
			return err
		}
		if err := fn(r); err != nil {
			return err
		}
	}
	if len(c.b) > 0 {
		return wrong("%d bytes behind the end", len(c.b))
	}
	return nil
}
