package storeforward

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
)

// pageFile reads a database page by page, without SQLite: as the file and what its
// log has committed say (https://www.sqlite.org/fileformat2.html).
type pageFile struct {
	f, log *os.File
	size   int   // bytes in a page
	pages  int64 // how many there are
	// logged is where in the log the last committed version of a page is.
	logged map[int64]int64
}

// defaultPageSize is that of SQLite, for a file that does not say its own.
const defaultPageSize = 4096

// openPages opens a database and its log, if it has one that can be read.
func openPages(path string) (*pageFile, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	p := &pageFile{f: f, size: defaultPageSize, logged: make(map[int64]int64)}
	var h [100]byte
	if _, err := io.ReadFull(f, h[:]); err == nil && string(h[:16]) == "SQLite format 3\x00" {
		if size := int(binary.BigEndian.Uint16(h[16:])); validPageSize(size) {
			p.size = size
		}
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	log, err := os.Open(path + "-wal")
	switch {
	case err == nil:
		p.log = log
		err = p.readLog()
	case errors.Is(err, os.ErrNotExist):
		err = nil
	}
	if err != nil {
		return nil, errors.Join(err, p.close())
	}
	if p.pages == 0 {
		p.pages = info.Size() / int64(p.size)
	}
	return p, nil
}

func validPageSize(n int) bool { return n >= 512 && n <= 32768 && n&(n-1) == 0 }

func (p *pageFile) close() error {
	err := p.f.Close()
	if p.log != nil {
		err = errors.Join(err, p.log.Close())
	}
	return err
}

// page reads page n, counted from 1, into b.
func (p *pageFile) page(n int64, b []byte) error {
	if at, ok := p.logged[n]; ok {
		_, err := p.log.ReadAt(b, at)
		return err
	}
	_, err := p.f.ReadAt(b, (n-1)*int64(p.size))
	return err
}

// image is the whole database as one file without a log.
func (p *pageFile) image() ([]byte, error) {
	b := make([]byte, p.pages*int64(p.size))
	for n := int64(1); n <= p.pages; n++ {
		page := b[(n-1)*int64(p.size):][:p.size]
		if err := p.page(n, page); err != nil {
			return nil, fmt.Errorf("page %d: %w", n, err)
		}
	}
	if len(b) >= 20 {
		b[18], b[19] = 1, 1 // the file format of databases without a log
	}
	return b, nil
}

const (
	walHeader   = 32 // bytes
	frameHeader = 24 // bytes before each page in the log
)

// readLog notes what the log has committed: frames of its salt whose checksums,
// each of all that is before it, are right, up to the last that ends a transaction.
func (p *pageFile) readLog() error {
	var h [walHeader]byte
	if _, err := io.ReadFull(p.log, h[:]); err != nil {
		return nil //nolint:nilerr // it has none
	}
	sum, ok := checkLog(h)
	size := int(binary.BigEndian.Uint32(h[8:]))
	if !ok || !validPageSize(size) {
		return nil
	}
	p.size = size
	frame := make([]byte, frameHeader+size)
	open := make(map[int64]int64) // of a transaction not yet ended
	for at := int64(walHeader); ; at += int64(len(frame)) {
		if _, err := p.log.ReadAt(frame, at); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		sum.add(frame[:8])
		sum.add(frame[frameHeader:])
		if string(frame[8:16]) != string(h[16:24]) || sum.a != binary.BigEndian.Uint32(frame[16:]) || sum.b != binary.BigEndian.Uint32(frame[20:]) {
			return nil
		}
		open[int64(binary.BigEndian.Uint32(frame))] = at + frameHeader
		if pages := binary.BigEndian.Uint32(frame[4:]); pages != 0 {
			maps.Copy(p.logged, open)
			clear(open)
			p.pages = int64(pages)
		}
	}
}

// logSum is the running checksum of a log.
type logSum struct {
	order binary.ByteOrder
	a, b  uint32
}

func (s *logSum) add(p []byte) {
	for i := 0; i+8 <= len(p); i += 8 {
		s.a += s.order.Uint32(p[i:]) + s.b
		s.b += s.order.Uint32(p[i+4:]) + s.a
	}
}

// checkLog says whether SQLite will read a log with this header: it is that of one,
// with the right checksum.
func checkLog(h [walHeader]byte) (sum logSum, ok bool) {
	magic := binary.BigEndian.Uint32(h[:])
	if magic&^1 != 0x377f0682 || binary.BigEndian.Uint32(h[4:]) != 3007000 {
		return sum, false
	}
	sum.order = binary.LittleEndian
	if magic&1 != 0 {
		sum.order = binary.BigEndian
	}
	sum.add(h[:24])
	return sum, sum.a == binary.BigEndian.Uint32(h[24:]) && sum.b == binary.BigEndian.Uint32(h[28:])
}
