package replica

import (
	"context"
	"errors"
	"time"

	"github.com/understudy-rpc/understudy/internal/wire"
	"github.com/understudy-rpc/understudy/orderstate"
)

// serveRead serves a request of a read-only method: at the primary, between turns, with no
// orderNum, log or fan-out. Its reply names the last turn that it saw, and is accepted as one at
// that place (R1, R10), which makes it linearizable: whoever takes over waits for the source to
// have acknowledged the epoch, or for A and its margin, before it orders anything. So it mustn't be
// served to a source that a takeover wouldn't wait for (R11): transmit sees to that.
func (in *incarnation) serveRead(
	ctx context.Context, h *wire.Header, received time.Duration, c *call, next func(context.Context) (any, error),
) outcome {
	if !c.invocation.Method.Reads {
		return refused(in, errHeader(errors.New("a request without a seqNum, of a method that isn't read-only")))
	}
	s := h.Session
	in.mu.Lock()
	err := in.enter(ctx, h, c)
	if err == nil && (!in.primary.History().Known(s) || in.primary.Stable() < orderstate.OrderNum(s)) {
		err = errUnknownSession
		in.goesOn(c)
	}
	in.mu.Unlock()
	if err != nil {
		return refused(in, err)
	}
	c.in, c.reads = in, true
	value, err := func() (any, error) {
		defer in.returned(c) // whatever a handler or an interceptor does
		return next(ctx)
	}()
	if c.result == nil { // it had no turn
		o := refused(in, err)
		o.reply = value
		return o
	}
	return in.transmit(ctx, h, received, c, c.result.OrderNum, c.outcome(value, err))
}
