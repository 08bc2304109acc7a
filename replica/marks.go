package replica

import (
	"fmt"

	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/internal/trust"
	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// This file has the marks by which replicas and sources tell each other what they have seen of the
// store.

// markToProto is a mark as it travels between replicas.
func markToProto(m trust.Mark) *pb.StoreMark {
	return &pb.StoreMark{Revision: m.Revision, Epoch: m.Epoch, Fence: m.Fence}
}

func markFromProto(group uint64, m *pb.StoreMark) trust.Mark {
	return trust.Mark{Group: group, Revision: m.GetRevision(), Epoch: m.GetEpoch(), Fence: m.GetFence()}
}

// newEpochToProto is what sources and peers are told of an epoch.
func newEpochToProto(e orderstate.Epoch, primary election.Member, fence int64) *pb.NewEpoch {
	return &pb.NewEpoch{Epoch: uint64(e), Primary: primary.Name, Incarnation: primary.Incarnation, Fence: fence}
}

// learn takes a peer's mark of the store.
func (e *common) learn(m *pb.StoreMark) {
	if m != nil {
		e.r.store.Learn(markFromProto(e.group, m))
	}
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
