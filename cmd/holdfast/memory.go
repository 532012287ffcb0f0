package main

import (
	"bufio"
	"os"
	"runtime/debug"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// trimMemory gives back what only the start has needed: garbage, and the pages
// of the program's own file. The kernel maps those in groups of sixteen, most of
// the file within a second, and is slow to take mapped pages when memory gets
// short; the ones that are in use come back from its cache with a fault each.
func trimMemory() {
	debug.FreeOSMemory()
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		return // no /proc: nothing is lost but memory
	}
	defer func() { _ = f.Close() }()
	var start, end uint64
	ours := false
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		switch {
		case len(fields) >= 6 && strings.Contains(fields[0], "-"):
			from, to, _ := strings.Cut(fields[0], "-")
			var err1, err2 error
			start, err1 = strconv.ParseUint(from, 16, 64)
			end, err2 = strconv.ParseUint(to, 16, 64)
			ours = err1 == nil && err2 == nil && fields[5] == exe && !strings.Contains(fields[1], "w")
		case ours && len(fields) >= 2 && fields[0] == "Anonymous:" && fields[1] == "0":
			// Nothing in it differs from the file: a page that was written to
			// (relocations) would be lost.
			_, _, _ = unix.Syscall(unix.SYS_MADVISE, uintptr(start), uintptr(end-start), unix.MADV_DONTNEED)
		}
	}
}

// handshakeGarbage has the memory given back that many clients have left behind
// who connected at about the same time, after a restart or a power cut: a
// handshake needs several times of what an idle client keeps, and a gateway
// whose clients are quiet collects garbage every other minute at most.
type handshakeGarbage struct{ seen, cleaned uint64 }

// manyHandshakes is when it is worth it: about a megabyte.
const manyHandshakes = 256

// look is called now and then with the number of clients that ever connected.
func (h *handshakeGarbage) look(connects uint64) (gaveBack bool) {
	quiet := connects == h.seen
	h.seen = connects
	if !quiet || connects-h.cleaned < manyHandshakes {
		return false
	}
	h.cleaned = connects
	trimMemory()
	return true
}
