package replica

import (
	"context"
	"errors"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/understudy-rpc/understudy/internal/wire"
	"github.com/understudy-rpc/understudy/orderstate"
	"github.com/understudy-rpc/understudy/replica/internal/machine"
)

// call is one RPC on its way through the chain of interceptors: from the wrapped handler, which has
// its bytes, to the front door, which gives it its place, to its turn.
type call struct {
	request raw                         // its own bytes, as they were received
	header  wire.Header                 // if the message carried it
	chain   grpc.UnaryServerInterceptor // the server's

	returned bool // the chain has, whatever it returned

	// The user's handler, the chain's last link, which is known at the chain's beginning, as is its
	// request: as every replica has it, of the request's own bytes.
	invocation machine.Invocation

	// Set by the front door.
	in     *incarnation
	msg    orderstate.Message
	of     *knownSession // that the RPC counts for; nil: none that is known here
	counts bool          // the RPC counts as one that waits
	stable bool          // Stable was asked for
	reads  bool          // read-only

	// Set by the turn, which an interceptor may not wait for; guarded by the incarnation's mu.
	ordered bool // by this RPC, or a copy of it
	gone    bool // the chain was done before: it won't be ordered
	reply   *machine.Reply
	value   any // what the handler returned, while nobody in the chain replaced it

	// Set by the front door when the chain is done: the reply, if the turn was over by then.
	result *machine.Reply

	// The reply, and its header.
	said raw
	wire wire.Header
}

type callKey struct{}

func callFrom(ctx context.Context) *call {
	c, _ := ctx.Value(callKey{}).(*call)
	return c
}

// turn is the innermost link of the chain: it waits for its turn, orders the message (FIG. 7), and
// executes the handler. A message whose caller has gone is dropped un-ordered; once ordered, the
// turn finishes (R7).
func (c *call) turn(ctx context.Context, req any) (any, error) {
	in := c.in
	switch {
	case in == nil:
		return nil, status.Error(codes.Internal, "understudy: the server was made without interceptor.ServerOptions")
	case req != c.invocation.Req:
		return nil, errRequestReplaced(c.invocation.Method.Name)
	case c.reads:
		return c.read(ctx)
	}
	o, v, err := c.takeTurn(ctx)
	if err != nil || v != orderstate.Fresh {
		if said, value := c.first(); said != nil {
			return value, said.Err()
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
	in, said := c.in, new(machine.Reply)
	defer func() {
		in.mu.Lock()
		in.turned(1)
		in.arrived(c.msg.MessageID)
		c.reply, c.value = said, value
		in.mu.Unlock()
		in.machine.End()
	}()
	value = in.machine.Execute(&c.invocation, o, c.msg.AnsweredUpTo, said)
	return value, said.Err()
}

// first is what the turn has brought, if an interceptor calls its handler once more: that has no
// turn of its own.
func (c *call) first() (*machine.Reply, any) {
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	return c.reply, c.value
}

// takeTurn takes a turn, and orders the message (FIG. 7). The turn goes on if the message is fresh,
// and otherwise has ended.
func (c *call) takeTurn(ctx context.Context) (o orderstate.OrderInfo, v orderstate.Verdict, err error) {
	in := c.in
	var waiting context.Context
	for {
		if err := in.machine.Take(ctx); err != nil {
			return o, v, status.FromContextError(err).Err()
		}
		if ctx.Err() != nil { // the turn was free, or came at the same time
			in.machine.End()
			return o, v, status.FromContextError(ctx.Err()).Err()
		}
		o, v, err = in.order(c)
		if err == nil && v == orderstate.Fresh {
			return o, v, nil
		}
		in.machine.End()
		if !errors.Is(err, errReplies) {
			return o, v, err
		}
		if waiting == nil { // all waits together
			var cancel context.CancelFunc
			waiting, cancel = context.WithTimeout(ctx, reconcileTimeout)
			defer cancel()
		}
		if err := in.awaitReplies(ctx, waiting, c.msg.Session); err != nil {
			return o, v, err
		}
	}
}

// read executes a read-only method between turns, of which it has seen all up to its orderNum.
func (c *call) read(ctx context.Context) (any, error) {
	in := c.in
	place, err := in.machine.TakeRead(ctx, c.invocation.Method)
	if err != nil {
		return nil, status.FromContextError(err).Err()
	}
	defer in.machine.EndRead(place)
	in.mu.Lock()
	leads := in.role == leading && in.gate
	seen := orderstate.OrderInfo{OrderNum: in.machine.Executed()}
	if leads {
		seen.Time = in.now()
	}
	in.mu.Unlock()
	if !leads {
		return nil, errNotPrimary
	}
	said := new(machine.Reply)
	value := in.machine.Read(ctx, &c.invocation, seen, said)
	in.mu.Lock()
	if c.reply == nil {
		c.reply, c.value = said, value
	}
	said, value = c.reply, c.value // an interceptor's first
	in.mu.Unlock()
	return value, said.Err()
}

// outcome is what the chain has made of the turn's result. What nobody replaced isn't marshalled
// again.
func (c *call) outcome(value any, err error) outcome {
	o := outcome{reply: value, err: err, header: c.result.Header, trailer: c.result.Trailer}
	if err == nil && value == c.value {
		o.reply = c.says(c.result)
	}
	return o
}

// says is the reply's bytes as a message.
func (c *call) says(r *machine.Reply) proto.Message {
	c.said.set(r.Payload)
	return &c.said
}

// replayed acts on turns that were executed. Called in their turn.
func (in *incarnation) replayed(turns []machine.Entry) {
	in.mu.Lock()
	defer in.mu.Unlock()
	for _, t := range turns {
		switch t.Kind {
		case orderstate.Open:
			if in.bySession[t.Session] == nil {
				in.absent[t.Session] = in.r.clock()
			}
		case orderstate.Expire:
			delete(in.known, t.Session)
			delete(in.suspects, t.Session)
			delete(in.absent, t.Session)
		}
	}
	in.turned(len(turns))
	if in.role == takingOver || in.role == leading {
		in.broadcast() // who opens the gate waits for the last one
	}
}

// now is the time that a primary records for a turn, in microseconds since 1970. Called with mu
// held.
func (in *incarnation) now() int64 { return in.wall.Next(in.primary.History().LastTime()) }

// ownTurn takes a turn for an entry of the group's own (a session's opening, its expiry): order
// runs with mu held.
func (in *incarnation) ownTurn(
	ctx context.Context, order func(now int64) (orderstate.OrderInfo, bool),
) (orderstate.OrderInfo, error) {
	if err := in.machine.Take(ctx); err != nil {
		return orderstate.OrderInfo{}, err
	}
	defer in.machine.End()
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.role != leading || !in.gate {
		return orderstate.OrderInfo{}, errNotPrimary
	}
	o, push := order(in.now())
	if push {
		signal(in.push)
	}
	return o, nil
}
