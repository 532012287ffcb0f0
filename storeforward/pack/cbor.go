package pack

import (
	"encoding/binary"
	"math"
	"time"
	"unicode/utf8"
)

// The major types of CBOR (RFC 8949 §3.1).
const (
	majorUint  = 0
	majorNint  = 1
	majorBytes = 2
	majorText  = 3
	majorArray = 4

	cborNull = 0xf6
	// selfDescribed is the tag 55799 (RFC 8949 §3.4.6).
	selfDescribed = "\xd9\xd9\xf7"
	// A record has three elements, or more.
	leastElements, mostElements = 3, 6
)

func appendHead(b []byte, major byte, n uint64) []byte {
	m := major << 5
	switch {
	case n < 24:
		return append(b, m|byte(n))
	case n <= math.MaxUint8:
		return append(b, m|24, byte(n))
	case n <= math.MaxUint16:
		return binary.BigEndian.AppendUint16(append(b, m|25), uint16(n))
	case n <= math.MaxUint32:
		return binary.BigEndian.AppendUint32(append(b, m|26), uint32(n))
	default:
		return binary.BigEndian.AppendUint64(append(b, m|27), n)
	}
}

func appendInt(b []byte, n int64) []byte {
	if n < 0 {
		return appendHead(b, majorNint, uint64(-1-n))
	}
	return appendHead(b, majorUint, uint64(n))
}

func appendBlob(b, p []byte) []byte {
	major := byte(majorBytes)
	if utf8.Valid(p) {
		major = majorText
	}
	return append(appendHead(b, major, uint64(len(p))), p...)
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
	b = appendHead(b, majorArray, uint64(n))
	if i, known := topics[r.Topic]; known {
		b = appendHead(b, majorUint, i)
	} else {
		topics[r.Topic] = uint64(len(topics))
		b = append(appendHead(b, majorText, uint64(len(r.Topic))), r.Topic...)
	}
	at := r.Time.UnixMilli()
	b = appendInt(b, at-*last)
	*last = at
	b = appendBlob(b, r.Payload)
	if n > 3 {
		b = appendHead(b, majorUint, uint64(r.QoS))
	}
	if n > 4 {
		if r.HasExpiry {
			b = appendHead(b, majorUint, uint64(r.Expiry))
		} else {
			b = append(b, cborNull)
		}
	}
	if n > 5 {
		b = append(appendHead(b, majorBytes, uint64(len(r.Properties))), r.Properties...)
	}
	return b
}

// cborReader takes elements from the front of b.
type cborReader struct{ b []byte }

func (c *cborReader) head() (major byte, n uint64, err error) {
	if len(c.b) == 0 {
		return 0, 0, wrong("it is cut off")
	}
	first := c.b[0]
	major, n = first>>5, uint64(first&31)
	size := 0
	switch {
	case n < 24:
	case n <= 27:
		size = 1 << (n - 24)
	default:
		return 0, 0, wrong("CBOR byte 0x%02x is not used in batches", first)
	}
	if len(c.b) < 1+size {
		return 0, 0, wrong("it is cut off")
	}
	if size > 0 {
		n = 0
		for _, x := range c.b[1 : 1+size] {
			n = n<<8 | uint64(x)
		}
	}
	c.b = c.b[1+size:]
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
	case major != majorBytes && (!text || major != majorText):
		return nil, wrong("%s is of CBOR type %d", what, major)
	}
	return c.cut(n)
}

// null takes a null if there is one.
func (c *cborReader) null() bool {
	if len(c.b) > 0 && c.b[0] == cborNull {
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
	case major == majorUint && n < uint64(len(*topics)):
		return (*topics)[n], nil
	case major == majorUint:
		return "", wrong("topic %d of %d", n, len(*topics))
	case major != majorText:
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
	case major == majorUint:
		*last += int64(n)
	case major == majorNint:
		*last += -1 - int64(n)
	default:
		return time.Time{}, wrong("time is of CBOR type %d", major)
	}
	return time.UnixMilli(*last).UTC(), nil
}

func (c *cborReader) record(topics *[]string, last *int64) (r Record, err error) {
	n, err := c.expect("record", majorArray)
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
		qos, err := c.expect("qos", majorUint)
		if err != nil || qos > 2 {
			return r, wrong("qos %d: %v", qos, err)
		}
		r.QoS = byte(qos)
	}
	if n > 4 && !c.null() {
		expiry, err := c.expect("expiry", majorUint)
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
	n, err := c.expect("batch", majorArray)
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
