package console

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
)

// Stream asks the gateway that listens on the control socket and calls fn with
// each line of the answer. An answer other than 200 is an error with its text.
func Stream(ctx context.Context, socket, method, path string, body io.Reader, fn func(line []byte) error) (err error) {
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, method, "http://holdfast/"+strings.TrimPrefix(path, "/"), body)
	if err != nil {
		return fmt.Errorf("ask %s: %w", socket, err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("ask %s: %w", socket, err)
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	if resp.StatusCode != http.StatusOK {
		text, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
		return errors.Join(errors.New(string(bytes.TrimSpace(text))), err)
	}
	lines := bufio.NewReaderSize(resp.Body, 64<<10)
	for {
		line, err := readLine(lines)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = fn(line)
		}
		if err != nil {
			return err
		}
	}
}

// Order is Stream for the POST requests that answer with [Progress].
func Order(ctx context.Context, socket, path string, body io.Reader, progress func(int64)) (done int64, err error) {
	ended := false
	err = Stream(ctx, socket, http.MethodPost, path, body, func(line []byte) error {
		var p Progress
		if err := json.Unmarshal(line, &p); err != nil {
			return err
		}
		done = p.Done
		progress(p.Done)
		switch {
		case p.Error != "":
			return errors.New(p.Error)
		case p.End:
			ended = true
		}
		return nil
	})
	if err == nil && !ended {
		err = fmt.Errorf("ask %s: %w", socket, io.ErrUnexpectedEOF)
	}
	return done, err
}
