package machine

import (
	"bytes"
	"context"
	"errors"
	"io"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/understudy-rpc/understudy/internal/clock"
	"github.com/understudy-rpc/understudy/internal/logs"
	"github.com/understudy-rpc/understudy/internal/turn"
	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

const method = "/a.B/C"

// journal is a state: what was said to it. how is what its method does with each request.
type journal struct {
	lines []string
	how   func(ctx context.Context, line string) (any, error)
}

func (j *journal) Snapshot() (func(io.Writer) error, error) {
	lines := strings.Join(j.lines, "\n")
	return func(w io.Writer) error {
		_, err := io.WriteString(w, lines)
		return err
	}, nil
}

func (j *journal) Restore(r io.Reader) error {
	b, err := io.ReadAll(r)
	j.lines = strings.Split(string(b), "\n")
	return err
}

func (j *journal) write(ctx context.Context, line string) (any, error) {
	j.lines = append(j.lines, line)
	if j.how != nil {
		return j.how(ctx, line)
	}
	return wrapperspb.String("said " + line), nil
}

// begins returns a machine whose group has begun, with session 1 open.
func begins(j *journal) *Machine {
	app := NewApp(j, logs.New(nil), clock.Monotonic())
	app.Register(NewMethod(method, j,
		func(srv any, ctx context.Context, dec func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			var line wrapperspb.StringValue
			if err := dec(&line); err != nil {
				return nil, err
			}
			return srv.(*journal).write(ctx, line.Value)
		}, nil))
	m := New(app)
	m.Begin([]byte("secret"))
	m.Own(orderstate.OrderInfo{OrderNum: 1, Session: 1, Kind: orderstate.Open})
	return m
}

// request is session 1's request n, which is ordered behind its opening.
func request(t *testing.T, n int, line string) Entry {
	t.Helper()
	b, err := proto.Marshal(wrapperspb.String(line))
	if err != nil {
		t.Fatal(err)
	}
	o := orderstate.OrderInfo{OrderNum: orderstate.OrderNum(n + 1), Session: 1, SeqNum: orderstate.SeqNum(n)}
	return Entry{Ordered: orderstate.Ordered{OrderInfo: o},
		Logged: orderstate.Message{MessageID: o.Message(), Body: &Body{Method: method, Payload: b}}}
}

// said is what the reply log has of session 1's request n.
func said(m *Machine, n int) *Reply {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return m.Await(ctx, orderstate.MessageID{Session: 1, SeqNum: orderstate.SeqNum(n)})
}

func text(t *testing.T, r *Reply) string {
	t.Helper()
	var s wrapperspb.StringValue
	if r == nil || proto.Unmarshal(r.Payload, &s) != nil {
		t.Errorf("no reply: %+v", r)
	}
	return s.Value
}

// However a handler ends, its turn's reply is logged, and the next turn goes on.
func TestEveryTurnSaysSomething(t *testing.T) {
	t.Parallel()
	j := &journal{how: func(ctx context.Context, line string) (any, error) {
		switch line {
		case "fails":
			return wrapperspb.String("and a reply"), status.Error(codes.NotFound, "no such line")
		case "panics":
			panic("no line today")
		case "exits":
			runtime.Goexit()
		case "another type":
			return line, nil
		}
		return wrapperspb.String("said " + line), grpc.SetHeader(ctx, metadata.Pairs("a", line))
	}}
	m := begins(j)
	for i, tt := range []struct {
		line string
		code codes.Code
	}{
		{"hello", codes.OK}, {"fails", codes.NotFound}, {"panics", codes.Internal}, {"exits", codes.Internal},
		{"another type", codes.Internal}, {"again", codes.OK},
	} {
		n := i + 1
		if m.Take(t.Context()) != nil {
			t.Fatal("no turn")
		}
		var reply Reply
		var value any
		returned, over := false, make(chan struct{})
		go func() {
			defer close(over)
			defer m.End()
			method := m.app.Method(method)
			i := &Invocation{Method: &Method{Name: method.Name,
				inTurn: func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
					return h(ctx, req)
				}},
				Req: tt.line, Handler: func(ctx context.Context, req any) (any, error) {
					return j.write(ctx, req.(string))
				}}
			value = m.Execute(i, request(t, n, "").OrderInfo, 0, &reply)
			returned = true
		}()
		<-over
		if returned == (tt.line == "exits") || status.Code(reply.Err()) != tt.code || said(m, n) != &reply ||
			m.Executed() != orderstate.OrderNum(n+1) || (value != nil) != (tt.code == codes.OK) {
			t.Errorf("%s: returned %v, %v: %v, executed up to %d", tt.line, returned, value, reply.Err(), m.Executed())
		}
		if tt.code == codes.OK &&
			(text(t, &reply) != "said "+tt.line || !slices.Equal(reply.Header["a"], []string{tt.line})) {
			t.Errorf("%s: %q, %v", tt.line, text(t, &reply), reply.Header)
		}
	}
}

// What another replica has ordered is executed in its order, with its place, and says the same; a
// method that isn't known here is an error, which its caller may see after a failover.
func TestReplayKeepsTheOrder(t *testing.T) {
	t.Parallel()
	var places []orderstate.OrderNum
	j := &journal{}
	j.how = func(ctx context.Context, line string) (any, error) {
		places = append(places, turn.FromContext(ctx).OrderNum())
		if line == "exits" {
			runtime.Goexit()
		}
		return wrapperspb.String("said " + line), nil
	}
	m := begins(j)
	turns := []Entry{request(t, 1, "a"), request(t, 2, "exits"), request(t, 3, "b"), request(t, 4, "c")}
	turns[2].Logged.Body = &Body{Method: "/a.B/Later"}
	executed := 0
	for len(turns) > 0 {
		over := make(chan struct{})
		go func() { // "exits" ends it
			defer close(over)
			m.Replay(t.Context(), &turns, func(done []Entry) { executed += len(done) })
		}()
		<-over
	}
	if executed != 4 || m.Executed() != 5 || !slices.Equal(places, []orderstate.OrderNum{2, 3, 5}) ||
		!slices.Equal(j.lines, []string{"a", "exits", "c"}) {
		t.Errorf("%d turns, up to %d, at %v: %q", executed, m.Executed(), places, j.lines)
	}
	if text(t, said(m, 1)) != "said a" || status.Code(said(m, 2).Err()) != codes.Internal ||
		status.Code(said(m, 3).Err()) != codes.Unimplemented || text(t, said(m, 4)) != "said c" {
		t.Errorf("%v, %v, %v, %v", said(m, 1), said(m, 2).Err(), said(m, 3).Err(), said(m, 4))
	}
}

// TestReplayTakesOneTurnForMany: others wait for one handler, or 10 ms, and the batch then goes on
// where it was; when its context ends it stops behind the handler that runs.
func TestReplayTakesOneTurnForMany(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		j := &journal{how: func(_ context.Context, line string) (any, error) {
			time.Sleep(4 * time.Millisecond)
			if line == "last" {
				cancel()
			}
			return nil, nil
		}}
		m := begins(j)
		turns := []Entry{request(t, 1, "a"), request(t, 2, "b"), request(t, 3, "c"), request(t, 4, "d"),
			request(t, 5, "last"), request(t, 6, "never")}
		replayed := 0
		for len(turns) > 1 {
			m.Replay(ctx, &turns, func(done []Entry) { replayed++ })
		}
		if m.Replay(ctx, &turns, nil); replayed != 2 || len(turns) != 1 || m.Executed() != 6 || said(m, 6) != nil {
			t.Errorf("%d turns, %d entries left, executed up to %d", replayed, len(turns), m.Executed())
		}
	})
}

// A machine that is restored from another's snapshot goes on where that was: with its state, its
// replies, and nothing of what came later.
func TestSnapshotIsRestored(t *testing.T) {
	t.Parallel()
	m := begins(&journal{})
	turns := []Entry{request(t, 1, "a"), request(t, 2, "b"), request(t, 3, "c")}
	turns[2].Logged.AnsweredUpTo = 1
	m.Replay(t.Context(), &turns, func([]Entry) {})
	m.Declared(1, 2, nil)
	past := Past{Executed: m.Executed(), LastTime: 9, Sessions: []orderstate.SessionState{
		{Session: 1, AnsweredUpTo: 1, Ordered: map[orderstate.SeqNum]orderstate.OrderNum{2: 3, 3: 4}}},
		Absent: map[orderstate.Session]time.Duration{1: time.Second}}
	s, err := m.Snapshot(past)
	if err != nil {
		t.Fatal(err)
	}
	turns = []Entry{request(t, 4, "later")}
	m.Replay(t.Context(), &turns, func([]Entry) {})
	var state bytes.Buffer
	if err := s.Write(&state); err != nil {
		t.Fatal(err)
	}
	var h pb.History
	for _, part := range s.History() {
		proto.Merge(&h, part)
	}

	j := &journal{}
	restored := New(NewApp(j, logs.New(nil), clock.Monotonic()))
	got, replies, err := ReadHistory(&h)
	if err != nil || got.Executed != 4 || got.LastTime != 9 || got.Absent[1] != time.Second {
		t.Fatalf("%+v, %v", got, err)
	}
	if err := restored.Restore([]byte("secret"), got.Executed, replies, &state); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(j.lines, []string{"a", "b", "c"}) || restored.Executed() != 4 {
		t.Errorf("%q up to %d", j.lines, restored.Executed())
	}
	if said(restored, 1) != nil || !said(restored, 2).Ended || said(restored, 2).OrderNum != 3 ||
		text(t, said(restored, 3)) != "said c" || said(restored, 4) != nil {
		t.Errorf("%v, %+v, %+v, %v", said(restored, 1), said(restored, 2), said(restored, 3), said(restored, 4))
	}
	if want := restored.ReplyBytes(); want != said(restored, 2).size+said(restored, 3).size {
		t.Errorf("%d bytes of replies", want)
	}

	past.Sessions[0].Ordered[7] = 4
	if _, err := m.Snapshot(past); status.Code(err) != codes.Internal {
		t.Errorf("without a reply that it should have: %v", err)
	}
}

// A state that can't be given, or taken, changes nothing.
func TestStateThatFailsChangesNothing(t *testing.T) {
	t.Parallel()
	for name, state := range map[string]broken{
		"fails":  {func() error { return errors.New("no state today") }},
		"panics": {func() error { panic("no state today") }},
		"exits":  {func() error { runtime.Goexit(); return nil }},
		"is nil": {func() error { return nil }},
	} {
		m := New(NewApp(state, logs.New(nil), clock.Monotonic()))
		if _, err := m.Snapshot(Past{}); status.Code(err) != codes.Internal ||
			!strings.Contains(err.Error(), "Snapshot: ") {
			t.Errorf("a Snapshot that %s: %v", name, err)
		}
		err := m.Restore(nil, 7, Replies{newReplyLog()}, nil)
		if (err == nil) != (name == "is nil") || Broke(err) != (name == "panics" || name == "exits") ||
			(m.Executed() == 7) != (err == nil) {
			t.Errorf("a Restore that %s: %v, executed up to %d", name, err, m.Executed())
		}
	}
}

type broken struct{ how func() error }

func (b broken) Snapshot() (func(io.Writer) error, error) { return nil, b.how() }
func (b broken) Restore(io.Reader) error                  { return b.how() }

// Who waits for a reply, or for its session's share of replies, is woken by it, by what the source
// declares, and by the machine's end.
func TestWhoWaitsForAReplyIsWoken(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		large := make([]byte, MaxReplyBytes/16)
		m := begins(&journal{how: func(context.Context, string) (any, error) { return wrapperspb.Bytes(large), nil }})
		id := orderstate.MessageID{Session: 1, SeqNum: 1}
		waits := func() (got <-chan *Reply) {
			c := make(chan *Reply, 1)
			go func() { c <- m.Await(t.Context(), id) }()
			synctest.Wait()
			return c
		}
		got := waits()
		turns := []Entry{request(t, 1, "")}
		m.Replay(t.Context(), &turns, func([]Entry) {})
		if r := <-got; r == nil || len(r.Payload) < len(large) {
			t.Errorf("%+v", r)
		}
		if !m.Beyond(1) || m.Beyond(2) {
			t.Error("a sixteenth of all is a session's share, of its own replies")
		}
		share := func(ctx context.Context) <-chan bool {
			c := make(chan bool, 1)
			go func() {
				_, _, within := m.AwaitShare(ctx, 1)
				c <- within
			}()
			synctest.Wait()
			return c
		}
		impatient, cancel := context.WithCancel(t.Context())
		one, other := share(impatient), share(t.Context())
		if cancel(); <-one {
			t.Error("who gave up is within its share")
		}
		if m.Declared(1, 1, nil); !<-other || m.Beyond(1) {
			t.Error("who has declared is beyond its share")
		}

		turns = []Entry{request(t, 2, "")}
		m.Replay(t.Context(), &turns, func([]Entry) {})
		id.SeqNum = 3
		got, other = waits(), share(t.Context())
		if m.Close(); <-got != nil || !<-other {
			t.Error("who waits at the end gets a reply")
		}
		if r := m.Await(t.Context(), orderstate.MessageID{Session: 1, SeqNum: 2}); r != nil {
			t.Errorf("after the end: %+v", r)
		}
	})
}
