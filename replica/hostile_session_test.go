package replica_test

import (
	"context"
	"fmt"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/understudy-rpc/understudy/internal/testservice"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
	"github.com/understudy-rpc/understudy/replica"
)

const read = "/test.Reader/Read"

// readerDesc has a method that is read-only, as its descriptor says, of the same journal.
var readerDesc = testservice.Describe("test.Reader", testservice.Unary("Read",
	func(j *journal, _ context.Context, _ *wrapperspb.StringValue) (*wrapperspb.Int64Value, error) {
		return wrapperspb.Int64(int64(len(j.read()))), nil
	}).ReadOnly())

func registerReader(s grpc.ServiceRegistrar) replica.Snapshotter {
	j := registerJournal(s)
	s.RegisterService(&readerDesc, j)
	return j
}

// TestRequestsWithoutTheTokenAreRefused: RPCs in the session of another, whose number is easily
// guessed, without its token. Nothing of them is executed, answered or believed, and the session
// goes on as if they had never been.
func TestRequestsWithoutTheTokenAreRefused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := besiegeService(t, registerReader)
		for i := 1; i < 3; i++ {
			say(t, s.mine(i), &pb.AttachRequest{AcknowledgedEpoch: s.epoch})
		}
		for s.c.Replica(0).Status().Detached > 0 { // a read of a session that a backup doesn't hear is refused
			time.Sleep(time.Millisecond)
		}
		const victim = 1 // the good client's, which was first
		if s.session == victim {
			t.Fatal("the hostile client has the good one's session")
		}
		tokens := map[string]uint64{
			"none": 0, "its own": s.token, "the smallest": 1, "the largest": math.MaxUint64,
			"its own, and more": s.token | 1<<63, "its own, less a bit": s.token ^ 1,
		}
		for what, token := range tokens {
			for _, s.inMessage = range []bool{false, true} {
				next := uint64(len(s.wrote) + 1) // of the good client, which has made all calls so far
				for name, change := range map[string]func(*pb.Header){
					"its next call":      func(h *pb.Header) { h.SeqNum = next },
					"a call it has made": func(h *pb.Header) { h.SeqNum = next - 1 },
					"a leap":             func(h *pb.Header) { h.SeqNum = 1 << 40 },
					"all is answered":    func(h *pb.Header) { h.SeqNum = math.MaxUint64 },
					"it holds all":       func(h *pb.Header) { h.SeqNum, h.HeldUpTo = next, math.MaxUint64 },
					"a read, and holds all": func(h *pb.Header) {
						h.SeqNum, h.Outstanding, h.HeldUpTo = 0, 0, math.MaxUint64
					},
				} {
					h := s.header(0)
					h.Session, h.Token = victim, token
					change(h)
					s.method = write
					if h.SeqNum == 0 {
						s.method = read
					}
					what := fmt.Sprintf("%s, with the token: %s, in the message: %v", name, what, s.inMessage)
					got, err := s.call(0, h, "hostile")
					wants(t, what, err, codes.PermissionDenied, "session 1 belongs to another source")
					if got.GetRefusal() != 0 || got.GetOrderNum() != 0 || got.GetSourceEpoch() != s.epoch ||
						len(got.GetSourceOrderInfo()) > 0 {
						t.Errorf("%s: the reply's header is %v", what, got)
					}
				}
				s.serves()
			}
		}
		s.inMessage, s.method = false, read
		h := s.header(0)
		h.Outstanding = 0
		if _, err := s.call(0, h, ""); err != nil {
			t.Errorf("a read in its own session: %v", err)
		}
		s.method = write
		s.writes(1, "mine")
		s.serves()
	})
}

// TestASessionHasOneTokenEverywhere: a session has one token, at each replica: where it was
// opened, where its opening was executed later, where it came with a snapshot, and after
// takeovers by each of them.
func TestASessionHasOneTokenEverywhere(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := besiege(t)
		s.writes(1, "in the first epoch")
		for i := range 3 {
			s.mine(i) // says if its token is another
		}
		seqNum := uint64(1)
		for range 4 { // until one leads that has the session from a snapshot of one that has it from one
			dead := s.c.Primary()
			s.c.Kill(dead)
			s.c.AwaitInSync(2)
			s.c.Start(dead)
			s.c.AwaitInSync(3)
			s.serves()
			for i := range 3 {
				s.mine(i)
			}
			p := s.c.Primary()
			s.epoch = s.c.Replica(p).Status().Epoch
			seqNum++
			h := s.header(seqNum)
			h.Token ^= 2
			_, err := s.call(p, h, "hostile")
			wants(t, "another token", err, codes.PermissionDenied, "belongs to another source")
			value := fmt.Sprint("in epoch ", s.epoch)
			if got, err := s.call(p, s.header(seqNum), value); err != nil || got.GetOrderNum() == 0 {
				t.Fatalf("in epoch %d: got %v, %v", s.epoch, got, err)
			}
			s.wrote = append(s.wrote, value)
			s.serves()
		}
	})
}
