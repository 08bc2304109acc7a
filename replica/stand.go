package replica

import (
	"context"
	"fmt"
	"time"

	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/internal/trust"
	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// candidate is a backup that suspects that there is no primary.
type candidate struct{ in *incarnation }

// stand decides whether to stand for election, and does: nobody in-sync hears the primary, and etcd
// still names the epoch that this replica knows (R8). It returns how it was elected; nil when there
// is, or may be, a primary to follow.
func (c candidate) stand(epoch orderstate.Epoch, suspected time.Time) (*elected, error) {
	ctx, cancel := context.WithTimeout(c.in.ctx, authority)
	defer cancel()
	if c.hearsAgain(ctx) {
		return nil, nil
	}
	view, err := c.in.r.store.Read(ctx)
	if trust.IsSuspect(err) {
		view.Suspect = err
		c.in.viewed(view)
	}
	if err != nil {
		return nil, c.in.later(epoch, err)
	}
	c.in.viewed(view)
	c.in.m.mu.Lock()
	if err := c.in.m.compatible(); err != nil {
		c.in.m.mu.Unlock()
		return nil, err
	}
	known, acknowledged := c.in.m.leader, c.in.m.epoch()
	c.in.m.mu.Unlock()
	e := elected{former: known, suspected: suspected}
	switch {
	case view.Primary == c.in.self:
		// It stood before, didn't learn the outcome, and the transaction took place later.
		return c.outcome(epoch, e)
	case !view.IsInSync(c.in.self):
		return nil, errEvicted
	case acknowledged > epoch:
		return nil, nil // another primary has asked meanwhile (R12.1): it is the former one that isn't heard
	// a store that was replaced or restored, or a primary that such a one has elected
	case orderstate.Epoch(view.Epoch) < acknowledged:
		return nil, c.in.later(epoch,
			fmt.Errorf("replica: the store has epoch %d, and epoch %d was acknowledged", view.Epoch, acknowledged))
	case view.Primary != known || orderstate.Epoch(view.Epoch) > acknowledged && c.hearsPrimary(ctx, view):
		// Somebody else was elected; it will ask (R12.1). One that didn't, nor is heard now, has
		// died before it could.
		return nil, c.awaitEpoch(view)
	}
	if c.heardByPeers(ctx, view, view.Epoch) {
		return nil, c.in.later(epoch, nil)
	}
	if err := c.in.r.store.Judge(view); err != nil { // a peer has seen more
		return nil, c.in.later(epoch, err)
	}
	_, err = c.in.r.store.Elect(ctx, c.in.reg, view.Epoch)
	switch {
	case err == nil || election.IsUnknown(err):
		return c.outcome(epoch, e)
	case c.in.ctx.Err() != nil:
		return nil, context.Cause(c.in.ctx)
	// somebody was faster, or it was evicted, or the lease is being renewed, or etcd is away: the
	// next view says
	default:
		return nil, c.in.later(epoch, nil)
	}
}

// outcome reads how an election ended. From here on only this replica changes in-sync: the view
// before may lack a joiner that the former primary wrote at the last moment. And only now does it
// see its own election, since when the former one's authority runs out (R12.2).
func (c candidate) outcome(epoch orderstate.Epoch, e elected) (*elected, error) {
	for {
		began := c.in.r.clock()
		ctx, cancel := context.WithTimeout(c.in.ctx, authority)
		view, err := c.in.r.store.Read(ctx)
		cancel()
		if err == nil {
			if view.Primary != c.in.self {
				return nil, c.in.later(epoch, nil)
			}
			e.epoch, e.view, e.authority, e.saw, e.at = orderstate.Epoch(view.Epoch), view, began+authority,
				c.in.r.clock(), time.Now()
			return &e, nil
		}
		if err := c.in.later(epoch, err); err != nil {
			return nil, err
		}
	}
}

// elected says how this replica came to lead.
type elected struct {
	epoch     orderstate.Epoch
	view      election.State // after it
	former    election.Member
	authority time.Duration // up to when, by the clock: the view is a read that names this replica (R10)
	saw       time.Duration // when, by the clock, this replica saw its own election
	suspected time.Time
	at        time.Time
}

// hearsAgain tries once more to reach the primary: a connection can break without anyone dying.
func (c candidate) hearsAgain(ctx context.Context) bool {
	c.in.m.mu.Lock()
	view := c.in.m.view
	view.Primary, view.Epoch = c.in.m.leader, uint64(c.in.m.epoch())
	c.in.m.mu.Unlock()
	return c.hearsPrimary(ctx, view)
}

// hearsPrimary says whether the primary of a view answers, as such.
func (c candidate) hearsPrimary(ctx context.Context, view election.State) bool {
	r, ok := view.Replica(view.Primary.Name)
	if !ok || r.Member != view.Primary {
		return false
	}
	heard, _ := c.in.hears(ctx, r, view.Epoch)
	return heard
}

// heardByPeers asks the other in-sync replicas whether they hear the primary; who doesn't answer in
// time doesn't hear it.
func (c candidate) heardByPeers(ctx context.Context, view election.State, epoch uint64) bool {
	answers := make(chan bool)
	asked := 0
	for _, m := range view.InSync {
		r, ok := view.Replica(m.Name)
		if !ok || r.Member != m || m == c.in.self || m == view.Primary {
			continue
		}
		asked++
		go func() {
			heard, err := c.in.hears(ctx, r, epoch)
			select {
			case answers <- heard && err == nil:
			case <-c.in.ctx.Done():
			}
		}()
	}
	heard := false
	for range asked {
		select {
		case h := <-answers:
			heard = heard || h
		case <-c.in.ctx.Done():
			return true
		}
	}
	return heard
}

func (in *incarnation) hears(ctx context.Context, r election.Replica, epoch uint64) (bool, error) {
	peer, err := in.peers.client(r.PeerAddr)
	if err != nil {
		return false, err
	}
	ctx, cancel := context.WithTimeout(ctx, hearsTimeout)
	defer cancel()
	resp, err := peer.Hears(ctx, &pb.HearsRequest{Group: in.group, Epoch: epoch, Mark: markToProto(in.r.store.Known())})
	in.learn(resp.GetMark())
	return resp.GetHears(), err
}

// awaitEpoch waits a little for a new primary's question (R12.1). One that doesn't come, from a
// primary that etcd names, is followed all the same: its answer to the stream says whether it still
// counts this replica.
func (c candidate) awaitEpoch(view election.State) error {
	e := orderstate.Epoch(view.Epoch)
	c.in.m.mu.Lock()
	defer c.in.m.mu.Unlock()
	ctx, cancel := context.WithTimeout(c.in.ctx, silence)
	defer cancel()
	_ = c.in.m.await(ctx, func() bool { return c.in.m.epoch() >= e })
	if c.in.ctx.Err() != nil {
		return context.Cause(c.in.ctx)
	}
	if c.in.m.epoch() < e {
		c.in.m.leader, c.in.m.fence = view.Primary, view.Fence
	}
	return nil
}
