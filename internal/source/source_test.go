package source

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/internal/clock"
	"github.com/understudy-rpc/understudy/internal/logs"
	"github.com/understudy-rpc/understudy/internal/trust"
	"github.com/understudy-rpc/understudy/internal/wire"
	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// TestPausesDouble: up to a bound, each within 20 %.
func TestPausesDouble(t *testing.T) {
	t.Parallel()
	p := Pauses{Base: 10, Max: 100}
	for range 2 {
		for _, want := range []float64{10, 20, 40, 80, 100, 100} {
			if got := float64(p.Next()); got < 0.8*want-1 || got > 1.2*want {
				t.Errorf("%v; want %v", got, want)
			}
		}
		p.Reset()
	}
}

// welcomed returns a source with one link, whose session is open.
func welcomed(tb testing.TB) (*Source, *Link) {
	ctx, cancel := context.WithCancel(context.Background())
	tb.Cleanup(cancel)
	src := New(ctx, logs.New(nil), clock.System())
	src.group.id, src.group.trust = 1, trust.New(nil)
	l := src.Relink(map[string]Address{"a": {Name: "a", Addr: "a:1"}})[0]
	l.Begin(func() {})
	primary := &pb.NewEpoch{Epoch: 10, Primary: "a", Incarnation: 1}
	err := l.Receive(&pb.AttachResponse{Welcome: &pb.Welcome{
		Protocol: wire.Protocol,
		Session:  1, Token: 1, Group: 1, Replica: "a", Incarnation: 1, Primary: primary,
		EpochStart:  &pb.EpochStart{Epoch: 10, FirstOrderNum: 1, Stable: 1},
		RequiredSet: &pb.RequiredSet{Epoch: 10, Number: 1},
	}})
	if err != nil {
		tb.Fatal(err)
	}
	return src, l
}

// flying returns a call of a session whose attempt is under way.
func flying(ctx context.Context, s *session) *call {
	k := &call{Request: new(Request), ctx: ctx, session: s,
		try: try{epoch: s.source.Epoch(), cancel: func() {}}}
	k.retained = s.frames.add(new(pb.Frame), k)
	return k
}

// FuzzStream: whatever a replica says on its stream, this source doesn't panic, and what it answers
// is well formed.
func FuzzStream(f *testing.F) {
	for _, msg := range []*pb.AttachResponse{
		{},
		{Welcome: &pb.Welcome{Protocol: wire.Protocol, Session: 1, Token: 1, Group: 1, Replica: "a", Incarnation: 1}},
		{NewEpoch: &pb.NewEpoch{Epoch: 20, Primary: "b", Incarnation: 2}},
		{EpochStart: &pb.EpochStart{Epoch: 10, FirstOrderNum: 1, Stable: 5,
			Earlier: []*pb.Start{{Epoch: 5, FirstOrderNum: 1}}}},
		{RequiredSet: &pb.RequiredSet{Epoch: 10, Number: 2, Replicas: []string{"b#1"}}},
		{SourceOrderInfo: []*pb.Run{{Epoch: 10, EpochFirst: 1, First: 2, Count: 3, Sealed: []byte("x")}}, Stable: 3,
			StableEpoch: 10},
		{Acknowledgement: &pb.Acknowledgement{Epoch: 10, OrderNum: 7}, FramesUpTo: 1},
	} {
		b, err := proto.Marshal(msg)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, b)
	}
	f.Fuzz(func(t *testing.T, first, second []byte) {
		src, l := welcomed(t)
		src.mu.Lock()
		s := src.session
		s.frames.end(s.frames.add(&pb.Frame{Method: "/a/b", Session: 1, Group: 1}, new(call)), endAbandoned, 0, 0)
		s.frames.add(&pb.Frame{Method: "/a/b", Session: 1, Group: 1}, &call{session: s})
		src.mu.Unlock()
		for _, b := range [][]byte{first, second} {
			msg := new(pb.AttachResponse)
			if proto.Unmarshal(b, msg) != nil || l.Receive(msg) != nil {
				return
			}
		}
		var frames wire.Assembler
		for _, msg := range l.Take() {
			for _, f := range msg.Frames {
				if _, err := frames.Add(f); err != nil {
					t.Error(err)
				}
			}
			if _, err := wire.RunsFromProto(msg.DestOrderInfo); err != nil {
				t.Error(err)
			}
		}
	})
}

// FuzzReplyHeader: whatever a reply's message or trailer has, it is judged without a panic, and
// isn't accepted but by the rules.
func FuzzReplyHeader(f *testing.F) {
	for _, h := range []*pb.Header{
		{},
		{SourceEpoch: 10, OrderNum: 2, Stable: 2, AuthorityUs: 1e6},
		{SourceEpoch: 10, OrderNum: 2, AuthorityUs: 1 << 63,
			SourceOrderInfo: []*pb.Run{{Epoch: 10, EpochFirst: 1, First: 2, Count: 1}}},
		{SourceEpoch: 10, Refusal: pb.Refusal_REFUSAL_UNKNOWN_SESSION},
		{SourceEpoch: 10, Refusal: 99},
	} {
		v, err := proto.Marshal(h)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(v), false)
		f.Add(string(v), true)
	}
	f.Fuzz(func(t *testing.T, value string, inMessage bool) {
		src, _ := welcomed(t)
		k := flying(t.Context(), src.session)
		now := src.elapsed()
		var got wire.Header
		end := Arrival{}
		if inMessage {
			message := protowire.AppendString(protowire.AppendTag(nil, protowire.MaxValidNumber, protowire.BytesType),
				value)
			var carried bool
			if _, carried, end.Bad = got.FromMessage(message); carried && end.Bad == nil {
				end.Header = &got
			}
		} else if end.Bad = got.FromMetadata([]string{value}); end.Bad == nil {
			end.Header = &got
		}
		if k.arrived(end, now, "a") != verdictAccept {
			return
		}
		h := new(wire.Header)
		err := h.Parse([]byte(value))
		if err != nil || h.Refusal != 0 || h.SourceEpoch != 10 || src.session.source.HeldUpTo() < h.OrderNum ||
			h.OrderNum > 0 && h.AuthorityUs == 0 {
			t.Errorf("accepted %v, %v", h, err)
		}
	})
}

// TestEpochsFenceFormerSessions: a call of a session that has ended isn't forgotten by the epochs
// that come.
func TestEpochsFenceFormerSessions(t *testing.T) {
	t.Parallel()
	src, _ := welcomed(t)
	src.mu.Lock()
	defer src.mu.Unlock()
	old := src.session
	k := flying(t.Context(), old)
	stopped := false
	k.try.cancel = func() { stopped = true }
	old.end(errUnknownSession)
	if e := src.session.source.Epoch(); e != 10 { // R9: fences what the new session hears, too
		t.Errorf("the new session has acknowledged %d", e)
	}
	src.session.newEpoch(20, src.primary)
	if !stopped {
		t.Error("the attempt goes on")
	}
	old.frames.end(k.retained, endAbandoned, 0, 0)
	src.session.newEpoch(30, src.primary)
	if src.session.before != nil {
		t.Error("the session is kept")
	}
}

// TestRepliesOvertakenByLossAreDropped: a reply of the new epoch that arrives when its session is
// lost isn't handed over.
func TestRepliesOvertakenByLossAreDropped(t *testing.T) {
	t.Parallel()
	src, _ := welcomed(t)
	s := src.session
	arrive := func(h *wire.Header) verdict {
		k := flying(t.Context(), s)
		v := k.arrived(Arrival{Header: h}, src.elapsed(), "a")
		if why := new(Error); v == verdictUnknown && (!errors.As(k.reply.err, &why) || why.Kind != Lost) {
			t.Errorf("%v", k.reply.err)
		}
		return v
	}
	run := func(epoch orderstate.Epoch, first orderstate.OrderNum) []orderstate.Announcement {
		return []orderstate.Announcement{{Envelope: orderstate.Envelope{Epoch: epoch, EpochFirst: first, First: 2,
			Count: 1}}}
	}
	if v := arrive(&wire.Header{SourceEpoch: 10, OrderNum: 2, AuthorityUs: 1e9,
		SourceOrderInfo: run(10, 1)}); v != verdictAccept {
		t.Fatalf("%v", v)
	}
	src.mu.Lock()
	s.newEpoch(20, src.primary)
	src.mu.Unlock()
	if v := arrive(&wire.Header{SourceEpoch: 20, OrderNum: 2, AuthorityUs: 1e9,
		SourceOrderInfo: run(20, 2)}); v != verdictWait {
		t.Errorf("before the epoch's start is known: %v", v)
	}
	src.mu.Lock()
	err := s.start(&pb.EpochStart{Epoch: 20, FirstOrderNum: 2, Stable: 1}, nil)
	src.mu.Unlock()
	if err == nil {
		t.Error("nothing is lost")
	}
	if v := arrive(&wire.Header{SourceEpoch: 20, OrderNum: 2, AuthorityUs: 1e9,
		SourceOrderInfo: run(20, 2)}); v != verdictUnknown {
		t.Errorf("after: %v", v)
	}
}

// BenchmarkFrames is one frame's way onto a backup's stream, by how many go together: enqueued,
// taken into a message, marshalled, acknowledged as the reply of a stable call.
func BenchmarkFrames(b *testing.B) {
	for _, together := range []int{1, 8, 64} {
		b.Run(fmt.Sprint(together), func(b *testing.B) {
			src, l := welcomed(b)
			l.peer.member = election.Member{Name: "b", Incarnation: 2} // not the primary, whom RPCs reach
			l.restart = nil
			s, payload := src.session, make([]byte, 100)
			kept := make([]*retained, together)
			var out []byte
			b.ReportAllocs()
			for i := 0; i < b.N; i += together {
				src.mu.Lock()
				for j := range kept {
					kept[j] = s.frames.add(&pb.Frame{Group: 1, Session: 1, Method: "/service/Method", Message: payload},
						nil)
					l.enqueued(false)
				}
				src.mu.Unlock()
				for _, msg := range l.Take() {
					out, _ = proto.MarshalOptions{}.MarshalAppend(out[:0], msg)
				}
				src.mu.Lock()
				for _, r := range kept {
					s.frames.end(r, endAccepted, 1, 1)
				}
				src.mu.Unlock()
			}
			if len(out) == 0 {
				b.Error("nothing was sent")
			}
		})
	}
}
