package replica_test

import (
	"context"
	"fmt"
	"io"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/internal/wire"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
	"github.com/understudy-rpc/understudy/replica"
)

// peer connects to a replica's own listener, as whoever the network lets in can.
func (s *siege) peer(i int) pb.PeerClient {
	return pb.NewPeerClient(s.dial("rogue", fmt.Sprintf("replica%d:2", i)))
}

// member is a replica as the election has it.
func (s *siege) member(i int) election.Member {
	s.t.Helper()
	view, err := s.c.Store().Client("test").Read(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	r, ok := view.Replica(fmt.Sprint("replica", i))
	if !ok {
		s.t.Fatalf("replica %d isn't registered", i)
	}
	return r.Member
}

// follows opens a stream to a replica as a follower, and returns how it ends, and its last message.
// What its trailer says is kept.
func (s *siege) follows(i int, requests ...*pb.FollowRequest) (*pb.FollowResponse, error) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 300*time.Millisecond)
	defer cancel()
	st, err := s.peer(i).Follow(ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, r := range requests {
		_ = st.Send(r)
	}
	var last *pb.FollowResponse
	for {
		resp, err := st.Recv()
		if err != nil {
			s.trailer = st.Trailer()
			return last, err
		}
		last = resp
	}
}

// TestHostileFollowersAreRefused: followers that can't be, at the primary and at a backup.
func TestHostileFollowersAreRefused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := besiege(t)
		hello := func(change func(*pb.FollowHello)) *pb.FollowRequest {
			h := &pb.FollowHello{Protocol: wire.Protocol, Group: s.group, Replica: "rogue", Incarnation: 7,
				Epoch: s.epoch, Joining: true, Level: pb.Level_LEVEL_REFLECTED}
			change(h)
			return &pb.FollowRequest{Hello: h}
		}
		for _, tt := range []struct {
			name  string
			hello *pb.FollowRequest
			code  codes.Code
			words string
		}{
			{"no hello", &pb.FollowRequest{Restored: true}, codes.FailedPrecondition, "a peer of group 0"},
			{"another protocol", hello(func(h *pb.FollowHello) {
				h.Protocol = 2
				h.Group++ // it may mean another thing
			}), codes.FailedPrecondition, "the follower speaks protocol 2, and this replica protocol 1"},
			{"another group", hello(func(h *pb.FollowHello) {
				h.Group++
			}), codes.FailedPrecondition,
				fmt.Sprintf("a peer of group %x, this is a replica of group %x", s.group+1, s.group)},
			{"another level", hello(func(h *pb.FollowHello) {
				h.Level = pb.Level_LEVEL_STABLE
			}), codes.FailedPrecondition, "the group's level is Reflected"},
			{"no level", hello(func(h *pb.FollowHello) {
				h.Level = 0
			}), codes.FailedPrecondition, "the group's level is Reflected"},
			{"another version", hello(func(h *pb.FollowHello) {
				h.Version = "2"
			}), codes.FailedPrecondition, `the group's version is ""`},
			{"no name", hello(func(h *pb.FollowHello) { h.Replica = "" }), codes.InvalidArgument, "can't follow"},
			{"a name that can't be", hello(func(h *pb.FollowHello) {
				h.Replica = "a/b"
			}), codes.InvalidArgument, "can't follow"},
			{"no incarnation", hello(func(h *pb.FollowHello) {
				h.Incarnation = 0
			}), codes.InvalidArgument, "can't follow"},
			{"the primary itself", hello(func(h *pb.FollowHello) {
				m := s.member(0)
				h.Replica, h.Incarnation = m.Name, m.Incarnation
			}), codes.InvalidArgument, "can't follow"},
			{"no member", hello(func(h *pb.FollowHello) { h.Joining = false }), codes.Aborted, "evicted"},
			{"a member's other incarnation", hello(func(h *pb.FollowHello) {
				h.Joining = false
				h.Replica = "replica1"
			}), codes.Aborted, "evicted"},
		} {
			_, err := s.follows(0, tt.hello)
			wants(t, tt.name, err, tt.code, tt.words)
			refusal := pb.Refusal_REFUSAL_UNSPECIFIED
			switch {
			case tt.name == "another protocol":
				refusal = pb.Refusal_REFUSAL_PROTOCOL
			case tt.code == codes.Aborted:
				refusal = pb.Refusal_REFUSAL_EVICTED
			}
			refuses(t, tt.name, s.trailer, refusal)
		}
		s.serves()
		_, err := s.follows(1, hello(func(*pb.FollowHello) {}))
		wants(t, "at a backup", err, codes.Unavailable, "isn't the primary")
		s.serves()

		// One that joins, and says that it has restored and holds what there is to come. It never
		// becomes in-sync.
		last, err := s.follows(0, hello(func(*pb.FollowHello) {}),
			&pb.FollowRequest{Restored: true, Acknowledgement: &pb.Acknowledgement{Epoch: s.epoch, OrderNum: 1000}})
		wants(t, "a joiner that holds too much", err, codes.DeadlineExceeded)
		if last.GetInSync() {
			t.Error("it is in-sync")
		}
		s.serves()
		if got := s.c.Replica(0).Status().InSync; len(got) != 3 {
			t.Errorf("in-sync are %v", got)
		}
	})
}

// TestHostileAcknowledgementsAreNotBelieved: who has a member's place on the wire, and
// acknowledges what nobody ordered, and other epochs. The stream ends, and the group is as it
// was.
func TestHostileAcknowledgementsAreNotBelieved(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := besiege(t)
		m := s.member(1)
		hello := &pb.FollowRequest{Hello: &pb.FollowHello{Protocol: wire.Protocol, Group: s.group, Replica: m.Name,
			Incarnation: m.Incarnation, Epoch: s.epoch, Level: pb.Level_LEVEL_REFLECTED}}
		ack := func(epoch, k uint64) *pb.FollowRequest {
			return &pb.FollowRequest{Acknowledgement: &pb.Acknowledgement{Epoch: epoch, OrderNum: k}}
		}
		for _, k := range []uint64{1000, math.MaxUint64} {
			_, err := s.follows(0, hello, ack(s.epoch, k))
			wants(t, fmt.Sprint("acknowledges ", k), err, codes.Unavailable,
				fmt.Sprintf("acknowledges %d, but the order ends at", k))
			s.c.AwaitInSync(3)
			s.serves()
		}
		stable := s.c.Replica(0).Status().Stable
		_, _ = s.follows(0, hello, ack(s.epoch+1, math.MaxUint64), ack(0, math.MaxUint64), ack(math.MaxUint64, 1))
		if got := s.c.Replica(0).Status().Stable; got > s.c.Replica(0).Status().Executed || got < stable {
			t.Errorf("the stable point went from %d to %d", stable, got)
		}
		s.c.AwaitInSync(3)
		s.serves()
		if st := s.c.Replica(0).Status(); st.Role != replica.Leading || st.Epoch != s.epoch {
			t.Errorf("the primary is now %+v", st)
		}
	})
}

// answer asks a replica as who says that it was elected, by the newest store.
func (s *siege) answer(i int, group, epoch uint64) error {
	s.t.Helper()
	_, err := s.answerBy(i, group, epoch, math.MaxInt64)
	return err
}

// answerBy is answer by a store in which who is in-sync was changed last at the revision fence. It
// returns the mark of a replica that has seen more.
func (s *siege) answerBy(i int, group, epoch uint64, fence int64) (*pb.StoreMark, error) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Second)
	defer cancel()
	st, err := s.peer(i).Answer(ctx,
		&pb.AnswerRequest{Group: group,
			NewEpoch: &pb.NewEpoch{Epoch: epoch, Primary: "rogue", Incarnation: 7, Fence: fence}})
	if err != nil {
		s.t.Fatal(err)
	}
	var mark *pb.StoreMark
	for {
		if resp, err := st.Recv(); err == io.EOF {
			return mark, nil
		} else if err != nil {
			return mark, err
		} else if resp.Mark != nil {
			mark = resp.Mark
		}
	}
}

// TestPretendedElectionsAreRefused: who says that it was elected and wasn't. Without the group's
// id it is refused.
func TestPretendedElectionsAreRefused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := besiege(t)
		for i := range 3 {
			for _, e := range []uint64{0, s.epoch, s.epoch + 1, math.MaxUint64} {
				for _, g := range []uint64{0, s.group + 1} {
					wants(t, "another group's", s.answer(i, g, e), codes.FailedPrecondition,
						fmt.Sprintf("a peer of group %x, this is a replica of group %x", g, s.group))
				}
			}
		}
		s.serves()
		wants(t, "an older epoch, to the primary", s.answer(0, s.group, s.epoch-1), codes.FailedPrecondition,
			"isn't a backup")
		wants(t, "its own epoch, to the primary", s.answer(0, s.group, s.epoch), codes.FailedPrecondition,
			"isn't a backup")
		for i := 1; i < 3; i++ {
			wants(t, "an older epoch", s.answer(i, s.group, s.epoch-1), codes.FailedPrecondition,
				fmt.Sprintf("epoch %d is over", s.epoch-1))
			wants(t, "no epoch", s.answer(i, s.group, 0), codes.FailedPrecondition, "epoch 0 is over")
		}
		s.serves()
		if st := s.c.Replica(0).Status(); st.Role != replica.Leading || st.Epoch != s.epoch {
			t.Errorf("the primary is now %+v", st)
		}
	})
}

// TestRogueDeposesThePrimary: peers are trusted once they are authenticated: one with the group's
// id can depose a primary. The group elects another, and loses nothing.
func TestRogueDeposesThePrimary(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := besiege(t)
		wants(t, "a newer epoch", s.answer(0, s.group, s.epoch+1), codes.FailedPrecondition, "isn't a backup")
		s.c.AwaitInSync(3)
		s.serves()
		if e := s.c.Replica(s.c.Primary()).Status().Epoch; e == s.epoch {
			t.Errorf("epoch %d goes on", e)
		}
	})
}

// TestPrimaryElectedByAnOldStoreIsRefused: a store that was restored from before elects somebody.
// Who has seen a later change of who is in-sync neither acknowledges the epoch nor gives way, and
// says what it has seen.
func TestPrimaryElectedByAnOldStoreIsRefused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := besiege(t)
		newest := s.c.View().Fence
		for i := range 3 {
			mark, err := s.answerBy(i, s.group, s.epoch+100, newest-1)
			if err != nil || mark.GetFence() != newest || mark.GetEpoch() != s.epoch {
				t.Errorf("replica %d answers with %v, %v", i, mark, err)
			}
		}
		s.serves()
		for i := range 3 {
			if st := s.c.Replica(i).Status(); st.Epoch != s.epoch || (st.Role == replica.Leading) != (i == 0) {
				t.Errorf("replica %d is now %+v", i, st)
			}
		}
	})
}

// TestHostileFetchesAreRefused: what a replica is asked for by who may not ask, or asks for too
// much.
func TestHostileFetchesAreRefused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := besiege(t)
		fetch := func(i int, group uint64, n int) (int, error) {
			req := &pb.FetchRequest{Group: group}
			for k := range n {
				req.Messages = append(req.Messages, &pb.MessageID{Session: uint64(k % 10), SeqNum: uint64(k / 10)})
			}
			st, err := s.peer(i).Fetch(t.Context(), req)
			if err != nil {
				t.Fatal(err)
			}
			for got := 0; ; got++ {
				if _, err := st.Recv(); err == io.EOF {
					return got, nil
				} else if err != nil {
					return got, err
				}
			}
		}
		for i := range 3 {
			_, err := fetch(i, s.group+1, 1)
			wants(t, "another group's", err, codes.FailedPrecondition, "a peer of group")
			_, err = fetch(i, s.group, 1025)
			wants(t, "too many", err, codes.InvalidArgument, "1025 messages at once, at most 1024")
			if n, err := fetch(i, s.group, 1024); err != nil || n > 10 {
				t.Errorf("of 1024 messages that are hardly there it sent %d, %v", n, err)
			}
			resp, err := s.peer(i).Hears(t.Context(), &pb.HearsRequest{Group: s.group + 1, Epoch: s.epoch})
			if err != nil || resp.GetHears() {
				t.Errorf("Hears of another group: %v, %v", resp, err)
			}
			for what, req := range map[string]*pb.SnapshotRequest{
				"a peer of group":       {Group: s.group + 1, Epoch: s.epoch},
				"the epoch has changed": {Group: s.group, Epoch: s.epoch - 1},
			} {
				st, err := s.peer(i).Snapshot(t.Context(), req)
				if err != nil {
					t.Fatal(err)
				}
				_, err = st.Recv()
				mentions(t, "a snapshot", err, what)
			}
			// No turn is so far ahead; the donor waits for it as long as the joiner does.
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			st, err := s.peer(i).Snapshot(ctx,
				&pb.SnapshotRequest{Group: s.group, Epoch: s.epoch, ExecutedAtLeast: math.MaxUint64})
			if err != nil {
				t.Fatal(err)
			}
			_, err = st.Recv()
			wants(t, "a snapshot to come", err, codes.DeadlineExceeded)
			cancel()
		}
		s.serves()
	})
}
