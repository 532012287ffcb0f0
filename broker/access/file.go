package access

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// FileError is one wrong line of a password or ACL file.
type FileError struct {
	File string
	Line int // from 1
	Text string
}

func (e *FileError) Error() string { return fmt.Sprintf("%s:%d: %s", e.File, e.Line, e.Text) }

// maxFile bounds the password and the ACL file. A hundred thousand users fit.
const maxFile = 32 << 20 // bytes

// readFile reads a file that the operator named.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("%s: is larger than %d bytes", path, maxFile)
	}
	return data, nil
}

// eachLine calls fn for every line that is neither empty nor a comment, with
// the white space at its end cut off, and joins what is wrong.
func eachLine(file string, data []byte, fn func(n int, line string) error) error {
	var errs []error
	n := 0
	for line := range strings.SplitSeq(string(data), "\n") {
		n++
		line = strings.TrimRight(line, " \t\r\v\f")
		if line == "" || line[0] == '#' {
			continue
		}
		if err := fn(n, line); err != nil {
			errs = append(errs, &FileError{File: file, Line: n, Text: err.Error()})
		}
		if len(errs) == maxFileErrors {
			errs = append(errs, fmt.Errorf("%s: and perhaps more", file))
			break
		}
	}
	return errors.Join(errs...)
}

// maxFileErrors is how many wrong lines are named; whoever gave the wrong file
// needs no more.
const maxFileErrors = 20
