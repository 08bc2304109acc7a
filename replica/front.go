package replica

import (
	"context"
	"errors"
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
		return in.m.refuses(c, errRequestTooLarge(n))
	}
	if c.reads() {
		return in.serveRead(ctx, c, next)
	}
	id, answeredUpTo := c.header.Request()
	l, v, err := in.m.admit(ctx, c, id, answeredUpTo)
	if err != nil {
		return in.m.refuses(c, err)
	}
	switch v {
	case orderstate.Fresh:
		if c.leads != nil { // an interceptor in front of ours has called it before
			in.m.mu.Lock()
			c.stage = onItsWay
			in.m.mu.Unlock()
		}
		c.leads = l
		c.msg = orderstate.Message{
			MessageID: id, AnsweredUpTo: answeredUpTo,
			Digest: in.seal.Digest(id, answeredUpTo, c.invocation.Method.Name, c.request.b),
			Body:   &machine.Body{Method: c.invocation.Method.Name, Payload: c.request.b},
			Size:   len(c.invocation.Method.Name) + len(c.request.b),
		}
		done := c.through(ctx, next)
		switch {
		case done.result != nil:
			return l.transmit(ctx, c, done.result.said.OrderNum, c.outcome(done))
		case done.gone: // an interceptor has answered, and it won't be executed
			o := in.m.refuses(c, done.err)
			o.reply = done.value
			return o
		}
		// An interceptor hasn't waited for the turn, which goes on: its reply is the one.
	case orderstate.Duplicate:
		r.stats.duplicates.Add(1)
	default:
		return in.m.refuses(c, refusal(v))
	}
	said := in.machine.Await(ctx, id)
	if said == nil || said.Ended {
		in.m.mu.Lock()
		in.m.sources.goesOn(c)
		in.m.mu.Unlock()
	}
	switch {
	case said == nil:
		return in.m.refuses(c, gaveUp(ctx))
	case said.Ended:
		return in.m.refuses(c, errAnswered)
	}
	return l.transmit(ctx, c, said.OrderNum,
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

// refuses refuses a request, and tells its source of the epoch. It takes mu.
func (m *member) refuses(c *call, err error) outcome {
	m.r.stats.refused.Add(1)
	o := c.refused(err)
	m.mu.Lock()
	defer m.mu.Unlock()
	c.replyHeader.SourceEpoch = m.epoch()
	return o
}

// admit waits until this replica may take requests, and judges one. The epoch that its source has
// acknowledged must be this primary's own (R9).
func (m *member) admit(
	ctx context.Context, c *call, id orderstate.MessageID, answeredUpTo orderstate.SeqNum,
) (l *leading, verdict orderstate.Verdict, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if l, err = m.enter(ctx, c); err != nil {
		return nil, 0, err
	}
	defer func() {
		if err != nil || verdict != orderstate.Fresh && verdict != orderstate.Duplicate {
			m.sources.goesOn(c)
		}
	}()
	for {
		v := l.primary.Judge(id, answeredUpTo)
		if v != orderstate.Fresh {
			return l, v, nil
		}
		done, arriving := l.arriving[id]
		if !arriving {
			break
		}
		// A copy of this RPC is on its way to its turn: what becomes of it decides.
		if done == nil {
			done = make(chan struct{})
			l.arriving[id] = done
		}
		m.mu.Unlock()
		select {
		case <-done:
		case <-ctx.Done():
		}
		m.mu.Lock()
		if ctx.Err() != nil || l.over() {
			return nil, 0, gaveUp(ctx)
		}
	}
	if l.primary.Stable() < orderstate.OrderNum(id.Session) {
		return nil, 0, errUnknownSession // R11: nobody was told its number yet
	}
	if err := l.room(ctx, id.Session); err != nil {
		return nil, 0, err
	}
	if want := m.r.config.minInSync; want > 1 {
		if have := l.roster.peers.members() + 1; have < want {
			return nil, 0, errMinInSync(have, want)
		}
	}
	l.arriving[id] = nil
	return l, orderstate.Fresh, nil
}

// enter waits until this replica may take requests, refuses what isn't for this primary, or not of
// the session's source, or beyond its share, and does FIG. 9. The RPC counts from then on.
func (m *member) enter(ctx context.Context, c *call) (*leading, error) {
	h := &c.header
	if m.leading() == nil && m.takingOver() == nil || h.DestEpoch != m.epoch() {
		return nil, errNotPrimary
	}
	if err := m.sources.owns(h); err != nil {
		return nil, err
	}
	if err := m.sources.waits(c, h.Session); err != nil {
		return nil, err
	}
	l := m.ordering()
	if l == nil {
		err := m.await(ctx, func() bool {
			return m.ordering() != nil || m.leading() == nil && m.takingOver() == nil
		})
		if l = m.ordering(); err != nil || l == nil || h.DestEpoch != l.primary.Epoch() {
			m.sources.goesOn(c)
			return nil, gaveUp(ctx)
		}
	}
	l.primary.Receive(h.Session, h.HeldUpTo, wire.Envelopes(h.DestOrderInfo)) // FIG. 9
	return l, nil
}

// transmit makes the reply's header: FIG. 8's first loop, with R2, R5 and R10. It waits while the
// primary's authority has run out (etcd is away), and refuses when the primary was deposed: then
// nothing leaves. It takes mu.
func (l *leading) transmit(ctx context.Context, c *call, orderNum orderstate.OrderNum, o outcome) outcome {
	h, id, m, p := &c.header, c.header.Session, l.m, l.primary
	m.mu.Lock()
	stable := h.Level == pb.Level_LEVEL_STABLE || m.r.config.level == understudy.Stable
	ready := func() bool {
		return l.over() || m.r.clock() < l.authority && l.mayLeave(id, orderNum, stable, c.reads())
	}
	var err error
	if !ready() {
		m.sources.waitsOn(c)
		err = m.awaitProgress(ctx, ready)
	}
	m.sources.goesOn(c)
	if err != nil {
		m.mu.Unlock()
		return m.refuses(c, gaveUp(ctx))
	}
	switch {
	case l.over():
		m.mu.Unlock()
		return m.refuses(c, errNotPrimary)
	case c.reads() && !p.Attached(id): // a takeover wouldn't wait for who reads
		m.mu.Unlock()
		return m.refuses(c, errOrderIt)
	}
	w := &c.replyHeader
	*w = wire.Header{
		SourceEpoch: p.Epoch(), OrderNum: orderNum, FirstOrderNum: p.First(), Stable: p.Stable(),
		RequiredSet: p.Number(),
		AuthorityUs: uint64((l.authority - c.received) / time.Microsecond), Code: status.Code(o.err),
	}
	scratch := entries.Get().(*[]orderstate.OrderInfo)
	defer entries.Put(scratch)
	above := h.HeldUpTo
	session := m.sources.bySession[id]
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
	m.mu.Unlock()

	if run.Count == 0 {
		return o
	}
	announcement := m.seal.Close(run)
	if len(announcement.Sealed) > inHeader {
		m.mu.Lock()
		run = session.overflow(run)
		m.mu.Unlock()
		announcement = m.seal.Close(run)
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
// (R1).
func (a *attachment) overflow(r orderstate.Run) (newest orderstate.Run) {
	older, newest := split(r, max(r.Count-wire.FewestEntries(inHeader), 0))
	if a != nil {
		a.announce(older)
	}
	return newest
}

// serveRead serves a request of a read-only method: at the primary, between turns, with no
// orderNum, log or fan-out. Its reply names the last turn that it saw, and is accepted as one at
// that place (R1, R10), which makes it linearizable: whoever takes over waits for the source to
// have acknowledged the epoch, or for A and its margin, before it orders anything. So it mustn't be
// served to a source that a takeover wouldn't wait for (R11): transmit sees to that.
func (in *incarnation) serveRead(
	ctx context.Context, c *call, next func(context.Context) (any, error),
) outcome {
	if !c.invocation.Method.Reads {
		return in.m.refuses(c, errHeader(errors.New("a request without a seqNum, of a method that isn't read-only")))
	}
	s := c.header.Session
	in.m.mu.Lock()
	l, err := in.m.enter(ctx, c)
	if err == nil && (!l.primary.History().Known(s) || l.primary.Stable() < orderstate.OrderNum(s)) {
		err = errUnknownSession
		in.m.sources.goesOn(c)
	}
	in.m.mu.Unlock()
	if err != nil {
		return in.m.refuses(c, err)
	}
	c.leads = l
	done := c.through(ctx, next)
	if done.result == nil { // it had no turn
		o := in.m.refuses(c, done.err)
		o.reply = done.value
		return o
	}
	return l.transmit(ctx, c, done.result.said.OrderNum, c.outcome(done))
}

// through calls the rest of the chain. A call that isn't ordered when that is done never will be.
func (c *call) through(ctx context.Context, next func(context.Context) (any, error)) (done chained) {
	l, m, returned := c.leads, c.leads.m, false
	defer func() { // whatever an interceptor does
		if done.result = c.result.Load(); done.result != nil && returned {
			return // transmit says that it doesn't wait any more
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		m.sources.goesOn(c)
		if done.result = c.result.Load(); done.result == nil && c.stage == onItsWay {
			c.stage, done.gone = gone, true
			l.arrived(c.msg.MessageID)
		}
	}()
	done.value, done.err = next(ctx)
	returned = true
	return done
}
