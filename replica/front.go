package replica

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc/status"

	"github.com/understudy-rpc/understudy"
	"github.com/understudy-rpc/understudy/internal/wire"
	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
	"github.com/understudy-rpc/understudy/replica/internal/machine"
)

// handle is the front door, behind the first of a server's interceptors: it does FIG. 9 on the
// request's header, answers duplicates from the reply log, lets a fresh request go down the chain
// to its turn, and makes the reply's header (FIG. 8). The request's header has passed
// wire.CheckRequest; next is the rest of the chain.
//
// When ctx ends before the request has its turn, it is never executed; afterwards it is, and only
// its reply is lost.
func (r *Replica) handle(ctx context.Context, c *call, next func(context.Context) (any, error)) outcome {
	c.received = r.clock()
	in := r.current()
	if in == nil {
		return c.refused(errNotPrimary)
	}
	if n := len(c.request.b); n > wire.MaxMessage { // the replicas couldn't send it each other
		return in.refuses(c, errRequestTooLarge(n))
	}
	if c.reads() {
		return in.serveRead(ctx, c, next)
	}
	id, answeredUpTo := c.header.Request()
	v, err := in.admit(ctx, c, id, answeredUpTo)
	if err != nil {
		return in.refuses(c, err)
	}
	switch v {
	case orderstate.Fresh:
		if c.in != nil { // an interceptor in front of ours has called it before
			in.mu.Lock()
			c.stage = onItsWay
			in.mu.Unlock()
		}
		c.in = in
		c.msg = orderstate.Message{
			MessageID: id, AnsweredUpTo: answeredUpTo,
			Digest: in.seal.Digest(id, answeredUpTo, c.invocation.Method.Name, c.request.b),
			Body:   &machine.Body{Method: c.invocation.Method.Name, Payload: c.request.b},
			Size:   len(c.invocation.Method.Name) + len(c.request.b),
		}
		done := c.through(ctx, next)
		switch {
		case done.result != nil:
			return in.transmit(ctx, c, done.result.said.OrderNum, c.outcome(done))
		case done.gone: // an interceptor has answered, and it won't be executed
			o := in.refuses(c, done.err)
			o.reply = done.value
			return o
		}
		// An interceptor hasn't waited for the turn, which goes on: its reply is the one.
	case orderstate.Duplicate:
		r.stats.duplicates.Add(1)
	default:
		return in.refuses(c, refusal(v))
	}
	said := in.machine.Await(ctx, id)
	if said == nil || said.Ended {
		in.mu.Lock()
		in.goesOn(c)
		in.mu.Unlock()
	}
	switch {
	case said == nil:
		return in.refuses(c, in.gaveUp(ctx, nil))
	case said.Ended:
		return in.refuses(c, errAnswered)
	}
	return in.transmit(ctx, c, said.OrderNum,
		outcome{reply: c.says(said), err: said.Err(), header: said.Header, trailer: said.Trailer})
}

// refused answers a request that wasn't executed by this RPC.
func (c *call) refused(err error) outcome {
	c.replyHeader = wire.Header{}
	if r, ok := err.(*refusedError); ok {
		c.replyHeader.Refusal = r.refusal
		err = r.GRPCStatus().Err()
	}
	return outcome{err: err}
}

// refuses refuses a request, and tells its source of the epoch.
func (in *incarnation) refuses(c *call, err error) outcome {
	in.r.stats.refused.Add(1)
	o := c.refused(err)
	in.mu.Lock()
	defer in.mu.Unlock()
	c.replyHeader.SourceEpoch = in.epoch()
	return o
}

// admit waits until this replica may take requests, and judges one. The epoch that its source has
// acknowledged must be this primary's own (R9).
func (in *incarnation) admit(
	ctx context.Context, c *call, id orderstate.MessageID, answeredUpTo orderstate.SeqNum,
) (verdict orderstate.Verdict, err error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if err := in.enter(ctx, c); err != nil {
		return 0, err
	}
	defer func() {
		if err != nil || verdict != orderstate.Fresh && verdict != orderstate.Duplicate {
			in.goesOn(c)
		}
	}()
	for {
		v := in.primary.Judge(id, answeredUpTo)
		if v != orderstate.Fresh {
			return v, nil
		}
		done, arriving := in.arriving[id]
		if !arriving {
			break
		}
		// A copy of this RPC is on its way to its turn: what becomes of it decides.
		if done == nil {
			done = make(chan struct{})
			in.arriving[id] = done
		}
		in.mu.Unlock()
		select {
		case <-done:
		case <-ctx.Done():
		}
		in.mu.Lock()
		if ctx.Err() != nil || in.role != leading {
			return 0, in.gaveUp(ctx, nil)
		}
	}
	if in.primary.Stable() < orderstate.OrderNum(id.Session) {
		return 0, errUnknownSession // R11: nobody was told its number yet
	}
	if err := in.room(ctx, id.Session); err != nil {
		return 0, err
	}
	if want := in.r.config.minInSync; want > 1 {
		if have := in.roster.members() + 1; have < want {
			return 0, errMinInSync(have, want)
		}
	}
	in.arriving[id] = nil
	return orderstate.Fresh, nil
}

// enter waits until this replica may take requests, refuses what isn't for this primary, or not of
// the session's source, or beyond its share, and does FIG. 9. The RPC counts from then on. Called
// with mu held.
func (in *incarnation) enter(ctx context.Context, c *call) error {
	h := &c.header
	if in.role != leading && in.role != takingOver || h.DestEpoch != in.epoch() {
		return errNotPrimary
	}
	if err := in.owns(h); err != nil {
		return err
	}
	if err := in.waits(c, h.Session); err != nil {
		return err
	}
	if in.role != leading || !in.gate {
		err := in.await(ctx, func() bool { return in.role != takingOver && (in.role != leading || in.gate) })
		if err == nil && (in.role != leading || h.DestEpoch != in.primary.Epoch()) {
			err = errNotPrimary
		}
		if err != nil {
			in.goesOn(c)
			return in.gaveUp(ctx, err)
		}
	}
	in.primary.Receive(h.Session, h.HeldUpTo, wire.Envelopes(h.DestOrderInfo)) // FIG. 9
	return nil
}

// arrived: a request that admit judged fresh has had its turn, or never will have it. Called with
// mu held.
func (in *incarnation) arrived(id orderstate.MessageID) {
	if done := in.arriving[id]; done != nil {
		close(done)
	}
	delete(in.arriving, id)
}

// room waits while what is ordered is at the log's bound, and refuses when that lasts: the backups
// don't acknowledge, and etcd, without which they can't be evicted, is away. While less than half
// is free, a session beyond its share waits alone. Called with mu held.
func (in *incarnation) room(ctx context.Context, s orderstate.Session) error {
	var used, own int
	free := func() bool {
		if in.role != leading {
			return true
		}
		used = in.primary.History().Logged()
		if in.primary.Last()-in.primary.History().CutAt() >= maxLog || used >= maxLogBytes {
			own = 0
			return false
		}
		if used < maxLogBytes/2 {
			return true
		}
		own = in.primary.History().Of(s).Logged
		return own == 0 || own <= (maxLogBytes-used)/8
	}
	if free() {
		return nil
	}
	waiting, cancel := context.WithTimeout(ctx, reconcileTimeout)
	defer cancel()
	err := in.awaitProgress(waiting, free)
	switch {
	case err == nil && in.role == leading:
		return nil
	case ctx.Err() == nil && waiting.Err() != nil && own > 0:
		return errShare(
			"%d bytes of requests are kept for the session, of %d for all; at most a sixteenth is while the log is "+
				"more than half full", own, used,
		)
	case ctx.Err() == nil && waiting.Err() != nil:
		return errLogFull()
	default:
		return in.gaveUp(ctx, err)
	}
}

// gaveUp turns the end of a wait into what the caller sees.
func (in *incarnation) gaveUp(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return status.FromContextError(ctx.Err()).Err()
	}
	_ = err // the incarnation has ended: whoever leads now will take the request
	return errNotPrimary
}

// order is FIG. 7 for a request that has its turn.
func (in *incarnation) order(c *call) (orderstate.OrderInfo, orderstate.Verdict, error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.role != leading || !in.gate || c.stage == gone {
		return orderstate.OrderInfo{}, 0, errNotPrimary
	}
	if err := in.inShare(c.msg); err != nil {
		return orderstate.OrderInfo{}, 0, err
	}
	o, v, moved := in.primary.Order(c.msg, in.now())
	switch v {
	case orderstate.Fresh:
		c.stage = ordered
		in.sendToDeaf(c.msg.MessageID)
	case orderstate.Duplicate:
		c.stage = ordered
		in.arrived(c.msg.MessageID)
	}
	if moved.Push || c.header.Level == pb.Level_LEVEL_STABLE {
		signal(in.push)
	}
	return o, v, nil
}

// transmit makes the reply's header: FIG. 8's first loop, with R2, R5 and R10. It waits while the
// primary's authority has run out (etcd is away), and refuses when the primary was deposed: then
// nothing leaves.
func (in *incarnation) transmit(ctx context.Context, c *call, orderNum orderstate.OrderNum, o outcome) outcome {
	h, id := &c.header, c.header.Session
	in.mu.Lock()
	p := in.primary
	stable := h.Level == pb.Level_LEVEL_STABLE || in.r.config.level == understudy.Stable
	ready := func() bool {
		return in.role != leading || in.r.clock() < in.authority && in.mayLeave(id, orderNum, stable, c.reads())
	}
	var err error
	if !ready() {
		in.waitsOn(c)
		err = in.awaitProgress(ctx, ready)
	}
	in.goesOn(c)
	if err != nil {
		in.mu.Unlock()
		return in.refuses(c, in.gaveUp(ctx, err))
	}
	switch {
	case in.role != leading:
		in.mu.Unlock()
		return in.refuses(c, errNotPrimary)
	case c.reads() && !p.Attached(id): // a takeover wouldn't wait for who reads
		in.mu.Unlock()
		return in.refuses(c, errOrderIt)
	}
	w := &c.replyHeader
	*w = wire.Header{
		SourceEpoch: p.Epoch(), OrderNum: orderNum, FirstOrderNum: p.First(), Stable: p.Stable(),
		RequiredSet: p.Number(),
		AuthorityUs: uint64((in.authority - c.received) / time.Microsecond), Code: status.Code(o.err),
	}
	scratch := entries.Get().(*[]orderstate.OrderInfo)
	defer entries.Put(scratch)
	above := h.HeldUpTo
	session := in.bySession[id]
	if session != nil {
		session.lastOrder, session.stableTold = max(session.lastOrder, orderNum), p.Stable()
		above = max(above, session.announced) // R5: the stream has it, or soon will
	}
	run := p.Multicast(id, above, orderNum, *scratch)
	if run.Count > 0 {
		*scratch = run.Entries
	}
	if run.Count > wire.MostEntries(inHeader) { // don't seal it first
		run = session.overflow(run)
	}
	in.mu.Unlock()

	if run.Count == 0 {
		return o
	}
	announcement := in.seal.Close(run)
	if len(announcement.Sealed) > inHeader {
		in.mu.Lock()
		run = session.overflow(run)
		in.mu.Unlock()
		announcement = in.seal.Close(run)
	}
	w.Announce(announcement)
	if w.Size() > wire.MaxHeader {
		w.SourceOrderInfo = nil // never fails a call: the source asks on its stream (R1)
	}
	return o
}

// entries are those of a run until it is sealed.
var entries = sync.Pool{New: func() any { return new([]orderstate.OrderInfo) }}

// inHeader is how many bytes a run may have in a reply's header, of which 160 are for the rest.
const inHeader = wire.MaxHeader - 160

// overflow queues of a run what can't go on the reply, and returns the newest entries, which fit in
// a header whatever they are (R5). Without a stream the source asks for the rest, once it has one
// (R1). Called with mu held.
func (a *attachment) overflow(r orderstate.Run) (newest orderstate.Run) {
	older, newest := split(r, max(r.Count-wire.FewestEntries(inHeader), 0))
	if a != nil {
		a.announce(older)
	}
	return newest
}

// split cuts a run behind its first n entries.
func split(r orderstate.Run, n int) (older, newer orderstate.Run) {
	older, newer = r, r
	older.Count, older.Entries = n, r.Entries[:n]
	newer.First, newer.Count, newer.Entries = r.First+orderstate.OrderNum(n), r.Count-n, r.Entries[n:]
	return older, newer
}

// epoch is the acknowledged epoch. Called with mu held.
func (in *incarnation) epoch() orderstate.Epoch {
	switch {
	case in.primary != nil:
		return in.primary.Epoch()
	case in.backup != nil:
		return in.backup.Epoch()
	default:
		return 0
	}
}
