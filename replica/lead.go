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

// grow writes a joiner to in-sync when it holds what was ordered by the time it was counted (R13).
func (re *reign) grow(f *follower) {
	m, rs := re.l.m, &re.l.roster
	m.mu.Lock()
	// What was stable before it was counted, it may lack: nothing else sends it that. And its
	// snapshot may hold turns that another backup doesn't yet; from a joiner that led, that one
	// couldn't get them. So everyone must hold all of it first.
	rs.catchUp(f)
	target := re.l.primary.Last()
	err := m.awaitProgress(re.in.ctx, func() bool { return f.peer.stream != f || rs.holds(f, target) })
	if gone := f.peer.stream != f; err != nil || gone {
		m.mu.Unlock()
		return // who removed it has released it
	}
	// From here on it may be in-sync, whatever becomes of its stream: so it stays in the required
	// set until its removal from etcd is certain.
	f.peer.stage = adding
	m.mu.Unlock()
	ctx, cancel := re.underAuthority()
	defer cancel()
	err = re.in.r.store.AddInSync(ctx, uint64(re.l.primary.Epoch()), f.peer.member)
	m.mu.Lock()
	defer m.mu.Unlock()
	if errors.Is(err, election.ErrDeposed) {
		re.in.end(errDeposed)
	}
	rs.added(f, err)
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

// evict is R13, shrink: etcd first, then the required set; its stream is cut. An unknown outcome
// counts as not done, and is tried again.
func (re *reign) evict(gone leaving) error {
	ctx, cancel := re.underAuthority()
	defer cancel()
	if err := re.in.shrink(ctx, re.l.primary.Epoch(), gone.member); err != nil {
		return err
	}
	re.l.m.mu.Lock()
	defer re.l.m.mu.Unlock()
	re.l.roster.evicted(gone)
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
		if p := in.m.role.others()[replicaID(m)]; p != nil {
			p.doubted = true
		}
		in.m.mu.Unlock()
	}
	return err
}

// keep makes sure that a member is in-sync: once it is written again, no removal from before can
// take place. It has been in the required set all the time, so it holds what it must (R13).
func (re *reign) keep(m election.Member) {
	ctx, cancel := re.underAuthority()
	defer cancel()
	err := re.in.r.store.AddInSync(ctx, uint64(re.l.primary.Epoch()), m)
	switch {
	case errors.Is(err, election.ErrDeposed):
		re.in.end(errDeposed)
	case err != nil: // tried again
		re.in.log.Info("can't keep a member in-sync", "member", m.String(), "error", err)
	default:
		re.l.m.mu.Lock()
		if p := re.l.roster.peers[replicaID(m)]; p != nil {
			p.doubted = false
		}
		re.l.m.mu.Unlock()
	}
}
