package main

import (
	"io"
	"net"
	"sync"
)

// A relay stands before a listener whose connections can't be delayed otherwise: dragonboat's and
// etcd's own, between their servers. It delays both directions, and costs CPU: there is one only
// where there is a delay.
type relay struct {
	lis    net.Listener
	target string
	meter  *meter

	mu      sync.Mutex // guards conns
	conns   map[net.Conn]bool
	closed  bool
	running sync.WaitGroup
}

// startRelay listens, and takes each connection to target.
func startRelay(m *meter, target string) (*relay, error) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &relay{lis: lis, target: target, meter: m, conns: map[net.Conn]bool{}}
	r.running.Go(r.accept)
	return r, nil
}

func (r *relay) addr() string { return r.lis.Addr().String() }

func (r *relay) accept() {
	for {
		conn, err := r.lis.Accept()
		if err != nil {
			return
		}
		r.running.Go(func() { r.serve(conn) })
	}
}

// serve counts, and delays, at the outer end what goes one way, and at the inner end delays what
// goes the other.
func (r *relay) serve(accepted net.Conn) {
	target, err := net.Dial("tcp", r.target)
	if err != nil {
		accepted.Close()
		return
	}
	outer, inner := r.meter.conn(accepted, &r.meter.peers), delay(target, r.meter.delay)
	if !r.add(outer, inner) {
		return
	}
	defer r.remove(outer, inner)
	ended := make(chan struct{}, 2)
	for _, way := range [][2]net.Conn{{outer, inner}, {inner, outer}} {
		r.running.Go(func() {
			_, _ = io.Copy(onlyWriter{way[0]}, way[1])
			ended <- struct{}{}
		})
	}
	<-ended
}

// onlyWriter hides ReadFrom, by which bytes would pass by unseen.
type onlyWriter struct{ io.Writer }

func (r *relay) add(conns ...net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range conns {
		if r.closed {
			c.Close()
		}
		r.conns[c] = true
	}
	return !r.closed
}

func (r *relay) remove(conns ...net.Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range conns {
		c.Close()
		delete(r.conns, c)
	}
}

// close ends all connections, and waits for it.
func (r *relay) close() {
	r.lis.Close()
	r.mu.Lock()
	r.closed = true
	for c := range r.conns {
		c.Close()
	}
	r.mu.Unlock()
	r.running.Wait()
}
