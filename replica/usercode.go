package replica

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/understudy-rpc/understudy/replica/internal/machine"
)

// This file has what callers are told when users' code panics, or ends its goroutine.

// errAuthenticate is what a source is told. What was panicked with isn't its business.
func errAuthenticate(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return status.FromContextError(ctx.Err()).Err()
	case machine.Broke(err):
		return status.Error(codes.Internal, "understudy: AuthenticateSession has panicked, or ended its goroutine")
	default:
		return err
	}
}

// exits is deferred around an RPC. If user code ends the RPC's goroutine, gRPC would never answer,
// and the source would wait until its deadline, as would GracefulStop. What had its turn has its
// reply in the log: the source is told to ask again.
//
// gRPC has no way to answer for that in its public API; its stream has the method that it would
// have called itself. Should a version come that hasn't,
// TestHandlerThatExitsIsTheSameErrorEverywhere fails, and the source waits.
func (c *call) exits(ctx context.Context) {
	if c.returned {
		return
	}
	if p := recover(); p != nil {
		panic(p) // an interceptor's: as without us
	}
	said := status.Convert(machine.ErrExited(c.invocation.Method.Name))
	if c.hadTurn() {
		said = status.New(codes.Unavailable, said.Message())
	}
	if s, ok := grpc.ServerTransportStreamFromContext(ctx).(interface{ WriteStatus(*status.Status) error }); ok {
		_ = s.WriteStatus(said)
	}
}

// hadTurn says whether the request was ordered.
func (c *call) hadTurn() bool {
	if c.leads == nil {
		return false
	}
	c.leads.m.mu.Lock()
	defer c.leads.m.mu.Unlock()
	return c.stage == ordered
}
