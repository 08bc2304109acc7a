package replica

import (
	"errors"
	"time"

	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// stage is how far another replica has come into in-sync (R13).
type stage int

const (
	empty    stage = iota // it has a stream, and no state yet
	restored              // it has its snapshot
	counted               // it is in the required set, and not in-sync: that comes first
	adding                // it is being written to in-sync: it may be, whatever becomes of its stream
	inSync
)

// isMember says whether a replica of this stage may be in-sync, as far as etcd is concerned.
func (s stage) isMember() bool { return s >= adding }

// peer is another replica, as the primary knows it: one that may be in-sync, or has a stream here.
// It is guarded by the member's mu.
type peer struct {
	member  election.Member
	id      orderstate.Replica
	stage   stage
	doubted bool          // its eviction may take place yet
	lost    time.Duration // when a member's stream ended; 0: it has had none in this epoch
	stream  *follower     // nil without one
}

// others has the other replicas of the group. While taking over, they are those that are in-sync.
type others map[orderstate.Replica]*peer

// replicaID is how a member is called in acknowledgements and required sets.
func replicaID(m election.Member) orderstate.Replica { return orderstate.Replica(m.String()) }

// add makes a record for a replica.
func (o others) add(m election.Member, s stage) *peer {
	p := &peer{member: m, id: replicaID(m), stage: s}
	o[p.id] = p
	return p
}

// members is how many may be in-sync.
func (o others) members() int {
	n := 0
	for _, p := range o {
		if p.stage.isMember() {
			n++
		}
	}
	return n
}

// wake lets all streams say what is asked of their followers.
func (o others) wake() {
	for _, p := range o {
		if p.stream != nil {
			signal(p.stream.out.wake)
		}
	}
}

// follower is a backup's, or a joiner's, stream at the primary. Its fields are guarded by the
// member's mu.
type follower struct {
	peer  *peer
	out   outbox[pb.FollowResponse]
	sent  orderstate.OrderNum // the stream has carried the order up to here
	heard time.Duration

	since     time.Duration       // when it first said to have a state; 0: it hasn't yet
	donor     string              // while joining: who gives the snapshot
	keptAbove orderstate.OrderNum // while joining: the log is kept from here on
	executed  orderstate.OrderNum // what it says to have executed
	moved     time.Duration       // when that has moved, or wasn't less than what was executed here
	logBytes  uint64              // of messages, in order
}

// joins says whether a follower isn't in-sync yet: it gets messages with their order, and the log
// is kept for it.
func (f *follower) joins() bool { return f.peer.stage < inSync }

// say returns what the follower is sent next, to be added to. Bytes beyond the queue's bound cut
// the stream (R6).
func (f *follower) say(bytes int) *pb.FollowResponse {
	f.out.size += bytes
	if f.out.size > maxQueueBytes {
		f.out.cut(errors.New("replica: a follower's queue is full"))
	}
	return f.out.say()
}

// sayRun queues a part of the order.
func (f *follower) sayRun(sealed *pb.Run) {
	out := f.say(len(sealed.Sealed))
	out.SourceOrderInfo = append(out.SourceOrderInfo, sealed)
}
