package replica

import (
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// A session has at most 8,192 replies that its source hasn't declared to have: counted, wherever
// the seqNums are.
func TestUndeclaredRepliesAreBounded(t *testing.T) {
	t.Parallel()
	in := leadingAlone(t)
	in.m.mu.Lock()
	defer in.m.mu.Unlock()
	in.m.leading().primary.Open(orderstate.Nonce{1}, 1, nil, in.m.leading().now())
	asks := func(q, mark orderstate.SeqNum) error {
		m := orderstate.Message{MessageID: orderstate.MessageID{Session: 1, SeqNum: q}, AnsweredUpTo: mark}
		if err := in.m.leading().inShare(m); err != nil {
			return err
		}
		in.m.leading().primary.Order(m, in.m.leading().now())
		return nil
	}
	// A good source's come in any order, and the next ones declare the first.
	for q := orderstate.SeqNum(2 * maxOutstanding); q > 0; q -= 2 {
		if err := asks(q, 0); err != nil {
			t.Fatalf("%d: %v", q, err)
		}
	}
	wantCode(t, asks(3*maxOutstanding, 0), codes.ResourceExhausted)
	if err := asks(2, 0); err != nil {
		t.Errorf("a duplicate: %v", err)
	}
	if err := asks(2*maxOutstanding+2, maxOutstanding); err != nil {
		t.Errorf("with a mark: %v", err)
	}
	if n := in.m.leading().primary.History().Of(1).Outstanding; n != maxOutstanding/2+1 {
		t.Errorf("%d are outstanding", n)
	}
	// Marks in a gap free nothing.
	for q := orderstate.SeqNum(0); q < maxOutstanding; q++ {
		if err := asks(1<<40+q, maxOutstanding+1); err != nil {
			break
		}
	}
	if n := in.m.leading().primary.History().Of(1).Outstanding; n != maxOutstanding {
		t.Errorf("%d are outstanding", n)
	}
}

// A source isn't told again where thousands of epochs started, of which it knows, or which were
// before its session: it would take them for malformed, and be locked out.
func TestStartsThatDecideNothingArentTold(t *testing.T) {
	t.Parallel()
	s := &pb.EpochStart{Epoch: 3001, FirstOrderNum: 6002, Stable: 9}
	for e := range uint64(3000) {
		s.Earlier = append(s.Earlier, &pb.Start{Epoch: e + 1, FirstOrderNum: 2 * (e + 1)})
	}
	for what, tt := range map[string]struct {
		a           *attachment
		first, left int
	}{
		"was there":            {&attachment{session: 1, told: 2998}, 2999, 2},
		"is told for the time": {&attachment{session: 5990}, 2996, 5},
		"knows all":            {&attachment{session: 1, told: 3000}, 0, 0},
	} {
		got := tt.a.starts(s)
		if len(got.Earlier) != tt.left || got.Epoch != 3001 || got.FirstOrderNum != 6002 || got.Stable != 9 {
			t.Errorf("who %s: told %v of %d", what, got.Epoch, len(got.Earlier))
		} else if tt.left > 0 && got.Earlier[0].Epoch != uint64(tt.first) {
			t.Errorf("who %s: told from %d on", what, got.Earlier[0].Epoch)
		}
	}
	few := &pb.EpochStart{Epoch: 3, Earlier: s.Earlier[:2]}
	if (&attachment{told: 2}).starts(few) != few || (&attachment{}).starts(nil) != nil {
		t.Error("a few are copied")
	}
}
