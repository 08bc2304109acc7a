package replica

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"slices"

	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/internal/wire"
	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// roster is the primary's side of the streams to the other replicas.
type roster struct {
	m     *member
	l     *leading
	peers others
}

// keptAbove is from where on the log is kept for joiners.
func (rs *roster) keptAbove() orderstate.OrderNum {
	above := orderstate.OrderNum(math.MaxUint64)
	for _, p := range rs.peers {
		if p.stream != nil && p.stream.joins() {
			above = min(above, p.stream.keptAbove)
		}
	}
	return above
}

// sendOpening sends the opening of a session, which nobody else has (R11).
func (rs *roster) sendOpening(o orderstate.OrderInfo) {
	for _, p := range rs.peers {
		if f := p.stream; f != nil {
			rs.catchUp(f)
			rs.sendMessage(f, o.Message())
		}
	}
}

// catchUp queues what a follower's stream hasn't carried; a joiner gets the messages, too, since
// sources may not send it theirs yet.
func (rs *roster) catchUp(f *follower) {
	if !f.joins() {
		f.sent = max(f.sent, rs.l.primary.Stable())
	}
	for f.sent < rs.l.primary.Last() {
		run := rs.l.primary.Push(f.sent)
		if run.Count == 0 {
			return
		}
		if run.Count > wire.MaxRun {
			run.Count, run.Entries = wire.MaxRun, run.Entries[:wire.MaxRun]
		}
		f.sent = run.Last()
		f.sayRun(wire.RunToProto(rs.m.seal.Close(run), false))
		if f.joins() {
			for _, o := range run.Entries {
				rs.sendMessage(f, o.Message())
			}
		}
	}
	signal(f.out.wake)
}

// sendMessage queues one message of the log.
func (rs *roster) sendMessage(f *follower, id orderstate.MessageID) {
	if m, ok := rs.l.primary.History().Has(id); ok {
		out := f.say(m.Size)
		out.Messages = append(out.Messages, loggedMessage(m))
	}
}

// sendMessages queues the pending messages of some sessions, which their sources can't send; a
// joiner has them with their order.
func (rs *roster) sendMessages(f *follower, of func(orderstate.Session) bool) {
	if f.joins() {
		return
	}
	for _, o := range rs.l.primary.PendingSourceOrder() {
		if of(o.Session) {
			rs.sendMessage(f, o.Message())
		}
	}
}

// sendToDeaf sends a message that has just been ordered to the backups that don't hear its session;
// its order follows as a null message. A joiner has its messages with that.
func (rs *roster) sendToDeaf(id orderstate.MessageID) {
	for _, deaf := range rs.l.primary.DetachedAt(id.Session) {
		if p := rs.peers[deaf]; p != nil && p.stream != nil && !p.stream.joins() {
			rs.sendMessage(p.stream, id)
		}
	}
}

// pushSession sends the backups a session's messages and orders that they may lack: its source
// can't any more (R4).
func (rs *roster) pushSession(s orderstate.Session) {
	for _, p := range rs.peers {
		if f := p.stream; f != nil {
			rs.catchUp(f)
			rs.sendMessages(f, func(of orderstate.Session) bool { return of == s })
		}
	}
}

// acknowledged takes a follower's word for what it holds (R3). It says whether a joiner is to grow:
// it is counted, and must be written to in-sync. It takes mu.
func (rs *roster) acknowledged(f *follower, req *pb.FollowRequest) (grows bool, err error) {
	rs.m.mu.Lock()
	defer rs.m.mu.Unlock()
	f.heard = rs.m.r.clock()
	p := f.peer
	if rs.l.over() || p.stream != f {
		return false, errEvicted
	}
	if f.since == 0 && req.GetRestored() {
		f.since, f.moved = f.heard, f.heard
		p.stage = max(p.stage, restored)
	}
	f.executes(rs.m.machine.Executed(), req)
	rs.heardBy(f, req)
	a := req.GetAcknowledgement()
	if a == nil || orderstate.Epoch(a.GetEpoch()) != rs.l.primary.Epoch() {
		return false, nil
	}
	k := orderstate.OrderNum(a.GetOrderNum())
	if p.stage < counted {
		if p.stage < restored || k < f.keptAbove || k > rs.l.primary.Last() {
			return false, nil
		}
		if f.heard-f.since < silence && !rs.hearsAll(f) { // replies to the others will wait for it (R11)
			return false, nil
		}
		// R13, grow: count it first; its acknowledgements so far count from now on.
		p.stage = counted
		rs.m.after(moved{Moved: rs.l.primary.Require(p.id)})
		grows = true
	}
	what, err := rs.l.primary.Acknowledge(p.id, rs.l.primary.Epoch(), k)
	// grow waits for a joiner, whatever was stable before it came
	rs.m.after(moved{Moved: what, member: f.joins()})
	return grows, err
}

// heardBy is the primary's side: whom a follower hears, and whom it doesn't any more. All that may
// have been sent to a session goes to the follower before the confirmation.
func (rs *roster) heardBy(f *follower, req *pb.FollowRequest) {
	var what orderstate.Moved
	for _, s := range req.GetAttach() {
		what = what.With(rs.l.primary.Attach(f.peer.id, orderstate.Session(s)))
	}
	rs.m.after(moved{Moved: what})
	var sessions []orderstate.Session
	var confirmed []*pb.Detached
	for _, d := range req.GetDetach() {
		s := orderstate.Session(d.GetSession())
		if upTo, ok := rs.l.primary.Detach(f.peer.id, s); ok { // else the session has ended meanwhile
			rs.m.rarely(slog.LevelInfo, "a backup can't hear a session", "backup", f.peer.member.String(), "session",
				d.GetSession())
			sessions = append(sessions, s)
			confirmed = append(confirmed,
				&pb.Detached{Session: d.GetSession(), Number: d.GetNumber(), UpTo: uint64(upTo)})
		}
	}
	if len(confirmed) == 0 {
		return
	}
	rs.catchUp(f)
	rs.sendMessages(f, func(s orderstate.Session) bool { return slices.Contains(sessions, s) })
	out := f.out.say()
	out.Detached = append(out.Detached, confirmed...)
}

// hearsAll says whether a follower hears every session that has a stream here.
func (rs *roster) hearsAll(f *follower) bool {
	for s := range rs.m.sources.bySession {
		if !rs.l.primary.Hears(f.peer.id, s) {
			return false
		}
	}
	return true
}

// left forgets a follower whose stream has ended. It takes mu.
func (rs *roster) left(f *follower) {
	rs.m.mu.Lock()
	defer rs.m.mu.Unlock()
	if rs.parted(f) {
		rs.m.after(moved{kept: true})
	}
}

// parted takes a follower out of the followers, if it is one still.
func (rs *roster) parted(f *follower) bool {
	p := f.peer
	if p.stream != f {
		return false
	}
	p.stream = nil
	switch {
	case p.stage.isMember():
		p.lost = rs.m.r.clock()
	case p.stage == counted:
		rs.remove(p) // R13: a joiner that fails leaves the required set
	default:
		delete(rs.peers, p.id)
		rs.l.primary.DetachAll(p.id)
	}
	rs.m.after(moved{rare: true})
	return true
}

// remove forgets a replica, and takes it out of the required set. A stream that it still has is
// cut.
func (rs *roster) remove(p *peer) {
	delete(rs.peers, p.id)
	if f := p.stream; f != nil {
		p.stream = nil
		f.out.cut(errEvicted)
	}
	rs.release(p.id)
}

// release takes a replica out of the required set, and tells the sources.
func (rs *roster) release(id orderstate.Replica) {
	rs.m.after(moved{Moved: rs.l.primary.Release(id), rare: true})
}

// backAgain lists the members that are there, and whose eviction was tried with an unknown outcome:
// it may have taken place, or do so at any time. It takes mu.
func (rs *roster) backAgain() (back []election.Member) {
	rs.m.mu.Lock()
	defer rs.m.mu.Unlock()
	for _, p := range rs.peers {
		if p.doubted && p.stage.isMember() && p.stream != nil {
			back = append(back, p.member)
		}
	}
	return back
}

// dropPinning cuts the joiners for which the log is kept.
func (rs *roster) dropPinning() {
	for _, p := range rs.peers {
		if f := p.stream; f != nil && f.joins() {
			rs.drop(f, errPinsLog)
		}
	}
}

// drop cuts a joiner's stream, and forgets it at once: whoever sends to it may notice late.
func (rs *roster) drop(f *follower, why error) {
	f.out.cut(&droppedError{why})
	rs.parted(f)
}

// donor chooses who gives a joiner its snapshot: a backup if there is one, so that the primary's
// turns aren't held up; but not the one from which the joiner couldn't get it.
func (rs *roster) donor(avoid string) (name, addr string) {
	for _, p := range rs.peers {
		m := p.member
		if !p.stage.isMember() || p.stream == nil || m.Name == avoid {
			continue
		}
		if r, ok := rs.m.view.Replica(m.Name); ok && r.Member == m {
			return r.Name, r.PeerAddr
		}
	}
	return rs.m.self.Name, rs.m.r.peerAddr
}

// isLast says whether nobody else is in-sync.
func (rs *roster) isLast() bool {
	if rs.m.ctx.Err() != nil || rs.l.over() {
		return false
	}
	now := rs.m.r.clock()
	for _, p := range rs.peers {
		if p.stage == inSync && p.stream != nil && now-p.stream.heard <= silence {
			return false
		}
	}
	return true
}

// hasJoiner says whether somebody is joining, who can be written to in-sync.
func (rs *roster) hasJoiner() bool {
	now := rs.m.r.clock()
	for _, p := range rs.peers {
		if f := p.stream; f != nil && f.joins() && now-f.heard <= silence && now < rs.l.authority {
			return true
		}
	}
	return false
}

// executes notes how far a follower says to be.
func (f *follower) executes(here orderstate.OrderNum, req *pb.FollowRequest) {
	k := orderstate.OrderNum(req.GetExecuted())
	if k > f.executed || k >= here {
		f.moved = f.heard
	}
	f.executed, f.logBytes = max(f.executed, k), req.GetLogBytes()
}

// holds says whether a joiner, and every member, holds what was ordered up to target, so that it
// may be written to in-sync now.
func (rs *roster) holds(f *follower, target orderstate.OrderNum) bool {
	held, _ := rs.l.primary.Acknowledged(f.peer.id)
	return held >= target && rs.l.primary.Stable() >= target && rs.l.gate && rs.m.r.clock() < rs.l.authority
}

// added is what becomes of a joiner that was written to in-sync, or not.
func (rs *roster) added(f *follower, err error) {
	p := f.peer
	switch {
	case err == nil && p.stream != nil:
		p.stage = inSync
		p.stream.say(0).InSync = true
		rs.m.log.Info("in-sync", "joiner", p.member.String())
		rs.m.after(moved{kept: true, rare: true})
	case err == nil || election.IsUnknown(err):
		p.stage = inSync // unknown counts as not done, and may be
		f.out.cut(errors.New("replica: the joiner left, or etcd is away"))
	default:
		rs.m.log.Warn("a joiner can't become in-sync", "joiner", p.member.String(), "error", err)
		f.out.cut(err)
		rs.remove(p)
	}
}

// evicted: a member was taken out of in-sync.
func (rs *roster) evicted(gone leaving) {
	rs.m.log.Info("evicted", "member", gone.member.String(), "because", gone.because)
	if p := rs.peers[replicaID(gone.member)]; p != nil {
		rs.remove(p)
	}
	rs.m.after(moved{kept: true})
}

// admit makes a stream of another replica a follower's: a backup's, or a joiner's, whose snapshot
// comes from a donor, but not from the one that it avoids.
func (rs *roster) admit(other election.Member, avoid string, cut context.CancelCauseFunc) *follower {
	id := replicaID(other)
	p := rs.peers[id]
	if p != nil && p.stream != nil {
		p.stream.out.cut(errors.New("replica: another stream of the same follower"))
		rs.parted(p.stream)
	}
	if p == nil || !p.stage.isMember() {
		p = rs.peers.add(other, empty)
	}
	f := &follower{
		peer: p, out: newOutbox[pb.FollowResponse](cut), heard: rs.m.r.clock(), sent: rs.l.primary.Stable(),
	}
	rs.l.primary.DetachAll(id)
	w := &pb.FollowWelcome{
		Protocol: wire.Protocol, Group: rs.m.group, Secret: rs.m.secret, Mark: markToProto(rs.m.r.store.Known()),
	}
	if f.joins() {
		f.sent = rs.l.primary.History().CutAt() // and nothing above is cut until it is in-sync
		f.keptAbove = f.sent
		w.KeptAbove = uint64(f.keptAbove)
		w.Donor, w.DonorAddr = rs.donor(avoid)
		f.donor = w.Donor
	}
	out := f.out.say()
	out.Welcome, out.EpochStart = w, rs.l.start
	p.stream, p.lost = f, 0
	rs.catchUp(f)
	return f
}

// leaving is a member that must leave in-sync, and why.
type leaving struct {
	member  election.Member
	because error
}
