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
func (f *follower) executes(here orderstate.OrderNum, req *pb.FollowRequest) {
	k := orderstate.OrderNum(req.GetExecuted())
	if k > f.executed || k >= here {
		f.moved = f.heard
	}
	f.executed, f.logBytes = max(f.executed, k), req.GetLogBytes()
}

// stuck says why a follower that is heard can't stay: it executes nothing though there is something
// to execute, or what it hasn't executed is more than a log may have. A slow one that moves stays.
// Called with mu held, while leading.
func (rs *roster) stuck(f *follower, now time.Duration) error {
	if f.peer.stage == empty || f.since == 0 {
		return nil
	}
	limit := executeSilence
	if rs.gives(f) {
		limit += transferSilence // its Snapshot takes a turn, and ends with the transfer
	}
	held, _ := rs.l.primary.Acknowledged(f.peer.id)
	switch {
	case f.executed < rs.m.machine.Executed() && now-f.moved > limit:
		return errHangs
	case f.logBytes > maxLogBytes || held > f.executed+maxLog:
		return errFull
	}
	return nil
}

// gives says whether a follower is giving a joiner its snapshot. Called with mu held, while
// leading.
func (rs *roster) gives(f *follower) bool {
	for _, p := range rs.peers {
		if p.stage == empty && p.stream != nil && p.stream.donor == f.peer.member.Name {
			return true
		}
	}
	return false
}

// outrun says whether this primary executes nothing, for as long as it wouldn't bear of a backup,
// while one has got further: whoever was elected, or called, waits for a handler that hangs here
// only. Nobody loses anything when it ends: the others hold all that it has ordered.
func (l *leading) outrun() bool {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	ahead := false
	for _, p := range l.roster.peers {
		if p.stage.isMember() && p.stream != nil && p.stream.executed > l.m.machine.Executed() {
			ahead = true
		}
	}
	now := l.m.r.clock()
	if !ahead || l.m.machine.Executed() != l.stoodAt {
		l.stoodAt, l.stoodSince = l.m.machine.Executed(), now
	}
	return now-l.stoodSince > executeSilence && l.primary.Stable() >= l.primary.Last()
}

// leaving is a member that must leave in-sync, and why.
type leaving struct {
	member  election.Member
	because error
}
