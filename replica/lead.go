package replica

import (
	"context"
	"errors"
	"runtime"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/internal/wire"
	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// settle hands over what this primary has ordered, before it goes: calls wait from now on, for
// whoever takes over, and the backups get order and messages, of sources that have gone, too. A
// backup that doesn't answer is evicted meanwhile.
func (in *incarnation) settle() {
	ctx, cancel := context.WithTimeout(in.ctx, silence)
	defer cancel()
	in.m.mu.Lock()
	defer in.m.mu.Unlock()
	l := in.m.ordering()
	if l == nil {
		return
	}
	l.gate = false
	target := l.primary.Last()
	for _, p := range l.roster.peers {
		if f := p.stream; f != nil {
			l.roster.catchUp(f)
			l.roster.sendMessages(f, func(orderstate.Session) bool { return true })
		}
	}
	_ = in.m.awaitProgress(ctx, func() bool { return l.over() || l.primary.Stable() >= target })
}

// reign is what a primary does by itself: the goroutines of its epoch.
type reign struct {
	in *incarnation
	l  *leading
}

// lead runs the epoch: it opens the gate when R12.4 allows, and ends with this incarnation.
func (re *reign) lead(began time.Duration, report Failover) error {
	re.in.goes(re.keepAuthority)
	re.in.goes(re.pusher)
	re.in.goes(func() { re.keepMembers(began) })
	re.l.m.mu.Lock()
	err := re.l.m.await(re.in.ctx, func() bool {
		return re.l.primary.Held() && re.in.machine.Executed() >= re.l.primary.First()-1
	})
	if err != nil {
		re.l.m.mu.Unlock()
		return err
	}
	re.l.gate = true
	re.l.start = proto.CloneOf(re.l.start) // the followers have the other one, and are sending it
	re.l.start.Stable = uint64(re.l.primary.Stable())
	re.l.m.after(moved{rare: true}) // requests that wait come before the news to sources, of whom there may be many
	set := re.l.required()
	for a := range re.l.m.sources.attached {
		a.lead(re.l.start, set)
	}
	report.FirstOrderNum = uint64(re.l.primary.First())
	re.l.m.mu.Unlock()
	if report.Epoch != 0 {
		report.Opened = time.Now()
		re.in.log.Info("took over", "from", report.From, "epoch", report.Epoch, "firstOrderNum", report.FirstOrderNum,
			"election", report.Elected.Sub(report.Suspected), "takeover", report.Opened.Sub(report.Elected))
		if f := re.in.r.config.onFailover; f != nil {
			go func() { // which doesn't outlive the incarnation, unless f does
				_ = re.in.r.app.Apart(re.in.ctx, "OnFailover", func() error { f(report); return nil })
			}()
		}
	}
	<-re.in.ctx.Done()
	return context.Cause(re.in.ctx)
}

// pusher sends null messages (FIG. 7, R4): when one is due, and when the oldest entry that none has
// carried is an idle interval old. That is told by the ticks that it has seen: an entry's recorded
// time is of a wall clock, perhaps another replica's, and that one leaps.
func (re *reign) pusher() {
	t := time.NewTicker(idle / 2)
	defer t.Stop()
	var last, before orderstate.OrderNum // where the order ended at the last tick, and at the one before that
	for {
		select {
		case <-re.l.push:
			runtime.Gosched() // whoever can order something does it first: one message takes it all
			re.null()
		case <-t.C:
			re.l.m.mu.Lock()
			o, ok := re.l.primary.Unpushed()
			due := ok && o.OrderNum <= before
			before, last = last, re.l.primary.Last()
			re.l.m.mu.Unlock()
			if due {
				re.null()
			}
		case <-re.in.ctx.Done():
			return
		}
	}
}

// null queues one null message for every follower.
func (re *reign) null() {
	re.l.m.mu.Lock()
	r := re.l.primary.Null()
	re.l.m.mu.Unlock()
	var sealed *pb.Run
	if r.Count > 0 {
		sealed = wire.RunToProto(re.in.seal.Close(r), false)
	}
	re.l.m.mu.Lock()
	defer re.l.m.mu.Unlock()
	for _, p := range re.l.roster.peers {
		f := p.stream
		switch {
		case f == nil:
		case f.sent+1 == r.First && sealed != nil && !f.joins():
			f.sent = r.Last()
			f.sayRun(sealed)
		default:
			re.l.roster.catchUp(f)
		}
	}
}

// catchUp queues what a follower's stream hasn't carried; a joiner gets the messages, too, since
// sources may not send it theirs yet. Called with mu held.
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

// sendMessage queues one message of the log. Called with mu held.
func (rs *roster) sendMessage(f *follower, id orderstate.MessageID) {
	if m, ok := rs.l.primary.History().Has(id); ok {
		out := f.say(m.Size)
		out.Messages = append(out.Messages, loggedMessage(m))
	}
}

// sendMessages queues the pending messages of some sessions, which their sources can't send; a
// joiner has them with their order. Called with mu held.
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

// acknowledged takes a follower's word for what it holds (R3). It says whether a joiner is to grow:
// it is counted, and must be written to in-sync.
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
		rs.l.primary.Require(p.id)
		rs.l.tellRequired()
		grows = true
	}
	what, err := rs.l.primary.Acknowledge(p.id, rs.l.primary.Epoch(), k)
	if err != nil {
		return grows, err
	}
	// grow waits for a joiner, whatever was stable before it came
	rs.m.after(moved{Moved: what, member: f.joins()})
	return grows, nil
}

// grow writes a joiner to in-sync when it holds what was ordered by the time it was counted (R13).
func (re *reign) grow(f *follower) {
	p := f.peer
	re.l.m.mu.Lock()
	// What was stable before it was counted, it may lack: nothing else sends it that. And its
	// snapshot may hold turns that another backup doesn't yet; from a joiner that led, that one
	// couldn't get them. So everyone must hold all of it first.
	re.l.roster.catchUp(f)
	target := re.l.primary.Last()
	err := re.l.m.awaitProgress(re.in.ctx, func() bool {
		held, _ := re.l.primary.Acknowledged(p.id)
		return p.stream != f || held >= target && re.l.primary.Stable() >= target && re.l.gate &&
			re.in.r.clock() < re.l.authority
	})
	if gone := p.stream != f; err != nil || gone {
		re.l.m.mu.Unlock()
		return // who removed it has released it
	}
	// From here on it may be in-sync, whatever becomes of its stream: so it stays in the required
	// set until its removal from etcd is certain.
	p.stage = adding
	re.l.m.mu.Unlock()
	ctx, cancel := re.underAuthority()
	defer cancel()
	err = re.in.r.store.AddInSync(ctx, uint64(re.l.primary.Epoch()), p.member)
	re.l.m.mu.Lock()
	defer re.l.m.mu.Unlock()
	switch {
	case err == nil && p.stream != nil:
		p.stage = inSync
		p.stream.say(0).InSync = true
		re.in.log.Info("in-sync", "joiner", p.member.String())
		re.l.m.after(moved{kept: true, rare: true})
	case err == nil || election.IsUnknown(err):
		p.stage = inSync // unknown counts as not done, and may be
		f.out.cut(errors.New("replica: the joiner left, or etcd is away"))
	default:
		if errors.Is(err, election.ErrDeposed) {
			re.in.end(errDeposed)
		}
		re.in.log.Warn("a joiner can't become in-sync", "joiner", p.member.String(), "error", err)
		f.out.cut(err)
		re.l.roster.remove(p)
	}
}

// left forgets a follower whose stream has ended.
func (rs *roster) left(f *follower) {
	rs.m.mu.Lock()
	defer rs.m.mu.Unlock()
	if rs.parted(f) {
		rs.m.after(moved{kept: true})
	}
}

// parted takes a follower out of the followers, if it is one still. Called with mu held.
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
// cut. Called with mu held.
func (rs *roster) remove(p *peer) {
	delete(rs.peers, p.id)
	if f := p.stream; f != nil {
		p.stream = nil
		f.out.cut(errEvicted)
	}
	rs.release(p.id)
}

// release takes a replica out of the required set, and tells the sources. Called with mu held.
func (rs *roster) release(id orderstate.Replica) {
	what := rs.l.primary.Release(id)
	rs.l.tellRequired()
	rs.m.after(moved{Moved: what, rare: true})
}

// keepMembers evicts in-sync replicas that are gone (R6, R13). began is when the epoch did: peers
// that answered have silence to open their streams.
func (re *reign) keepMembers(began time.Duration) {
	t := time.NewTicker(reconnect / 2)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-re.in.ctx.Done():
			return
		}
		if re.l.outrun() {
			re.in.end(errHangs)
			return
		}
		if !re.l.hasAuthority() { // it may be deposed, and the store one from before: it changes nothing
			continue
		}
		for _, gone := range re.l.roster.gone(began) {
			if err := re.evict(gone); err != nil {
				re.in.log.Warn("can't evict", "member", gone.member.String(), "error", err)
			}
		}
		for _, m := range re.l.roster.backAgain() {
			re.keep(m)
		}
		re.l.roster.dropSilent()
		re.l.expireSessions()
	}
}

// gone lists the members that aren't there, or don't move.
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

// evict is R13, shrink: etcd first, then the required set; its stream is cut. An unknown outcome
// counts as not done, and is tried again.
func (re *reign) evict(gone leaving) error {
	m := gone.member
	ctx, cancel := re.underAuthority()
	defer cancel()
	if err := re.in.shrink(ctx, re.l.primary.Epoch(), m); err != nil {
		return err
	}
	re.l.m.mu.Lock()
	defer re.l.m.mu.Unlock()
	re.in.log.Info("evicted", "member", m.String(), "because", gone.because)
	if p := re.l.roster.peers[replicaID(m)]; p != nil {
		re.l.roster.remove(p)
	}
	re.l.m.after(moved{kept: true})
	return nil
}

// shrink takes a member out of in-sync in etcd, in the name of an epoch of this replica.
func (in *incarnation) shrink(ctx context.Context, e orderstate.Epoch, m election.Member) error {
	err := in.r.store.RemoveInSync(ctx, uint64(e), m)
	switch {
	case errors.Is(err, election.ErrDeposed):
		in.end(errDeposed)
	case election.IsUnknown(err):
		in.m.mu.Lock()
		if p := in.m.others()[replicaID(m)]; p != nil {
			p.doubted = true
		}
		in.m.mu.Unlock()
	}
	return err
}

// tellRequired pushes the required set on the sessions' streams (R1b). Called with mu held.
func (l *leading) tellRequired() {
	set, mark := l.required(), l.m.sealedMark()
	for a := range l.m.sources.attached {
		if a.bound {
			out := a.out.say()
			out.RequiredSet, out.Mark = set, mark
		}
	}
}

// required is the required set as it travels. Called with mu held.
func (l *leading) required() *pb.RequiredSet {
	number, members := l.primary.Required()
	set := &pb.RequiredSet{Epoch: uint64(l.primary.Epoch()), Number: number}
	for _, m := range members {
		set.Replicas = append(set.Replicas, string(m))
	}
	return set
}
