package replica_test

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/understudy-rpc/understudy"
	"github.com/understudy-rpc/understudy/internal/wire"
	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
	"github.com/understudy-rpc/understudy/replica"
	"github.com/understudy-rpc/understudy/understudytest"
)

// frame is one that a good client would send.
func (s *siege) frame(seqNum uint64, value string) *pb.Frame {
	b, err := proto.Marshal(wrapperspb.String(value))
	if err != nil {
		s.t.Fatal(err)
	}
	return &pb.Frame{Group: s.group, Session: s.session, SeqNum: seqNum, Outstanding: 1, Method: write, Message: b}
}

func frames(f ...*pb.Frame) *pb.AttachRequest { return &pb.AttachRequest{Frames: f} }

// TestHostileHellosAreRefused: streams that don't begin as they should.
func TestHostileHellosAreRefused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := besiege(t)
		hello := func(change func(*pb.Hello)) *pb.AttachRequest {
			h := &pb.Hello{Protocol: wire.Protocol, Nonce: s.nonce, Session: s.session, Group: s.group}
			change(h)
			return &pb.AttachRequest{Hello: h}
		}
		for i := range 3 {
			for _, tt := range []struct {
				name  string
				first *pb.AttachRequest
				code  codes.Code
				words string
			}{
				{"another protocol", hello(func(h *pb.Hello) {
					h.Protocol, h.Nonce = 2, nil // it may mean other things by all else
				}), codes.FailedPrecondition, "the source speaks protocol 2, and this replica protocol 1"},
				{"no protocol", hello(func(h *pb.Hello) {
					h.Protocol = 0
				}), codes.FailedPrecondition, "the source speaks protocol 0"},
				{"nothing", &pb.AttachRequest{}, codes.InvalidArgument, "begins with a hello"},
				{"frames first", frames(s.frame(1, "x")), codes.InvalidArgument, "begins with a hello"},
				{"no nonce", hello(func(h *pb.Hello) { h.Nonce = nil }), codes.InvalidArgument, "a nonce of 16 bytes"},
				{"a short nonce", hello(func(h *pb.Hello) {
					h.Nonce = h.Nonce[:15]
				}), codes.InvalidArgument, "a nonce of 16 bytes"},
				{"a long nonce", hello(func(h *pb.Hello) {
					h.Nonce = make([]byte, 1<<20)
				}), codes.InvalidArgument, "a nonce of 16 bytes"},
				{"another group", hello(func(h *pb.Hello) {
					h.Group++
				}), codes.FailedPrecondition,
					fmt.Sprintf("attached to group %x, this is a replica of group %x", s.group+1, s.group)},
				{"another's session", hello(func(h *pb.Hello) {
					h.Session = 1
				}), codes.PermissionDenied, "session 1 belongs to another source"},
				{"another's session, an unknown nonce", hello(func(h *pb.Hello) {
					h.Session = 1
					h.Nonce = []byte("nobody's nonce..")
				}), codes.NotFound, "session 1 is unknown"},
				{"an unknown session", hello(func(h *pb.Hello) {
					h.Session = 2
					h.Nonce = []byte("nobody's nonce..")
				}), codes.NotFound, "session 2 is unknown"},
				{"a session that is to come, of a nonce that has one", hello(func(h *pb.Hello) {
					h.Session = math.MaxUint64
				}), codes.PermissionDenied, "belongs to another source"},
				{"more than a hello", func() *pb.AttachRequest {
					r := hello(func(*pb.Hello) {})
					r.Frames = frames(s.frame(1, "x")).Frames
					return r
				}(), codes.InvalidArgument, "nothing else"},
			} {
				st := s.open(i)
				say(t, st, tt.first)
				what := fmt.Sprintf("replica %d, %s", i, tt.name)
				ends(t, what, st, tt.code, tt.words)
				refusal := pb.Refusal_REFUSAL_UNSPECIFIED
				switch {
				case strings.Contains(tt.words, "protocol"):
					refusal = pb.Refusal_REFUSAL_PROTOCOL
				case tt.code == codes.NotFound:
					refusal = pb.Refusal_REFUSAL_UNKNOWN_SESSION
				}
				refuses(t, what, st.Trailer(), refusal)
			}
			st := s.open(i)
			if err := st.CloseSend(); err != nil {
				t.Error(err)
			}
			ends(t, "a stream that says nothing", st, codes.InvalidArgument, "begins with a hello")
			s.serves()
		}
		for i := range 3 {
			st := s.mine(i)
			say(t, st, hello(func(*pb.Hello) {}))
			ends(t, "a second hello", st, codes.InvalidArgument, "second hello")

			first := s.mine(i)
			_ = s.mine(i)
			ends(t, "a stream after which another came", first, codes.Aborted, "attached by another stream")
		}
		// A session that nobody has heard of yet: the replica waits for it, and so does the source,
		// as long as it likes.
		st := s.open(1)
		say(t, st, hello(func(h *pb.Hello) { h.Session = math.MaxUint64; h.Nonce = []byte("nobody's nonce..") }))
		s.serves()
		s.c.Kill(1)
		ends(t, "a session to come", st, codes.Unavailable)
		s.c.AwaitInSync(2)
		s.c.Start(1)
		s.c.AwaitInSync(3)
		s.serves()
	})
}

// TestHostileFramesEndTheirStream: frames that can't be, on a stream that was welcomed. The
// stream ends, and says why.
func TestHostileFramesEndTheirStream(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := besiege(t)
		change := func(c func(*pb.Frame)) *pb.AttachRequest {
			f := s.frame(1, "hostile")
			c(f)
			return frames(f)
		}
		chunk := func(n, more int) *pb.Frame { return &pb.Frame{Message: make([]byte, n), More: uint32(more)} }
		first := func(more uint32) *pb.Frame {
			f := s.frame(1, "hostile")
			f.More = more
			return f
		}
		for i := range 3 {
			for _, tt := range []struct {
				name string
				req  *pb.AttachRequest
				word string
			}{
				{"another group's", change(func(f *pb.Frame) { f.Group++ }), "a frame for group"},
				{"no group's", change(func(f *pb.Frame) { f.Group = 0 }), "a frame for group"},
				{"another session's", change(func(f *pb.Frame) {
					f.Session = 1
				}), "a frame of session 1 on the stream of session"},
				{"no session's", change(func(f *pb.Frame) { f.Session = 0 }), "needs a session and a seqNum"},
				{"seqNum 0", change(func(f *pb.Frame) { f.SeqNum = 0 }), "needs a session and a seqNum"},
				{"no mark", change(func(f *pb.Frame) { f.Outstanding = 0 }), "can't have 0 outstanding"},
				{"a mark below 0", change(func(f *pb.Frame) { f.Outstanding = 2 }), "can't have 2 outstanding"},
				{"no method", change(func(f *pb.Frame) { f.Method = "" }), "method has 0 bytes"},
				{"a long method", change(func(f *pb.Frame) {
					f.Method = strings.Repeat("m", 1<<11)
				}), "method has 2048 bytes"},
				{"4 GiB", frames(first(math.MaxUint32)), "at most 67108864 are taken"},
				{"just over 64 MiB", frames(first(64 << 20)), "at most 67108864 are taken"},
				{"chunks of two frames", frames(first(10), s.frame(2, "x")), "doesn't continue"},
				{"a chunk of too much", frames(first(10), chunk(11, 0)), "doesn't continue"},
				{"a chunk that leaves less than it should", frames(first(10), chunk(5, 4)), "doesn't continue"},
				{"a chunk that leaves more than it should", frames(first(10), chunk(5, math.MaxUint32)),
					"doesn't continue"},
				{"a chunk of nothing", frames(first(10), chunk(0, 10)), "doesn't continue"},
				{"a chunk of no frame", frames(chunk(10, 0)), "needs a session and a seqNum"},
			} {
				refused := s.c.Replica(i).Status().Refused
				st := s.mine(i)
				say(t, st, tt.req)
				ends(t, fmt.Sprintf("replica %d, %s", i, tt.name), st, codes.InvalidArgument, tt.word)
				if s.c.Replica(i).Status().Refused != refused+1 {
					t.Errorf("replica %d, %s: it wasn't counted", i, tt.name)
				}
			}
			s.serves()
		}
		// Before the welcome.
		st := s.open(1)
		say(t, st, &pb.AttachRequest{Hello: &pb.Hello{Protocol: wire.Protocol, Nonce: []byte("a second session")}})
		say(t, st, frames(s.frame(1, "x")))
		ends(t, "frames before the welcome", st, codes.InvalidArgument, "wait for its welcome")
		s.serves()
	})
}

// TestHostileRunsAreNotBelieved: announcements that no primary has made, reflected to a backup,
// to the primary, and in a takeover.
func TestHostileRunsAreNotBelieved(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := besiege(t)
		for i := range 2 { // or its reply would wait for the backups, and bring no announcement (R11)
			say(t, s.mine(1+i), &pb.AttachRequest{AcknowledgedEpoch: s.epoch})
		}
		time.Sleep(10 * time.Millisecond) // fake
		genuine := s.writes(1, "mine").GetSourceOrderInfo()[0]
		s.serves()
		with := func(change func(*pb.Run)) *pb.Run {
			r := proto.Clone(genuine).(*pb.Run)
			change(r)
			return r
		}
		lie := wire.NewSeal([]byte(strings.Repeat("another's secret", 2))).Close(orderstate.Run{
			Envelope: orderstate.Envelope{Epoch: orderstate.Epoch(s.epoch), EpochFirst: 1,
				First: orderstate.OrderNum(genuine.First), Count: 1},
			Entries: []orderstate.OrderInfo{{OrderNum: orderstate.OrderNum(genuine.First), Kind: orderstate.Expire,
				Session: 1, First: orderstate.Epoch(s.epoch)}},
		})
		forged := map[string]*pb.Run{
			"an altered seal":            with(func(r *pb.Run) { r.Sealed[len(r.Sealed)-1] ^= 1 }),
			"altered entries":            with(func(r *pb.Run) { r.Sealed[0] ^= 1 }),
			"another epoch":              with(func(r *pb.Run) { r.Epoch++ }),
			"another start of the epoch": with(func(r *pb.Run) { r.EpochFirst++ }),
			"another place":              with(func(r *pb.Run) { r.First++ }),
			"the next place":             with(func(r *pb.Run) { r.First += 100 }),
			"another count":              with(func(r *pb.Run) { r.Count++ }),
			"the largest count":          with(func(r *pb.Run) { r.Count = wire.MaxRun }),
			"no seal":                    with(func(r *pb.Run) { r.Sealed = nil }),
			"a short seal":               with(func(r *pb.Run) { r.Sealed = r.Sealed[:15] }),
			"another group's secret":     wire.RunToProto(lie, false),
		}
		malformed := map[string]*pb.Run{
			"nothing":        {},
			"from 0":         with(func(r *pb.Run) { r.First = 0 }),
			"epoch 0":        with(func(r *pb.Run) { r.Epoch = 0 }),
			"no entries":     with(func(r *pb.Run) { r.Count = 0 }),
			"too many":       with(func(r *pb.Run) { r.Count = wire.MaxRun + 1 }),
			"far too many":   with(func(r *pb.Run) { r.Count = math.MaxUint32 }),
			"over the edge":  with(func(r *pb.Run) { r.First = math.MaxUint64; r.Count = 2 }),
			"a start of 0":   with(func(r *pb.Run) { r.EpochFirst = 0 }),
			"all of it zero": with(func(r *pb.Run) { proto.Reset(r) }),
		}
		for i := range 3 {
			for name, r := range forged {
				st := s.mine(i)
				before := s.c.Replica(i).Status().Forged
				say(t, st, &pb.AttachRequest{DestOrderInfo: []*pb.Run{r}})
				time.Sleep(10 * time.Millisecond) // fake
				if n := s.c.Replica(i).Status().Forged - before; n != 1 {
					t.Errorf("replica %d, %s: counted %d times", i, name, n)
				}
				ends(t, fmt.Sprintf("replica %d, %s", i, name), st, codes.InvalidArgument, "seals don't fit")
			}
			st := s.mine(i)
			for range 3 { // a genuine one may be reflected as often as one likes
				before := s.c.Replica(i).Status().Forged
				say(t, st, &pb.AttachRequest{DestOrderInfo: []*pb.Run{genuine}})
				time.Sleep(10 * time.Millisecond)
				if s.c.Replica(i).Status().Forged != before {
					t.Errorf("replica %d: a genuine run was called forged", i)
				}
			}
			s.serves()
			for name, r := range malformed {
				st := s.mine(i)
				say(t, st, &pb.AttachRequest{DestOrderInfo: []*pb.Run{r}})
				ends(t, fmt.Sprintf("replica %d, %s", i, name), st, codes.InvalidArgument, "wire: run")
			}
			s.serves()
		}

		// While a takeover asks the sessions what they know.
		streams := []stream{s.mine(1), s.mine(2)}
		s.c.Kill(0)
		for i, st := range streams {
			for _, r := range forged {
				say(t, st, &pb.AttachRequest{DestOrderInfo: []*pb.Run{r}})
				st = s.mine(1 + i)
			}
			say(t, st, &pb.AttachRequest{DestOrderInfo: []*pb.Run{genuine}, AcknowledgedEpoch: math.MaxUint64})
		}
		s.c.AwaitInSync(2)
		s.c.Start(0)
		s.c.AwaitInSync(3)
		s.serves()

		// What the dead primary has announced is old news now.
		say(t, streams[1], &pb.AttachRequest{DestOrderInfo: []*pb.Run{genuine}})
		say(t, streams[0], &pb.AttachRequest{DestOrderInfo: []*pb.Run{genuine}})
		s.serves()
	})
}

// TestOtherBytesToTheBackups: the primary executes what it was sent, and the backups, who were sent
// something else, execute the same.
func TestOtherBytesToTheBackups(t *testing.T) {
	t.Parallel()
	for _, level := range []understudy.Level{understudy.Reflected, understudy.Direct, understudy.Stable} {
		t.Run(level.String(), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := besiege(t, understudytest.Level(level))
				backups := []stream{s.mine(1), s.mine(2)}
				lie := func(f *pb.Frame) {
					for _, st := range backups {
						say(t, st, frames(f))
					}
					time.Sleep(5 * time.Millisecond) // fake: they have arrived
				}
				lie(s.frame(1, "a lie"))
				s.writes(1, "the truth")
				s.serves()

				s.writes(2, "the truth first")
				lie(s.frame(2, "and then a lie"))
				s.serves()

				f := s.frame(3, "another method")
				f.Method = "/test.Journal/Nothing"
				lie(f)
				s.writes(3, "another method")
				s.serves()

				f = s.frame(4, "another mark")
				f.Outstanding = 4
				lie(f)
				s.writes(4, "another mark")
				s.serves()

				f = s.frame(5, "no request")
				f.Message = []byte{0xff}
				lie(f)
				s.writes(5, "no request")
				s.serves()

				// One truth to each backup, and none to the primary.
				say(t, backups[0], frames(s.frame(6, "for one")))
				say(t, backups[1], frames(s.frame(6, "for the other")))
				s.serves()
				s.c.Kill(0)
				s.c.AwaitInSync(2)
				s.c.Start(0)
				s.c.AwaitInSync(3)
				s.serves()
				if slices.Contains(s.c.State(s.c.Primary()).(*journal).read(), "for one") {
					t.Error("a frame was executed that nobody ordered")
				}
			})
		})
	}
}

// TestAcknowledgedFutureEpochsHoldUpNobody: a source that has acknowledged epochs to come, from
// its welcome on. When they come it counts as having answered, and nobody waits for it.
func TestAcknowledgedFutureEpochsHoldUpNobody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := besiege(t)
		for i := range 3 {
			st, w := s.attach(i, &pb.Hello{Protocol: wire.Protocol, Nonce: s.nonce, Session: s.session})
			if w.Primary.Epoch != s.epoch {
				t.Errorf("replica %d believes in epoch %d", i, w.Primary.Epoch)
			}
			say(t, st, &pb.AttachRequest{AcknowledgedEpoch: s.epoch + 1})
			say(t, st, &pb.AttachRequest{AcknowledgedEpoch: math.MaxUint64})
		}
		s.serves()
		if st := s.c.Replica(0).Status(); st.Epoch != s.epoch || st.Role != replica.Leading {
			t.Errorf("the primary is now %+v", st)
		}
		began := time.Now()
		s.c.Kill(0)
		s.servesOn(1, 2)
		if took := time.Since(began); took > time.Second {
			t.Errorf("the failover took %v", took)
		}
	})
}

// TestQuestionsWithoutEnd: a source that asks again and again, for what there is, what there isn't,
// and in other epochs, and reads no answer.
func TestQuestionsWithoutEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := besiege(t)
		s.writes(1, "mine")
		for i := range 3 {
			st := s.mine(i)
			for n := range 2000 {
				q := &pb.WaitingFor{Epoch: s.epoch, HeldUpTo: uint64(n % 4)}
				switch n % 5 {
				case 1:
					q.Epoch = math.MaxUint64
				case 2:
					q.Epoch = 0
				case 3:
					q.HeldUpTo = math.MaxUint64
				}
				say(t, st, &pb.AttachRequest{WaitingFor: q})
			}
			s.serves()
		}
	})
}

// TestFramesThatNobodyOrdersAreInNobodysWay: they are held, never executed, and in nobody's way.
// TestLogBounds has their bound.
func TestFramesThatNobodyOrdersAreInNobodysWay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := besiege(t)
		for _, st := range []stream{s.mine(1), s.mine(2)} {
			for n := range uint64(4000) {
				f := s.frame(1+n, fmt.Sprint("unordered ", n))
				if n%2 == 0 {
					f.SeqNum += 1 << 40
				}
				if n%3 == 0 {
					f.Outstanding = f.SeqNum
				}
				say(t, st, frames(f))
			}
		}
		s.serves()
		s.c.Kill(0)
		s.servesOn(1, 2)
		s.c.Kill(s.c.Primary())
		s.c.AwaitInSync(1)
		s.servesOn(s.c.Primary())
	})
}
