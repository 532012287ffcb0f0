package pack

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/klauspost/compress/zstd"

	"holdfast/broker/cbor"
)

// Packer makes batches of one format and compression, one after the other. It
// keeps its tables from one to the next (zstd: about 1.5 MB), and is for one
// goroutine at a time.
type Packer struct {
	format      Format
	compression Compression
	foreign     func(b []byte, records []Record) []byte
	body        []byte
	zstd        *zstd.Encoder
	gzip        *gzip.Writer
}

// zstdWindow is how far back zstd looks, in bytes: no batch is much larger, and the
// memory of both sides grows with it.
const zstdWindow = 256 << 10

// NewPacker returns a packer.
func NewPacker(f Format, c Compression) (*Packer, error) {
	p := &Packer{format: f, compression: c}
	var err error
	switch c {
	case CompressionZstd:
		// One goroutine's encoder, used through EncodeAll: it starts none.
		p.zstd, err = zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(zstdWindow), zstd.WithEncoderCRC(false), zstd.WithLowerEncoderMem(true))
	case CompressionGzip:
		p.gzip, err = gzip.NewWriterLevel(io.Discard, gzip.BestCompression)
	case CompressionNone:
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c, err)
	}
	return p, nil
}

// NewPackerOf returns a packer of a foreign format: write appends the batch to b.
func NewPackerOf(f Format, c Compression, write func(b []byte, records []Record) []byte) (*Packer, error) {
	p, err := NewPacker(f, c)
	if err == nil {
		p.foreign = write
	}
	return p, err
}

// Pack returns the payload of a message that carries the records, and how it is
// compressed: what compressing makes no smaller is left as it is, with
// CompressionNone.
func (p *Packer) Pack(records []Record) ([]byte, Compression, error) {
	b := p.body[:0]
	switch p.format {
	case FormatCBOR:
		b = cbor.AppendHead(append(b, selfDescribed...), cbor.Array, uint64(len(records)))
		topics, last := make(map[string]uint64), int64(0)
		for i := range records {
			b = appendCBOR(b, &records[i], topics, &last)
		}
	case FormatJSON:
		for i := range records {
			b = appendJSON(append(b, ",["[min(i, 1)^1]), &records[i])
		}
		b = append(b, ']')
	case FormatJSONLines:
		for i := range records {
			b = append(appendJSON(b, &records[i]), '\n')
		}
	default:
		if p.foreign == nil {
			return nil, CompressionNone, fmt.Errorf("%s: nothing here writes it", p.format)
		}
		b = p.foreign(b, records)
	}
	p.body = b
	small, err := p.compress(b)
	if err != nil || p.compression != CompressionNone && len(small) < len(b) {
		return small, p.compression, err
	}
	return bytes.Clone(b), CompressionNone, nil
}

// compress returns nothing for CompressionNone.
func (p *Packer) compress(b []byte) ([]byte, error) {
	switch p.compression {
	case CompressionZstd:
		return p.zstd.EncodeAll(b, nil), nil
	case CompressionGzip:
		var out bytes.Buffer
		p.gzip.Reset(&out)
		if _, err := p.gzip.Write(b); err != nil {
			return nil, fmt.Errorf("gzip: %w", err)
		}
		if err := p.gzip.Close(); err != nil {
			return nil, fmt.Errorf("gzip: %w", err)
		}
		return out.Bytes(), nil
	default:
		return nil, nil
	}
}

// Unpack calls fn with each record of a batch. Whether and how it is compressed,
// and its format, are told by its first bytes. Decompressed it may have most
// bytes. The slices of a record stay valid.
func Unpack(batch []byte, most int, fn func(Record) error) error {
	b, err := Decompress(batch, most)
	if err != nil {
		return err
	}
	return Read(b, fn)
}

// Read calls fn with each record of a batch that is not compressed.
func Read(b []byte, fn func(Record) error) error {
	switch {
	case strings.HasPrefix(string(b[:min(len(b), 3)]), selfDescribed):
		return readCBOR(b, fn)
	case len(b) > 0 && (b[0] == '[' || b[0] == '{'):
		return readJSON(b, fn)
	default:
		return wrong("it begins with % x", b[:min(len(b), 4)])
	}
}

// Decompress returns a batch without its compression, which its first bytes tell,
// at most most bytes. What is not compressed is returned as it is.
func Decompress(b []byte, most int) ([]byte, error) {
	var r io.Reader
	switch {
	case bytes.HasPrefix(b, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(bytes.NewReader(b), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(uint64(most)+1<<20), zstd.WithDecoderMaxWindow(8<<20))
		if err != nil {
			return nil, wrong("zstd: %v", err)
		}
		defer z.Close()
		r = z
	case bytes.HasPrefix(b, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(bytes.NewReader(b))
		if err != nil {
			return nil, wrong("gzip: %v", err)
		}
		r = z
	default:
		if len(b) > most {
			return nil, tooMuch(most)
		}
		return b, nil
	}
	out, err := io.ReadAll(io.LimitReader(r, int64(most)+1))
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF):
		return nil, wrong("it is cut off")
	case err != nil:
		return nil, wrong("%v", err)
	case len(out) > most:
		return nil, tooMuch(most)
	}
	return out, nil
}

func tooMuch(most int) error { return wrong("it is more than %d bytes", most) }
