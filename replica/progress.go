package replica

import (
	"errors"
	"fmt"
	"time"

	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// This file has what becomes of a replica that is heard, and holds all, and doesn't execute:
// heartbeats aren't progress. Such a backup leaves in-sync; such a primary ends, if another replica
// has got further.

var (
	errHangs = fmt.Errorf(
		"replica: another replica has executed more, and nothing was executed here for %v: a handler hangs",
		executeSilence,
	)
	errFull = errors.New("replica: it holds more messages that it hasn't executed than a log may have")
)

// executes notes how far a follower says to be. Called with mu held, while leading.
func (f *follower) executes(in *incarnation, req *pb.FollowRequest) {
	k := orderstate.OrderNum(req.GetExecuted())
	if k > f.executed || k >= in.machine.Executed() {
		f.moved = f.heard
	}
	f.executed, f.logBytes = max(f.executed, k), req.GetLogBytes()
}

// stuck says why a follower that is heard can't stay: it executes nothing though there is something
// to execute, or what it hasn't executed is more than a log may have. A slow one that moves stays.
// Called with mu held, while leading.
func (in *incarnation) stuck(f *follower, now time.Duration) error {
	if f.peer.stage == empty || f.since == 0 {
		return nil
	}
	limit := executeSilence
	if in.gives(f) {
		limit += transferSilence // its Snapshot takes a turn, and ends with the transfer
	}
	held, _ := in.primary.Acknowledged(f.peer.id)
	switch {
	case f.executed < in.machine.Executed() && now-f.moved > limit:
		return errHangs
	case f.logBytes > maxLogBytes || held > f.executed+maxLog:
		return errFull
	}
	return nil
}

// gives says whether a follower is giving a joiner its snapshot. Called with mu held, while
// leading.
func (in *incarnation) gives(f *follower) bool {
	for _, p := range in.roster {
		if p.stage == empty && p.stream != nil && p.stream.donor == f.peer.member.Name {
			return true
		}
	}
	return false
}

// outrun says whether this primary executes nothing, for as long as it wouldn't bear of a backup,
// while one has got further: whoever was elected, or called, waits for a handler that hangs here
// only. Nobody loses anything when it ends: the others hold all that it has ordered.
func (in *incarnation) outrun() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	ahead := false
	for _, p := range in.roster {
		if p.stage.isMember() && p.stream != nil && p.stream.executed > in.machine.Executed() {
			ahead = true
		}
	}
	now := in.r.clock()
	if !ahead || in.machine.Executed() != in.stoodAt {
		in.stoodAt, in.stoodSince = in.machine.Executed(), now
	}
	return now-in.stoodSince > executeSilence && in.primary.Stable() >= in.primary.Last()
}

// leaving is a member that must leave in-sync, and why.
type leaving struct {
	member  election.Member
	because error
}
