package main

import (
	"context"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/understudy-rpc/understudy/bench/counter"
)

// redirected is a peer's client that goes on when the leader changes, as their users write one: it
// asks the server that answered last, and another one when that one can't be reached, says that it
// doesn't lead, or takes too long. A call doesn't soon come back to a server that took too long:
// else one that is stopped would hold it up again and again. A call may be executed twice, as the
// outcome of an attempt isn't always known.
type redirected struct {
	servers []counter.CounterClient
	attempt time.Duration // how long a server has
	leader  atomic.Int64  // the place of the one that is asked first
}

const (
	askAgain = 2 * time.Millisecond // after every server has been asked
	avoided  = 10                   // for so many attempts' time a call doesn't come back
)

// Add implements counter.CounterClient.
func (r *redirected) Add(
	ctx context.Context, in *counter.AddRequest, opts ...grpc.CallOption,
) (*counter.AddReply, error) {
	var slow int64 // one more than the place of the server that took too long; 0: none
	var since time.Time
	for tried := 1; ; tried++ {
		place := r.leader.Load()
		attempt, cancel := context.WithTimeout(ctx, r.attempt)
		reply, err := r.servers[place].Add(attempt, in, opts...)
		cancel()
		if err == nil || ctx.Err() != nil || !retriable(err) {
			return reply, err
		}
		if status.Code(err) == codes.DeadlineExceeded {
			slow, since = place+1, time.Now()
		}
		n := int64(len(r.servers))
		next := (place + 1) % n
		if next+1 == slow && time.Since(since) < avoided*r.attempt {
			next = (next + 1) % n
		}
		r.leader.CompareAndSwap(place, next)
		if tried%len(r.servers) == 0 {
			if err := pause(ctx, askAgain); err != nil {
				return nil, status.FromContextError(err).Err()
			}
		}
	}
}

// retriable says whether another server may do better.
func retriable(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.FailedPrecondition, codes.Aborted, codes.DeadlineExceeded, codes.Canceled:
		return true
	}
	return false
}
