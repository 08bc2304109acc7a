package replica_test

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/understudy-rpc/understudy/internal/wire"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
	"github.com/understudy-rpc/understudy/replica"
	"github.com/understudy-rpc/understudy/understudytest"
)

// TestHostileHeadersAreRefused: headers that can't be, to the primary and to a backup. Each is
// refused with what is wrong, nothing is executed, nobody is deposed.
func TestHostileHeadersAreRefused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := besiege(t)
		good, err := marshalHeader(s.header(1))
		if err != nil {
			t.Fatal(err)
		}
		payload, err := proto.Marshal(wrapperspb.String("hostile"))
		if err != nil {
			t.Fatal(err)
		}
		marshal := func(change func(*pb.Header)) string {
			h := s.header(1)
			change(h)
			v, err := marshalHeader(h)
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
		type hostile struct {
			name    string
			headers []string
			code    codes.Code
			words   string
			refusal pb.Refusal
		}
		malformed := []hostile{
			{"garbage", []string{"\xff\xff\xff"}, codes.InvalidArgument, "the header is malformed", 0},
			{"empty", []string{""}, codes.InvalidArgument, "needs a session", 0},
			{"a length beyond its end", []string{good + "\x3a\xff\xff\xff\xff\x0f"}, codes.InvalidArgument, "malformed",
				0},
			{"oversized", []string{good + marshal(func(h *pb.Header) {
				h.SourceOrderInfo = []*pb.Run{{Sealed: make([]byte, 9<<10)}}
			})}, codes.InvalidArgument, "at most 8192 are read", 0},
			{"twice", []string{good, good}, codes.InvalidArgument, "2 headers", 0},
			{"no session", []string{marshal(func(h *pb.Header) {
				h.Session = 0
			})}, codes.InvalidArgument, "needs a session", 0},
			{"no seqNum", []string{marshal(func(h *pb.Header) {
				h.SeqNum = 0
			})}, codes.InvalidArgument, "seqNum 0 can't have 1 outstanding", 0},
			{"as if read-only", []string{marshal(func(h *pb.Header) {
				h.SeqNum, h.Outstanding = 0, 0
			})}, codes.InvalidArgument, "that isn't read-only", 0},
			{"no mark", []string{marshal(func(h *pb.Header) {
				h.Outstanding = 0
			})}, codes.InvalidArgument, "can't have 0 outstanding", 0},
			{"a mark below 0", []string{marshal(func(h *pb.Header) {
				h.Outstanding = 2
			})}, codes.InvalidArgument, "can't have 2 outstanding", 0},
			{"a mark far below 0", []string{marshal(func(h *pb.Header) {
				h.Outstanding = math.MaxUint64
			})}, codes.InvalidArgument, "outstanding", 0},
			{"an unknown level", []string{marshal(func(h *pb.Header) {
				h.Level = 99
			})}, codes.InvalidArgument, "unknown level 99", 0},
			{"a level below 0", []string{marshal(func(h *pb.Header) {
				h.Level = -1
			})}, codes.InvalidArgument, "unknown level -1", 0},
		}
		tokenless := marshal(func(h *pb.Header) { h.Token = 0 })
		for n := range len(good) {
			if n == len(tokenless) {
				continue // a header that is well formed
			}
			malformed = append(malformed,
				hostile{fmt.Sprint("truncated at ", n), []string{good[:n]}, codes.InvalidArgument, "understudy: ", 0})
		}
		const notPrimary, unknown = pb.Refusal_REFUSAL_NOT_PRIMARY, pb.Refusal_REFUSAL_UNKNOWN_SESSION
		atPrimary := []hostile{
			{"no epoch", []string{marshal(func(h *pb.Header) {
				h.DestEpoch = 0
			})}, codes.Unavailable, "isn't the primary", notPrimary},
			{"an older epoch", []string{marshal(func(h *pb.Header) {
				h.DestEpoch--
			})}, codes.Unavailable, "isn't the primary", notPrimary},
			{"a newer epoch", []string{marshal(func(h *pb.Header) {
				h.DestEpoch++
			})}, codes.Unavailable, "isn't the primary", notPrimary},
			{"the last epoch", []string{marshal(func(h *pb.Header) {
				h.DestEpoch = math.MaxUint64
			})}, codes.Unavailable, "isn't the primary", notPrimary},
			{"a session to come", []string{marshal(func(h *pb.Header) {
				h.Session = 1000
			})}, codes.FailedPrecondition, "the session is unknown", unknown},
			{"the last session", []string{marshal(func(h *pb.Header) {
				h.Session = math.MaxUint64
			})}, codes.FailedPrecondition, "the session is unknown", unknown},
			{"a session that is a request", []string{marshal(func(h *pb.Header) {
				h.Session = 2
			})}, codes.FailedPrecondition, "the session is unknown", unknown},
			{"no token", []string{tokenless}, codes.PermissionDenied, "belongs to another source", 0},
			{"a run of nothing", []string{marshal(func(h *pb.Header) {
				h.DestOrderInfo = []*pb.Run{{}}
			})}, codes.InvalidArgument, "has a field of 0", 0},
			{"a run from 0", []string{marshal(func(h *pb.Header) {
				h.DestOrderInfo = []*pb.Run{{Epoch: 1, EpochFirst: 1, Count: 1}}
			})}, codes.InvalidArgument, "has a field of 0", 0},
			{"a run too long", []string{marshal(func(h *pb.Header) {
				h.DestOrderInfo = []*pb.Run{{Epoch: 1, EpochFirst: 1, First: 1, Count: math.MaxUint32}}
			})}, codes.InvalidArgument, "more than 65536 entries", 0},
			{"a run that overflows", []string{marshal(func(h *pb.Header) {
				h.DestOrderInfo = []*pb.Run{{Epoch: 1, EpochFirst: 1, First: math.MaxUint64, Count: 2}}
			})}, codes.InvalidArgument, "overflows", 0},
		}
		for i, tests := range [][]hostile{append(malformed, atPrimary...), malformed, malformed} {
			for _, tt := range tests {
				for _, s.inMessage = range []bool{false, true} {
					if s.inMessage && len(tt.headers) > 1 {
						continue // the second one is a field of the request
					}
					what := fmt.Sprintf("replica %d, %s, in the message: %v", i, tt.name, s.inMessage)
					h, err := s.raw(i, payload, tt.headers...)
					wants(t, what, err, tt.code, tt.words, "understudy: ")
					if h.GetRefusal() != tt.refusal || h.GetOrderNum() != 0 {
						t.Errorf("%s: the reply's header is %v, want refusal %v", what, h, tt.refusal)
					}
				}
			}
			s.serves()
		}
		s.inMessage = false
		field := protowire.AppendTag(nil, protowire.MaxValidNumber, protowire.BytesType)
		for name, b := range map[string][]byte{
			"no length":                   field,
			"a length without an end":     append(slices.Clone(field), 0xff, 0xff),
			"a length beyond the message": append(slices.Clone(field), 0xff, 0xff, 0xff, 0xff, 0x0f, 1),
		} {
			_, err := s.raw(0, b)
			wants(t, name, err, codes.InvalidArgument, "the header is malformed", "understudy: ")
		}
		_, err = s.raw(0, append(protowire.AppendString(slices.Clone(field), good), payload...), good)
		wants(t, "in both", err, codes.InvalidArgument, "a header in the metadata and one in the message")
		h, err := s.raw(1, payload, good)
		wants(t, "a good header at a backup", err, codes.Unavailable, "isn't the primary")
		if h.GetRefusal() != notPrimary || h.GetSourceEpoch() != s.epoch {
			t.Errorf("a backup's header is %v", h)
		}
		h, err = s.raw(0, []byte{0xff}, good)
		wants(t, "no request", err, codes.Internal, "can't be unmarshalled")
		if h != nil {
			t.Errorf("bytes that are no request have the header %v", h)
		}
		if st := s.c.Replica(0).Status(); st.Role != replica.Leading || st.Epoch != s.epoch {
			t.Errorf("the primary is now %+v", st)
		}
		s.serves()
		s.writes(1, "mine") // after all that it is still the session's first
		s.inMessage = true
		s.writes(2, "in the message")
		s.serves()
	})
}

// TestHostileNumbersHarmNobodyElse: numbers that are within the rules and far from what a client
// does. The session may ruin itself, nobody else.
func TestHostileNumbersHarmNobodyElse(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := besiege(t)
		s.writes(1, "first")
		h := s.header(2)
		h.HeldUpTo = math.MaxUint64 // all announcements there will ever be
		if h, err := s.call(0, h, "holds all"); err != nil || len(h.GetSourceOrderInfo()) > 0 {
			t.Errorf("got %v, %v", h, err)
		}
		s.wrote = append(s.wrote, "holds all")
		h = s.header(3)
		for i := range 100 { // what was never announced, and what is to come
			h.DestOrderInfo = append(h.DestOrderInfo,
				&pb.Run{Epoch: s.epoch, EpochFirst: 1, First: uint64(1 + 1000*i), Count: 1000},
				&pb.Run{Epoch: s.epoch + 7, EpochFirst: 1, First: 1, Count: 1})
		}
		if _, err := s.call(0, h, "reflects all"); err != nil {
			t.Error(err)
		}
		s.wrote = append(s.wrote, "reflects all")
		s.serves()
		h = s.header(1 << 40)
		h.Outstanding = 1 << 39
		if _, err := s.call(0, h, "leaps"); err != nil {
			t.Error(err)
		}
		s.wrote = append(s.wrote, "leaps")
		s.serves()
		h = s.header(4)
		reply, err := s.call(0, h, "too late")
		wants(t, "too late", err, codes.FailedPrecondition, "low-water mark")
		if reply.GetRefusal() != pb.Refusal_REFUSAL_ANSWERED {
			t.Errorf("got %v", reply)
		}
		s.writes(math.MaxUint64, "the last there is")
		s.serves()
		s.c.Kill(0)
		n := len(s.wrote)
		s.c.AwaitInSync(2)
		s.c.Start(0)
		s.c.AwaitInSync(3)
		s.serves()
		if len(s.wrote) != n+1 {
			t.Error("a write was forgotten")
		}
	})
}

// TestReplayedRequestsHaveTheirReplyAgain: a request that is sent again has its reply again,
// whatever bytes it comes with now, and is executed once.
func TestReplayedRequestsHaveTheirReplyAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := besiege(t)
		first := s.writes(1, "once")
		for _, v := range []string{"once", "something else", strings.Repeat("long", 1000)} {
			h, err := s.call(0, s.header(1), v)
			if err != nil || h.GetOrderNum() != first.GetOrderNum() {
				t.Errorf("got %v, %v, want the reply of %v", h, err, first)
			}
		}
		if d := s.c.Replica(0).Status().Duplicates; d != 3 {
			t.Errorf("%d duplicates were counted, want 3", d)
		}
		s.serves()
	})
}

// TestRequestTooLargeToBeSent: a server that takes requests of any size orders none that replicas
// can't send each other: it would never be stable.
func TestRequestTooLargeToBeSent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := besiege(t, understudytest.ServerOptions(grpc.MaxRecvMsgSize(math.MaxInt32)))
		h, err := s.call(0, s.header(1), strings.Repeat("x", wire.MaxMessage))
		wants(t, "the request", err, codes.ResourceExhausted, "the request has", "at most 67108864 are taken")
		if h.GetSourceEpoch() != s.epoch || h.GetOrderNum() != 0 {
			t.Errorf("the reply's header is %v", h)
		}
		s.serves()
		s.c.AwaitExecuted()
	})
}
