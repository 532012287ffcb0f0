package main

import (
	"context"
	"io"
	"net"
	"testing"
)

// floor runs a null broker for the test and returns its address.
func floor(tb testing.TB, epoll bool) string {
	tb.Helper()
	port, err := freePort(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	args := []string{port}
	if epoll {
		args = []string{"--epoll", port}
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- runNull(ctx, args, io.Discard) }()
	tb.Cleanup(func() {
		cancel()
		if epoll {
			return // one loop for one process: it ends with it
		}
		if err := <-ended; err != nil {
			tb.Error(err)
		}
	})
	p := process{addr: net.JoinHostPort("127.0.0.1", port)}
	if err := p.wait(tb.Context()); err != nil {
		tb.Fatal(err)
	}
	return p.addr
}
