//go:build unix

package etcdproc

import (
	"net"
	"sync"
	"testing"
)

// A Link relays TCP connections to one server, as long as it is neither stalled nor cut. Its methods may run
// concurrently.
type Link struct {
	target   string
	listener net.Listener

	// gate is read-locked by whoever writes a piece of a connection, and locked while the link is stalled.
	gate sync.RWMutex

	mu      sync.Mutex // guards all below
	stalled bool
	cut     bool
	closed  bool
	conns   map[net.Conn]struct{}
	work    sync.WaitGroup // the listener's goroutine, and two for each connection
}

// NewLink returns a link to the server at target (host:port). It ends with the test.
func NewLink(t testing.TB, target string) *Link {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("etcdproc: link: %v", err)
	}
	l := &Link{target: target, listener: listener, conns: map[net.Conn]struct{}{}}
	l.work.Go(l.accept)
	t.Cleanup(l.close)
	return l
}

// Addr returns the host:port to dial instead of the server's.
func (l *Link) Addr() string { return l.listener.Addr().String() }

// Stall lets nothing through, in either way, until Resume: connections stay open, what is sent waits in them and
// arrives then, however late. New connections are accepted, and stall.
func (l *Link) Stall() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.stalled && !l.closed {
		l.stalled = true
		l.gate.Lock()
	}
}

// Resume ends Stall.
func (l *Link) Resume() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.resume()
}

func (l *Link) resume() {
	if l.stalled {
		l.stalled = false
		l.gate.Unlock()
	}
}

// Cut breaks every connection, and each new one at once, until Mend.
func (l *Link) Cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = true
	for conn := range l.conns {
		conn.Close()
	}
}

// Mend ends Cut.
func (l *Link) Mend() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = false
}

func (l *Link) close() {
	l.mu.Lock()
	l.closed = true
	l.listener.Close()
	for conn := range l.conns {
		conn.Close()
	}
	l.resume()
	l.mu.Unlock()
	l.work.Wait()
}

func (l *Link) accept() {
	for {
		near, err := l.listener.Accept()
		if err != nil {
			return
		}
		far, err := net.Dial("tcp", l.target)
		if err != nil { // the server is gone: so is the connection
			near.Close()
			continue
		}
		l.mu.Lock()
		if l.cut || l.closed {
			near.Close()
			far.Close()
		} else {
			l.conns[near], l.conns[far] = struct{}{}, struct{}{}
			l.work.Go(func() { l.pump(near, far) })
			l.work.Go(func() { l.pump(far, near) })
		}
		l.mu.Unlock()
	}
}

// pump copies one direction until either end closes; then both are closed.
func (l *Link) pump(from, to net.Conn) {
	defer func() {
		from.Close()
		to.Close()
		l.mu.Lock()
		delete(l.conns, from)
		l.mu.Unlock()
	}()
	piece := make([]byte, 32<<10)
	for {
		n, err := from.Read(piece)
		if n > 0 {
			l.gate.RLock()
			_, werr := to.Write(piece[:n])
			l.gate.RUnlock()
			if werr != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}
