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
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.role != leading || !in.gate {
		return
	}
	in.gate = false
	target := in.primary.Last()
	for _, p := range in.roster {
		if f := p.stream; f != nil {
			in.catchUp(f)
			in.sendMessages(f, func(orderstate.Session) bool { return true })
		}
	}
	_ = in.awaitProgress(ctx, func() bool { return in.role != leading || in.primary.Stable() >= target })
}

// leads makes this incarnation its group's primary. Called with mu held.
func (in *incarnation) leads(p *orderstate.Primary) {
	in.role, in.primary, in.leader = leading, p, in.self
	in.start = &pb.EpochStart{
		Epoch: uint64(p.Epoch()), FirstOrderNum: uint64(p.First()), Stable: uint64(p.Stable()),
		Earlier: wire.StartsToProto(p.History().Starts()),
	}
	now := in.r.clock()
	for _, s := range p.History().Sessions() {
		if in.bySession[s] != nil {
			continue
		}
		// Who has had no stream here for long may have had one at the former primary: it has a
		// little to come.
		since, ok := in.absent[s]
		if least := now - (sessionTimeout - sessionGrace); !ok {
			since = now
		} else if since < least {
			since = least
		}
		in.absent[s] = since
	}
	in.broadcast()
}

// lead runs the epoch: it opens the gate when R12.4 allows, and ends with this incarnation.
func (in *incarnation) lead(began time.Duration, report Failover) error {
	in.goes(in.keepAuthority)
	in.goes(in.pusher)
	in.goes(func() { in.keepMembers(began) })
	in.mu.Lock()
	err := in.await(in.ctx, func() bool { return in.primary.Held() && in.machine.Executed() >= in.primary.First()-1 })
	if err != nil {
		in.mu.Unlock()
		return err
	}
	in.gate = true
	in.start = proto.CloneOf(in.start) // the followers have the other one, and are sending it
	in.start.Stable = uint64(in.primary.Stable())
	in.broadcast() // requests that wait come before the news to sources, of whom there may be many
	set := in.required()
	for a := range in.attached {
		a.lead(in, set)
	}
	report.FirstOrderNum = uint64(in.primary.First())
	in.mu.Unlock()
	if report.Epoch != 0 {
		report.Opened = time.Now()
		in.log.Info("took over", "from", report.From, "epoch", report.Epoch, "firstOrderNum", report.FirstOrderNum,
			"election", report.Elected.Sub(report.Suspected), "takeover", report.Opened.Sub(report.Elected))
		if f := in.r.config.onFailover; f != nil {
			go func() { // which doesn't outlive the incarnation, unless f does
				_ = in.r.app.Apart(in.ctx, "OnFailover", func() error { f(report); return nil })
			}()
		}
	}
	<-in.ctx.Done()
	return context.Cause(in.ctx)
}

// pusher sends null messages (FIG. 7, R4): when one is due, and when the oldest entry that none has
// carried is an idle interval old. That is told by the ticks that it has seen: an entry's recorded
// time is of a wall clock, perhaps another replica's, and that one leaps.
func (in *incarnation) pusher() {
	t := time.NewTicker(idle / 2)
	defer t.Stop()
	var last, before orderstate.OrderNum // where the order ended at the last tick, and at the one before that
	for {
		select {
		case <-in.push:
			runtime.Gosched() // whoever can order something does it first: one message takes it all
			in.null()
		case <-t.C:
			in.mu.Lock()
			o, ok := in.primary.Unpushed()
			due := ok && o.OrderNum <= before
			before, last = last, in.primary.Last()
			in.mu.Unlock()
			if due {
				in.null()
			}
		case <-in.ctx.Done():
			return
		}
	}
}

// null queues one null message for every follower.
func (in *incarnation) null() {
	in.mu.Lock()
	r := in.primary.Null()
	in.mu.Unlock()
	var sealed *pb.Run
	if r.Count > 0 {
		sealed = wire.RunToProto(in.seal.Close(r), false)
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	for _, p := range in.roster {
		f := p.stream
		switch {
		case f == nil:
		case f.sent+1 == r.First && sealed != nil && !f.joins():
			f.sent = r.Last()
			f.sayRun(sealed)
		default:
			in.catchUp(f)
		}
	}
}

// catchUp queues what a follower's stream hasn't carried; a joiner gets the messages, too, since
// sources may not send it theirs yet. Called with mu held.
func (in *incarnation) catchUp(f *follower) {
	if !f.joins() {
		f.sent = max(f.sent, in.primary.Stable())
	}
	for f.sent < in.primary.Last() {
		r := in.primary.Push(f.sent)
		if r.Count == 0 {
			return
		}
		if r.Count > wire.MaxRun {
			r.Count, r.Entries = wire.MaxRun, r.Entries[:wire.MaxRun]
		}
		f.sent = r.Last()
		f.sayRun(wire.RunToProto(in.seal.Close(r), false))
		if f.joins() {
			for _, o := range r.Entries {
				in.sendMessage(f, o.Message())
			}
		}
	}
	signal(f.out.wake)
}

// sendMessage queues one message of the log. Called with mu held.
func (in *incarnation) sendMessage(f *follower, id orderstate.MessageID) {
	if m, ok := in.primary.History().Has(id); ok {
		out := f.say(m.Size)
		out.Messages = append(out.Messages, loggedMessage(m))
	}
}

// sendMessages queues the pending messages of some sessions, which their sources can't send; a
// joiner has them with their order. Called with mu held.
func (in *incarnation) sendMessages(f *follower, of func(orderstate.Session) bool) {
	if f.joins() {
		return
	}
	for _, o := range in.primary.PendingSourceOrder() {
		if of(o.Session) {
			in.sendMessage(f, o.Message())
		}
	}
}

// acknowledged takes a follower's word for what it holds (R3).
func (in *incarnation) acknowledged(f *follower, req *pb.FollowRequest) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	f.heard = in.r.clock()
	p := f.peer
	if in.role != leading || p.stream != f {
		return errEvicted
	}
	if f.since == 0 && req.GetRestored() {
		f.since, f.moved = f.heard, f.heard
		p.stage = max(p.stage, restored)
	}
	f.executes(in, req)
	in.heardBy(f, req)
	a := req.GetAcknowledgement()
	if a == nil || orderstate.Epoch(a.GetEpoch()) != in.primary.Epoch() {
		return nil
	}
	k := orderstate.OrderNum(a.GetOrderNum())
	if p.stage < counted {
		if p.stage < restored || k < f.keptAbove || k > in.primary.Last() {
			return nil
		}
		if f.heard-f.since < silence && !in.hearsAll(f) { // replies to the others will wait for it (R11)
			return nil
		}
		// R13, grow: count it first; its acknowledgements so far count from now on.
		p.stage = counted
		in.primary.Require(p.id)
		in.tellRequired()
		in.goes(func() { in.grow(f) })
	}
	moved, err := in.primary.Acknowledge(p.id, in.primary.Epoch(), k)
	if err != nil {
		return err
	}
	if moved != (orderstate.Moved{}) {
		in.stableMoved()
	} else if f.joins() {
		in.progressed() // grow waits for this joiner, whatever was stable before it came
	}
	return nil
}

// stableMoved does what waited for the stable point. Called with mu held.
func (in *incarnation) stableMoved() {
	in.forget()
	for a := range in.asking {
		a.tellStable()
	}
	clear(in.asking)
	in.progressed()
	if !in.gate {
		in.broadcast()
	}
}

// grow writes a joiner to in-sync when it holds what was ordered by the time it was counted (R13).
func (in *incarnation) grow(f *follower) {
	p := f.peer
	in.mu.Lock()
	// What was stable before it was counted, it may lack: nothing else sends it that. And its
	// snapshot may hold turns that another backup doesn't yet; from a joiner that led, that one
	// couldn't get them. So everyone must hold all of it first.
	in.catchUp(f)
	target := in.primary.Last()
	err := in.awaitProgress(in.ctx, func() bool {
		held, _ := in.primary.Acknowledged(p.id)
		return p.stream != f || held >= target && in.primary.Stable() >= target && in.gate &&
			in.r.clock() < in.authority
	})
	if gone := p.stream != f; err != nil || gone {
		in.mu.Unlock()
		return // who removed it has released it
	}
	// From here on it may be in-sync, whatever becomes of its stream: so it stays in the required
	// set until its removal from etcd is certain.
	p.stage = adding
	in.mu.Unlock()
	ctx, cancel := context.WithTimeout(in.ctx, authority)
	defer cancel()
	err = in.r.store.AddInSync(ctx, uint64(in.primary.Epoch()), p.member)
	in.mu.Lock()
	defer in.mu.Unlock()
	switch {
	case err == nil && p.stream != nil:
		p.stage = inSync
		p.stream.say(0).InSync = true
		in.log.Info("in-sync", "joiner", p.member.String())
		in.forget()
		in.broadcast()
	case err == nil || election.IsUnknown(err):
		p.stage = inSync // unknown counts as not done, and may be
		f.out.cut(errors.New("replica: the joiner left, or etcd is away"))
	default:
		if errors.Is(err, election.ErrDeposed) {
			in.end(errDeposed)
		}
		in.log.Warn("a joiner can't become in-sync", "joiner", p.member.String(), "error", err)
		f.out.cut(err)
		in.remove(p)
	}
}

// left forgets a follower whose stream has ended.
func (in *incarnation) left(f *follower) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.parted(f) {
		in.forget()
	}
}

// parted takes a follower out of the followers, if it is one still. Called with mu held.
func (in *incarnation) parted(f *follower) bool {
	p := f.peer
	if p.stream != f {
		return false
	}
	p.stream = nil
	switch {
	case p.stage.isMember():
		p.lost = in.r.clock()
	case p.stage == counted:
		in.remove(p) // R13: a joiner that fails leaves the required set
	default:
		delete(in.roster, p.id)
		in.primary.DetachAll(p.id)
	}
	in.broadcast()
	return true
}

// remove forgets a replica, and takes it out of the required set. A stream that it still has is
// cut. Called with mu held.
func (in *incarnation) remove(p *peer) {
	delete(in.roster, p.id)
	if f := p.stream; f != nil {
		p.stream = nil
		f.out.cut(errEvicted)
	}
	in.release(p.id)
}

// release takes a replica out of the required set, and tells the sources. Called with mu held.
func (in *incarnation) release(id orderstate.Replica) {
	moved := in.primary.Release(id)
	in.tellRequired()
	if moved.Stable || moved.Gate || moved.Leave {
		in.stableMoved()
	}
	in.broadcast()
}

// keepMembers evicts in-sync replicas that are gone (R6, R13). began is when the epoch did: peers
// that answered have silence to open their streams.
func (in *incarnation) keepMembers(began time.Duration) {
	t := time.NewTicker(reconnect / 2)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-in.ctx.Done():
			return
		}
		if in.outrun() {
			in.end(errHangs)
			return
		}
		if !in.hasAuthority() { // it may be deposed, and the store one from before: it changes nothing
			continue
		}
		for _, l := range in.gone(began) {
			if err := in.evict(l); err != nil {
				in.log.Warn("can't evict", "member", l.member.String(), "error", err)
			}
		}
		for _, m := range in.backAgain() {
			in.keep(m)
		}
		in.dropSilent()
		in.expireSessions()
	}
}

// gone lists the members that aren't there, or don't move.
func (in *incarnation) gone(began time.Duration) []leaving {
	in.mu.Lock()
	defer in.mu.Unlock()
	var gone []leaving
	now := in.r.clock()
	for _, p := range in.roster {
		f := p.stream
		switch {
		case p.stage != inSync: // its removal must come after it was added
		case f != nil && now-f.heard > silence,
			f == nil && p.lost != 0 && now-p.lost > reconnect,
			f == nil && p.lost == 0 && now-began > silence:
			gone = append(gone, leaving{p.member, errSilent})
		case f != nil:
			if err := in.stuck(f, now); err != nil {
				gone = append(gone, leaving{p.member, err})
			}
		}
	}
	return gone
}

// evict is R13, shrink: etcd first, then the required set; its stream is cut. An unknown outcome
// counts as not done, and is tried again.
func (in *incarnation) evict(l leaving) error {
	m := l.member
	if err := in.shrink(in.primary.Epoch(), m); err != nil {
		return err
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	in.log.Info("evicted", "member", m.String(), "because", l.because)
	if p := in.roster[replicaID(m)]; p != nil {
		in.remove(p)
	}
	in.forget()
	return nil
}

// shrink takes a member out of in-sync in etcd, in the name of an epoch of this replica.
func (in *incarnation) shrink(e orderstate.Epoch, m election.Member) error {
	ctx, cancel := context.WithTimeout(in.ctx, authority)
	defer cancel()
	err := in.r.store.RemoveInSync(ctx, uint64(e), m)
	switch {
	case errors.Is(err, election.ErrDeposed):
		in.end(errDeposed)
	case election.IsUnknown(err):
		in.mu.Lock()
		if p := in.roster[replicaID(m)]; p != nil {
			p.doubted = true
		}
		in.mu.Unlock()
	}
	return err
}

// tellRequired pushes the required set on the sessions' streams (R1b). Called with mu held.
func (in *incarnation) tellRequired() {
	set, mark := in.required(), in.sealedMark()
	for a := range in.attached {
		if a.bound {
			out := a.out.say()
			out.RequiredSet, out.Mark = set, mark
		}
	}
}

// required is the required set as it travels. Called with mu held.
func (in *incarnation) required() *pb.RequiredSet {
	number, members := in.primary.Required()
	set := &pb.RequiredSet{Epoch: uint64(in.primary.Epoch()), Number: number}
	for _, m := range members {
		set.Replicas = append(set.Replicas, string(m))
	}
	return set
}
