package replica

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
	"github.com/understudy-rpc/understudy/replica/internal/machine"
)

// turn is the innermost link of the chain: it waits for its turn, orders the message (FIG. 7), and
// executes the handler. A message whose caller has gone is dropped un-ordered; once ordered, the
// turn finishes (R7).
func (c *call) turn(ctx context.Context, req any) (any, error) {
	switch {
	case c.leads == nil:
		return nil, status.Error(codes.Internal, "understudy: the server was made without interceptor.ServerOptions")
	case req != c.invocation.Req:
		return nil, errRequestReplaced(c.invocation.Method.Name)
	case c.reads():
		return c.read(ctx)
	}
	o, v, err := c.takeTurn(ctx)
	if err != nil || v != orderstate.Fresh {
		if first := c.result.Load(); first != nil { // an interceptor calls its handler once more
			return first.value, first.said.Err()
		}
		switch {
		case err != nil:
			return nil, err
		case v == orderstate.Duplicate: // the front door waits for what the copy says
			return nil, status.Error(codes.Aborted, "understudy: a copy of this RPC has had its turn")
		default:
			return nil, refusal(v)
		}
	}
	return c.execute(o)
}

// execute runs the handler of a call that is ordered. However it ends, its turn ends, and what it
// has said is logged.
func (c *call) execute(o orderstate.OrderInfo) (value any, err error) {
	l, m, said := c.leads, c.leads.m, new(machine.Reply)
	defer func() {
		c.turned.said, c.turned.value = said, value
		m.mu.Lock()
		m.turned()
		l.arrived(c.msg.MessageID)
		c.result.Store(&c.turned)
		m.mu.Unlock()
		m.machine.End()
	}()
	value = m.machine.Execute(&c.invocation, o, c.msg.AnsweredUpTo, said)
	return value, said.Err()
}

// takeTurn takes a turn, and orders the message (FIG. 7). The turn goes on if the message is fresh,
// and otherwise has ended.
func (c *call) takeTurn(ctx context.Context) (o orderstate.OrderInfo, v orderstate.Verdict, err error) {
	m := c.leads.m
	var waiting context.Context
	for {
		if err := m.machine.Take(ctx); err != nil {
			return o, v, status.FromContextError(err).Err()
		}
		if ctx.Err() != nil { // the turn was free, or came at the same time
			m.machine.End()
			return o, v, status.FromContextError(ctx.Err()).Err()
		}
		o, v, err = c.leads.order(c)
		if err == nil && v == orderstate.Fresh {
			return o, v, nil
		}
		m.machine.End()
		if !errors.Is(err, errReplies) {
			return o, v, err
		}
		if waiting == nil { // all waits together
			var cancel context.CancelFunc
			waiting, cancel = context.WithTimeout(ctx, reconcileTimeout)
			defer cancel()
		}
		if err := m.awaitReplies(ctx, waiting, c.msg.Session); err != nil {
			return o, v, err
		}
	}
}

// order is FIG. 7 for a request that has its turn. It takes mu.
func (l *leading) order(c *call) (orderstate.OrderInfo, orderstate.Verdict, error) {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	if l.over() || !l.gate || c.stage == gone {
		return orderstate.OrderInfo{}, 0, errNotPrimary
	}
	if err := l.inShare(c.msg); err != nil {
		return orderstate.OrderInfo{}, 0, err
	}
	o, v, what := l.primary.Order(c.msg, l.now())
	switch v {
	case orderstate.Fresh:
		c.stage = ordered
		l.roster.sendToDeaf(c.msg.MessageID)
	case orderstate.Duplicate:
		c.stage = ordered
		l.arrived(c.msg.MessageID)
	}
	// what is stable is told once the turn is over
	l.m.after(moved{Moved: orderstate.Moved{Push: what.Push || c.header.Level == pb.Level_LEVEL_STABLE}})
	return o, v, nil
}

// read executes a read-only method between turns, of which it has seen all up to its orderNum.
func (c *call) read(ctx context.Context) (any, error) {
	l, m := c.leads, c.leads.m
	place, err := m.machine.TakeRead(ctx, c.invocation.Method)
	if err != nil {
		return nil, status.FromContextError(err).Err()
	}
	defer m.machine.EndRead(place)
	m.mu.Lock()
	leads := !l.over() && l.gate
	seen := orderstate.OrderInfo{OrderNum: m.machine.Executed()}
	if leads {
		seen.Time = l.now()
	}
	m.mu.Unlock()
	if !leads {
		return nil, errNotPrimary
	}
	var has struct {
		result
		reply machine.Reply
	}
	has.said = &has.reply
	has.value = m.machine.Read(ctx, &c.invocation, seen, has.said)
	if !c.result.CompareAndSwap(nil, &has.result) {
		first := c.result.Load() // of an interceptor that calls its handler once more
		return first.value, first.said.Err()
	}
	return has.value, has.said.Err()
}

// replayed acts on turns that were executed. Called in their turn. It takes mu.
func (m *member) replayed(turns []machine.Entry) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, t := range turns {
		switch t.Kind {
		case orderstate.Open:
			if m.sources.bySession[t.Session] == nil {
				m.sources.absent[t.Session] = m.r.clock()
			}
		case orderstate.Expire:
			delete(m.sources.known, t.Session)
			if f := m.role.logs(); f != nil {
				delete(f.suspects, t.Session)
			}
			delete(m.sources.absent, t.Session)
		}
	}
	m.r.stats.turns.Add(uint64(len(turns)))
	m.after(moved{executed: true, rare: m.following() == nil}) // who opens the gate waits for the last one
}
