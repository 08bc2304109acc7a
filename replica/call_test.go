package replica

import (
	"context"
	"testing"
	"unsafe"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/understudy-rpc/understudy/internal/wire"
	"github.com/understudy-rpc/understudy/orderstate"
	"github.com/understudy-rpc/understudy/replica/internal/machine"
)

// TestCallIsOneBlock: a call, with its two headers, fits in the allocator's block of 768 bytes, of
// which eight are its own; the next larger one has 896.
func TestCallIsOneBlock(t *testing.T) {
	t.Parallel()
	if size := unsafe.Sizeof(call{}); size > 768-8 {
		t.Errorf("a call has %d bytes", size)
	}
}

// BenchmarkFrontDoor is what a call costs at a primary without backups, between gRPC and the
// handler.
func BenchmarkFrontDoor(b *testing.B) {
	in := leadingAlone(b)
	r := new(Replica)
	r.clock = in.r.clock
	r.life.Store(in)
	in.m.mu.Lock()
	in.seal = wire.NewSeal(make([]byte, secretSize))
	l := in.m.leading()
	l.primary.Release("backup")
	l.authority = 1 << 60
	o, _, _ := l.primary.Open(orderstate.Nonce{1}, 1, nil, l.now())
	in.m.own(o)
	token := in.m.sources.token(o.Session, orderstate.Nonce{1})
	in.m.mu.Unlock()
	reply := new(emptypb.Empty)
	invocation := machine.Invocation{
		Method: machine.NewMethod("/a.B/C", nil, nil, machine.ChainInTurn(nil)),
		Req:    reply, Info: new(grpc.UnaryServerInfo),
		Handler: func(context.Context, any) (any, error) { return reply, nil },
	}
	payload := make([]byte, 100)
	b.ReportAllocs()
	for n := uint64(1); b.Loop(); n++ {
		c := &call{invocation: invocation}
		c.header = wire.Header{Session: o.Session, SeqNum: orderstate.SeqNum(n), Outstanding: 1, DestEpoch: 1,
			Token: token, HeldUpTo: orderstate.OrderNum(n)}
		c.request.b = payload
		out := r.handle(b.Context(), c, func(ctx context.Context) (any, error) { return c.turn(ctx, reply) })
		if out.err != nil {
			b.Fatal(out.err)
		}
	}
}
