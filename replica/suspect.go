package replica

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc"

	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/internal/trust"
	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// This file has what this replica believes of the store. What can't be the newest is suspect
// (trust.Store): then nothing is concluded from it, so that the group keeps its roles, its
// state and its log. Its calls wait, since the primary's authority isn't renewed (R10), until the
// store makes sense again.

// errReplaced ends an incarnation whose group an operator has begun anew, without its state.
var errReplaced = errors.New(
	"replica: the group was replaced: an operator has begun it anew, without the state that this replica had",
)

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

// markToProto is a mark as it travels between replicas.
func markToProto(m trust.Mark) *pb.StoreMark {
	return &pb.StoreMark{Revision: m.Revision, Epoch: m.Epoch, Fence: m.Fence}
}

func markFromProto(group uint64, m *pb.StoreMark) trust.Mark {
	return trust.Mark{Group: group, Revision: m.GetRevision(), Epoch: m.GetEpoch(), Fence: m.GetFence()}
}

// learn takes a peer's mark of the store.
func (e *common) learn(m *pb.StoreMark) {
	if m != nil {
		e.r.store.Learn(markFromProto(e.group, m))
	}
}

// hearMarks asks all replicas that are registered how far they have seen the store, and takes their
// word. Whoever lives, and can be reached, has the time to answer over a new connection. It says
// whether all have answered that are in-sync: the silence of one of them is no evidence.
func (in *incarnation) hearMarks() bool {
	in.m.mu.Lock()
	view := in.m.view
	in.m.mu.Unlock()
	ctx, cancel := context.WithTimeout(in.ctx, silence)
	defer cancel()
	var asked sync.WaitGroup
	var silent atomic.Bool
	for _, r := range view.Replicas {
		if r.Member == in.self {
			continue
		}
		asked.Go(func() {
			if err := in.hearMark(ctx, r); err != nil && view.IsInSync(r.Member) {
				silent.Store(true)
			}
		})
	}
	asked.Wait()
	return !silent.Load()
}

func (in *incarnation) hearMark(ctx context.Context, r election.Replica) error {
	peer, err := in.peers.atOnce(r.PeerAddr)
	if err != nil {
		return err
	}
	resp, err := peer.Hears(ctx, &pb.HearsRequest{Group: in.group, Mark: markToProto(in.r.store.Known())},
		grpc.WaitForReady(true))
	if err == nil {
		in.learn(resp.GetMark())
	}
	return err
}

// sealedMark is how far this replica has seen the store, for a source to bring to other replicas.
func (e *common) sealedMark() *pb.StoreMark {
	m := markToProto(e.r.store.Known())
	e.seal.CloseMark(m)
	return m
}

// broughtBy takes a mark that a source brings: if a replica of this group has sealed it.
func (e *common) broughtBy(hello *pb.Hello) {
	switch m := hello.GetMark(); {
	case m == nil:
	case e.seal.OpenMark(m):
		e.learn(m)
	default:
		e.r.stats.forged.Add(1)
	}
}

// disown ends an incarnation that was elected by a store which lacked what a peer has seen: it
// isn't the primary of anything.
func (e *common) disown(peer election.Member, m *pb.StoreMark) error {
	e.r.store.Relearn(markFromProto(e.group, m))
	err := fmt.Errorf("replica: elected by a store from before: %v has seen a change of who is in-sync at revision %d",
		peer, m.GetFence())
	e.end(err)
	return err
}

// newEpochToProto is what sources and peers are told of an epoch.
func newEpochToProto(e orderstate.Epoch, primary election.Member, fence int64) *pb.NewEpoch {
	return &pb.NewEpoch{Epoch: uint64(e), Primary: primary.Name, Incarnation: primary.Incarnation, Fence: fence}
}
