//go:build unix

package etcdproc

import (
	"net"
	"sync"
	"testing"
)

// A Link relays TCP connections to one server, as long as it is neither stalled nor cut. Its
// methods may run concurrently.
type Link struct {
	target   string
	listener net.Listener

	// The gates, of requests and of replies, are each read-locked by whoever writes a piece of a
	// connection in that direction, and locked while the direction is stalled.
	requests, replies sync.RWMutex

	mu      sync.Mutex // guards all below
	stalled []*sync.RWMutex
	cut     bool
	closed  bool
	conns   map[*relayed]struct{}
	work    sync.WaitGroup // the listener's goroutine, and two for each connection
}

// relayed is one connection from a client, and the one to the server that it is relayed to.
type relayed struct {
	near, far net.Conn
	stranded  bool // guarded by both gates: read with either read-locked, written with both locked
}

func (r *relayed) close() {
	r.near.Close()
	r.far.Close()
}

// NewLink returns a link to the server at target (host:port). It ends with the test.
func NewLink(t testing.TB, target string) *Link {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("etcdproc: link: %v", err)
	}
	l := &Link{target: target, listener: listener, conns: map[*relayed]struct{}{}}
	l.work.Go(l.accept)
	t.Cleanup(l.close)
	return l
}

// Addr returns the host:port to dial instead of the server's.
func (l *Link) Addr() string { return l.listener.Addr().String() }

// Stall lets nothing through, in either way, until Resume: connections stay open, what is sent
// waits in them and arrives then, however late. New connections are accepted, and stall.
func (l *Link) Stall() { l.stall(&l.requests, &l.replies) }

// StallReplies lets nothing through from the server, until Resume.
func (l *Link) StallReplies() { l.stall(&l.replies) }

func (l *Link) stall(gates ...*sync.RWMutex) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.stalled) == 0 && !l.closed {
		for _, gate := range gates {
			gate.Lock()
		}
		l.stalled = gates
	}
}

// Resume ends Stall and StallReplies.
func (l *Link) Resume() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.resume()
}

func (l *Link) resume() {
	for _, gate := range l.stalled {
		gate.Unlock()
	}
	l.stalled = nil
}

// Cut breaks every connection, and each new one at once, until Mend.
func (l *Link) Cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = true
	for conn := range l.conns {
		conn.close()
	}
}

// Mend ends Cut.
func (l *Link) Mend() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = false
}

// Reset breaks every connection with a TCP reset at both ends; what was on its way is lost. New
// ones are relayed.
func (l *Link) Reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for conn := range l.conns {
		for _, end := range []net.Conn{conn.near, conn.far} {
			_ = end.(*net.TCPConn).SetLinger(0) // it fails when the end is closed: then it was broken before
		}
		conn.close()
	}
}

// Strand leaves every connection half-open: nothing that an end sends arrives, ever, not even that
// it has closed. New ones are relayed. The link must not be stalled.
func (l *Link) Strand() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.requests.Lock()
	defer l.requests.Unlock()
	l.replies.Lock()
	defer l.replies.Unlock()
	for conn := range l.conns {
		conn.stranded = true
	}
}

func (l *Link) close() {
	l.mu.Lock()
	l.closed = true
	l.listener.Close()
	for conn := range l.conns {
		conn.close()
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
		conn := &relayed{near: near, far: far}
		l.mu.Lock()
		if l.cut || l.closed {
			conn.close()
		} else {
			l.conns[conn] = struct{}{}
			l.work.Go(func() { l.pump(conn, near, far, &l.requests) })
			l.work.Go(func() { l.pump(conn, far, near, &l.replies) })
		}
		l.mu.Unlock()
	}
}

// pump copies one direction until either end closes; then both are closed, unless the connection is
// stranded: then the other end stays until the link is closed or the connection broken.
func (l *Link) pump(conn *relayed, from, to net.Conn, gate *sync.RWMutex) {
	defer func() {
		gate.RLock()
		stranded := conn.stranded
		gate.RUnlock()
		if stranded {
			from.Close()
			return
		}
		conn.close()
		l.mu.Lock()
		delete(l.conns, conn)
		l.mu.Unlock()
	}()
	piece := make([]byte, 32<<10)
	for {
		n, err := from.Read(piece)
		if n > 0 {
			var werr error
			gate.RLock()
			if !conn.stranded {
				_, werr = to.Write(piece[:n])
			}
			gate.RUnlock()
			if werr != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}
