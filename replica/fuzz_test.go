package replica

import (
	"fmt"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/understudy-rpc/understudy/internal/wire"
	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// A message that decodes is taken, or refused with an error: never a panic, and the state stays
// valid.

func marshal(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// sealed is a run of epoch 1 as a primary with the test's key announces it: session 1's messages
// from orderNum 2 on.
func sealed(n int) *pb.Run {
	r := orderstate.Run{Envelope: orderstate.Envelope{Epoch: 1, EpochFirst: 1, First: 2, Count: n}}
	for i := range n {
		r.Entries = append(r.Entries,
			orderstate.OrderInfo{OrderNum: orderstate.OrderNum(2 + i), Session: 1, SeqNum: orderstate.SeqNum(1 + i),
				First: 1, Time: int64(i)})
	}
	return wire.RunToProto(wire.NewSeal(make([]byte, secretSize)).Close(r), false)
}

// FuzzFollowed: what a primary sends to a backup.
func FuzzFollowed(f *testing.F) {
	for _, m := range []*pb.FollowResponse{
		{},
		{SourceOrderInfo: []*pb.Run{sealed(3)}, Stable: 2},
		{Messages: []*pb.LoggedMessage{{Session: 1, SeqNum: 1, Outstanding: 1, Method: "/a/b", Message: []byte("x")},
			{Session: 2, Message: make([]byte, 16)}}},
		{EpochStart: &pb.EpochStart{Epoch: 1, FirstOrderNum: 1, Earlier: []*pb.Start{{Epoch: 1, FirstOrderNum: 1}}},
			InSync: true},
		{Detached: []*pb.Detached{{Session: 1, Number: 1, UpTo: 1}}},
	} {
		f.Add(marshal(f, m))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var m pb.FollowResponse
		if proto.Unmarshal(b, &m) != nil {
			return
		}
		in := backup(t)
		in.m.mu.Lock()
		in.m.following().backup.Detach(1)
		in.m.mu.Unlock()
		for range 2 { // what is repeated changes nothing
			if in.m.following().followed(in.m.upstream, &m) != nil {
				return
			}
		}
		valid(t, in.m.following().backup.Valid())
	})
}

// FuzzTake: what a source sends to a backup.
func FuzzTake(f *testing.F) {
	frame := &pb.Frame{Group: 7, Session: 1, SeqNum: 1, Outstanding: 1, Method: "/a/b", Message: []byte("x")}
	for _, m := range []*pb.AttachRequest{
		{},
		{Frames: []*pb.Frame{frame}, DestOrderInfo: []*pb.Run{sealed(2)}, AcknowledgedEpoch: 1},
		{WaitingFor: &pb.WaitingFor{Epoch: 1, HeldUpTo: 1}},
		{Frames: []*pb.Frame{{Group: 7, Session: 1, SeqNum: 1, Outstanding: 1, Method: "/a/b", Message: []byte("x"),
			More: 1}, {Message: []byte("y")}}},
	} {
		f.Add(marshal(f, m))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var m pb.AttachRequest
		if proto.Unmarshal(b, &m) != nil {
			return
		}
		in := backup(t)
		a := &attachment{m: in.m, session: 1, bound: true, out: newOutbox[pb.AttachResponse](func(error) {})}
		in.m.sources.bySession[1] = a
		var frames wire.Assembler
		for range 2 {
			if a.take(&m, &frames) != nil {
				return
			}
			a.next()
		}
		valid(t, in.m.following().backup.Valid())
	})
}

// FuzzAcknowledged: what a backup sends to its primary.
func FuzzAcknowledged(f *testing.F) {
	for _, m := range []*pb.FollowRequest{
		{},
		{Restored: true, Acknowledgement: &pb.Acknowledgement{Epoch: 1, OrderNum: 1}},
		{Detach: []*pb.Detaching{{Session: 1, Number: 1}}, Attach: []uint64{1}},
	} {
		f.Add(marshal(f, m))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var m pb.FollowRequest
		if proto.Unmarshal(b, &m) != nil {
			return
		}
		in := leadingAlone(t)
		in.seal = wire.NewSeal(make([]byte, secretSize))
		o, _, _ := in.m.leading().primary.Open(orderstate.Nonce{1}, 1, nil, in.m.leading().now())
		in.m.mu.Lock()
		in.m.own(o)
		follows := streams(in, &peer{id: "backup", stage: inSync}, func(error) {})
		in.m.mu.Unlock()
		for range 2 {
			if _, err := in.m.leading().roster.acknowledged(follows, &m); err != nil {
				return
			}
		}
		valid(t, in.m.leading().primary.Valid())
	})
}

func valid(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}

// BenchmarkTake is one frame's way into a backup's log and out of it, by how many come together
// with their order: read, checked against the seal, ordered, taken from messageOrder.
func BenchmarkTake(b *testing.B) {
	for _, together := range []int{1, 8, 64} {
		b.Run(fmt.Sprint(together), func(b *testing.B) {
			in := backup(b)
			seal := wire.NewSeal(make([]byte, secretSize))
			a := &attachment{m: in.m, session: 1, bound: true, out: newOutbox[pb.AttachResponse](func(error) {})}
			in.m.sources.bySession[1] = a
			var frames wire.Assembler
			next, payload := uint64(1), make([]byte, 100)
			b.ReportAllocs()
			for i := 0; i < b.N; i += together {
				b.StopTimer()
				req := &pb.AttachRequest{}
				run := orderstate.Run{Envelope: orderstate.Envelope{Epoch: 1, EpochFirst: 1,
					First: orderstate.OrderNum(next + 1), Count: together}}
				for range together {
					id := orderstate.MessageID{Session: 1, SeqNum: orderstate.SeqNum(next)}
					req.Frames = append(req.Frames,
						&pb.Frame{Group: 7, Session: 1, SeqNum: next, Outstanding: 1, Method: "/a/b", Message: payload})
					run.Entries = append(run.Entries, orderstate.OrderInfo{
						OrderNum: orderstate.OrderNum(next + 1), Session: 1, SeqNum: id.SeqNum, First: 1,
						Time: int64(next), Digest: seal.Digest(id, id.SeqNum-1, "/a/b", payload),
					})
					next++
				}
				req.DestOrderInfo = []*pb.Run{wire.RunToProto(seal.Close(run), false)}
				received := marshal(b, req)
				b.StartTimer()
				var m pb.AttachRequest
				if err := proto.Unmarshal(received, &m); err != nil {
					b.Fatal(err)
				}
				if err := a.take(&m, &frames); err != nil {
					b.Fatal(err)
				}
				in.m.mu.Lock()
				turns := in.m.next(nil)
				for len(turns) > 0 {
					in.machine.Own(turns[len(turns)-1].OrderInfo)
					in.r.stats.turns.Add(uint64(len(turns)))
					in.m.after(moved{executed: true})
					turns = in.m.next(turns[:0])
				}
				in.m.following().backup.LearnStable(1, in.machine.Executed())
				in.m.forget()
				in.m.mu.Unlock()
			}
			if in.machine.Executed() < orderstate.OrderNum(b.N) {
				b.Errorf("%d of %d were executed", in.machine.Executed(), b.N)
			}
		})
	}
}
