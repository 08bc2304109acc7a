package replica

import (
	"errors"
	"fmt"
	"time"
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

// stuck says why a follower that is heard can't stay: it executes nothing though there is something
// to execute, or what it hasn't executed is more than a log may have. A slow one that moves stays.
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

// gives says whether a follower is giving a joiner its snapshot.
func (rs *roster) gives(f *follower) bool {
	for _, p := range rs.peers {
		if p.stage == empty && p.stream != nil && p.stream.donor == f.peer.member.Name {
			return true
		}
	}
	return false
}

// gone lists the members that aren't there, or don't move. It takes mu.
func (rs *roster) gone(began time.Duration) []leaving {
	rs.m.mu.Lock()
	defer rs.m.mu.Unlock()
	var gone []leaving
	now := rs.m.r.clock()
	for _, p := range rs.peers {
		f := p.stream
		switch {
		case p.stage != inSync: // its removal must come after it was added
		case f != nil && now-f.heard > silence,
			f == nil && p.lost != 0 && now-p.lost > reconnect,
			f == nil && p.lost == 0 && now-began > silence:
			gone = append(gone, leaving{p.member, errSilent})
		case f != nil:
			if err := rs.stuck(f, now); err != nil {
				gone = append(gone, leaving{p.member, err})
			}
		}
	}
	return gone
}

// dropSilent cuts the joiners that aren't heard, or don't move: one that is counted holds up the
// stable point. It takes mu.
func (rs *roster) dropSilent() {
	rs.m.mu.Lock()
	defer rs.m.mu.Unlock()
	now := rs.m.r.clock()
	for _, p := range rs.peers {
		f := p.stream
		if f == nil || !f.joins() {
			continue
		}
		limit := joinSilence
		if p.stage >= counted {
			limit = silence
		}
		why := rs.stuck(f, now)
		if now-f.heard > limit {
			why = errSilent
		}
		if why != nil {
			rs.drop(f, why)
		}
	}
}
