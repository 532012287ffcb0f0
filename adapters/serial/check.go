package serial

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"math/bits"
)

// Encodings of a checksum.
const (
	EncodingBinary = "binary"
	EncodingHex    = "hex"
)

// checkKind is one value of the key "check".
type checkKind struct {
	size int // bytes
	// little: the low byte comes first, unless the options say otherwise.
	little bool
	// sum returns a function that may keep a table.
	sum func() func(b []byte) uint32
}

// crc describes a CRC as the catalogue of parametrised CRC algorithms does
// (Williams, "A painless guide to CRC error detection algorithms", §15).
type crc struct {
	width              int
	poly, init, xorout uint32
	reflected          bool // refin and refout
}

// sum returns the CRC as a function, a byte at a time.
func (p crc) sum() func(b []byte) uint32 {
	var table [256]uint32
	top := uint32(1) << (p.width - 1)
	mask := top | (top - 1)
	for i := range table {
		if p.reflected {
			poly, c := bits.Reverse32(p.poly)>>(32-p.width), uint32(i)
			for range 8 {
				c = c>>1 ^ poly*(c&1)
			}
			table[i] = c
			continue
		}
		c := uint32(i) << (p.width - 8)
		for range 8 {
			high := c & top
			c <<= 1
			if high != 0 {
				c ^= p.poly
			}
		}
		table[i] = c & mask
	}
	if p.reflected {
		init := bits.Reverse32(p.init) >> (32 - p.width)
		return func(b []byte) uint32 {
			c := init
			for _, x := range b {
				c = c>>8 ^ table[byte(c)^x]
			}
			return c ^ p.xorout
		}
	}
	return func(b []byte) uint32 {
		c := p.init
		for _, x := range b {
			c = (c<<8 ^ table[byte(c>>(p.width-8))^x]) & mask
		}
		return c ^ p.xorout
	}
}

// checks are named as the catalogue of parametrised CRC algorithms does, where
// it has them; the tests hold its check values.
var checks = map[string]checkKind{
	"crc8-smbus":      {1, false, crc{8, 0x07, 0, 0, false}.sum},
	"crc8-i432":       {1, false, crc{8, 0x07, 0, 0x55, false}.sum},
	"crc8-maxim":      {1, false, crc{8, 0x31, 0, 0, true}.sum},
	"crc8-nrsc5":      {1, false, crc{8, 0x31, 0xff, 0, false}.sum},
	"crc8-rohc":       {1, false, crc{8, 0x07, 0xff, 0, true}.sum},
	"crc8-j1850":      {1, false, crc{8, 0x1d, 0xff, 0xff, false}.sum},
	"crc8-autosar":    {1, false, crc{8, 0x2f, 0xff, 0xff, false}.sum},
	"crc8-cdma2000":   {1, false, crc{8, 0x9b, 0xff, 0, false}.sum},
	"crc16-modbus":    {2, true, crc{16, 0x8005, 0xffff, 0, true}.sum},
	"crc16-arc":       {2, true, crc{16, 0x8005, 0, 0, true}.sum},
	"crc16-usb":       {2, true, crc{16, 0x8005, 0xffff, 0xffff, true}.sum},
	"crc16-ibm-3740":  {2, false, crc{16, 0x1021, 0xffff, 0, false}.sum},
	"crc16-spi":       {2, false, crc{16, 0x1021, 0x1d0f, 0, false}.sum},
	"crc16-xmodem":    {2, false, crc{16, 0x1021, 0, 0, false}.sum},
	"crc16-kermit":    {2, true, crc{16, 0x1021, 0, 0, true}.sum},
	"crc16-x25":       {2, true, crc{16, 0x1021, 0xffff, 0xffff, true}.sum},
	"crc16-mcrf4xx":   {2, true, crc{16, 0x1021, 0xffff, 0, true}.sum},
	"crc16-dnp":       {2, true, crc{16, 0x3d65, 0, 0xffff, true}.sum},
	"crc16-en13757":   {2, false, crc{16, 0x3d65, 0, 0xffff, false}.sum},
	"crc32":           {4, true, func() func([]byte) uint32 { return crc32.ChecksumIEEE }},
	"crc32c":          {4, true, sumCastagnoli},
	"crc32-bzip2":     {4, false, crc{32, 0x04c11db7, 0xffffffff, 0xffffffff, false}.sum},
	"crc32-mpeg2":     {4, false, crc{32, 0x04c11db7, 0xffffffff, 0, false}.sum},
	"sum8":            {1, false, sumBytes},
	"sum16":           {2, false, sumBytes},
	"sum8-complement": {1, false, sumComplement},
	"lrc":             {1, false, sumNegated},
	"xor":             {1, false, sumXOR},
	CheckNMEA:         {1, false, sumXOR},
	CheckP1:           {2, false, crc{16, 0x8005, 0, 0, true}.sum},
}

// Checks that know their place in the frame.
const (
	// CheckNMEA is the exclusive or of what stands between "$" or "!" and "*",
	// two hexadecimal digits behind that (NMEA 0183 §5.2).
	CheckNMEA = "nmea"
	// CheckP1 is the CRC-16/ARC of all up to and with "!", four hexadecimal
	// digits behind that (DSMR P1 Companion Standard 5.0.2 §6.2).
	CheckP1 = "p1"
)

func sumCastagnoli() func([]byte) uint32 {
	table := crc32.MakeTable(crc32.Castagnoli)
	return func(b []byte) uint32 { return crc32.Checksum(b, table) }
}

func sumBytes() func([]byte) uint32 {
	return func(b []byte) (s uint32) {
		for _, x := range b {
			s += uint32(x)
		}
		return s
	}
}

// sumComplement is the one's complement of the sum.
func sumComplement() func([]byte) uint32 {
	sum := sumBytes()
	return func(b []byte) uint32 { return ^sum(b) }
}

// sumNegated is the two's complement of the sum, as in MODBUS ASCII (MODBUS
// Serial Line V1.02 §6.2.1).
func sumNegated() func([]byte) uint32 {
	sum := sumBytes()
	return func(b []byte) uint32 { return -sum(b) }
}

func sumXOR() func([]byte) uint32 {
	return func(b []byte) (s uint32) {
		for _, x := range b {
			s ^= uint32(x)
		}
		return s
	}
}

// check knows the checksum of a device's frames. The zero value knows none,
// and finds every frame whole.
type check struct {
	name     string
	sum      func([]byte) uint32
	size     int // bytes
	hex      bool
	little   bool
	at       int // see Options.CheckAt
	from, to int // see Options
}

// newCheck checks the options and returns the check they ask for.
func newCheck(o *Options) (*check, error) {
	if o.Check == "" {
		return &check{}, nil
	}
	kind, ok := checks[o.Check]
	if !ok {
		return nil, fmt.Errorf("check: %q is none of %s", o.Check, oneOf(checks))
	}
	c := &check{
		name: o.Check, sum: kind.sum(), size: kind.size, little: kind.little,
		hex: o.CheckEncoding == EncodingHex, at: o.CheckAt, from: o.CheckFrom, to: o.CheckTo,
	}
	switch o.CheckEncoding {
	case EncodingBinary, EncodingHex:
	default:
		return nil, fmt.Errorf(`check_encoding: %q is neither "binary" nor "hex"`, o.CheckEncoding)
	}
	if c.hex {
		c.little = false // digits are written as a number is, unless told otherwise
	}
	switch o.CheckOrder {
	case "":
	case OrderBig:
		c.little = false
	case OrderLittle:
		c.little = true
	default:
		return nil, fmt.Errorf(`check_order: %q is neither "big" nor "little"`, o.CheckOrder)
	}
	for key, v := range map[string]int{"check_at": o.CheckAt, "check_to": o.CheckTo} {
		if v < -o.MaxLength || v > o.MaxLength {
			return nil, fmt.Errorf("%s: %d is outside -max_length..max_length", key, v)
		}
	}
	if o.CheckFrom < 0 || o.CheckFrom > o.MaxLength {
		return nil, fmt.Errorf("check_from: %d is outside 0..max_length", o.CheckFrom)
	}
	return c, nil
}

// wide is how many bytes the checksum takes in the frame.
func (c *check) wide() int {
	if c.hex {
		return 2 * c.size
	}
	return c.size
}

var (
	errCheckShort = errors.New("frame is too short for its checksum")
	errCheckWrong = errors.New("checksum is wrong")
)

// verify returns the body of a frame whose checksum is right, without it if it
// stands at the end.
func (c *check) verify(f frame) (body []byte, err error) {
	switch c.name {
	case "":
		return f.body, nil
	case CheckNMEA:
		return c.verifyNMEA(f.body)
	case CheckP1:
		return c.verifyP1(f)
	}
	at, end := c.place(len(f.raw))
	from, to := c.span(len(f.raw), at)
	if at < 0 || end > len(f.raw) || from > to || to > len(f.raw) || to < 0 {
		return nil, errCheckShort
	}
	got, ok := c.read(f.raw[at:end])
	if !ok || got != c.mask(c.sum(f.raw[from:to])) {
		return nil, errCheckWrong
	}
	body = f.body
	if len(f.raw) == len(f.body) && end == len(f.raw) {
		body = body[:at]
	}
	return body, nil
}

// place returns where the checksum stands in n bytes; not inside of them if
// they are too few.
func (c *check) place(n int) (at, end int) {
	if c.at < 0 {
		end = n + 1 + c.at
		return end - c.wide(), end
	}
	return c.at, c.at + c.wide()
}

// span returns what the checksum is computed over.
func (c *check) span(n, at int) (from, to int) {
	switch {
	case c.to > 0:
		return c.from, c.to
	case c.to < 0:
		return c.from, n + c.to
	case at < c.from:
		return c.from, n // it stands before what it is for
	default:
		return c.from, at
	}
}

func (c *check) mask(s uint32) uint32 { return s & (1<<(8*c.size) - 1) }

// read returns the checksum that stands in b.
func (c *check) read(b []byte) (s uint32, ok bool) {
	var plain [4]byte
	if c.hex {
		if n, err := hex.Decode(plain[:], b); err != nil || n != c.size {
			return 0, false
		}
		b = plain[:c.size]
	}
	for i, x := range b {
		if c.little {
			s |= uint32(x) << (8 * i)
		} else {
			s = s<<8 | uint32(x)
		}
	}
	return s, true
}

func (c *check) verifyNMEA(b []byte) ([]byte, error) {
	star := bytes.LastIndexByte(b, '*')
	if len(b) == 0 || b[0] != '$' && b[0] != '!' || star < 1 || len(b) < star+3 {
		return nil, errCheckShort
	}
	if got, ok := hexByte(b[star+1 : star+3]); !ok || len(b) != star+3 || uint32(got) != c.sum(b[1:star]) {
		return nil, errCheckWrong
	}
	return b[:star], nil
}

func hexByte(digits []byte) (byte, bool) {
	var b [1]byte
	_, err := hex.Decode(b[:], digits)
	return b[0], err == nil
}

// verifyP1 looks at the raw frame, of which the body may lack the ends.
func (c *check) verifyP1(f frame) ([]byte, error) {
	raw := bytes.TrimRight(f.raw, "\r\n")
	mark := bytes.LastIndexByte(raw, '!')
	if mark < 0 || len(raw) != mark+5 {
		return nil, errCheckShort
	}
	var got [2]byte
	if _, err := hex.Decode(got[:], raw[mark+1:]); err != nil {
		return nil, errCheckWrong
	}
	if uint32(got[0])<<8|uint32(got[1]) != c.sum(f.raw[:mark+1]) {
		return nil, errCheckWrong
	}
	if len(f.raw) == len(f.body) {
		return f.raw[:mark+1], nil
	}
	return f.body, nil
}
