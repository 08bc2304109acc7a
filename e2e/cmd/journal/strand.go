package main

import (
	"context"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// strands are the connections that this process has dialled, which can all be made half-open at
// once, as by a NAT that forgets them: nothing that an end sends arrives at the other one, ever,
// not even that it has closed.
type strands struct {
	mu    sync.Mutex // guards conns
	conns map[*strandConn]struct{}
}

// dialer dials as d does, connections that can be stranded.
func (s *strands) dialer(d dialer) dialer {
	return func(ctx context.Context, addr string) (net.Conn, error) {
		conn, err := d(ctx, addr)
		if err != nil {
			return nil, err
		}
		c := &strandConn{Conn: conn, of: s, closed: make(chan struct{})}
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.conns == nil {
			s.conns = map[*strandConn]struct{}{}
		}
		s.conns[c] = struct{}{}
		return c, nil
	}
}

func (s *strands) strand() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.stranded.Store(true)
		_ = c.SetReadDeadline(time.Now()) // it fails only when the connection is closed
	}
	clear(s.conns)
}

// strandConn has one reader, as gRPC's connections do.
type strandConn struct {
	net.Conn
	of        *strands
	stranded  atomic.Bool
	once      sync.Once
	closed    chan struct{}
	swallowed bool // the reader's
}

// Read reads nothing more when the connection is stranded. The other end may still send as much as
// it likes.
func (c *strandConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if !c.stranded.Load() {
		return n, err
	}
	if !c.swallowed {
		c.swallowed = true
		go func() {
			_ = c.SetReadDeadline(time.Time{})
			_, _ = io.Copy(io.Discard, c.Conn)
		}()
	}
	<-c.closed
	return 0, net.ErrClosed
}

func (c *strandConn) Write(b []byte) (int, error) {
	if c.stranded.Load() {
		return len(b), nil
	}
	return c.Conn.Write(b)
}

// Close keeps the socket of a stranded connection open, else the kernel would tell the other end.
func (c *strandConn) Close() error {
	c.of.mu.Lock()
	delete(c.of.conns, c)
	c.of.mu.Unlock()
	c.once.Do(func() { close(c.closed) })
	if c.stranded.Load() {
		return nil
	}
	return c.Conn.Close()
}
