package machine

import (
	"context"
	"slices"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/understudy-rpc/understudy/internal/turn"
	"github.com/understudy-rpc/understudy/orderstate"
)

// Machine is the application in one life of a replica. Its methods may be called concurrently;
// those that say "in a turn" only by who has taken one.
type Machine struct {
	app      *App
	secret   []byte // the group's; set before the first turn, and constant then
	executed atomic.Uint64
	replies  *replyLog
}

// New returns a machine that has executed nothing.
func New(app *App) *Machine { return &Machine{app: app, replies: newReplyLog()} }

// Begin gives it its group's secret, for a group that begins with the state as it is.
func (m *Machine) Begin(secret []byte) { m.secret = secret }

// Close ends whatever waits for replies: there will be no more.
func (m *Machine) Close() { m.replies.close() }

// Executed is how far the order is executed: everything up to here is in the state, and what it has
// said in the reply log.
func (m *Machine) Executed() orderstate.OrderNum { return orderstate.OrderNum(m.executed.Load()) }

// Take waits for a turn; ctx may end the wait, with its cause. Turns are taken in the order of
// reception (¶42).
func (m *Machine) Take(ctx context.Context) error { return m.app.turns.take(ctx) }

// End ends a turn.
func (m *Machine) End() { m.app.turns.end() }

// Own does the turn of an entry of the group's own, which executes no handler: a session's opening,
// or its end. In a turn.
func (m *Machine) Own(o orderstate.OrderInfo) {
	m.replies.own(o)
	m.executed.Store(uint64(o.OrderNum))
}

// Invocation is a call of a method's handler, as the server's chain of interceptors hands it on.
type Invocation struct {
	Method  *Method
	Req     any
	Info    *grpc.UnaryServerInfo
	Handler grpc.UnaryHandler
}

func (i *Invocation) run(ctx context.Context) (any, error) {
	return i.Method.inTurn(ctx, i.Req, i.Info, i.Handler)
}

// Execute executes a request that was just ordered, and logs what it says, which is said then;
// however the handler ends: one that ends the goroutine does so, and Execute doesn't return. The
// value is what the handler has returned, nil with an error. In a turn.
func (m *Machine) Execute(
	i *Invocation, o orderstate.OrderInfo, answeredUpTo orderstate.SeqNum, said *Reply,
) (value any) {
	defer m.log(o, answeredUpTo, said)
	return m.take(i.Method, o, said, i)
}

func (m *Machine) log(o orderstate.OrderInfo, answeredUpTo orderstate.SeqNum, said *Reply) {
	m.replies.log(o.Message(), answeredUpTo, said)
	m.executed.Store(uint64(o.OrderNum))
}

// take takes a method's turn.
func (m *Machine) take(method *Method, o orderstate.OrderInfo, said *Reply, w work) (value any) {
	said.OrderNum = o.OrderNum
	m.app.turns.running(&method.Name)
	t := turn.New(method.Name, o, m.secret)
	return m.app.call(t.Context(), t, said, w)
}

// TakeRead waits until no turn is taken, for a method that is read-only; ctx may end the wait, with
// its cause. EndRead wants the place that is returned.
func (m *Machine) TakeRead(ctx context.Context, method *Method) (place int, err error) {
	return m.app.turns.read(ctx, &method.Name)
}

// EndRead ends a read.
func (m *Machine) EndRead(place int) { m.app.turns.endRead(place) }

// Read executes a read-only method, between TakeRead and EndRead: it sees all up to seen, at that
// time. Its context ends as rpc does. What it says is said then, and isn't logged.
func (m *Machine) Read(rpc context.Context, i *Invocation, seen orderstate.OrderInfo, said *Reply) (value any) {
	said.OrderNum = seen.OrderNum
	t := turn.NewRead(i.Method.Name, seen)
	return m.app.call(t.ReadContext(rpc), t, said, i)
}

// AtOnce and atOnceFor bound the turns that a backup takes together: who wants to be between them
// waits so long, or for one handler.
const (
	AtOnce    = 32
	atOnceFor = 10 * time.Millisecond
)

// Replay executes entries of messageOrder, one after the other, in one turn: a backup's, or those
// that a takeover executes before its gate opens. It takes them off, and hands them to executed, at
// the turn's end: not all when they take long, at least one though; and when ctx, or a handler the
// goroutine, ends.
func (m *Machine) Replay(ctx context.Context, turns *[]Entry, executed func([]Entry)) {
	if m.app.turns.take(ctx) != nil {
		return
	}
	n := 0
	defer func() {
		if done := (*turns)[:n]; n > 0 {
			m.replies.do(done)
			m.executed.Store(uint64(done[n-1].OrderNum))
			executed(done)
			*turns = slices.Delete(*turns, 0, n)
		}
		m.app.turns.end()
	}()
	for began := m.app.clock(); n < len(*turns) && ctx.Err() == nil; {
		t := &(*turns)[n]
		n++
		if t.Kind != orderstate.Request {
			continue
		}
		t.said = new(Reply)
		m.replay(t)
		if m.app.clock()-began >= atOnceFor {
			break
		}
	}
}

// replaying is a call of a method's handler with a message of the log.
type replaying struct {
	method  *Method
	payload []byte
}

func (r *replaying) run(ctx context.Context) (any, error) {
	return r.method.Through(ctx, r.payload, r.method.inTurn)
}

func (m *Machine) replay(t *Entry) {
	body := t.Logged.Body.(*Body)
	method := m.app.methods[body.Method]
	if method == nil { // the primary has executed it, so this replica runs another version of the service
		m.app.log.Error("an ordered message of an unknown method: is this another version of the service?", "method",
			body.Method, "orderNum", t.OrderNum)
		t.said.OrderNum = t.OrderNum
		t.said.fails(status.Error(codes.Unimplemented, "unknown method "+body.Method))
		return
	}
	m.take(method, t.OrderInfo, t.said, &replaying{method, body.Payload})
}

// Await returns the reply to a request that is executed, or being executed. It returns nil if ctx
// ends before, or the machine is closed.
func (m *Machine) Await(ctx context.Context, id orderstate.MessageID) *Reply {
	return m.replies.await(ctx, id)
}

// Declared drops the replies that a session's source doesn't ask for again: those up to upTo, and
// those whose bits are set in above, of which the first is of upTo+1.
func (m *Machine) Declared(s orderstate.Session, upTo orderstate.SeqNum, above []byte) {
	m.replies.declared(s, upTo, above)
}

// Beyond says whether more bytes of a session's replies are kept than its share: a sixteenth of
// MaxReplyBytes, or less while others have much.
func (m *Machine) Beyond(s orderstate.Session) bool { return m.replies.beyond(s) }

// AwaitShare waits until a session isn't Beyond, or the machine is closed. If ctx ends before, it
// says false, and how many bytes of replies are kept for the session, and for all.
func (m *Machine) AwaitShare(ctx context.Context, s orderstate.Session) (own, all int, within bool) {
	return m.replies.awaitShare(ctx, s)
}

// ReplyBytes is how many bytes of replies are kept for all sessions.
func (m *Machine) ReplyBytes() int { return int(m.replies.bytes.Load()) }
