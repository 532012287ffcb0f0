package console

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// maxAnswer bounds what Get reads.
const maxAnswer = 64 << 20

// Get asks the gateway that listens on the control socket for one path, and
// returns the body and the HTTP status code.
func Get(ctx context.Context, socket, path string) (body []byte, code int, err error) {
	client := &http.Client{
		Timeout: 10 * time.Second,
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				var d net.Dialer
				return d.DialContext(ctx, "unix", socket)
			},
		},
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://holdfast/"+strings.TrimPrefix(path, "/"), http.NoBody)
	if err != nil {
		return nil, 0, fmt.Errorf("ask %s: %w", socket, err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, 0, fmt.Errorf("ask %s: %w", socket, err)
	}
	body, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if cerr := resp.Body.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return nil, resp.StatusCode, fmt.Errorf("ask %s: %w", socket, err)
	}
	return body, resp.StatusCode, nil
}
