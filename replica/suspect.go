package replica

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc"

	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/internal/trust"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// This file has what this replica believes of the store. What can't be the newest is suspect
// (trust.Store): then nothing is concluded from it, so that the group keeps its roles, its
// state and its log. Its calls wait, since the primary's authority isn't renewed (R10), until the
// store makes sense again.

// firstView reads the store until it is believed.
func (in *incarnation) firstView() (election.State, error) {
	for {
		view, err := in.r.store.Read(in.ctx)
		if !trust.IsSuspect(err) {
			return view, err
		}
		in.viewed(election.State{Suspect: err})
		if err := in.later(0, nil); err != nil {
			return election.State{}, err
		}
	}
}

// viewed takes a view of the store.
func (in *incarnation) viewed(view election.State) {
	in.m.mu.Lock()
	before := in.m.suspect
	if in.m.suspect = view.Suspect; view.Suspect == nil &&
		(view.Revision >= in.m.view.Revision || view.Group != in.m.view.Group) {
		in.m.view = view
	}
	in.m.noteReplaced()
	in.m.after(moved{rare: true})
	in.m.mu.Unlock()
	switch {
	case view.Suspect != nil && (before == nil || before.Error() != view.Suspect.Error()):
		in.log.Error("the store isn't believed: state and log are kept, and calls wait", "error", view.Suspect)
	case view.Suspect == nil && before != nil:
		in.log.Info("the store is believed again")
	}
}

// startError says that a replica can't be started as it was asked to.
type startError struct{ error }

// begins says whether this replica has to make the group: nobody has, or an operator wants it to be
// begun anew.
func (in *incarnation) begins(view election.State) (bool, error) {
	old := in.r.config.replaces
	switch {
	case view.Group.IsZero():
		return true, nil
	case old == 0 || view.Group.HasReplaced(old):
		return false, nil
	case view.Group.ID != old:
		return false, startError{fmt.Errorf(
			"replica: ReplaceGroup names group %x, and the store has group %x, which hasn't replaced it", old,
			view.Group.ID,
		)}
	case !view.IsDown():
		return false, startError{fmt.Errorf(
			"replica: group %x isn't begun anew: in-sync replicas of it are alive (%v); stop them first", old,
			view.InSync,
		)}
	default:
		return true, nil
	}
}

// hearMarks asks all replicas that are registered how far they have seen the store, and takes their
// word. Whoever lives, and can be reached, has the time to answer over a new connection. It waits
// for those that are in-sync, and says whether all have answered: the silence of one is no
// evidence.
func (in *incarnation) hearMarks() bool {
	in.m.mu.Lock()
	view := in.m.view
	in.m.mu.Unlock()
	ctx, cancel := context.WithTimeout(in.ctx, silence)
	defer cancel()
	var asked sync.WaitGroup
	var silent atomic.Bool
	for _, r := range view.Replicas {
		switch {
		case r.Member == in.self:
		case view.IsInSync(r.Member):
			asked.Go(func() {
				if !in.hearMark(ctx, r) {
					silent.Store(true)
				}
			})
		default: // it may know more, and isn't waited for
			in.goes(func() {
				ctx, cancel := context.WithTimeout(in.ctx, silence)
				defer cancel()
				in.hearMark(ctx, r)
			})
		}
	}
	asked.Wait()
	return !silent.Load()
}

// hearMark asks one of them, and says whether it was that process which has answered, in this
// group.
func (in *incarnation) hearMark(ctx context.Context, r election.Replica) bool {
	peer, err := in.peers.client(r.PeerAddr)
	if err != nil {
		return false
	}
	resp, err := peer.Hears(ctx, &pb.HearsRequest{Group: in.group, Mark: markToProto(in.r.store.Known())},
		grpc.WaitForReady(true))
	if err != nil || resp.GetMark() == nil {
		return false
	}
	in.learn(resp.GetMark())
	return resp.GetReplica() == r.Name && resp.GetIncarnation() == r.Incarnation
}
