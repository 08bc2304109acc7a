package replica_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/understudy-rpc/understudy"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
	"github.com/understudy-rpc/understudy/understudytest"
)

// withholds makes a call of the hostile client, whose frames no backup gets, while it goes on to
// send an old one.
func (s *siege) withholds(seqNum uint64, streams []stream) {
	s.t.Helper()
	ctx, stop := context.WithCancel(s.t.Context())
	var junk sync.WaitGroup
	for _, st := range streams {
		junk.Go(func() {
			for ctx.Err() == nil {
				_ = st.Send(&pb.AttachRequest{Frames: []*pb.Frame{{Group: s.group, Session: s.session, SeqNum: 1 << 40,
					Outstanding: 1 << 40, Method: write, Message: []byte("x")}}})
				time.Sleep(5 * time.Millisecond)
			}
		})
	}
	defer junk.Wait()
	defer stop()
	s.writes(seqNum, fmt.Sprint("withheld ", seqNum))
}

// attacks opens the hostile client's streams to the backups, which hear it.
func (s *siege) attacks() (streams []stream) {
	s.t.Helper()
	for i := 1; i < 3; i++ {
		st := s.mine(i)
		say(s.t, st, &pb.AttachRequest{AcknowledgedEpoch: s.epoch})
		streams = append(streams, st)
	}
	for s.c.Replica(0).Status().Detached > 0 {
		time.Sleep(time.Millisecond)
	}
	return streams
}

// A client that withholds its frames from the backups, and sends others, makes nobody else's calls
// at Stable wait but for a few times.
func TestWithheldFramesHoldUpNobody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := besiege(t, understudytest.Level(understudy.Stable))
		streams := s.attacks()
		slow := 0
		for q := range uint64(20) {
			var hostile sync.WaitGroup
			hostile.Go(func() { s.withholds(q+1, streams) })
			time.Sleep(time.Millisecond) // it is ordered
			began := time.Now()
			if err := s.good.Invoke(t.Context(), write, wrapperspb.String("good"),
				new(wrapperspb.Int64Value)); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(began); took > 5*time.Millisecond {
				slow++
				if took > 50*time.Millisecond {
					t.Errorf("a good call took %v", took)
				}
			}
			hostile.Wait()
			s.wrote = append(s.wrote, "good")
		}
		if slow == 0 || slow > 3 {
			t.Errorf("%d of 20 good calls waited", slow)
		}
	})
}

// Nor does it make anybody lose a reply in a crash of the primary.
func TestWithheldFramesLoseNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := besiege(t)
		streams := s.attacks()
		for q := range uint64(3) {
			s.withholds(q+1, streams)
			time.Sleep(200 * time.Millisecond) // it is announced, and fetched
		}
		s.withholds(4, streams)
		n := new(wrapperspb.Int64Value)
		if err := s.good.Invoke(t.Context(), write, wrapperspb.String("good"), n); err != nil {
			t.Fatal(err)
		}
		s.wrote = append(s.wrote, "good")
		time.Sleep(time.Millisecond)
		s.c.Kill(0)
		s.servesOn(1, 2)
	})
}
