package transport_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/understudy-rpc/understudy"
	"github.com/understudy-rpc/understudy/internal/wire"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
	"github.com/understudy-rpc/understudy/transport"
)

// must fails the test unless the call had this reply.
func must(t *testing.T, want string, r result) {
	t.Helper()
	if r.err != nil || r.reply != want {
		t.Fatalf("%q, %v; want %q", r.reply, r.err, want)
	}
}

// fails fails the test unless the call failed with this code, and a text that contains says.
func fails(t *testing.T, err error, code codes.Code, says ...string) {
	t.Helper()
	unsaid := func(words string) bool { return !strings.Contains(status.Convert(err).Message(), words) }
	if status.Code(err) != code || slices.ContainsFunc(says, unsaid) {
		t.Fatalf("%v; want %v, saying %q", err, code, says)
	}
}

func TestHeadersSayWhatTheSourceHolds(t *testing.T) {
	t.Parallel()
	within(t, func(t *testing.T, ctx context.Context) {
		c := newCluster(t, "a", "b", "c")
		conn := c.dial()
		for range 3 {
			reply, err := say(ctx, conn, "hello")
			must(t, "hello from a", result{reply: reply, err: err})
		}
		if s := c.mon.Stats(); s.Calls != 3 || s.Reissued != 0 || s.Primary != "a" || s.Session == 0 || s.Epoch != 10 {
			t.Errorf("%+v", s)
		}
		for i, q := range c.received() {
			want := &pb.Header{Session: 1, SeqNum: uint64(i + 1), DestEpoch: 10, HeldUpTo: uint64(i + 1),
				Outstanding: 1, Token: tokenOf(1)}
			if !proto.Equal(q.header, want) { // R2: 1 is stable, the rest was announced
				t.Errorf("call %d: %v; want %v", i, q.header, want)
			}
		}
	})
}

// TestEveryAttemptCarriesTheSameBytes: the RPC, the frames and every further attempt carry the
// bytes and the mark that the call was given at first.
func TestEveryAttemptCarriesTheSameBytes(t *testing.T) {
	t.Parallel()
	within(t, func(t *testing.T, ctx context.Context) {
		c := newCluster(t, "a", "b", "c")
		conn := c.dial()
		if _, err := say(ctx, conn, "first"); err != nil {
			t.Fatal(err)
		}
		tries := 0
		c.set(func() {
			c.answer = func(q *request) *answer {
				if strings.Contains(string(q.payload), "slow") { // keeps the mark at 1
					a := honestly(q)
					a.delay = 100 * time.Millisecond
					return a
				}
				if tries++; tries < 3 {
					return &answer{err: status.Error(codes.Unavailable, "try again")}
				}
				return nil
			}
		})
		slow := sayLater(ctx, conn, "slow")
		synctest.Wait()
		must(t, "large"+strings.Repeat("x", 1<<20)+" from a", <-sayLater(ctx, conn, "large"+strings.Repeat("x", 1<<20)))
		must(t, "slow from a", <-slow)
		time.Sleep(time.Millisecond)

		sent := map[uint64][]byte{}
		marks := map[uint64]uint64{}
		for _, q := range c.received() {
			n := q.header.SeqNum
			if b, ok := sent[n]; ok && (string(b) != string(q.payload) || marks[n] != q.header.Outstanding) {
				t.Errorf("an attempt of %d differs: %d bytes, %d outstanding", n, len(q.payload), q.header.Outstanding)
			}
			sent[n], marks[n] = q.payload, q.header.Outstanding
		}
		if len(c.received()) != 5 || marks[2] != 1 || marks[3] != 2 {
			t.Errorf("%d attempts, with outstanding %v", len(c.received()), marks)
		}
		for _, name := range []string{"b", "c"} {
			frames := c.stream(name).frames()
			if len(frames) != 3 {
				t.Fatalf("%d frames for %s", len(frames), name)
			}
			for i, f := range frames {
				if f.SeqNum != uint64(i+1) || string(f.Message) != string(sent[f.SeqNum]) ||
					f.Outstanding != marks[f.SeqNum] || f.Method != echo || f.Session != 1 || f.Group != groupID {
					t.Errorf("%s: frame %d has %d bytes, %d outstanding", name, f.SeqNum, len(f.Message), f.Outstanding)
				}
			}
		}
		if frames := c.stream("a").frames(); len(frames) != 0 {
			t.Errorf("%d frames for the primary", len(frames))
		}
		if s := c.mon.Stats(); s.Reissued != 2 {
			t.Errorf("%+v", s)
		}
	})
}

// TestMarshalledOnce: a message that has many encodings has one here.
func TestMarshalledOnce(t *testing.T) {
	t.Parallel()
	within(t, func(t *testing.T, ctx context.Context) {
		c := newCluster(t, "a", "b")
		tries := 0
		c.answer = func(q *request) *answer {
			if tries++; tries < 10 {
				return &answer{err: status.Error(codes.Unavailable, "again")}
			}
			return nil
		}
		conn := c.dial()
		fields := map[string]any{}
		for i := range 20 {
			fields[fmt.Sprint(i)] = i
		}
		req, err := structpb.NewStruct(fields)
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.Invoke(ctx, echo, req, new(wrapperspb.StringValue)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
		want := c.stream("b").frames()[0].Message
		for _, q := range c.received() {
			if string(q.payload) != string(want) {
				t.Fatal("an attempt has other bytes than the frame")
			}
		}
	})
}

// TestRepliesWaitForWhatIsBeforeThem is R1: a reply is held until everything before it is
// announced; after 5 ms this source asks for it, and every 20 ms.
func TestRepliesWaitForWhatIsBeforeThem(t *testing.T) {
	t.Parallel()
	within(t, func(t *testing.T, ctx context.Context) {
		c := newCluster(t, "a", "b")
		c.answer = func(q *request) *answer {
			return &answer{header: &pb.Header{SourceEpoch: 10, OrderNum: 5, Stable: 1, RequiredSet: 1,
				AuthorityUs: 1e6}}
		}
		conn := c.dial()
		call := sayLater(ctx, conn, "hello")
		time.Sleep(2 * time.Millisecond)
		second := sayLater(ctx, conn, "hello") // waits for the same
		asked := func() (n int) {
			for _, msg := range c.stream("a").sent() {
				if w := msg.WaitingFor; w != nil {
					if w.Epoch != 10 || w.HeldUpTo != 1 {
						t.Errorf("asks for %v", w)
					}
					n++
				}
			}
			return n
		}
		for _, step := range []struct {
			after time.Duration
			asked int
		}{{2 * time.Millisecond, 0}, {2 * time.Millisecond, 1}, {18 * time.Millisecond, 1}, {3 * time.Millisecond, 2}} {
			time.Sleep(step.after)
			synctest.Wait()
			if n := asked(); n != step.asked {
				t.Fatalf("asked %d times; want %d", n, step.asked)
			}
		}
		c.tell(&pb.AttachResponse{SourceOrderInfo: []*pb.Run{c.run(2, 4)}})
		synctest.Wait()
		select {
		case r := <-call:
			t.Fatalf("accepted with a gap: %+v", r)
		default:
		}
		c.tell(&pb.AttachResponse{SourceOrderInfo: []*pb.Run{c.run(5, 5)}})
		must(t, "hello from a", <-call)
		must(t, "hello from a", <-second)
	})
}

// TestStableRepliesWaitForTheRequiredSet is R1b: every member of the required set acknowledges, or
// leaves the set, in the reply's epoch.
func TestStableRepliesWaitForTheRequiredSet(t *testing.T) {
	t.Parallel()
	for name, opts := range map[string]struct {
		level pb.Level
		conn  []transport.Option
		call  []grpc.CallOption
	}{
		"group":  {level: pb.Level_LEVEL_STABLE},
		"client": {level: pb.Level_LEVEL_REFLECTED, conn: []transport.Option{transport.WithLevel(understudy.Stable)}},
		"call":   {level: pb.Level_LEVEL_DIRECT, call: []grpc.CallOption{transport.AtLeast(understudy.Stable)}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			within(t, func(t *testing.T, ctx context.Context) {
				c := newCluster(t, "a", "b", "c")
				c.level = opts.level
				conn := c.dial(opts.conn...)
				call := sayLater(ctx, conn, "hello", opts.call...)
				waits := func(why string) {
					t.Helper()
					synctest.Wait()
					select {
					case r := <-call:
						t.Fatalf("%s: accepted: %+v", why, r)
					default:
					}
				}
				waits("nobody has acknowledged")
				asks := c.received()[0].header.Level
				if (asks == pb.Level_LEVEL_STABLE) != (opts.level != pb.Level_LEVEL_STABLE) {
					t.Errorf("the header asks for %v of a group at %v", asks, opts.level)
				}
				if f := c.stream("b").frames(); len(f) != 1 || f[0].Level != c.received()[0].header.Level {
					t.Errorf("no frame, or one that lingers: %v", f)
				}
				ack := func(name string, epoch, k uint64) {
					c.stream(name).send(&pb.AttachResponse{Acknowledgement: &pb.Acknowledgement{Epoch: epoch,
						OrderNum: k}})
				}
				ack("b", 10, 2)
				waits("c is missing")
				ack("c", 9, 2)
				waits("c has acknowledged in another epoch")
				ack("c", 10, 1)
				waits("c has acknowledged less")
				c.set(func() { c.number, c.required = 2, c.required[:1] }) // c is evicted
				c.tell(&pb.AttachResponse{RequiredSet: c.requiredSet()})
				must(t, "hello from a", <-call)
			})
		})
	}
}

// TestRepliesOfOlderEpochsAreDropped is R9: what an older epoch says is dropped, and its call
// issued again under its seqNum.
func TestRepliesOfOlderEpochsAreDropped(t *testing.T) {
	t.Parallel()
	within(t, func(t *testing.T, ctx context.Context) {
		c := newCluster(t, "a", "b", "c")
		c.answer = func(q *request) *answer {
			if q.replica.member.Name == "a" { // too late, and after the client has cancelled it
				a := honestly(q)
				<-q.ctx.Done()
				return a
			}
			return nil
		}
		conn := c.dial()
		first, second := sayLater(ctx, conn, "first"), sayLater(ctx, conn, "second")
		synctest.Wait()
		c.elect("b", 2)
		c.open()
		must(t, "first from b", <-first)
		must(t, "second from b", <-second)
		seqNums := map[string]map[uint64]bool{"a": {}, "b": {}}
		for _, q := range c.received() {
			seqNums[q.replica.member.Name][q.header.SeqNum] = true
			if b := q.replica.member.Name == "b"; b && q.header.DestEpoch != 20 {
				t.Errorf("issued again in epoch %d", q.header.DestEpoch)
			}
		}
		if fmt.Sprint(seqNums["a"]) != fmt.Sprint(seqNums["b"]) {
			t.Errorf("issued under %v, and then under %v", seqNums["a"], seqNums["b"])
		}
		if s := c.mon.Stats(); s.Failovers != 1 || s.Primary != "b" || s.Reissued != 2 {
			t.Errorf("%+v", s)
		}
	})
}

// TestNewEpochsDropHeldReplies: a reply that was held when a newer epoch was acknowledged is
// dropped, and one that arrives later.
func TestNewEpochsDropHeldReplies(t *testing.T) {
	t.Parallel()
	within(t, func(t *testing.T, ctx context.Context) {
		c := newCluster(t, "a", "b", "c")
		c.answer = func(q *request) *answer {
			if q.replica.member.Name == "a" {
				return &answer{header: &pb.Header{SourceEpoch: 10, OrderNum: 9, AuthorityUs: 60e6}} // held: a gap
			}
			c.mu.Lock()
			again := q.header.SeqNum == 1 && len(c.calls) < 4
			c.mu.Unlock()
			if again { // from an older epoch, with everything that it takes
				h := &pb.Header{SourceEpoch: 10, OrderNum: 2, AuthorityUs: 60e6, Stable: 9}
				return &answer{header: h}
			}
			return nil
		}
		conn := c.dial()
		call := sayLater(ctx, conn, "hello")
		time.Sleep(time.Millisecond)
		elected := time.Now()
		c.elect("b", 2)
		c.open()
		must(t, "hello from b", <-call)
		if at := c.received()[1].at; at != elected {
			t.Errorf("issued again %v after the news", at.Sub(elected))
		}
		if n := len(c.received()); n != 4 {
			t.Errorf("%d attempts", n)
		}
		if s := c.mon.Stats(); s.Fenced != 3 {
			t.Errorf("%d replies were fenced; want the one that was held, and two", s.Fenced)
		}
	})
}

// TestRepliesBeyondTheAuthorityAreDropped is R10: a reply that comes, or is still held, when the
// primary's authority may have ended is dropped.
func TestRepliesBeyondTheAuthorityAreDropped(t *testing.T) {
	t.Parallel()
	within(t, func(t *testing.T, ctx context.Context) {
		c := newCluster(t, "a", "b")
		tries := 0
		c.answer = func(q *request) *answer {
			tries++
			a := honestly(q)
			a.header.AuthorityUs = 50_000
			switch tries {
			case 1:
				a.delay = 50 * time.Millisecond
			case 2:
				a.delay = 30 * time.Millisecond
				a.header.OrderNum, a.header.SourceOrderInfo = 7, nil // held
			}
			return a
		}
		conn := c.dial()
		call := <-sayLater(ctx, conn, "hello")
		must(t, "hello from a", call)
		if s := c.mon.Stats(); s.Expired != 2 || s.Reissued != 2 {
			t.Errorf("%+v", s)
		}
		if call.took < 100*time.Millisecond || call.took > 200*time.Millisecond {
			t.Errorf("took %v", call.took)
		}
	})
}

// TestRefusedCallsGoToTheNextPrimary: a refusal sends the call to the primary of the next epoch, as
// soon as it is known.
func TestRefusedCallsGoToTheNextPrimary(t *testing.T) {
	t.Parallel()
	within(t, func(t *testing.T, ctx context.Context) {
		c := newCluster(t, "a", "b")
		conn := c.dial()
		if _, err := say(ctx, conn, "hello"); err != nil {
			t.Fatal(err)
		}
		c.crash("a")
		call := sayLater(ctx, conn, "again")
		time.Sleep(400 * time.Millisecond)
		synctest.Wait()
		c.elect("b", 3)
		c.open()
		r := <-call
		must(t, "again from b", r)
		if r.took > 401*time.Millisecond { // by the stream's word, not by the backoff's
			t.Errorf("took %v", r.took)
		}
	})
}

// half serves a unary call of a primary that dies when the reply's message has been received,
// before its end.
func (r *replica) half(_ any, ss grpc.ServerStream) error {
	message := new(emptypb.Empty)
	if err := ss.RecvMsg(message); err != nil {
		return err
	}
	header, payload, err := wire.CutHeader(message.ProtoReflect().GetUnknown())
	q := &request{replica: r, ctx: ss.Context(), header: new(pb.Header)}
	if err := errors.Join(err, proto.Unmarshal(header, q.header)); err != nil {
		return err
	}
	r.c.set(func() { r.c.calls = append(r.c.calls, q) })
	signed, err := proto.Marshal(r.honest(q).header)
	if err != nil {
		return err
	}
	front := protowire.AppendBytes(protowire.AppendTag(nil, protowire.MaxValidNumber, protowire.BytesType), signed)
	message.ProtoReflect().SetUnknown(append(front, payload...))
	if err := ss.SendMsg(message); err != nil || len(r.c.received()) > 1 {
		return err
	}
	synctest.Wait()
	go r.srv.Stop()
	<-ss.Context().Done()
	return ss.Context().Err()
}

// TestReplyIsCutOff: a reply's header counts when all of the reply has come. Else the connection's
// error would be the call's, and say that it wasn't executed.
func TestReplyIsCutOff(t *testing.T) {
	t.Parallel()
	within(t, func(t *testing.T, ctx context.Context) {
		c := newCluster(t, "a", "b", "c")
		conn := c.dial()
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		err := conn.Invoke(ctx, "/test.Echo/Half", wrapperspb.String("once"), new(wrapperspb.StringValue))
		fails(t, err, codes.DeadlineExceeded, "the outcome is unknown") // nobody takes over here
		if n := len(c.received()); n != 1 {
			t.Errorf("%d attempts have arrived", n)
		}
	})
}

// TestReplyIsLostHere: a reply that the primary has sent, and this process can't receive, isn't an
// error that says that the call wasn't executed.
func TestReplyIsLostHere(t *testing.T) {
	t.Parallel()
	within(t, func(t *testing.T, ctx context.Context) {
		c := newCluster(t, "a", "b", "c")
		conn := c.dial(transport.WithHeaderInMetadata())
		err := conn.Invoke(ctx, "/test.Echo/Call", wrapperspb.String(strings.Repeat("x", 20_000)),
			new(wrapperspb.StringValue), grpc.MaxCallRecvMsgSize(10_000))
		fails(t, err, codes.Internal, "the outcome is unknown: ResourceExhausted")
	})
}

// TestRefusalsEndTheCall: what the primary says isn't executed goes to the caller as it is, with no
// attempt more.
func TestRefusalsEndTheCall(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		answer answer
		code   codes.Code
		says   string
		tries  int
	}{
		{"unavailable", answer{header: &pb.Header{SourceEpoch: 10}, err: status.Error(codes.Unavailable, "not now")},
			codes.Unavailable, "not now", 1},
		{"exhausted", answer{header: &pb.Header{SourceEpoch: 10}, err: status.Error(codes.ResourceExhausted, "full")},
			codes.ResourceExhausted, "full", 1},
		{"by an interceptor behind",
			answer{header: &pb.Header{SourceEpoch: 10}, err: status.Error(codes.PermissionDenied, "no")},
			codes.PermissionDenied, "no", 1},
		{"by an interceptor in front", answer{err: status.Error(codes.Unauthenticated, "who?")}, codes.Unauthenticated,
			"who?", 1},
		{"exhausted, by whom?", answer{err: status.Error(codes.ResourceExhausted, "too large")}, codes.Internal,
			"too large", 1},
		{"answered", answer{header: &pb.Header{SourceEpoch: 10, Refusal: pb.Refusal_REFUSAL_ANSWERED},
			err: status.Error(codes.FailedPrecondition, "")}, codes.Internal, "seqNum 1 of session 1", 1},
		{"no header", answer{}, codes.Internal, "without a valid header", 1},
		{"malformed header", answer{raw: "\xff"}, codes.Internal, "without a valid header", 1},
		{"malformed run", answer{header: &pb.Header{SourceEpoch: 10, OrderNum: 2, AuthorityUs: 1e6,
			SourceOrderInfo: []*pb.Run{{Epoch: 10}}}}, codes.Internal, "without a valid header", 1},
		{"another start", answer{header: &pb.Header{SourceEpoch: 10, OrderNum: 2, AuthorityUs: 1e6,
			SourceOrderInfo: []*pb.Run{{Epoch: 10, EpochFirst: 2, First: 2, Count: 1}}}}, codes.Internal,
			"without a valid header", 1},
		{"by the handler", answer{header: &pb.Header{SourceEpoch: 10, OrderNum: 2, Stable: 2, AuthorityUs: 1e6,
			Code: uint32(codes.Unavailable)}, err: status.Error(codes.Unavailable, "the handler's")}, codes.Unavailable,
			"the handler's", 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			within(t, func(t *testing.T, ctx context.Context) {
				c := newCluster(t, "a", "b")
				c.answer = func(*request) *answer { return &tt.answer }
				_, err := say(ctx, c.dial(), "hello")
				fails(t, err, tt.code, tt.says)
				if n := len(c.received()); n != tt.tries {
					t.Errorf("%d attempts", n)
				}
			})
		})
	}
}

// TestUnknownOutcomesEndWithTheCall: an unknown outcome ends as the call's own Canceled or
// DeadlineExceeded, or without a deadline as Unknown; the next message declares it abandoned.
func TestUnknownOutcomesEndWithTheCall(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		ctx  func(context.Context) (context.Context, context.CancelFunc)
		code codes.Code
		took time.Duration
	}{
		{"deadline", func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithTimeout(ctx, 3*time.Second)
		}, codes.DeadlineExceeded, 3 * time.Second},
		{"cancel", func(ctx context.Context) (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancel(ctx)
			time.AfterFunc(2*time.Second, cancel)
			return ctx, cancel
		}, codes.Canceled, 2 * time.Second},
		{"give up", func(context.Context) (context.Context, context.CancelFunc) {
			return context.Background(), func() {}
		}, codes.Unknown, 30 * time.Second},
	} {
		for _, where := range []string{"in flight", "held", "re-issued"} {
			t.Run(tt.name+" "+where, func(t *testing.T) {
				t.Parallel()
				within(t, func(t *testing.T, ctx context.Context) {
					c := newCluster(t, "a", "b")
					c.answer = func(q *request) *answer {
						switch {
						case q.header.SeqNum > 1:
							return nil
						case where == "in flight":
							<-q.ctx.Done()
							return &answer{err: q.ctx.Err()}
						case where == "held":
							return &answer{header: &pb.Header{SourceEpoch: 10, OrderNum: 99, AuthorityUs: 60e6}}
						default:
							return &answer{err: status.Error(codes.Unavailable, "no")}
						}
					}
					conn := c.dial()
					one, cancel := tt.ctx(ctx)
					defer cancel()
					r := <-sayLater(one, conn, "hello")
					fails(t, r.err, tt.code, "the outcome is unknown")
					if r.took < tt.took || r.took > tt.took+time.Millisecond {
						t.Errorf("took %v", r.took)
					}
					if _, err := say(ctx, conn, "next"); err != nil {
						t.Fatal(err)
					}
					all := c.received()
					if h := all[len(all)-1].header; h.SeqNum != 2 || h.Outstanding != 1 {
						t.Errorf("the next header doesn't declare seqNum 1: %v", h)
					}
				})
			})
		}
	}
}

// TestCallersOptionsKeepWorking: those of the caller keep working, and tell of the attempt whose
// reply it has.
func TestCallersOptionsKeepWorking(t *testing.T) {
	t.Parallel()
	t.Run("the header in the message", func(t *testing.T) {
		within(t, func(t *testing.T, ctx context.Context) { callOptions(t, ctx, true) })
	})
	t.Run("in the metadata", func(t *testing.T) {
		within(t, func(t *testing.T, ctx context.Context) {
			callOptions(t, ctx, false, transport.WithHeaderInMetadata())
		})
	})
}

func callOptions(t *testing.T, ctx context.Context, inMessage bool, options ...transport.Option) {

	c := newCluster(t, "a", "b")
	c.answer = func(q *request) *answer {
		if q.replica.member.Name == "a" {
			a := honestly(q)
			<-q.ctx.Done()
			return a
		}
		return nil
	}
	conn := c.dial(options...)
	var header, trailer metadata.MD
	var from peer.Peer
	ctx = metadata.AppendToOutgoingContext(ctx, "mine", "kept")
	opts := []grpc.CallOption{grpc.Header(&header), grpc.Trailer(&trailer), grpc.Peer(&from), grpc.WaitForReady(true),
		grpc.UseCompressor(gzip.Name)}
	call := sayLater(ctx, conn, "hello", opts...)
	synctest.Wait()
	c.elect("b", 2)
	c.open()
	must(t, "hello from b", <-call)
	if v := header.Get("from"); len(v) != 1 || v[0] != "b" {
		t.Errorf("header %v", header)
	}
	if values := trailer.Get(wire.HeaderKey); len(values) != 0 {
		t.Errorf("the caller sees our trailer %v", trailer)
	}
	if from.Addr == nil {
		t.Error("no peer")
	}
	for _, q := range c.received() {
		if v := metadata.ValueFromIncomingContext(q.ctx, "mine"); len(v) != 1 || v[0] != "kept" ||
			q.inMessage != inMessage {
			t.Errorf("metadata %v", v)
		}
	}
}

// TestInterceptorsBehindSeeEachAttempt: those before ours see a call once, those behind it each
// attempt; a request that is replaced behind it is refused, since its bytes would differ from the
// frames'.
func TestInterceptorsBehindSeeEachAttempt(t *testing.T) {
	t.Parallel()
	within(t, func(t *testing.T, ctx context.Context) {
		c := newCluster(t, "a", "b")
		c.answer = func(q *request) *answer {
			c.mu.Lock()
			defer c.mu.Unlock()
			if len(c.calls) == 1 {
				return &answer{err: status.Error(codes.Unavailable, "again")}
			}
			return nil
		}
		before, behind := 0, 0
		conn := c.dialWith([]grpc.DialOption{
			grpc.WithUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn,
				invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
				before++
				return invoker(ctx, method, req, reply, cc, opts...)
			}),
			grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn,
				invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
				behind++
				if behind == 3 {
					req = wrapperspb.String("another")
				}
				return invoker(ctx, method, req, reply, cc, opts...)
			}),
		})
		reply, err := say(ctx, conn, "hello")
		must(t, "hello from a", result{reply: reply, err: err})
		if before != 1 || behind != 2 {
			t.Errorf("%d before, %d behind", before, behind)
		}
		_, err = say(ctx, conn, "hello")
		fails(t, err, codes.Internal, "must come before")
	})
}

// TestNothingIsSentOfBadRequests: nothing is sent of what can't be a replicated call.
func TestNothingIsSentOfBadRequests(t *testing.T) {
	t.Parallel()
	within(t, func(t *testing.T, ctx context.Context) {
		c := newCluster(t, "a")
		conn := c.dial()
		reply := new(wrapperspb.StringValue)
		fails(t, conn.Invoke(ctx, echo, "not a message", reply), codes.Internal, "marshal")
		fails(t, conn.Invoke(ctx, echo, nil, reply), codes.Internal, "protobuf")
		_, err := say(ctx, conn, "hello", grpc.CallContentSubtype("json"))
		fails(t, err, codes.Unimplemented, "codec of its own")
		_, err = say(ctx, conn, strings.Repeat("x", wire.MaxMessage))
		fails(t, err, codes.ResourceExhausted, "at most")
		_, err = conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, "/test.Echo/Many")
		fails(t, err, codes.Unimplemented, "streaming")
		_, err = pb.NewConnectionClient(conn).Attach(ctx)
		fails(t, err, codes.Unimplemented, "streaming")
		if n := len(c.received()); n != 0 {
			t.Errorf("%d calls arrived", n)
		}
		must(t, " from a", <-sayLater(ctx, conn, "")) // an empty message is one
	})
}

// TestHeadersAreSmall: metadata is the dearest thing on the path of a call.
func TestHeadersAreSmall(t *testing.T) {
	t.Parallel()
	within(t, func(t *testing.T, ctx context.Context) {
		c := newCluster(t, "a", "b")
		const big = 1<<49 - 1000
		c.epoch, c.first, c.order, c.stable = big, big-5000, big-10, big-10
		conn := c.dial()
		calls := make([]<-chan result, 100)
		for i := range calls {
			calls[i] = sayLater(ctx, conn, "hello")
		}
		for _, call := range calls {
			must(t, "hello from a", <-call)
		}
		for _, q := range c.received() {
			if len(q.raw) > 48 {
				t.Errorf("a header of %d bytes: %v", len(q.raw), q.header)
			}
		}
	})
}

// TestCloseEndsCallsAndGoroutines: calls in flight fail as gRPC's do; synctest and goleak see that
// no goroutine is left.
func TestCloseEndsCallsAndGoroutines(t *testing.T) {
	t.Parallel()
	within(t, func(t *testing.T, ctx context.Context) {
		c := newCluster(t, "a", "b")
		c.answer = func(q *request) *answer {
			switch q.header.SeqNum {
			case 1:
				return &answer{header: &pb.Header{SourceEpoch: 10, OrderNum: 99, AuthorityUs: 60e6}} // held
			default:
				<-q.ctx.Done()
				return &answer{err: errors.New("late")}
			}
		}
		conn := c.dial()
		held := sayLater(ctx, conn, "held")
		synctest.Wait()
		flying := sayLater(ctx, conn, "flying")
		synctest.Wait()
		if err := conn.Close(); err != nil {
			t.Fatal(err)
		}
		fails(t, (<-held).err, codes.Canceled, "closing")
		fails(t, (<-flying).err, codes.Canceled, "closing")
		_, err := say(ctx, conn, "late")
		fails(t, err, codes.Canceled, "closing")
	})
	within(t, func(t *testing.T, ctx context.Context) { // never used
		c := newCluster(t, "a")
		conn := c.dial()
		_ = conn.Close()
		_, err := say(ctx, conn, "late")
		fails(t, err, codes.Canceled, "closing")
	})
	within(t, func(t *testing.T, ctx context.Context) { // connected, and never called
		c := newCluster(t, "a")
		conn := c.dial()
		conn.Connect()
		synctest.Wait()
	})
}

// TestLargeMessagesCarryNoHeader: beyond a size the metadata carries the header, so that it doesn't
// count in the limits of a message's size.
func TestLargeMessagesCarryNoHeader(t *testing.T) {
	t.Parallel()
	within(t, func(t *testing.T, ctx context.Context) {
		c := newCluster(t, "a", "b")
		conn := c.dial()
		const field = 4 // bytes of a StringValue besides its text, when that is so long
		for _, n := range []int{1, wire.MaxInMessage - field, wire.MaxInMessage - field + 1} {
			text := strings.Repeat("x", n)
			if reply, err := say(ctx, conn, text); err != nil || reply != text+" from a" {
				t.Errorf("%d bytes: %v", n, err)
			}
			all := c.received()
			if q := all[len(all)-1]; q.inMessage != (len(q.payload) <= wire.MaxInMessage) {
				t.Errorf("%d bytes: the header is in the message: %v", len(q.payload), q.inMessage)
			}
		}
		if all := c.received(); !all[1].inMessage || all[2].inMessage {
			t.Error("the bound isn't where it should be")
		}
	})
}
