package route

import (
	"context"
	"errors"
	"sync/atomic"

	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"
)

// A Choice is a context that says which replica a call goes to.
type Choice struct {
	context.Context
	// Replica is its name; with Any, that of the one that is preferred.
	Replica string
	// Any: whichever replica has a connection.
	Any bool
	// Wait: until there is a connection, instead of failing at once.
	Wait   bool
	picked atomic.Bool
}

type choiceKey struct{}

// In makes it a child of a context. It is called once.
func (ch *Choice) In(ctx context.Context) context.Context {
	ch.Context = ctx
	return ch
}

// Value implements context.Context.
func (ch *Choice) Value(key any) any {
	if key == (choiceKey{}) {
		return ch
	}
	return ch.Context.Value(key)
}

// Picked says whether a connection was found, so that the call may have been sent.
func (ch *Choice) Picked() bool { return ch.picked.Load() }

// IsChosen says whether the context has a Choice.
func IsChosen(ctx context.Context) bool { return choiceOf(ctx) != nil }

func choiceOf(ctx context.Context) *Choice {
	ch, _ := ctx.Value(choiceKey{}).(*Choice)
	return ch
}

// replicaConn is the connection to one replica.
type replicaConn struct {
	Address
	sub   balancer.SubConn
	state connectivity.State
	err   error // of the last attempt to connect
}

// picker is one immutable view of the connections.
type picker struct{ conns map[string]replicaConn }

func (p picker) Pick(info balancer.PickInfo) (balancer.PickResult, error) {
	ch := choiceOf(info.Ctx)
	if ch == nil {
		return balancer.PickResult{},
			status.Error(codes.Internal, "understudy: a call that didn't pass Understudy's interceptor")
	}
	conn, known := p.conns[ch.Replica]
	switch {
	case conn.state == connectivity.Ready && known:
	case ch.Any:
		return p.any(ch)
	case ch.Wait:
		return balancer.PickResult{}, balancer.ErrNoSubConnAvailable
	case !known:
		return balancer.PickResult{},
			status.Errorf(codes.Unavailable, "understudy: no address of replica %s is known", ch.Replica)
	default: // a dead replica's calls fail at once
		return balancer.PickResult{},
			status.Errorf(codes.Unavailable, "understudy: no connection to replica %s at %s: %v", ch.Replica, conn.Addr,
				conn.err)
	}
	ch.picked.Store(true)
	return balancer.PickResult{SubConn: conn.sub}, nil
}

// any is for unreplicated services, with gRPC's usual rules: while something may come of it the
// call waits; else it fails, unless it has WaitForReady.
func (p picker) any(ch *Choice) (balancer.PickResult, error) {
	err := balancer.ErrNoSubConnAvailable
	if len(p.conns) > 0 {
		err = errors.New("understudy: no connection to any replica")
	}
	for _, conn := range p.conns {
		switch conn.state {
		case connectivity.Ready:
			ch.picked.Store(true)
			return balancer.PickResult{SubConn: conn.sub}, nil
		case connectivity.Connecting:
			err = balancer.ErrNoSubConnAvailable
		}
	}
	return balancer.PickResult{}, err
}
