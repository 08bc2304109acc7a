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
	for _, f := range in.followers {
		in.catchUp(f)
		in.sendMessages(f, func(orderstate.Session) bool { return true })
	}
	_ = in.awaitProgress(ctx, func() bool { return in.role != leading || in.primary.Stable() >= target })
}

// follower is a backup's, or a joiner's, stream at the primary. Its fields are guarded by the
// incarnation's mu.
type follower struct {
	member election.Member
	id     orderstate.Replica
	cut    context.CancelCauseFunc
	wake   chan struct{} // capacity 1
	heard  time.Duration

	joining   bool                // not in-sync yet
	restored  bool                // it has its snapshot
	since     time.Duration       // when it had
	counted   bool                // in the required set
	donor     string              // while joining: who gives the snapshot
	keptAbove orderstate.OrderNum // while joining: the log is kept from here on
	executed  orderstate.OrderNum // what it says to have executed
	moved     time.Duration       // when that has moved, or wasn't less than what was executed here
	logBytes  uint64              // of messages, in order
	sent      orderstate.OrderNum // the stream has carried the order up to here
	out       pb.FollowResponse   // what is to be sent next
	size      int
}

// add queues for a follower; a queue beyond its bound cuts the stream (R6).
func (f *follower) add(bytes int) {
	f.size += bytes
	if f.size > maxQueueBytes {
		f.cut(errors.New("replica: a follower's queue is full"))
	}
	signal(f.wake)
}

// leads makes this incarnation its group's primary. Called with mu held.
func (in *incarnation) leads(p *orderstate.Primary) {
	in.role, in.primary, in.leader = leading, p, in.self
	in.start = &pb.EpochStart{
		Epoch: uint64(p.Epoch()), FirstOrderNum: uint64(p.First()), Stable: uint64(p.Stable()),
		Earlier: wire.StartsToProto(p.Epochs().Starts()),
	}
	now := in.r.clock()
	for _, s := range p.Sessions() {
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
	for _, f := range in.followers {
		if f.sent+1 == r.First && sealed != nil && !f.joining {
			f.sent = r.Last()
			f.out.SourceOrderInfo = append(f.out.SourceOrderInfo, sealed)
			f.add(len(sealed.Sealed))
			continue
		}
		in.catchUp(f)
	}
}

// catchUp queues what a follower's stream hasn't carried; a joiner gets the messages, too, since
// sources may not send it theirs yet. Called with mu held.
func (in *incarnation) catchUp(f *follower) {
	if !f.joining {
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
		sealed := wire.RunToProto(in.seal.Close(r), false)
		f.out.SourceOrderInfo = append(f.out.SourceOrderInfo, sealed)
		f.add(len(sealed.Sealed))
		if f.joining {
			for _, o := range r.Entries {
				in.sendMessage(f, o.Message())
			}
		}
	}
	signal(f.wake)
}

// sendMessage queues one message of the log. Called with mu held.
func (in *incarnation) sendMessage(f *follower, id orderstate.MessageID) {
	if m, ok := in.primary.Has(id); ok {
		f.out.Messages = append(f.out.Messages, loggedMessage(m))
		f.add(m.Size)
	}
}

// sendMessages queues the pending messages of some sessions, which their sources can't send; a
// joiner has them with their order. Called with mu held.
func (in *incarnation) sendMessages(f *follower, of func(orderstate.Session) bool) {
	if f.joining {
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
	if in.role != leading || in.followers[f.id] != f {
		return errEvicted
	}
	if !f.restored && req.GetRestored() {
		f.restored, f.since, f.moved = true, f.heard, f.heard
	}
	f.executes(in, req)
	in.heardBy(f, req)
	a := req.GetAcknowledgement()
	if a == nil || orderstate.Epoch(a.GetEpoch()) != in.primary.Epoch() {
		return nil
	}
	k := orderstate.OrderNum(a.GetOrderNum())
	if f.joining && !f.counted {
		if !f.restored || k < f.keptAbove || k > in.primary.Last() {
			return nil
		}
		if f.heard-f.since < silence && !in.hearsAll(f) { // replies to the others will wait for it (R11)
			return nil
		}
		// R13, grow: count it first; its acknowledgements so far count from now on.
		f.counted = true
		in.primary.Require(f.id)
		in.tellRequired()
		member := f.member
		in.goes(func() { in.grow(f, member) })
	}
	moved, err := in.primary.Acknowledge(f.id, in.primary.Epoch(), k)
	if err != nil {
		return err
	}
	if moved {
		in.stableMoved()
	} else if f.joining {
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
func (in *incarnation) grow(f *follower, m election.Member) {
	in.mu.Lock()
	// What was stable before it was counted, it may lack: nothing else sends it that. And its
	// snapshot may hold turns that another backup doesn't yet; from a joiner that led, that one
	// couldn't get them. So everyone must hold all of it first.
	in.catchUp(f)
	target := in.primary.Last()
	err := in.awaitProgress(in.ctx, func() bool {
		held, _ := in.primary.Acknowledged(f.id)
		return in.followers[f.id] != f || held >= target && in.primary.Stable() >= target && in.gate &&
			in.r.clock() < in.authority
	})
	if gone := in.followers[f.id] != f; err != nil || gone {
		in.mu.Unlock()
		return // who removed it has released it
	}
	// From here on it may be in-sync, whatever becomes of its stream: so it stays in the required
	// set until its removal from etcd is certain.
	in.members[f.id] = m
	in.adding[f.id] = true
	in.mu.Unlock()
	ctx, cancel := context.WithTimeout(in.ctx, authority)
	defer cancel()
	err = in.r.store.AddInSync(ctx, uint64(in.primary.Epoch()), m)
	in.mu.Lock()
	defer in.mu.Unlock()
	delete(in.adding, f.id)
	switch {
	case err == nil && in.followers[f.id] == f:
		f.joining = false
		f.out.InSync = true
		f.add(0)
		in.log.Info("in-sync", "joiner", m.String())
		in.forget()
		in.broadcast()
	case err == nil || election.IsUnknown(err):
		// Unknown counts as not done, and may be.
		f.cut(errors.New("replica: the joiner left, or etcd is away"))
	default:
		delete(in.members, f.id)
		if other := in.followers[f.id]; other != f { // else its stream's end releases it
			if other != nil {
				delete(in.followers, f.id)
				other.cut(errEvicted)
			}
			in.release(f.id)
		}
		if errors.Is(err, election.ErrDeposed) {
			in.end(errDeposed)
		}
		in.log.Warn("a joiner can't become in-sync", "joiner", m.String(), "error", err)
		f.cut(err)
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
	if in.followers[f.id] != f {
		return false
	}
	delete(in.followers, f.id)
	if _, member := in.members[f.id]; member {
		in.lost[f.id] = in.r.clock()
	} else if f.counted {
		in.release(f.id) // R13: a joiner that fails leaves the required set
	} else {
		in.primary.DetachAll(f.id)
	}
	in.broadcast()
	return true
}

// release takes a replica out of the required set, and tells the sources. Called with mu held.
func (in *incarnation) release(id orderstate.Replica) {
	moved := in.primary.Release(id)
	in.tellRequired()
	if moved {
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
	for id, m := range in.members {
		f, lost := in.followers[id], in.lost[id]
		switch {
		case in.adding[id]: // its removal must come after
		case f != nil && now-f.heard > silence,
			f == nil && lost != 0 && now-lost > reconnect,
			f == nil && lost == 0 && now-began > silence:
			gone = append(gone, leaving{m, errSilent})
		case f != nil:
			if err := in.stuck(f, now); err != nil {
				gone = append(gone, leaving{m, err})
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
	id := replicaID(m)
	in.mu.Lock()
	defer in.mu.Unlock()
	in.log.Info("evicted", "member", m.String(), "because", l.because)
	delete(in.members, id)
	delete(in.lost, id)
	delete(in.doubted, id)
	if f := in.followers[id]; f != nil {
		delete(in.followers, id)
		f.cut(errEvicted)
	}
	in.release(id)
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
		in.doubted[replicaID(m)] = true
		in.mu.Unlock()
	}
	return err
}

// tellRequired pushes the required set on the sessions' streams (R1b). Called with mu held.
func (in *incarnation) tellRequired() {
	set, mark := in.required(), in.sealedMark()
	for a := range in.attached {
		if a.bound {
			a.out.RequiredSet, a.out.Mark = set, mark
			signal(a.wake)
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
