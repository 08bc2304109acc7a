package transport

import (
	"context"
	"errors"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"

	"github.com/understudy-rpc/understudy/internal/logs"
)

// lifecycle is how far a client has come. Each step is taken once:
//
//	bound    a first call has said which ClientConn the client serves: a resolver isn't told
//	opened   gRPC has built its resolver
//	ready    gRPC has our policy with its first replicas
//	failed   the program must be changed: every call fails
//	closed   the ClientConn is
//
// Its methods may run concurrently, and never wait.
type lifecycle struct {
	ctx    context.Context // ends when the client has failed, or is closed
	cancel context.CancelCauseFunc
	bound  chan struct{} // closed when it is
	ready  chan struct{} // closed when it is, or has failed
	log    *logs.Logger

	mu     sync.Mutex       // guards what follows
	conn   *grpc.ClientConn // the one that the client serves; nil before its first call
	opened bool
	failed error // a status: every call fails with it
}

func newLifecycle(log *logs.Logger) *lifecycle {
	l := &lifecycle{bound: make(chan struct{}), ready: make(chan struct{}), log: log}
	l.ctx, l.cancel = context.WithCancelCause(context.Background())
	return l
}

var errTwice = errors.New(
	"transport: the options of one interceptor.DialOptions serve one ClientConn, which doesn't go idle " +
		"(grpc.WithIdleTimeout)",
)

// serve makes sure that the client serves conn, which it does if that has made the first call. It
// says whether the client is ready. An error is a status.
func (l *lifecycle) serve(conn *grpc.ClientConn) (ready bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.conn != nil && l.conn != conn:
		l.failLocked(errTwice)
		return false, statusMisused(errTwice)
	case l.failed != nil:
		return false, l.failed
	case l.conn == nil:
		// What gRPC has made of the target may be another one: a resolver sees a URL, taken apart.
		if _, err := parseTarget(conn.Target()); err != nil {
			l.failLocked(err)
			return false, l.failed
		}
		l.conn = conn
		close(l.bound)
	}
	if l.ctx.Err() != nil {
		return false, statusClosing()
	}
	return l.isReady(), nil
}

// open notes that gRPC has built its resolver. It fails if it had done so before.
func (l *lifecycle) open() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	opened := l.opened
	l.opened = true
	switch {
	case l.failed != nil:
		return l.failed
	case opened:
		l.failLocked(errTwice)
		return errTwice
	}
	return nil
}

func (l *lifecycle) isOpen() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.opened
}

// balanced notes that our load-balancing policy has had replicas.
func (l *lifecycle) balanced() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.isReady() {
		close(l.ready)
	}
}

func (l *lifecycle) isReady() bool {
	select {
	case <-l.ready:
		return true
	default:
		return false
	}
}

// hasPolicy says whether our load-balancing policy has had replicas, as it should after the first
// publish; or nobody minds any more.
func (l *lifecycle) hasPolicy() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.isReady() || l.ctx.Err() != nil || l.conn != nil && l.conn.GetState() == connectivity.Shutdown
}

// fail makes every call fail from now on: the program must be changed.
func (l *lifecycle) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failLocked(err)
}

func (l *lifecycle) failLocked(err error) {
	if l.failed != nil {
		return
	}
	l.failed = statusMisused(err)
	l.log.Error("every call of the connection fails", "err", err)
	if !l.isReady() {
		close(l.ready)
	}
	l.cancel(err)
}

// ended is what a call is told when the client has failed, or is closed; nil before that.
func (l *lifecycle) ended() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.failed != nil:
		return l.failed
	case l.ctx.Err() != nil:
		return statusClosing()
	}
	return nil
}
