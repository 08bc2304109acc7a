package replica

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/understudy-rpc/understudy/internal/turn"
)

// This file stands between the library and its users' code, which may return, panic, end its
// goroutine (runtime.Goexit: testing's FailNow, for one), or never come back. Log handlers are
// internal/logs' affair.

// errExits is why user code brought no result.
var errExits = errors.New("it has ended its goroutine (runtime.Goexit)")

// panicError is why user code brought no result.
type panicError struct{ value string }

func (e *panicError) Error() string { return "it panicked: " + e.value }

// apart runs user code in a goroutine of its own, and waits for it, or for the end of ctx; then it
// is left alone. A panic is logged, and its error, as is that of a goroutine that ends.
func (r *Replica) apart(ctx context.Context, what string, f func() error) error {
	ended := make(chan error, 1)
	go func() {
		err := errExits
		defer func() {
			if p := recover(); p != nil {
				err = r.panicked(p, "in", what)
			}
			ended <- err
		}()
		err = f()
	}()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// broke says whether an error of apart's isn't the user's own.
func broke(err error) bool {
	var p *panicError
	return errors.Is(err, errExits) || errors.As(err, &p)
}

// panicked logs a panic of user code's, in its goroutine: to format what was panicked with may be
// user code, too.
func (r *Replica) panicked(p any, where ...any) error {
	const most = 16 << 10 // of a stack, whose innermost frames come first
	stack := debug.Stack()
	e := &panicError{fmt.Sprint(p)}
	r.log.Error("user code panicked",
		append(where, "panic", e.value, "stack", string(stack[:min(len(stack), most)]))...)
	return e
}

// brokeOff is what a turn has said whose handler panicked with p, or, if that is nil, has ended its
// goroutine: the same on every replica (R7).
func (r *Replica) brokeOff(t *turn.Turn, p any) error {
	if p == nil {
		r.log.Error("a handler has ended its goroutine (runtime.Goexit)", "method", t.Method(), "orderNum",
			t.OrderNum())
		return errExited(t.Method())
	}
	_ = r.panicked(p, "method", t.Method(), "orderNum", t.OrderNum())
	return status.Errorf(codes.Internal, "understudy: %s panicked", t.Method())
}

// errAuthenticate is what a source is told. What was panicked with isn't its business.
func errAuthenticate(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return status.FromContextError(ctx.Err()).Err()
	case broke(err):
		return status.Error(codes.Internal, "understudy: AuthenticateSession has panicked, or ended its goroutine")
	default:
		return err
	}
}

func errExited(method string) error {
	return status.Errorf(codes.Internal, "understudy: %s has ended its goroutine (runtime.Goexit)", method)
}

// exits is deferred around an RPC. If user code ends the RPC's goroutine, gRPC would never answer,
// and the source would wait until its deadline, as would GracefulStop. What had its turn has its
// reply in the log: the source is told to ask again.
//
// gRPC has no way to answer for that in its public API; its stream has the method that it would
// have called itself. Should a version come that hasn't, TestHandlerThatExits fails, and the source
// waits.
func (c *call) exits(ctx context.Context) {
	if c.returned {
		return
	}
	if p := recover(); p != nil {
		panic(p) // an interceptor's: as without us
	}
	said := status.Convert(errExited(c.method.name))
	if c.hadTurn() {
		said = status.New(codes.Unavailable, said.Message())
	}
	if s, ok := grpc.ServerTransportStreamFromContext(ctx).(interface{ WriteStatus(*status.Status) error }); ok {
		_ = s.WriteStatus(said)
	}
}

// hadTurn says whether the request was ordered.
func (c *call) hadTurn() bool {
	if c.in == nil {
		return false
	}
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	return c.ordered
}
