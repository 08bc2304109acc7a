package transport

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/internal/wire"
	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
	"github.com/understudy-rpc/understudy/transport/internal/route"
)

// TestFramesForget: which requests are retained, after each of these steps.
func TestFramesForget(t *testing.T) {
	t.Parallel()
	const none = 0
	for _, tt := range []struct {
		name string
		do   func(f *frames, r []*retained) // of seqNums 1 to 4, in flight
		want string
	}{
		{"in flight", func(f *frames, r []*retained) { f.sweep(99, func() uint64 { return 4 }) }, "[1 2 3 4] 0"},
		{"accepted, not stable", func(f *frames, r []*retained) { f.end(r[0], endAccepted, 10, 9) }, "[1 2 3 4] 1"},
		{"accepted, stable already", func(f *frames, r []*retained) { f.end(r[0], endAccepted, 10, 10) }, "[2 3 4] 1"},
		{"accepted, stable later", func(f *frames, r []*retained) {
			f.end(r[0], endAccepted, 10, 9)
			f.sweep(10, nil)
		}, "[2 3 4] 1"},
		{"accepted out of order", func(f *frames, r []*retained) {
			f.end(r[2], endAccepted, 12, 9)
			f.end(r[1], endAccepted, 11, 9)
			f.sweep(11, nil)
		}, "[1 3 4] 0"},
		{"refused", func(f *frames, r []*retained) { f.end(r[1], endRefused, none, 0) }, "[1 3 4] 0"},
		{"accepted without an orderNum", func(f *frames, r []*retained) {
			f.end(r[0], endAccepted, none, 0)
		}, "[2 3 4] 1"},
		{"abandoned", func(f *frames, r []*retained) { f.end(r[0], endAbandoned, none, 99) }, "[1 2 3 4] 1"},
		{"abandoned, acknowledged by few", func(f *frames, r []*retained) {
			f.end(r[1], endAbandoned, none, 0)
			f.sweep(99, func() uint64 { return 1 })
		}, "[1 2 3 4] 0"},
		{"abandoned, acknowledged by all", func(f *frames, r []*retained) {
			f.end(r[1], endAbandoned, none, 0)
			f.sweep(0, func() uint64 { return 2 })
		}, "[1 3 4] 0"},
		{"abandoned, a later mark is accepted", func(f *frames, r []*retained) {
			f.end(r[0], endAbandoned, none, 0)
			f.end(f.add(new(pb.Frame), new(call)), endAccepted, 20, 19) // declares mark 1
		}, "[1 2 3 4 5] 1"},
		{"abandoned, a later mark is stable", func(f *frames, r []*retained) {
			f.end(r[0], endAbandoned, none, 0)
			f.end(r[1], endAbandoned, none, 0)
			f.end(r[2], endAccepted, 19, 18) // declares 0
			later := f.add(new(pb.Frame), new(call))
			if later.frame.SeqNum != 5 || later.frame.Outstanding != 2 {
				t.Errorf("%v", later.frame)
			}
			f.end(later, endAccepted, 20, 20)
		}, "[4] 3"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFrames()
			var r []*retained
			for range 4 {
				r = append(r, f.add(new(pb.Frame), new(call)))
			}
			tt.do(&f, r)
			var left []uint64
			for _, r := range f.from(0) {
				if r.frame != nil {
					left = append(left, r.frame.SeqNum)
				}
			}
			if got := fmt.Sprint(left, " ", f.mark); got != tt.want {
				t.Errorf("retained, mark: %s; want %s", got, tt.want)
			}
			if f.bytes != len(left)*frameOverhead {
				t.Errorf("%d bytes for %d frames", f.bytes, len(left))
			}
		})
	}
}

// TestFramesLaws ends random calls at random, and checks what must hold after every step.
func TestFramesLaws(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(1, 2))
	f := newFrames()
	flying := map[*retained]bool{}
	var order, stable orderstate.OrderNum
	for range 20_000 {
		switch n := rng.IntN(10); {
		case n < 4 && f.fits(10):
			flying[f.add(&pb.Frame{Message: make([]byte, 10)}, new(call))] = true
		case n < 8:
			for r := range flying {
				order++
				f.end(r, ending(rng.IntN(3)), order, stable)
				delete(flying, r)
				break
			}
		default:
			stable += orderstate.OrderNum(rng.IntN(int(order-stable) + 1))
			f.sweep(stable, nil)
		}
		bytes, seen := 0, 0
		for i, r := range f.list {
			if r.call != nil {
				seen++
				if f.base+uint64(i) <= f.mark {
					t.Fatalf("seqNum %d is in flight, the mark is %d", f.base+uint64(i), f.mark)
				}
				if r.frame == nil {
					t.Fatalf("seqNum %d is in flight, and forgotten", f.base+uint64(i))
				}
			}
			if r.frame != nil {
				bytes += r.size()
				if r.frame.SeqNum != f.base+uint64(i) || r.frame.Outstanding > r.frame.SeqNum ||
					r.frame.Outstanding == 0 {
					t.Fatalf("frame %v at %d", r.frame, f.base+uint64(i))
				}
			}
		}
		if bytes != f.bytes || seen != len(flying) || len(f.list) > 0 && f.list[0].frame == nil {
			t.Fatalf("%d bytes of %d, %d in flight of %d", f.bytes, bytes, seen, len(flying))
		}
	}
}

// TestPauses: they double, up to a bound, each within 20 %.
func TestPauses(t *testing.T) {
	t.Parallel()
	p := pauses{base: 10, max: 100}
	for range 2 {
		for _, want := range []float64{10, 20, 40, 80, 100, 100} {
			if got := float64(p.next()); got < 0.8*want-1 || got > 1.2*want {
				t.Errorf("%v; want %v", got, want)
			}
		}
		p.reset()
	}
}

// welcomed returns a client with one link, whose session is open.
func welcomed(tb testing.TB) (*Client, *link) {
	c := newClient()
	c.group, c.trust = 1, election.Trust(nil)
	l := &link{client: c, name: "a", wake: make(chan struct{}, 1), session: c.session, restart: func() {}}
	l.ctx, l.stop = context.WithCancel(c.life.ctx)
	c.links = append(c.links, l)
	primary := &pb.NewEpoch{Epoch: 10, Primary: "a", Incarnation: 1}
	err := c.receive(l, c.session, &pb.AttachResponse{Welcome: &pb.Welcome{
		Session: 1, Token: 1, Group: 1, Replica: "a", Incarnation: 1, Primary: primary,
		EpochStart:  &pb.EpochStart{Epoch: 10, FirstOrderNum: 1, Stable: 1},
		RequiredSet: &pb.RequiredSet{Epoch: 10, Number: 1},
	}})
	if err != nil {
		tb.Fatal(err)
	}
	return c, l
}

// FuzzStream: whatever a replica says on its stream, this source doesn't panic, and what it answers
// is well formed.
func FuzzStream(f *testing.F) {
	for _, msg := range []*pb.AttachResponse{
		{},
		{Welcome: &pb.Welcome{Session: 1, Token: 1, Group: 1, Replica: "a", Incarnation: 1}},
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
		c, l := welcomed(t)
		defer c.life.cancel(nil)
		c.mu.Lock()
		s := c.session
		s.frames.end(s.frames.add(&pb.Frame{Method: "/a/b", Session: 1, Group: 1}, new(call)), endAbandoned, 0, 0)
		s.frames.add(&pb.Frame{Method: "/a/b", Session: 1, Group: 1}, &call{client: c, session: s})
		c.mu.Unlock()
		for _, b := range [][]byte{first, second} {
			msg := new(pb.AttachResponse)
			if proto.Unmarshal(b, msg) != nil || c.receive(l, s, msg) != nil {
				return
			}
		}
		var frames wire.Assembler
		for _, msg := range l.take() {
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
		c, _ := welcomed(t)
		defer c.life.cancel(nil)
		k := &call{request: request{ctx: t.Context()}, client: c, session: c.session, cancel: func() {}, epoch: 10}
		k.retained = c.session.frames.add(new(pb.Frame), k)
		now := c.cfg.elapsed()
		a := &attempt{request: &k.request}
		a.request.invoker = func(_ context.Context, _ string, _, reply any, _ *grpc.ClientConn,
			opts ...grpc.CallOption) error {
			if !inMessage {
				a.trailer = metadata.Pairs(wire.HeaderKey, value)
				return nil
			}
			message := protowire.AppendString(protowire.AppendTag(nil, protowire.MaxValidNumber, protowire.BytesType),
				value)
			return a.Unmarshal(mem.BufferSlice{mem.SliceBuffer(message)}, new(emptypb.Empty))
		}
		v := k.arrived(a.invoke(), now, new(route.Choice))
		if v != verdictAccept {
			return
		}
		h := new(wire.Header)
		err := h.Parse([]byte(value))
		if err != nil || h.Refusal != 0 || h.SourceEpoch != 10 || c.session.source.HeldUpTo() < h.OrderNum ||
			h.OrderNum > 0 && h.AuthorityUs == 0 {
			t.Errorf("accepted %v, %v", h, err)
		}
	})
}

func TestParseTarget(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]target{
		"replicated://127.0.0.1:2379/greeter":          {endpoints: []string{"127.0.0.1:2379"}, group: "greeter"},
		"replicated://a:1,b:2/greeter":                 {endpoints: []string{"a:1", "b:2"}, group: "greeter"},
		"replicated://[::1]:1,[::2]:2/g":               {endpoints: []string{"[::1]:1", "[::2]:2"}, group: "g"},
		"replicated:///greeter":                        {group: "greeter"},
		"replicated://127.0.0.1:2379/":                 {},
		"replicated://127.0.0.1:2379":                  {},
		"replicated://127.0.0.1/greeter":               {},
		"replicated://127.0.0.1:/greeter":              {},
		"replicated://a:1,/greeter":                    {},
		"replicated://a:1/greeter/more":                {},
		"etcd://127.0.0.1:2379/greeter":                {},
		"127.0.0.1:2379":                               {},
		"dns:///replicated://127.0.0.1:2379/greeter":   {},
		"replicated://a:1/" + strings.Repeat("x", 200): {},
		"": {},
	} {
		got, err := parseTarget(text)
		if (err == nil) != (want.group != "") || got.group != want.group ||
			!slices.Equal(got.endpoints, want.endpoints) {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
}

// FuzzTarget: a target that is taken names a valid group.
func FuzzTarget(f *testing.F) {
	f.Add("replicated://127.0.0.1:2379,[::1]:1/greeter")
	f.Fuzz(func(t *testing.T, s string) {
		if target, err := parseTarget(s); err == nil && target.group == "" {
			t.Errorf("%+v", target)
		}
	})
}

// TestFenceFormerSession: a call of a session that has ended isn't forgotten by the epochs that
// come.
func TestFenceFormerSession(t *testing.T) {
	t.Parallel()
	c, _ := welcomed(t)
	defer c.life.cancel(nil)
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.session
	ctx, cancel := context.WithCancel(t.Context())
	k := &call{client: c, session: old, cancel: cancel, epoch: 10}
	k.retained = old.frames.add(new(pb.Frame), k)
	c.endSession(old, errUnknownSession)
	if e := c.session.source.Epoch(); e != 10 { // R9: fences what the new session hears, too
		t.Errorf("the new session has acknowledged %d", e)
	}
	c.newEpoch(c.session, 20, c.primary)
	if ctx.Err() == nil {
		t.Error("the attempt goes on")
	}
	old.frames.end(k.retained, endAbandoned, 0, 0)
	c.newEpoch(c.session, 30, c.primary)
	if c.session.before != nil {
		t.Error("the session is kept")
	}
}

// TestLostOvertaken: a reply of the new epoch that arrives when its session is lost isn't handed
// over.
func TestLostOvertaken(t *testing.T) {
	t.Parallel()
	c, _ := welcomed(t)
	defer c.life.cancel(nil)
	s := c.session
	arrive := func(h *wire.Header) verdict {
		k := &call{request: request{ctx: t.Context()}, client: c, session: s, cancel: func() {},
			epoch: s.source.Epoch()}
		k.retained = s.frames.add(new(pb.Frame), k)
		v := k.arrived(arrival{header: h}, c.cfg.elapsed(), new(route.Choice))
		if v == verdictUnknown && status.Code(k.reply.err) != codes.DataLoss {
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
	c.mu.Lock()
	c.newEpoch(s, 20, c.primary)
	c.mu.Unlock()
	if v := arrive(&wire.Header{SourceEpoch: 20, OrderNum: 2, AuthorityUs: 1e9,
		SourceOrderInfo: run(20, 2)}); v != verdictWait {
		t.Errorf("before the epoch's start is known: %v", v)
	}
	c.mu.Lock()
	err := c.start(s, &pb.EpochStart{Epoch: 20, FirstOrderNum: 2, Stable: 1}, nil)
	c.mu.Unlock()
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
			c, l := welcomed(b)
			defer c.life.cancel(nil)
			l.member = election.Member{Name: "b", Incarnation: 2} // not the primary, whom RPCs reach
			l.restart = nil
			s, payload := c.session, make([]byte, 100)
			kept := make([]*retained, together)
			var out []byte
			b.ReportAllocs()
			for i := 0; i < b.N; i += together {
				c.mu.Lock()
				for j := range kept {
					kept[j] = s.frames.add(&pb.Frame{Group: 1, Session: 1, Method: "/service/Method", Message: payload},
						nil)
					l.enqueued(false)
				}
				c.mu.Unlock()
				for _, msg := range l.take() {
					out, _ = proto.MarshalOptions{}.MarshalAppend(out[:0], msg)
				}
				c.mu.Lock()
				for _, r := range kept {
					s.frames.end(r, endAccepted, 1, 1)
				}
				c.mu.Unlock()
			}
			if len(out) == 0 {
				b.Error("nothing was sent")
			}
		})
	}
}

// What replicas are told of the calls that have ended, and what the next request tells them anyway.
func TestFramesEnded(t *testing.T) {
	f := newFrames()
	var r []*retained
	for range 12 {
		r = append(r, f.add(&pb.Frame{}, &call{}))
	}
	end := func(q int, bytes int) {
		r[q-1].reply = bytes
		f.end(r[q-1], endAccepted, orderstate.OrderNum(q), 0)
	}
	unsaid := func(when string, want int) {
		t.Helper()
		if f.unsaid != want {
			t.Errorf("%s: %d bytes are unsaid, want %d", when, f.unsaid, want)
		}
	}
	end(1, 10)
	end(2, 20)
	end(4, 40)
	unsaid("three have ended", 70)
	f.add(&pb.Frame{}, &call{})
	unsaid("a request has declared two", 40)
	end(11, 110)
	end(5, 50)
	if e := f.ended(); e.UpTo != 2 || !slices.Equal(e.Above, []byte{0b110, 0b1}) {
		t.Errorf("told %v", e)
	}
	unsaid("all is told", 0)
	end(3, 30)
	unsaid("one more", 30)
	if e := f.ended(); e.UpTo != 5 || !slices.Equal(e.Above, []byte{0b100000}) {
		t.Errorf("told %v", e)
	}
	f.add(&pb.Frame{}, &call{})
	unsaid("what was told isn't again", 0)
}
