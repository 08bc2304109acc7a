package replica

import (
	"context"
	"fmt"
	"time"

	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// stand decides whether to stand for election, and does: nobody in-sync hears the primary, and etcd
// still names the epoch that this replica knows (R8). It returns how it was elected; nil when there
// is, or may be, a primary to follow.
func (in *incarnation) stand(epoch orderstate.Epoch, suspected time.Time) (*elected, error) {
	ctx, cancel := context.WithTimeout(in.ctx, authority)
	defer cancel()
	if in.hearsAgain(ctx) {
		return nil, nil
	}
	view, err := in.r.store.Read(ctx)
	if election.IsSuspect(err) {
		view.Suspect = err
		in.viewed(view)
	}
	if err != nil {
		return nil, in.later(epoch, err)
	}
	in.viewed(view)
	in.mu.Lock()
	if err := in.compatible(); err != nil {
		in.mu.Unlock()
		return nil, err
	}
	known, acknowledged := in.leader, in.epoch()
	in.mu.Unlock()
	e := elected{former: known, suspected: suspected}
	switch {
	case view.Primary == in.self:
		// It stood before, didn't learn the outcome, and the transaction took place later.
		return in.outcome(epoch, e)
	case !view.IsInSync(in.self):
		return nil, errEvicted
	case acknowledged > epoch:
		return nil, nil // another primary has asked meanwhile (R12.1): it is the former one that isn't heard
	// a store that was replaced or restored, or a primary that such a one has elected
	case orderstate.Epoch(view.Epoch) < acknowledged:
		return nil, in.later(epoch,
			fmt.Errorf("replica: the store has epoch %d, and epoch %d was acknowledged", view.Epoch, acknowledged))
	case view.Primary != known || orderstate.Epoch(view.Epoch) > acknowledged && in.hearsPrimary(ctx, view):
		// Somebody else was elected; it will ask (R12.1). One that didn't, nor is heard now, has
		// died before it could.
		return nil, in.awaitEpoch(view)
	}
	if in.heardByPeers(ctx, view, view.Epoch) {
		return nil, in.later(epoch, nil)
	}
	if err := in.r.store.Judge(view); err != nil { // a peer has seen more
		return nil, in.later(epoch, err)
	}
	_, err = in.r.store.Elect(ctx, in.reg, view.Epoch)
	switch {
	case err == nil || election.IsUnknown(err):
		return in.outcome(epoch, e)
	case in.ctx.Err() != nil:
		return nil, context.Cause(in.ctx)
	// somebody was faster, or it was evicted, or the lease is being renewed, or etcd is away: the
	// next view says
	default:
		return nil, in.later(epoch, nil)
	}
}

// outcome reads how an election ended. From here on only this replica changes in-sync: the view
// before may lack a joiner that the former primary wrote at the last moment. And only now does it
// see its own election, since when the former one's authority runs out (R12.2).
func (in *incarnation) outcome(epoch orderstate.Epoch, e elected) (*elected, error) {
	for {
		began := in.r.clock()
		ctx, cancel := context.WithTimeout(in.ctx, authority)
		view, err := in.r.store.Read(ctx)
		cancel()
		if err == nil {
			if view.Primary != in.self {
				return nil, in.later(epoch, nil)
			}
			e.epoch, e.view, e.authority, e.saw, e.at = orderstate.Epoch(view.Epoch), view, began+authority,
				in.r.clock(), time.Now()
			return &e, nil
		}
		if err := in.later(epoch, err); err != nil {
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
func (in *incarnation) hearsAgain(ctx context.Context) bool {
	in.mu.Lock()
	view := in.view
	view.Primary, view.Epoch = in.leader, uint64(in.epoch())
	in.mu.Unlock()
	return in.hearsPrimary(ctx, view)
}

// hearsPrimary says whether the primary of a view answers, as such.
func (in *incarnation) hearsPrimary(ctx context.Context, view election.State) bool {
	r, ok := view.Replica(view.Primary.Name)
	if !ok || r.Member != view.Primary {
		return false
	}
	heard, _ := in.hears(ctx, r, view.Epoch)
	return heard
}

// heardByPeers asks the other in-sync replicas whether they hear the primary; who doesn't answer in
// time doesn't hear it.
func (in *incarnation) heardByPeers(ctx context.Context, view election.State, epoch uint64) bool {
	answers := make(chan bool)
	asked := 0
	for _, m := range view.InSync {
		r, ok := view.Replica(m.Name)
		if !ok || r.Member != m || m == in.self || m == view.Primary {
			continue
		}
		asked++
		go func() {
			heard, err := in.hears(ctx, r, epoch)
			select {
			case answers <- heard && err == nil:
			case <-in.ctx.Done():
			}
		}()
	}
	heard := false
	for range asked {
		select {
		case h := <-answers:
			heard = heard || h
		case <-in.ctx.Done():
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

// pause waits for so long, or for the incarnation's end.
func (in *incarnation) pause(d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-in.ctx.Done():
		return context.Cause(in.ctx)
	}
}

// later pauses before the next try, less long if another primary asks: if this replica acknowledges
// an epoch above epoch. It ends with the incarnation.
func (in *incarnation) later(epoch orderstate.Epoch, err error) error {
	if err != nil {
		in.log.Info("can't stand for election yet", "error", err)
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	ctx, cancel := context.WithTimeout(in.ctx, reconnect/2)
	defer cancel()
	_ = in.await(ctx, func() bool { return in.epoch() > epoch })
	if in.ctx.Err() != nil {
		return context.Cause(in.ctx)
	}
	return nil
}

// awaitEpoch waits a little for a new primary's question (R12.1). One that doesn't come, from a
// primary that etcd names, is followed all the same: its answer to the stream says whether it still
// counts this replica.
func (in *incarnation) awaitEpoch(view election.State) error {
	e := orderstate.Epoch(view.Epoch)
	in.mu.Lock()
	defer in.mu.Unlock()
	ctx, cancel := context.WithTimeout(in.ctx, silence)
	defer cancel()
	_ = in.await(ctx, func() bool { return in.epoch() >= e })
	if in.ctx.Err() != nil {
		return context.Cause(in.ctx)
	}
	if in.epoch() < e {
		in.leader, in.fence = view.Primary, view.Fence
	}
	return nil
}
