package transport_test

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/understudy-rpc/understudy/internal/wire"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// TestOnlyThePrimaryOpensASession: a session is open when the primary of the acknowledged epoch
// says so, whoever else has welcomed the source; until then calls wait.
func TestOnlyThePrimaryOpensASession(t *testing.T) {
	t.Parallel()
	within(t, func(t *testing.T, ctx context.Context) {
		c := newCluster(t, "a", "b")
		hellos := map[string][]*pb.Hello{}
		c.hello = func(s *stream, h *pb.Hello) bool {
			c.mu.Lock()
			defer c.mu.Unlock()
			name := s.replica.member.Name
			hellos[name] = append(hellos[name], h)
			return name == "a" && len(hellos["a"]) == 1 // a's first Welcome comes later
		}
		conn := c.dial()
		call := sayLater(ctx, conn, "hello")
		synctest.Wait()
		if n := len(c.received()); n != 0 || c.mon.Stats().Session != 0 {
			t.Fatalf("%d calls before the session is open", n)
		}
		c.mu.Lock()
		a, b := hellos["a"][0], hellos["b"][0]
		c.mu.Unlock()
		c.stream("a").send(&pb.AttachResponse{Welcome: c.named("a").welcome(a)})
		must(t, "hello from a", <-call)
		if len(a.Nonce) != 16 || string(a.Nonce) != string(b.Nonce) || a.Session != 0 {
			t.Errorf("%v, %v", a, b)
		}
		c.stream("b").kill(nil)
		time.Sleep(time.Second)
		c.mu.Lock()
		defer c.mu.Unlock()
		if again := hellos["b"][1]; string(again.Nonce) != string(a.Nonce) || again.Session != 1 ||
			again.Group != groupID {
			t.Errorf("attaches again with %v", again)
		}
	})
}

// TestFormerEpochsOpenNoSession: a Welcome of an epoch that is over, or of a takeover that isn't,
// opens nothing; the streams ask again.
func TestFormerEpochsOpenNoSession(t *testing.T) {
	t.Parallel()
	within(t, func(t *testing.T, ctx context.Context) {
		c := newCluster(t, "a", "b", "c")
		c.crash("a") // its opening reached b and c, which say so
		c.hello = func(s *stream, h *pb.Hello) bool {
			w := s.replica.welcome(h)
			if w.Primary.Epoch == 20 && w.EpochStart.FirstOrderNum == 1 {
				w.EpochStart = nil // the gate is closed
			}
			s.send(&pb.AttachResponse{Welcome: w})
			return true
		}
		conn := c.dial()
		call := sayLater(ctx, conn, "hello")
		time.Sleep(time.Second)
		c.set(func() { c.epoch, c.primary = 20, "b" })
		c.tell(&pb.AttachResponse{NewEpoch: c.newEpoch()})
		time.Sleep(time.Second)
		if s := c.mon.Stats(); s.Session != 0 || s.Epoch != 20 {
			t.Fatalf("%+v", s)
		}
		// the opening was lost: it gets another number
		c.set(func() { c.first, c.order, c.sessions, c.gate = 7, 6, map[string]uint64{}, make(chan struct{}) })
		b, other := c.stream("b"), c.stream("c")
		c.mu.Lock()
		close(c.gate)
		c.mu.Unlock()
		b.send(&pb.AttachResponse{EpochStart: c.epochStart()})
		must(t, "hello from b", <-call)
		time.Sleep(time.Second)
		if other == c.stream("c") {
			t.Error("a stream goes on that was welcomed to another session")
		}
		if s := c.mon.Stats(); s.Session != 7 {
			t.Errorf("%+v", s)
		}
		time.Sleep(time.Second)
		for _, name := range []string{"b", "c"} {
			if n := len(c.stream(name).sent()); n == 0 {
				t.Errorf("nothing sent to %s", name)
			}
		}
	})
}

// TestNewStreamsBeginWithAllThatIsNeeded: a new stream to a replica begins with every frame that
// may be needed, and all of pendingRemoteOrder.
func TestNewStreamsBeginWithAllThatIsNeeded(t *testing.T) {
	t.Parallel()
	within(t, func(t *testing.T, ctx context.Context) {
		c := newCluster(t, "a", "b")
		conn := c.dial()
		for range 3 {
			if _, err := say(ctx, conn, "hello"); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Second)
		before := c.stream("b")
		if n := len(before.frames()); n != 3 {
			t.Fatalf("%d frames", n)
		}
		before.kill(nil)
		time.Sleep(time.Second)
		if c.stream("b") == before {
			t.Fatal("the old stream")
		}
		checkAnswer(t, c.stream("b"), []uint64{1, 2, 3}, []uint64{2, 3, 4}, 10)

		// What is stable isn't sent again.
		c.tell(&pb.AttachResponse{Stable: 3, StableEpoch: 10})
		synctest.Wait()
		c.stream("b").kill(nil)
		time.Sleep(time.Second)
		checkAnswer(t, c.stream("b"), []uint64{3}, []uint64{4}, 10)
	})
}

// checkAnswer checks what R12 asks of a stream: the frames, then the announcements (by their last
// orderNum), and not before both that the epoch is acknowledged.
func checkAnswer(t *testing.T, s *stream, frames, runs []uint64, epoch uint64) {
	t.Helper()
	var gotFrames, gotRuns []uint64
	for _, msg := range s.sent() {
		for _, f := range msg.Frames {
			gotFrames = append(gotFrames, f.SeqNum)
		}
		for _, r := range msg.DestOrderInfo {
			gotRuns = append(gotRuns, r.First+uint64(r.Count)-1)
			if len(r.Sealed) == 0 {
				t.Errorf("%s: a run without its seal", s.replica.member.Name)
			}
		}
		if msg.AcknowledgedEpoch == epoch {
			if !equal(gotFrames, frames) || !equal(gotRuns, runs) {
				t.Errorf("%s: frames %v and announcements %v before the answer; want %v and %v", s.replica.member.Name,
					gotFrames, gotRuns, frames, runs)
			}
			return
		}
	}
	t.Errorf("%s: epoch %d isn't acknowledged", s.replica.member.Name, epoch)
}

func equal(a, b []uint64) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// silentA is a script: a answers no call.
func silentA(q *request) *answer {
	if q.replica.member.Name == "a" {
		<-q.ctx.Done()
		return &answer{err: status.Error(codes.Unavailable, "")}
	}
	return nil
}

// TestEpochsAreAcknowledgedAfterAllFrames is R12: every replica, the new primary and the old one's
// heirs, gets all frames and all of pendingRemoteOrder before it hears that the epoch is
// acknowledged; what is issued later doesn't delay it.
func TestEpochsAreAcknowledgedAfterAllFrames(t *testing.T) {
	t.Parallel()
	within(t, func(t *testing.T, ctx context.Context) {
		c := newCluster(t, "a", "b", "c")
		conn := c.dial()
		c.set(func() {
			c.answer = func(q *request) *answer {
				a := honestly(q)
				if q.header.SeqNum == 3 {
					a.header.SourceOrderInfo = nil // so that a's stream has something to say
				}
				return a
			}
		})
		for range 2 {
			must(t, "hello from a", <-sayLater(ctx, conn, "hello"))
			time.Sleep(100 * time.Millisecond)
		}
		held := sayLater(ctx, conn, "held")
		time.Sleep(100 * time.Millisecond)
		c.tell(&pb.AttachResponse{SourceOrderInfo: []*pb.Run{c.run(4, 4)}})
		must(t, "held from a", <-held)
		if n := len(c.stream("a").frames()); n != 0 {
			t.Errorf("%d frames for the primary", n)
		}
		c.set(func() { c.answer = silentA })
		large := strings.Repeat("x", 200<<10) // one message of a stream has room for one
		first, second := sayLater(ctx, conn, large), sayLater(ctx, conn, large)
		time.Sleep(100 * time.Microsecond) // their frames linger
		c.elect("b", 5)
		synctest.Wait()
		checkAnswer(t, c.stream("b"), []uint64{1, 2, 3, 4, 5}, []uint64{2, 3, 2, 3, 4}, 20)
		checkAnswer(t, c.stream("c"), []uint64{1, 2, 3, 4, 5}, []uint64{2, 3, 2, 3, 4}, 20)
		checkAnswer(t, c.stream("a"), []uint64{1, 2, 3, 4, 5}, []uint64{2, 3, 2, 3, 4}, 20)
		c.open()
		must(t, large+" from b", <-first)
		must(t, large+" from b", <-second)
		must(t, "later from b", <-sayLater(ctx, conn, "later"))
		time.Sleep(100 * time.Millisecond)
		if n := len(c.stream("b").frames()); n != 5 {
			t.Errorf("%d frames for the new primary; want those before its epoch", n)
		}
		if n := len(c.stream("c").frames()); n != 6 {
			t.Errorf("%d frames for the other backup", n)
		}
	})
}

// TestLossIsToldToEveryCallInFlight: where what a caller has seen can't be kept, every call in
// flight is told, and the next one; then there is another session.
func TestLossIsToldToEveryCallInFlight(t *testing.T) {
	t.Parallel()
	within(t, func(t *testing.T, ctx context.Context) {
		c := newCluster(t, "a", "b")
		conn := c.dial()
		for range 3 { // orderNums 2 to 4, accepted
			if _, err := say(ctx, conn, "hello"); err != nil {
				t.Fatal(err)
			}
		}
		c.set(func() { c.answer = silentA })
		flying := sayLater(ctx, conn, "flying")
		synctest.Wait()
		c.elect("b", 4)
		c.open() // b's reply overtakes its word on the stream: the call may not be accepted before that
		fails(t, (<-flying).err, codes.DataLoss, "orderNum 4 of epoch 10")
		_, err := say(ctx, conn, "next")
		fails(t, err, codes.DataLoss, "orderNum 4 of epoch 10")
		must(t, "after from b", <-sayLater(ctx, conn, "after"))
		all := c.received()
		if h := all[len(all)-1].header; h.Session == 1 || h.SeqNum != 1 {
			t.Errorf("the call after has %v", h)
		}
		if s := c.mon.Stats(); s.Lost != 1 {
			t.Errorf("%+v", s)
		}
	})
}

// TestUnsentCallsMoveToANewSession (R11): a call that was never sent before goes to a new session;
// one that was may have been executed.
func TestUnsentCallsMoveToANewSession(t *testing.T) {
	t.Parallel()
	within(t, func(t *testing.T, ctx context.Context) {
		c := newCluster(t, "a", "b")
		var expired uint64
		c.answer = func(q *request) *answer {
			c.mu.Lock()
			defer c.mu.Unlock()
			if q.header.Session == expired {
				if q.header.SeqNum == 2 && len(c.calls) < 3 {
					return &answer{err: status.Error(codes.Unavailable, "lost")}
				}
				return &answer{header: &pb.Header{SourceEpoch: 10, Refusal: pb.Refusal_REFUSAL_UNKNOWN_SESSION},
					err: status.Error(codes.FailedPrecondition, "unknown")}
			}
			return nil
		}
		conn := c.dial()
		must(t, "hello from a", <-sayLater(ctx, conn, "hello"))
		expire := func(number uint64) {
			c.mu.Lock()
			defer c.mu.Unlock()
			expired = number
			c.sessions = map[string]uint64{}
			clear(c.ordered)
		}
		expire(1)
		_, err := say(ctx, conn, "twice")
		fails(t, err, codes.Unknown, "session 1")
		must(t, "hello from a", <-sayLater(ctx, conn, "hello"))
		open := c.mon.Stats().Session
		expire(open)
		must(t, "moved from a", <-sayLater(ctx, conn, "moved"))
		if s := c.mon.Stats(); s.Session == open {
			t.Errorf("%+v", s)
		}
	})
}

// TestIdleSourcesHearThatTheirSessionIsGone: an idle source whose session has expired hears it on
// its streams, when no primary can say it.
func TestIdleSourcesHearThatTheirSessionIsGone(t *testing.T) {
	t.Parallel()
	within(t, func(t *testing.T, ctx context.Context) {
		c := newCluster(t, "a", "b", "c")
		c.hello = func(s *stream, h *pb.Hello) bool {
			c.mu.Lock()
			defer c.mu.Unlock()
			if h.Session == 1 && c.epoch > 10 {
				s.kill(&refusal{status.Error(codes.NotFound, "session 1 is unknown"),
					pb.Refusal_REFUSAL_UNKNOWN_SESSION})
				return true
			}
			return false
		}
		conn := c.dial()
		must(t, "hello from a", <-sayLater(ctx, conn, "hello"))
		c.mu.Lock()
		c.primary, c.epoch, c.first = "b", 20, 3
		c.sessions = map[string]uint64{}
		c.mu.Unlock()
		for _, s := range c.streams() {
			s.kill(nil)
		}
		c.crash("a")
		c.list("b", "c")
		time.Sleep(time.Second)
		must(t, "hello from b", <-sayLater(ctx, conn, "hello"))
	})
}

// TestSessionIsLostByTheReplicasOwnWord: a status that anything on the way can make up ends a
// stream, and no session.
func TestSessionIsLostByTheReplicasOwnWord(t *testing.T) {
	t.Parallel()
	within(t, func(t *testing.T, ctx context.Context) {
		c := newCluster(t, "a", "b")
		conn := c.dial()
		must(t, "hello from a", <-sayLater(ctx, conn, "hello"))
		open := c.mon.Stats().Session
		for _, s := range c.streams() {
			s.kill(status.Error(codes.NotFound, "session 1 is unknown"))
		}
		time.Sleep(time.Second)
		must(t, "hello from a", <-sayLater(ctx, conn, "hello"))
		if s := c.mon.Stats(); s.Session != open {
			t.Errorf("session %d was open, and now %d is", open, s.Session)
		}
	})
}

// TestAnotherProtocolIsRefusedByName, wherever it shows: in the group's record, in a replica's
// welcome, and from a replica that refuses this client's.
func TestAnotherProtocolIsRefusedByName(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		show  func(c *cluster)
		words []string
	}{
		"record": {func(c *cluster) {
			view := c.now
			view.Revision++
			view.Group.Protocol = 2
			c.show(view)
		}, []string{"the group speaks protocol 2", "this client protocol 1"}},
		"welcome": {func(c *cluster) {
			c.hello = func(s *stream, h *pb.Hello) bool {
				w := s.replica.welcome(h)
				w.Protocol = 2
				s.send(&pb.AttachResponse{Welcome: w})
				return true
			}
		}, []string{"nothing was sent", "every replica refuses this client", "speaks protocol 2"}},
		"refusal": {func(c *cluster) {
			c.hello = func(s *stream, h *pb.Hello) bool {
				if h.Protocol != wire.Protocol {
					t.Errorf("the hello has protocol %d", h.Protocol)
				}
				s.kill(&refusal{status.Error(codes.FailedPrecondition, "the source speaks protocol 1"),
					pb.Refusal_REFUSAL_PROTOCOL})
				return true
			}
		}, []string{"nothing was sent", "every replica refuses this client", "the source speaks protocol 1"}},
	} {
		within(t, func(t *testing.T, ctx context.Context) {
			c := newCluster(t, "a", "b")
			tt.show(c)
			began := time.Now()
			_, err := say(ctx, c.dial(), "hello")
			fails(t, err, codes.FailedPrecondition, tt.words...)
			if took := time.Since(began); took > time.Second {
				t.Errorf("%s: it took %v", name, took)
			}
		})
	}
}

// TestMalformedMessagesEndTheirStream: what a replica should not say ends its stream, is counted,
// and does no harm.
func TestMalformedMessagesEndTheirStream(t *testing.T) {
	t.Parallel()
	many := make([]string, 5000)
	for i := range many {
		many[i] = "r#1"
	}
	for name, msg := range map[string]*pb.AttachResponse{
		"second welcome": {Welcome: &pb.Welcome{Protocol: wire.Protocol, Session: 1, Token: tokenOf(1), Group: groupID,
			Replica: "b", Incarnation: 2}},
		"no epoch":         {NewEpoch: &pb.NewEpoch{Primary: "b", Incarnation: 2}},
		"no primary":       {NewEpoch: &pb.NewEpoch{Epoch: 20}},
		"primary's name":   {NewEpoch: &pb.NewEpoch{Epoch: 20, Primary: "b/\n", Incarnation: 2}},
		"start at 0":       {EpochStart: &pb.EpochStart{Epoch: 10}},
		"another start":    {EpochStart: &pb.EpochStart{Epoch: 10, FirstOrderNum: 5}},
		"starts":           {EpochStart: &pb.EpochStart{Epoch: 10, FirstOrderNum: 1, Earlier: make([]*pb.Start, 5000)}},
		"start of epoch 0": {EpochStart: &pb.EpochStart{Epoch: 10, FirstOrderNum: 1, Earlier: []*pb.Start{{}}}},
		"required set":     {RequiredSet: &pb.RequiredSet{Epoch: 10, Number: 2, Replicas: many}},
		"required id":      {RequiredSet: &pb.RequiredSet{Epoch: 10, Number: 2, Replicas: []string{""}}},
		"run":              {SourceOrderInfo: []*pb.Run{{Epoch: 10, EpochFirst: 1, First: 1 << 63, Count: 1 << 20}}},
		"run's start":      {SourceOrderInfo: []*pb.Run{{Epoch: 10, EpochFirst: 3, First: 3, Count: 1}}},
		"frames":           {FramesUpTo: 7},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			within(t, func(t *testing.T, ctx context.Context) {
				c := newCluster(t, "a", "b")
				conn := c.dial()
				must(t, "hello from a", <-sayLater(ctx, conn, "hello"))
				before := c.stream("b")
				before.send(msg)
				time.Sleep(time.Second)
				if c.stream("b") == before {
					t.Error("the stream goes on")
				}
				if s := c.mon.Stats(); s.Malformed != 1 || s.Primary != "a" || s.Epoch != 10 {
					t.Errorf("%+v", s)
				}
				must(t, "hello from a", <-sayLater(ctx, conn, "hello"))
			})
		})
	}
	for name, change := range map[string]func(*pb.Welcome){
		"session":  func(w *pb.Welcome) { w.Session = 0 },
		"token":    func(w *pb.Welcome) { w.Token = 0 },
		"group":    func(w *pb.Welcome) { w.Group = 0 },
		"speaker":  func(w *pb.Welcome) { w.Incarnation = 0 },
		"level":    func(w *pb.Welcome) { w.Level = 9 },
		"primary":  func(w *pb.Welcome) { w.Primary = &pb.NewEpoch{Epoch: 1} },
		"start":    func(w *pb.Welcome) { w.EpochStart = &pb.EpochStart{} },
		"required": func(w *pb.Welcome) { w.RequiredSet = &pb.RequiredSet{Replicas: many} },
	} {
		t.Run("welcome with bad "+name, func(t *testing.T) {
			t.Parallel()
			within(t, func(t *testing.T, ctx context.Context) {
				c := newCluster(t, "a")
				tries := 0
				c.hello = func(s *stream, h *pb.Hello) bool {
					w := s.replica.welcome(h)
					if tries++; tries == 1 {
						change(w)
					}
					s.send(&pb.AttachResponse{Welcome: w})
					return true
				}
				must(t, "hello from a", <-sayLater(ctx, c.dial(), "hello"))
				if s := c.mon.Stats(); s.Malformed != 1 {
					t.Errorf("%+v", s)
				}
			})
		})
	}
	t.Run("welcome to another session", func(t *testing.T) {
		t.Parallel()
		within(t, func(t *testing.T, ctx context.Context) {
			c := newCluster(t, "a", "b")
			tries := 0
			var wrong *stream
			c.hello = func(s *stream, h *pb.Hello) bool {
				w := s.replica.welcome(h)
				if s.replica.member.Name == "b" && h.Session != 0 {
					c.set(func() {
						if tries++; tries == 1 {
							w.Session, wrong = 99, s
						}
					})
				}
				s.send(&pb.AttachResponse{Welcome: w})
				return true
			}
			conn := c.dial()
			must(t, "hello from a", <-sayLater(ctx, conn, "hello"))
			c.stream("b").kill(nil)
			time.Sleep(time.Second)
			c.mu.Lock()
			of := wrong
			c.mu.Unlock()
			if len(of.sent()) != 0 || c.stream("b") == of {
				t.Errorf("%d messages on the stream of another session", len(of.sent()))
			}
		})
	})
	t.Run("no welcome", func(t *testing.T) {
		t.Parallel()
		within(t, func(t *testing.T, ctx context.Context) {
			c := newCluster(t, "a")
			tries := 0
			c.hello = func(s *stream, h *pb.Hello) bool {
				if tries++; tries > 1 {
					return false
				}
				s.send(&pb.AttachResponse{FramesUpTo: 1})
				return true
			}
			must(t, "hello from a", <-sayLater(ctx, c.dial(), "hello"))
			if s := c.mon.Stats(); s.Malformed != 1 {
				t.Errorf("%+v", s)
			}
		})
	})
}

// TestFramesWaitForOthers: below Stable a frame waits up to 3 ms for others, or until 128 are
// there; I9 counts on it.
func TestFramesWaitForOthers(t *testing.T) {
	t.Parallel()
	within(t, func(t *testing.T, ctx context.Context) {
		c := newCluster(t, "a", "b")
		conn := c.dial()
		must(t, "hello from a", <-sayLater(ctx, conn, "hello"))
		time.Sleep(time.Second)
		messages := func() int { return len(c.stream("b").sent()) }
		before := messages()
		for range 10 {
			if _, err := say(ctx, conn, "hello"); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if n := messages() - before; n != 0 {
			t.Errorf("%d messages at once", n)
		}
		time.Sleep(3 * time.Millisecond)
		synctest.Wait()
		if n := messages() - before; n != 1 {
			t.Errorf("%d messages after 3 ms", n)
		}
		before = messages()
		for range 128 {
			if _, err := say(ctx, conn, "hello"); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if n := messages() - before; n != 1 {
			t.Errorf("%d messages for 128 frames", n)
		}
	})
}
