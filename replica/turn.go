package replica

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/understudy-rpc/understudy/internal/turn"
	"github.com/understudy-rpc/understudy/internal/wire"
	"github.com/understudy-rpc/understudy/orderstate"
)

// message is the body of a request in the log.
type message struct {
	method  string
	payload []byte
}

// call is one RPC on its way through the chain of interceptors: from the wrapped handler, which has its bytes, to the front door, which gives it its place, to its turn.
type call struct {
	method  *method
	request raw                         // its own bytes, as they were received
	header  wire.Header                 // if the message carried it
	chain   grpc.UnaryServerInterceptor // the server's

	// Set at the chain's beginning: the user's handler, its last link.
	info    *grpc.UnaryServerInfo
	handler grpc.UnaryHandler

	// Set by the front door.
	in     *incarnation
	msg    orderstate.Message
	stable bool // Stable was asked for
	reads  bool // read-only

	// Set by the turn, which an interceptor may not wait for; guarded by the incarnation's mu.
	ordered bool // by this RPC, or a copy of it
	gone    bool // the chain was done before: it won't be ordered
	reply   *reply
	value   any // what the handler returned, while nobody in the chain replaced it

	// Set by the front door when the chain is done: the reply, if the turn was over by then.
	result *reply

	// The reply, and its header.
	said raw
	wire wire.Header
}

type callKey struct{}

func callFrom(ctx context.Context) *call {
	c, _ := ctx.Value(callKey{}).(*call)
	return c
}

// turn is the innermost link of the chain: it waits for its turn, orders the message (FIG. 7), and executes the handler. A message whose caller has gone is dropped un-ordered; once
// ordered, the turn finishes (R7).
func (c *call) turn(ctx context.Context, req any) (any, error) {
	in := c.in
	switch {
	case in == nil:
		return nil, status.Error(codes.Internal, "understudy: the server was made without interceptor.ServerOptions")
	case c.reads:
		return c.read(ctx, req)
	}
	if err := in.r.turns.take(ctx); err != nil {
		return nil, status.FromContextError(err).Err()
	}
	if ctx.Err() != nil { // the turn was free, or came at the same time
		in.r.turns.end()
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	o, v, err := in.order(c)
	if err != nil || v != orderstate.Fresh {
		in.r.turns.end()
		switch {
		case err != nil:
			return nil, err
		case v == orderstate.Duplicate: // the front door waits for what the copy says
			return nil, status.Error(codes.Aborted, "understudy: a copy of this RPC has had its turn")
		default:
			return nil, refusal(v)
		}
	}
	said, value := in.execute(c.method, o, func(ctx context.Context) (any, error) {
		return c.method.inTurn(ctx, req, c.info, c.handler)
	})
	in.mu.Lock()
	in.replies.put(c.msg.MessageID, c.msg.AnsweredUpTo, said)
	in.turned(o, 1)
	in.arrived(c.msg.MessageID)
	c.reply, c.value = said, value
	in.mu.Unlock()
	in.r.turns.end()
	return said.result(value)
}

// read executes a read-only method between turns, of which it has seen all up to its orderNum.
func (c *call) read(ctx context.Context, req any) (any, error) {
	in := c.in
	if err := in.r.turns.read(ctx); err != nil {
		return nil, status.FromContextError(err).Err()
	}
	defer in.r.turns.endRead()
	in.mu.Lock()
	leads := in.role == leading && in.gate
	seen := orderstate.OrderInfo{OrderNum: in.executed}
	if leads {
		seen.Time = in.now()
	}
	in.mu.Unlock()
	if !leads {
		return nil, errNotPrimary
	}
	t := turn.NewRead(c.method.name, seen)
	said, value := in.call(t, seen.OrderNum, func(ctx context.Context) (any, error) { return c.method.inTurn(ctx, req, c.info, c.handler) })
	in.mu.Lock()
	c.reply, c.value = said, value
	in.mu.Unlock()
	return said.result(value)
}

// answer is what the chain has made of the turn's result. What nobody replaced isn't marshalled again.
func (c *call) answer(value any, err error) Answer {
	a := Answer{Reply: value, Err: err, Header: c.result.header, Trailer: c.result.trailer}
	if err == nil && value == c.value {
		a.Reply = c.says(c.result)
	}
	return a
}

// says is the reply's bytes as a message.
func (c *call) says(r *reply) proto.Message {
	c.said.set(r.payload)
	return &c.said
}

// result is what the chain sees of a reply.
func (r *reply) result(value any) (any, error) {
	if err := r.err(); err != nil {
		return nil, err
	}
	return value, nil
}

// execute runs a handler in its turn.
func (in *incarnation) execute(m *method, o orderstate.OrderInfo, handler func(context.Context) (any, error)) (*reply, any) {
	in.r.turns.running(&m.name)
	return in.call(turn.New(m.name, o, in.secret), o.OrderNum, handler)
}

// call calls a handler, and keeps all that it says.
func (in *incarnation) call(t *turn.Turn, k orderstate.OrderNum, handler func(context.Context) (any, error)) (*reply, any) {
	value, err := handler(t.Context())
	r := &reply{orderNum: k}
	r.header, r.trailer = t.Metadata()
	if err == nil {
		if reply, ok := value.(proto.Message); ok {
			// Within the turn: a later one may change what the handler has returned.
			r.payload, err = proto.Marshal(reply)
		} else {
			err = status.Errorf(codes.Internal, "understudy: a reply of type %T is no protobuf message", value)
		}
	}
	if err != nil {
		st, ok := status.FromError(err)
		if !ok {
			st = status.FromContextError(err)
		}
		if st.Code() == codes.OK {
			st = status.New(codes.Unknown, st.Message())
		}
		r.st = st.Proto()
	}
	return r, value
}

// replayed is one entry of messageOrder, its message, and what the turn has said.
type replayed struct {
	orderstate.Ordered
	message orderstate.Message
	said    *reply
}

// executeAtOnce and executeFor bound the turns that a backup takes together: who wants to be between them waits so long, or for one handler.
const (
	executeAtOnce = 32
	executeFor    = 10 * time.Millisecond
)

// replay executes messages of messageOrder, one after the other: a backup's turns, or those that a takeover executes before its gate opens. It says how many: fewer when they take
// long, at least one though; and when the incarnation ends.
func (in *incarnation) replay(turns []replayed) int {
	if in.r.turns.take(in.ctx) != nil {
		return 0
	}
	defer in.r.turns.end()
	n := 0
	for began := in.r.clock(); n < len(turns) && in.ctx.Err() == nil; {
		t := &turns[n]
		n++
		if t.Kind != orderstate.Request {
			continue
		}
		t.said = in.replayOne(t.OrderInfo, t.message.Body.(*message))
		if in.r.clock()-began >= executeFor {
			break
		}
	}
	if n == 0 {
		return 0
	}
	turns = turns[:n]
	in.mu.Lock()
	defer in.mu.Unlock()
	for _, t := range turns {
		switch t.Kind {
		case orderstate.Open:
			in.replies.open(t.Session, t.message.Nonce)
		case orderstate.Expire:
			in.replies.expire(t.Session)
		default:
			in.replies.put(t.Message(), t.message.AnsweredUpTo, t.said)
		}
	}
	in.turned(turns[n-1].OrderInfo, n)
	if in.role == takingOver || in.role == leading {
		in.broadcast() // who opens the gate waits for the last one
	}
	return n
}

func (in *incarnation) replayOne(o orderstate.OrderInfo, body *message) *reply {
	method := in.r.methods[body.method]
	if method == nil { // the primary has executed it, so this replica runs another version of the service
		in.r.log.Error("an ordered message of an unknown method: is this another version of the service?", "method", body.method, "orderNum", o.OrderNum)
		return failure(o.OrderNum, codes.Unimplemented, "unknown method "+body.method)
	}
	said, _ := in.execute(method, o, func(ctx context.Context) (any, error) {
		return method.handle(method.service, ctx, unmarshal(body.payload), method.inTurn)
	})
	return said
}

// now is the time that a primary records for a turn, in microseconds since 1970. Called with mu held.
func (in *incarnation) now() int64 { return in.wall.Next(in.primary.LastTime()) }

// ownTurn takes a turn for an entry of the group's own (a session's opening, its expiry): order runs with mu held.
func (in *incarnation) ownTurn(ctx context.Context, order func(now int64) (orderstate.OrderInfo, bool)) (orderstate.OrderInfo, error) {
	if err := in.r.turns.take(ctx); err != nil {
		return orderstate.OrderInfo{}, err
	}
	defer in.r.turns.end()
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
