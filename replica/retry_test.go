package replica_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/retry"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/testing/testpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/understudy-rpc/understudy/replica"
	"github.com/understudy-rpc/understudy/understudytest"
)

// arrivals notes the seqNums under which each value arrives at any replica's door, and what comes
// of it.
type arrivals struct {
	mu      sync.Mutex
	seqNums map[string][]uint64
	codes   map[string][]codes.Code
}

// note is a server interceptor for before ours.
func (a *arrivals) note(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	var seqNum uint64
	if h := replica.RequestHeader(ctx); h != nil {
		seqNum = uint64(h.SeqNum)
	}
	resp, err := handler(ctx, req)
	if r, ok := req.(*testpb.PingRequest); ok {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.seqNums == nil {
			a.seqNums, a.codes = map[string][]uint64{}, map[string][]codes.Code{}
		}
		a.seqNums[r.Value] = append(a.seqNums[r.Value], seqNum)
		a.codes[r.Value] = append(a.codes[r.Value], status.Code(err))
	}
	return resp, err
}

// of returns how often a value arrived, and under how many seqNums.
func (a *arrivals) of(value string) (times, seqNums int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	q := slices.Sorted(slices.Values(a.seqNums[value]))
	return len(q), len(slices.Compact(q))
}

// refuser is a front door that refuses the first arrivals of each value, executing nothing.
type refuser struct {
	mu    sync.Mutex
	seen  map[string]int
	first int
	code  codes.Code
}

func (r *refuser) refuse(
	ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler,
) (any, error) {
	if p, ok := req.(*testpb.PingRequest); ok {
		r.mu.Lock()
		if r.seen == nil {
			r.seen = map[string]int{}
		}
		n := r.seen[p.Value]
		r.seen[p.Value]++
		r.mu.Unlock()
		if n < r.first {
			return nil, status.Errorf(r.code, "the door is shut for the %d. time", n+1)
		}
	}
	return handler(ctx, req)
}

// TestRefusalsAreRetriedAsCallsOrAttempts: a front door that refuses, before ours or after it,
// and the retry interceptor, inside ours, outside of it, or not there.
func TestRefusalsAreRetriedAsCallsOrAttempts(t *testing.T) {
	t.Parallel()
	retries := retry.UnaryClientInterceptor(often...)
	outside, inside, none := grpc.WithUnaryInterceptor(retries), grpc.WithChainUnaryInterceptor(retries),
		grpc.EmptyDialOption{}
	for _, tt := range []struct {
		name    string
		code    codes.Code
		before  bool // the refusal is before ours
		retries grpc.DialOption
		want    codes.Code
		seqNums int
	}{
		// A refusal by who comes after ours is told: not executed, and never will be under this
		// seqNum.
		{"after, outside", codes.Unavailable, false, outside, codes.OK, 3},
		{"after, outside, exhausted", codes.ResourceExhausted, false, outside, codes.OK, 3},
		{"after, inside", codes.Unavailable, false, inside, codes.OK, 1},
		{"after, none", codes.Unavailable, false, none, codes.Unavailable, 1},
		{"after, none, exhausted", codes.ResourceExhausted, false, none, codes.ResourceExhausted, 1},
		// One before ours says nothing of what became of the call: the same call is issued again.
		{"before, outside", codes.Unavailable, true, outside, codes.OK, 1},
		{"before, inside", codes.Unavailable, true, inside, codes.OK, 1},
		{"before, none", codes.Unavailable, true, none, codes.OK, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				a, r := new(arrivals), &refuser{first: 2, code: tt.code}
				chain := []grpc.ServerOption{grpc.UnaryInterceptor(a.note), grpc.ChainUnaryInterceptor(r.refuse)}
				if tt.before {
					chain = []grpc.ServerOption{grpc.UnaryInterceptor(func(ctx context.Context, req any,
						info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
						return a.note(ctx, req, info, func(ctx context.Context, req any) (any, error) {
							return r.refuse(ctx, req, info, handler)
						})
					})}
				}
				c := group(t, nil, understudytest.ServerOptions(chain...))
				conn := c.Dial("client", tt.retries)
				var values []string
				for i := range 3 {
					v := fmt.Sprint(i)
					_, err := send(t.Context(), conn, v)
					if status.Code(err) != tt.want {
						t.Errorf("%v, want %v", err, tt.want)
					}
					if tt.want == codes.OK {
						values = append(values, v)
					}
					if _, q := a.of(v); q != tt.seqNums {
						t.Errorf("it arrived under %d seqNums, want %d", q, tt.seqNums)
					}
				}
				once(t, agreed(t, c, 0, 1, 2), values...)
				c.Kill(c.Primary()) // what was refused stays so
				r.first = 0
				mustSend(t, conn, "at the end")
				p := c.Primary()
				once(t, agreed(t, c, p), append(values, "at the end")...)
			})
		})
	}
}

// TestAHandlersUnavailableIsAReply: a handler's own Unavailable is a reply. A retry interceptor
// outside of ours makes a new call of it, one inside gets it from the reply log.
func TestAHandlersUnavailableIsAReply(t *testing.T) {
	t.Parallel()
	for where, want := range map[string]struct {
		code  codes.Code
		turns int
	}{"outside": {codes.OK, 3}, "inside": {codes.Unavailable, 1}} {
		t.Run(where, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				retries := retry.UnaryClientInterceptor(often...)
				option := grpc.WithUnaryInterceptor(retries)
				if where == "inside" {
					option = grpc.WithChainUnaryInterceptor(retries)
				}
				a := new(arrivals)
				c := understudytest.New(t, 3, func(s grpc.ServiceRegistrar) replica.Snapshotter {
					r := &reluctant{ping: &ping{}}
					testpb.RegisterTestServiceServer(s, r)
					return r.ping
				}, understudytest.ServerOptions(grpc.UnaryInterceptor(a.note)))
				conn := c.Dial("client", option)
				_, err := send(t.Context(), conn, "x")
				if status.Code(err) != want.code {
					t.Errorf("%v, want %v", err, want.code)
				}
				if n := executed(agreed(t, c, 0, 1, 2))["x"]; n != want.turns {
					t.Errorf("%d turns, want %d", n, want.turns)
				}
				if _, q := a.of("x"); q != want.turns {
					t.Errorf("%d seqNums, want %d", q, want.turns)
				}
			})
		})
	}
}

// reluctant refuses the first two turns of each value, in its handler.
type reluctant struct{ *ping }

func (r *reluctant) Ping(ctx context.Context, req *testpb.PingRequest) (*testpb.PingResponse, error) {
	resp, err := r.ping.Ping(ctx, req)
	if executed(r.took())[req.Value] < 3 {
		return nil, status.Error(codes.Unavailable, "not yet")
	}
	return resp, err
}

// TestATryJoinsTheTurnOfTheOneBefore: a retry interceptor inside ours that gives each of its
// tries less time than the turn takes. The turn finishes, once, and a try joins it.
func TestATryJoinsTheTurnOfTheOneBefore(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := new(arrivals)
		c := group(t, func(context.Context, string) error {
			time.Sleep(200 * time.Millisecond)
			return nil
		}, understudytest.ServerOptions(grpc.UnaryInterceptor(a.note)))
		conn := c.Dial("client", grpc.WithChainUnaryInterceptor(retry.UnaryClientInterceptor(
			retry.WithMax(10), retry.WithPerRetryTimeout(50*time.Millisecond),
			retry.WithBackoff(retry.BackoffLinear(time.Millisecond)))))
		mustSend(t, conn, "slow")
		if times, q := a.of("slow"); times < 4 || q != 1 {
			t.Errorf("it arrived %d times under %d seqNums", times, q)
		}
		once(t, agreed(t, c, 0, 1, 2), "slow")
	})
}
