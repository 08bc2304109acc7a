package replica

import (
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
)

// noted is the listener of Serve's, which notes when the server closes it: first of all that
// GracefulStop and Stop do.
type noted struct {
	net.Listener
	once   sync.Once
	closed chan struct{}
}

func newNoted(lis net.Listener) *noted { return &noted{Listener: lis, closed: make(chan struct{})} }

func (n *noted) isClosed() bool {
	select {
	case <-n.closed:
		return true
	default:
		return false
	}
}

// Close implements net.Listener.
func (n *noted) Close() error {
	n.once.Do(func() { close(n.closed) })
	return n.Listener.Close()
}

// drainServer lets replies that are being sent leave; streams of ours have ended with the
// incarnation. It says false of a server that doesn't end, because a handler hangs.
func drainServer(s *grpc.Server) bool {
	done := make(chan struct{})
	go func() {
		s.GracefulStop()
		close(done)
	}()
	if endsWithin(silence, done) {
		return true
	}
	go s.Stop() // may wait for handlers, too
	return endsWithin(silence, done)
}

func endsWithin(d time.Duration, done <-chan struct{}) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-timer.C:
		return false
	}
}
