//go:build linux

package chaos

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
)

// relays are a network for a machine that allows no namespaces: hosts are addresses of the
// loopback, and whoever dials goes through a relay of its own host, to which it says where to. What
// is cut waits in the relay until it heals, connections' ends too. Nodes of etcd know no relays, so
// that they hear each other always.
type relays struct {
	hosts     []string
	listeners map[string]net.Listener
	work      sync.WaitGroup // each listener's goroutine, and three for each connection

	mu      sync.Mutex // guards what follows
	changed chan struct{}
	cut     map[pair]bool
	conns   map[*relayed]struct{}
	closed  bool
}

// relayed is one connection.
type relayed struct {
	from, to  string
	near, far net.Conn // far is nil while the way there is cut
}

func newRelays(hosts ...string) (*relays, error) {
	r := &relays{hosts: hosts, listeners: map[string]net.Listener{}, changed: make(chan struct{}), cut: map[pair]bool{},
		conns: map[*relayed]struct{}{}}
	for _, h := range hosts {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		r.listeners[h] = l
		r.work.Go(func() { r.accept(h, l) })
	}
	return r, nil
}

func (r *relays) String() string {
	return fmt.Sprintf("%d hosts on the loopback with a TCP relay each (etcd's nodes hear each other always)",
		len(r.hosts))
}

// addr is where a host listens: other runs on this machine have other addresses.
func (r *relays) addr(host string) string {
	pid := os.Getpid()
	return fmt.Sprintf("127.%d.%d.%d", 1+pid>>8&127, pid&255, slices.Index(r.hosts, host)+10)
}

func (r *relays) on(string) []string     { return nil }
func (r *relays) via(host string) string { return r.listeners[host].Addr().String() }

func (r *relays) drop(pairs []pair) error {
	r.change(func() {
		for _, p := range pairs {
			r.cut[p] = true
		}
	})
	return nil
}

func (r *relays) heal() error {
	r.change(func() { clear(r.cut) })
	return nil
}

func (r *relays) reset(a, b string) error {
	r.change(func() {
		for c := range r.conns {
			if c.from == a && c.to == b || c.from == b && c.to == a {
				for _, end := range []net.Conn{c.near, c.far} {
					_ = end.(*net.TCPConn).SetLinger(0) // it fails when the end is closed: then it was broken before
					end.Close()
				}
			}
		}
	})
	return nil
}

func (r *relays) close() error {
	r.change(func() {
		r.closed = true
		for c := range r.conns {
			c.near.Close()
			c.far.Close()
		}
	})
	for _, l := range r.listeners {
		l.Close()
	}
	r.work.Wait()
	return nil
}

func (r *relays) change(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
	close(r.changed)
	r.changed = make(chan struct{})
}

// open waits until none of these directions is cut, and reports whether the network is still there.
func (r *relays) open(directions ...pair) bool {
	for {
		r.mu.Lock()
		closed, changed := r.closed, r.changed
		cut := slices.ContainsFunc(directions, func(p pair) bool { return r.cut[p] })
		r.mu.Unlock()
		if closed || !cut {
			return !closed
		}
		<-changed
	}
}

func (r *relays) accept(from string, l net.Listener) {
	for {
		near, err := l.Accept()
		if err != nil {
			return
		}
		r.work.Go(func() { r.connect(from, near) })
	}
}

// connect reads where to, and relays from there on until either end closes.
func (r *relays) connect(from string, near net.Conn) {
	defer near.Close()
	in := bufio.NewReader(near)
	target, err := in.ReadString('\n')
	if err != nil {
		return
	}
	target = strings.TrimSpace(target)
	ip, _, _ := net.SplitHostPort(target)
	i := slices.IndexFunc(r.hosts, func(h string) bool { return r.addr(h) == ip })
	if i < 0 {
		return
	}
	to := r.hosts[i]
	if !r.open(pair{from, to}, pair{to, from}) {
		return
	}
	far, err := net.Dial("tcp", target)
	if err != nil {
		return
	}
	defer far.Close()
	c := &relayed{from, to, near, far}
	r.mu.Lock()
	closed := r.closed
	r.conns[c] = struct{}{}
	r.mu.Unlock()
	defer r.change(func() { delete(r.conns, c) })
	if closed {
		return
	}
	back := make(chan struct{})
	r.work.Go(func() {
		defer close(back)
		r.pump(far, near, pair{to, from})
	})
	r.pump(in, far, pair{from, to})
	<-back
}

// pump copies one direction until its end, and then closes the other.
func (r *relays) pump(from interface{ Read([]byte) (int, error) }, to net.Conn, d pair) {
	piece := make([]byte, 32<<10)
	for {
		n, err := from.Read(piece)
		if !r.open(d) {
			break
		}
		if n > 0 {
			if _, werr := to.Write(piece[:n]); werr != nil {
				break
			}
		}
		if err != nil {
			break
		}
	}
	to.Close()
}
