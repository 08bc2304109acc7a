package replica

import (
	"context"
	"errors"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
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

// call is one RPC on its way through the chain of interceptors: from the wrapped handler, which has
// its bytes, to the front door, which gives it its place, to its turn.
type call struct {
	method  *method
	request raw                         // its own bytes, as they were received
	header  wire.Header                 // if the message carried it
	chain   grpc.UnaryServerInterceptor // the server's

	returned bool // the chain has, whatever it returned

	// Set at the chain's beginning: the user's handler, its last link.
	req     any // as every replica has it: of the request's own bytes
	info    *grpc.UnaryServerInfo
	handler grpc.UnaryHandler

	// Set by the front door.
	in     *incarnation
	msg    orderstate.Message
	of     *repliesOf // of the session that the RPC counts for; nil: none that is known here
	counts bool       // the RPC counts as one that waits
	stable bool       // Stable was asked for
	reads  bool       // read-only

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

// turn is the innermost link of the chain: it waits for its turn, orders the message (FIG. 7), and
// executes the handler. A message whose caller has gone is dropped un-ordered; once ordered, the
// turn finishes (R7).
func (c *call) turn(ctx context.Context, req any) (any, error) {
	in := c.in
	switch {
	case in == nil:
		return nil, status.Error(codes.Internal, "understudy: the server was made without interceptor.ServerOptions")
	case req != c.req:
		return nil, errRequestReplaced(c.method.name)
	case c.reads:
		return c.read(ctx, req)
	}
	o, v, err := c.takeTurn(ctx)
	if err != nil || v != orderstate.Fresh {
		if said, value := c.first(); said != nil {
			return value, said.err()
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
	return c.execute(req, o)
}

// execute runs the handler of a call that is ordered. However it ends, its turn ends, and what it
// has said is logged.
func (c *call) execute(req any, o orderstate.OrderInfo) (value any, err error) {
	in := c.in
	said := &reply{orderNum: o.OrderNum}
	defer func() {
		in.mu.Lock()
		in.replies.put(c.msg.MessageID, c.msg.AnsweredUpTo, said)
		in.turned(o, 1)
		in.arrived(c.msg.MessageID)
		c.reply, c.value = said, value
		in.mu.Unlock()
		in.r.turns.end()
	}()
	value = in.execute(c.method, o, said, func(ctx context.Context) (any, error) {
		return c.method.inTurn(ctx, req, c.info, c.handler)
	})
	return value, said.err()
}

// first is what the turn has brought, if an interceptor calls its handler once more: that has no
// turn of its own.
func (c *call) first() (*reply, any) {
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
		if err := in.r.turns.take(ctx); err != nil {
			return o, v, status.FromContextError(err).Err()
		}
		if ctx.Err() != nil { // the turn was free, or came at the same time
			in.r.turns.end()
			return o, v, status.FromContextError(ctx.Err()).Err()
		}
		o, v, err = in.order(c)
		if err == nil && v == orderstate.Fresh {
			return o, v, nil
		}
		in.r.turns.end()
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
func (c *call) read(ctx context.Context, req any) (any, error) {
	in := c.in
	place, err := in.r.turns.read(ctx, &c.method.name)
	if err != nil {
		return nil, status.FromContextError(err).Err()
	}
	defer in.r.turns.endRead(place)
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
	said := &reply{orderNum: seen.OrderNum}
	value := in.call(t.ReadContext(ctx), t, said, func(ctx context.Context) (any, error) {
		return c.method.inTurn(ctx, req, c.info, c.handler)
	})
	in.mu.Lock()
	if c.reply == nil {
		c.reply, c.value = said, value
	}
	said, value = c.reply, c.value // an interceptor's first
	in.mu.Unlock()
	return value, said.err()
}

// answer is what the chain has made of the turn's result. What nobody replaced isn't marshalled
// again.
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

// execute runs a handler in its turn.
func (in *incarnation) execute(
	m *method, o orderstate.OrderInfo, said *reply, handler func(context.Context) (any, error),
) any {
	in.r.turns.running(&m.name)
	t := turn.New(m.name, o, in.secret)
	return in.call(t.Context(), t, said, handler)
}

// call calls a handler, and keeps in said all that it says; also if it panics, or ends the
// goroutine, in which case call doesn't return. All user code of a turn runs here. The value is nil
// with an error.
func (in *incarnation) call(
	ctx context.Context, t *turn.Turn, said *reply, handler func(context.Context) (any, error),
) (value any) {
	returned := false
	defer func() {
		if !returned {
			value = nil
			said.fails(in.r.brokeOff(t, recover()))
		}
		said.header, said.trailer = t.Metadata()
		said.header, said.trailer = withoutOurs(said.header), withoutOurs(said.trailer)
		if said.tidies(t.Method()); said.st != nil {
			value = nil
		}
	}()
	value, err := handler(ctx)
	if err == nil {
		switch reply := value.(type) {
		case proto.Message:
			// Within the turn: a later one may change what the handler has returned.
			if said.payload, err = proto.Marshal(reply); err != nil {
				err = errMarshal(t.Method(), err)
			}
		case nil: // gRPC sends an empty message
		default:
			err = status.Errorf(codes.Internal, "understudy: a reply of type %T is no protobuf message", value)
		}
	}
	if err != nil {
		value = nil
		said.fails(err)
	}
	returned = true
	return value
}

// fails makes an error what a turn has said.
func (r *reply) fails(err error) {
	st, ok := status.FromError(err)
	if !ok {
		st = status.FromContextError(err)
	}
	if st.Code() == codes.OK {
		st = status.New(codes.Unknown, st.Message())
	}
	r.payload, r.st = nil, st.Proto()
}

// withoutOurs is metadata of the user's, without our key.
func withoutOurs(md metadata.MD) metadata.MD {
	if _, ok := md[wire.HeaderKey]; ok {
		md = md.Copy() // the handler's goroutines may read it
		delete(md, wire.HeaderKey)
	}
	return md
}

// replayed is one entry of messageOrder, its message, and what the turn has said.
type replayed struct {
	orderstate.Ordered
	message orderstate.Message
	said    *reply
}

// executeAtOnce and executeFor bound the turns that a backup takes together: who wants to be
// between them waits so long, or for one handler.
const (
	executeAtOnce = 32
	executeFor    = 10 * time.Millisecond
)

// replay executes messages of messageOrder, one after the other: a backup's turns, or those that a
// takeover executes before its gate opens. It takes them off: not all when they take long, at least
// one though; and when the incarnation, or a handler the goroutine, ends.
func (in *incarnation) replay(turns *[]replayed) {
	if in.r.turns.take(in.ctx) != nil {
		return
	}
	n := 0
	defer func() {
		in.replayed((*turns)[:n])
		*turns = slices.Delete(*turns, 0, n)
		in.r.turns.end()
	}()
	for began := in.r.clock(); n < len(*turns) && in.ctx.Err() == nil; {
		t := &(*turns)[n]
		n++
		if t.Kind != orderstate.Request {
			continue
		}
		t.said = &reply{orderNum: t.OrderNum}
		in.replayOne(t.OrderInfo, t.message.Body.(*message), t.said)
		if in.r.clock()-began >= executeFor {
			break
		}
	}
}

// replayed logs what turns have said.
func (in *incarnation) replayed(turns []replayed) {
	if len(turns) == 0 {
		return
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	for _, t := range turns {
		switch t.Kind {
		case orderstate.Open:
			in.replies.open(t.Session, t.message.Nonce)
			if in.bySession[t.Session] == nil {
				in.absent[t.Session] = in.r.clock()
			}
		case orderstate.Expire:
			in.replies.expire(t.Session)
			delete(in.suspects, t.Session)
			delete(in.absent, t.Session)
		default:
			in.replies.put(t.Message(), t.message.AnsweredUpTo, t.said)
		}
	}
	in.turned(turns[len(turns)-1].OrderInfo, len(turns))
	if in.role == takingOver || in.role == leading {
		in.broadcast() // who opens the gate waits for the last one
	}
}

func (in *incarnation) replayOne(o orderstate.OrderInfo, body *message, said *reply) {
	method := in.r.methods[body.method]
	if method == nil { // the primary has executed it, so this replica runs another version of the service
		in.r.log.Error("an ordered message of an unknown method: is this another version of the service?", "method",
			body.method, "orderNum", o.OrderNum)
		said.fails(status.Error(codes.Unimplemented, "unknown method "+body.method))
		return
	}
	in.execute(method, o, said, func(ctx context.Context) (any, error) {
		return method.handle(method.service, ctx, unmarshal(body.payload), method.inTurn)
	})
}

// now is the time that a primary records for a turn, in microseconds since 1970. Called with mu
// held.
func (in *incarnation) now() int64 { return in.wall.Next(in.primary.LastTime()) }

// ownTurn takes a turn for an entry of the group's own (a session's opening, its expiry): order
// runs with mu held.
func (in *incarnation) ownTurn(
	ctx context.Context, order func(now int64) (orderstate.OrderInfo, bool),
) (orderstate.OrderInfo, error) {
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
