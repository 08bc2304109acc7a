package replica_test

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/understudy-rpc/understudy/internal/testservice"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
	"github.com/understudy-rpc/understudy/replica"
	"github.com/understudy-rpc/understudy/understudytest"
)

const large = "/test.Large/Get"

// largeDesc has a method whose replies are of as many bytes as the request says.
var largeDesc = testservice.Describe("test.Large", testservice.Unary("Get",
	func(_ any, _ context.Context, bytes *wrapperspb.Int64Value) (*wrapperspb.BytesValue, error) {
		return wrapperspb.Bytes(make([]byte, bytes.GetValue())), nil
	}))

func registerLarge(s grpc.ServiceRegistrar) replica.Snapshotter {
	j := registerJournal(s)
	s.RegisterService(&largeDesc, j)
	return j
}

// keep checks what each replica keeps of replies.
func keep(t *testing.T, when string, c *understudytest.Cluster, least, most int) {
	t.Helper()
	c.AwaitExecuted()
	for i := range 3 {
		if n := c.Replica(i).ReplyBytes(); n < least || n > most {
			t.Errorf("%s replica %d keeps %d bytes of replies, want from %d to %d", when, i, n, least, most)
		}
	}
}

func header(t *testing.T, h *pb.Header) string {
	t.Helper()
	v, err := marshalHeader(h)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// A client that never says that it has its replies is refused when they are a session's share,
// before anything is executed; nobody else notices.
func TestRepliesThatNobodyTakesAreBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := besiegeService(t, registerLarge)
		s.method = large
		const share = replica.MaxReplyBytes / 16
		var err error
		calls := uint64(0)
		for ; err == nil && calls < 100; calls++ {
			h := s.header(calls + 1)
			h.Outstanding, h.HeldUpTo = calls+1, 1<<62
			_, err = s.raw(0, []byte{0x08, 0x80, 0x80, 0x40}, header(t, h)) // 1 MiB
		}
		wants(t, "beyond the share", err, codes.ResourceExhausted, "of replies are kept for the session", "16",
			"make fewer calls at once")
		keep(t, "beyond the share", s.c, share, share+2<<20)
		s.serves()
		// With the mark of a good client the same session goes on.
		h := s.header(calls + 1)
		h.HeldUpTo = 1 << 62
		if _, err := s.raw(0, []byte{0x08, 0x01}, header(t, h)); err != nil {
			t.Errorf("with its replies: %v", err)
		}
		keep(t, "with its replies", s.c, 1, 1<<10)
	})
}

// Replies that a source has are dropped, though it makes no further call, or a slow one holds its
// low-water mark back.
func TestRepliesThatASourceHasAreDropped(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		held := make(chan struct{})
		c := understudytest.New(t, 3, registerLarge, understudytest.ServerOptions(grpc.ChainUnaryInterceptor(
			func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
				if info.FullMethod == write {
					<-held
				}
				return next(ctx, req)
			})))
		conn := c.Dial("client", grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
		get := func(bytes int64) {
			out := new(wrapperspb.BytesValue)
			if err := conn.Invoke(t.Context(), large, wrapperspb.Int64(bytes), out); err != nil ||
				len(out.Value) != int(bytes) {
				t.Errorf("%d bytes: %d, %v", bytes, len(out.GetValue()), err)
			}
		}
		get(100 << 10)
		keep(t, "after a call", c, 100<<10, 101<<10)
		time.Sleep(2 * time.Second)
		keep(t, "without another call", c, 0, 1<<10)

		var slow sync.WaitGroup
		slow.Go(func() {
			if err := conn.Invoke(t.Context(), write, wrapperspb.String("slow"),
				new(wrapperspb.Int64Value)); err != nil {
				t.Errorf("the slow call: %v", err)
			}
		})
		time.Sleep(time.Second)
		for range 40 {
			get(1 << 20)
		}
		time.Sleep(2 * time.Second)
		keep(t, "beside a slow call", c, 0, 10<<10)

		// A replica that joins has what the others keep.
		c.Kill(2)
		c.Start(2)
		time.Sleep(5 * time.Second)
		keep(t, "after a join", c, 0, 10<<10)
		close(held)
		slow.Wait()

		// Many large ones at once wait for each other's declarations, and none is refused.
		var many sync.WaitGroup
		for range 64 {
			many.Go(func() { get(1 << 20) })
		}
		many.Wait()
		c.Kill(0) // another leads, and has the same
		get(1)
	})
}

// A good client never has so many RPCs at a replica that some are refused: the others wait at home,
// in the order in which they came.
func TestManyCallsAtOnceAreNeverRefused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		inside, most := 0, 0
		c := understudytest.New(t, 2, registerLarge, understudytest.ServerOptions(grpc.ChainUnaryInterceptor(
			func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
				mu.Lock()
				inside++
				most = max(most, inside)
				mu.Unlock()
				time.Sleep(time.Second)
				mu.Lock()
				inside--
				mu.Unlock()
				return next(ctx, req)
			})))
		conn := c.Dial("client")
		var all sync.WaitGroup
		for range 2500 {
			all.Go(func() {
				if err := conn.Invoke(t.Context(), write, wrapperspb.String("x"),
					new(wrapperspb.Int64Value)); err != nil {
					t.Errorf("a call: %v", err)
				}
			})
		}
		all.Wait()
		if most < 500 || most > 1000 {
			t.Errorf("%d RPCs were there at once", most)
		}
	})
}
