package replica

import (
	"context"
	"time"

	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/orderstate"
	"github.com/understudy-rpc/understudy/replica/internal/machine"
)

// incarnation is one life of a replica, from joining its group to being deposed or evicted: its
// goroutines, and what they are connected to. What it held is not carried into the next one.
type incarnation struct {
	*common
	life  context.Context // Serve's
	reg   election.Registration
	peers *peers
	m     *member
}

func newIncarnation(ctx context.Context, r *env) *incarnation {
	e := &common{
		r: r, self: election.Member{Name: r.config.name, Incarnation: newNumber()}, machine: machine.New(r.app),
	}
	e.log = r.log.With("replica", e.self.String())
	e.ctx, e.end = context.WithCancelCause(ctx)
	return &incarnation{common: e, life: ctx, peers: newPeers(r), m: newMember(e)}
}

func (in *incarnation) close() {
	in.end(errStopped)
	in.m.mu.Lock()
	in.m.role = ended{in.m.role}
	in.machine.Close()
	in.m.after(moved{rare: true})
	in.m.mu.Unlock()
	in.peers.close()
	if in.reg != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(in.ctx), heartbeat)
		_ = in.reg.Close(ctx) // best effort: the lease expires by itself
		cancel()
	}
	in.awaitGoroutines()
}

// executor executes messageOrder, one entry after the other: all of a backup's turns, and those
// that a takeover found ordered.
func (in *incarnation) executor() { in.executes(nil) }

// executes goes on in a goroutine of its own if a handler ends this one. turns are taken from
// messageOrder, and not executed yet.
func (in *incarnation) executes(turns []machine.Entry) {
	returned := false
	defer func() {
		if !returned {
			in.goes(func() { in.executes(turns) })
		}
	}()
	for in.ctx.Err() == nil {
		in.m.mu.Lock()
		turns = in.m.next(turns)
		in.m.mu.Unlock()
		if len(turns) > 0 {
			in.machine.Replay(in.ctx, &turns, in.m.replayed)
			continue
		}
		select {
		case <-in.m.bells.work:
		case <-in.ctx.Done():
		}
	}
	returned = true
}

// awaitGoroutines waits for those of an incarnation that has ended: a handler of the user's, or
// Restore, may hang. The next one can't begin before, since there is one state; but Serve ends when
// its context has.
func (in *incarnation) awaitGoroutines() {
	done := make(chan struct{})
	go func() {
		in.wg.Wait()
		close(done)
	}()
	for said := false; !endsWithin(silence, done); said = true {
		if in.life.Err() != nil {
			return
		}
		if !said {
			in.log.Warn("can't begin again while user code doesn't return", "method", in.r.app.Executes())
		}
	}
}

// pursuit is how an incarnation that doesn't lead follows who does.
type pursuit struct{ in *incarnation }

// later pauses before the next try, less long if another primary asks: if this replica acknowledges
// an epoch above epoch. It ends with the incarnation.
func (in *incarnation) later(epoch orderstate.Epoch, err error) error {
	if err != nil {
		in.log.Info("can't stand for election yet", "error", err)
	}
	in.m.mu.Lock()
	defer in.m.mu.Unlock()
	ctx, cancel := context.WithTimeout(in.ctx, reconnect/2)
	defer cancel()
	_ = in.m.await(ctx, func() bool { return in.m.epoch() > epoch })
	if in.ctx.Err() != nil {
		return context.Cause(in.ctx)
	}
	return nil
}

// pause waits for so long, or for the incarnation's end.
func (in *incarnation) pause(d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-in.ctx.Done():
		return context.Cause(in.ctx)
	}
}
