package machine

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/understudy-rpc/understudy/internal/turn"
	"github.com/understudy-rpc/understudy/internal/wire"
)

// This file stands between the library and its users' code, which may return, panic, end its
// goroutine (runtime.Goexit: testing's FailNow, for one), or never come back. Log handlers are
// internal/logs' affair.

// work is how a handler is called.
type work interface {
	run(context.Context) (any, error)
}

// call calls a handler, and keeps in said all that it says; also if it panics, or ends the
// goroutine, in which case call doesn't return. All user code of a turn runs here. The value is nil
// with an error.
func (a *App) call(ctx context.Context, t *turn.Turn, said *Reply, w work) (value any) {
	returned := false
	defer func() {
		if !returned {
			value = nil
			said.fails(a.brokeOff(t, recover()))
		}
		said.Header, said.Trailer = t.Metadata()
		said.Header, said.Trailer = withoutOurs(said.Header), withoutOurs(said.Trailer)
		if said.tidies(t.Method()); said.st != nil {
			value = nil
		}
	}()
	value, err := w.run(ctx)
	if err == nil {
		switch reply := value.(type) {
		case proto.Message:
			// Within the turn: a later one may change what the handler has returned.
			if said.Payload, err = proto.Marshal(reply); err != nil {
				err = errMarshal(t.Method(), err)
			}
		case nil: // gRPC sends an empty message
		default:
			err = status.Errorf(codes.Internal, "understudy: a reply of type %T is no protobuf message", value)
		}
	}
	if err != nil {
		value = nil
		said.fails(err)
	}
	returned = true
	return value
}

// fails makes an error what a turn has said.
func (r *Reply) fails(err error) {
	st, ok := status.FromError(err)
	if !ok {
		st = status.FromContextError(err)
	}
	if st.Code() == codes.OK {
		st = status.New(codes.Unknown, st.Message())
	}
	r.Payload, r.st = nil, st.Proto()
}

// withoutOurs is metadata of the user's, without our key.
func withoutOurs(md metadata.MD) metadata.MD {
	if _, ok := md[wire.HeaderKey]; ok {
		md = md.Copy() // the handler's goroutines may read it
		delete(md, wire.HeaderKey)
	}
	return md
}

// errExits is why user code brought no result.
var errExits = errors.New("it has ended its goroutine (runtime.Goexit)")

// panicError is why user code brought no result.
type panicError struct{ value string }

func (e *panicError) Error() string { return "it panicked: " + e.value }

// Apart runs user code in a goroutine of its own, and waits for it, or for the end of ctx; then it
// is left alone. A panic is logged, and its error, as is that of a goroutine that ends.
func (a *App) Apart(ctx context.Context, what string, f func() error) error {
	ended := make(chan error, 1)
	go func() {
		err := errExits
		defer func() {
			if p := recover(); p != nil {
				err = a.panicked(p, "in", what)
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

// Broke says whether an error of Apart's isn't the user's own.
func Broke(err error) bool {
	var p *panicError
	return errors.Is(err, errExits) || errors.As(err, &p)
}

// panicked logs a panic of user code's, in its goroutine: to format what was panicked with may be
// user code, too.
func (a *App) panicked(p any, where ...any) error {
	const most = 16 << 10 // of a stack, whose innermost frames come first
	stack := debug.Stack()
	e := &panicError{fmt.Sprint(p)}
	a.log.Error("user code panicked",
		append(where, "panic", e.value, "stack", string(stack[:min(len(stack), most)]))...)
	return e
}

// brokeOff is what a turn has said whose handler panicked with p, or, if that is nil, has ended its
// goroutine: the same on every replica (R7).
func (a *App) brokeOff(t *turn.Turn, p any) error {
	if p == nil {
		a.log.Error("a handler has ended its goroutine (runtime.Goexit)", "method", t.Method(), "orderNum",
			t.OrderNum())
		return ErrExited(t.Method())
	}
	_ = a.panicked(p, "method", t.Method(), "orderNum", t.OrderNum())
	return status.Errorf(codes.Internal, "understudy: %s panicked", t.Method())
}

// ErrExited is what is said of a method whose handler has ended its goroutine.
func ErrExited(method string) error {
	return status.Errorf(codes.Internal, "understudy: %s has ended its goroutine (runtime.Goexit)", method)
}
