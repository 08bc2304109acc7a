package replica

import (
	"context"
	"errors"

	"github.com/understudy-rpc/understudy/orderstate"
)

// serveRead serves a request of a read-only method: at the primary, between turns, with no
// orderNum, log or fan-out. Its reply names the last turn that it saw, and is accepted as one at
// that place (R1, R10), which makes it linearizable: whoever takes over waits for the source to
// have acknowledged the epoch, or for A and its margin, before it orders anything. So it mustn't be
// served to a source that a takeover wouldn't wait for (R11): transmit sees to that.
func (in *incarnation) serveRead(
	ctx context.Context, c *call, next func(context.Context) (any, error),
) outcome {
	if !c.invocation.Method.Reads {
		return in.m.refuses(c, errHeader(errors.New("a request without a seqNum, of a method that isn't read-only")))
	}
	s := c.header.Session
	in.m.mu.Lock()
	l, err := in.m.enter(ctx, c)
	if err == nil && (!l.primary.History().Known(s) || l.primary.Stable() < orderstate.OrderNum(s)) {
		err = errUnknownSession
		in.m.sources.goesOn(c)
	}
	in.m.mu.Unlock()
	if err != nil {
		return in.m.refuses(c, err)
	}
	c.leads = l
	done := c.through(ctx, next)
	if done.result == nil { // it had no turn
		o := in.m.refuses(c, done.err)
		o.reply = done.value
		return o
	}
	return l.transmit(ctx, c, done.result.said.OrderNum, c.outcome(done))
}
