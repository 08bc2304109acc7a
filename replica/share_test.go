package replica

import (
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// A session has at most 8,192 replies that its source hasn't declared to have: counted, wherever
// the seqNums are.
func TestOutstandingSeqNums(t *testing.T) {
	t.Parallel()
	in := leadingAlone(t)
	in.mu.Lock()
	defer in.mu.Unlock()
	in.primary.Open(orderstate.Nonce{1}, 1, nil, in.now())
	asks := func(q, mark orderstate.SeqNum) error {
		m := orderstate.Message{MessageID: orderstate.MessageID{Session: 1, SeqNum: q}, AnsweredUpTo: mark}
		if err := in.inShare(m); err != nil {
			return err
		}
		in.primary.Order(m, in.now())
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
	if n := in.primary.Of(1).Outstanding; n != maxOutstanding/2+1 {
		t.Errorf("%d are outstanding", n)
	}
	// Marks in a gap free nothing.
	for q := orderstate.SeqNum(0); q < maxOutstanding; q++ {
		if err := asks(1<<40+q, maxOutstanding+1); err != nil {
			break
		}
	}
	if n := in.primary.Of(1).Outstanding; n != maxOutstanding {
		t.Errorf("%d are outstanding", n)
	}
}

// What a source says of its calls is for the replies alone, and each replica keeps the places.
func TestDeclaredReplies(t *testing.T) {
	t.Parallel()
	l := newReplyLog()
	l.open(1, orderstate.Nonce{1})
	put := func(q orderstate.SeqNum) {
		l.put(orderstate.MessageID{Session: 1, SeqNum: q}, 0,
			&reply{orderNum: orderstate.OrderNum(q), payload: make([]byte, 1000)})
	}
	check := func(when string, whole ...bool) {
		t.Helper()
		bytes := 0
		for i, want := range whole {
			r := l.sessions[1].replies[orderstate.SeqNum(i+1)]
			if r == nil || r.ended == want || (len(r.payload) > 0) != want || r.orderNum != orderstate.OrderNum(i+1) {
				t.Errorf("%s: reply %d is %+v", when, i+1, r)
				continue
			}
			bytes += r.size
		}
		if l.bytes != bytes || l.sessions[1].bytes != bytes {
			t.Errorf("%s: %d bytes, %d of the session; want %d", when, l.bytes, l.sessions[1].bytes, bytes)
		}
	}
	for q := range orderstate.SeqNum(5) {
		put(q + 1)
	}
	l.declared(1, 1, []byte{0b1010}) // 1, 3, 5
	check("declared", false, true, false, true, false)
	put(6)
	l.declared(1, 0, []byte{0xff})
	check("old news", false, true, false, true, false, true)
	l.declared(1, 2, nil)
	check("by a request", false, false, false, true, false, true)
	l.declared(1, 3, []byte{0, 0b1})
	put(7)
	put(8)
	l.declared(1, 3, []byte{0b100000}) // 9
	put(9)
	check("before it is executed", false, false, false, true, false, true, true, true, false)
	l.declared(2, 3, nil)
	l.expire(1)
	if l.bytes != 0 {
		t.Errorf("%d bytes are left", l.bytes)
	}
}

// A source isn't told again where thousands of epochs started, of which it knows, or which were
// before its session: it would take them for malformed, and be locked out.
func TestStartsThatDecideNothing(t *testing.T) {
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
