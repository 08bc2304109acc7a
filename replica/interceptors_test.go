package replica_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/grpc-ecosystem/go-grpc-middleware/v2/testing/testpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/understudy-rpc/understudy/internal/wire"
	"github.com/understudy-rpc/understudy/understudytest"
)

// What other interceptors do around ours, and what of it stays as it is in plain gRPC.

// TestInterceptorsOwnEndIsGivenBack: an interceptor that answers with DeadlineExceeded or Canceled,
// whose call has neither expired nor been cancelled, is asked once.
func TestInterceptorsOwnEndIsGivenBack(t *testing.T) {
	t.Parallel()
	for _, code := range []codes.Code{codes.DeadlineExceeded, codes.Canceled} {
		var asked atomic.Int64
		own := func() error {
			asked.Add(1)
			return status.Error(code, "no time for this")
		}
		server := valued("x", func(context.Context, any, *grpc.UnaryServerInfo, grpc.UnaryHandler) (any, error) {
			return nil, own()
		})
		client := func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn,
			invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			if p, ok := req.(*testpb.PingRequest); ok && p.Value == "x" {
				return own()
			}
			return invoker(ctx, method, req, reply, cc, opts...)
		}
		for name, tt := range map[string]struct {
			server []grpc.ServerOption
			client []grpc.DialOption
		}{
			"the server's, before ours": {server: []grpc.ServerOption{grpc.UnaryInterceptor(server)}},
			"the server's, after ours":  {server: []grpc.ServerOption{grpc.ChainUnaryInterceptor(server)}},
			"the client's, after ours":  {client: []grpc.DialOption{grpc.WithChainUnaryInterceptor(client)}},
		} {
			t.Run(fmt.Sprint(code, "/", name), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					c := group(t, nil, understudytest.ServerOptions(tt.server...))
					conn := c.Dial("client", tt.client...)
					mustSend(t, conn, "first")
					asked.Store(0)
					began := time.Now()
					_, err := send(t.Context(), conn, "x")
					wants(t, "the call", err, code, "no time for this")
					// without a deadline
					_, err = testpb.NewTestServiceClient(conn).Ping(t.Context(), &testpb.PingRequest{Value: "x"})
					wants(t, "the call", err, code, "no time for this")
					if n, took := asked.Load(), time.Since(began); n != 2 || took > time.Second {
						t.Errorf("for two calls it was asked %d times, in %v", n, took)
					}
					mustSend(t, conn, "second")
					once(t, agreed(t, c, 0, 1, 2), "first", "second")
				})
			})
		}
	}
}

// TestInterceptorsTimeoutIsGivenBack: one that gives what is behind it less time than the caller
// has.
func TestInterceptorsTimeoutIsGivenBack(t *testing.T) {
	t.Parallel()
	hurried := valued("x",
		func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
			ctx, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			return handler(ctx, req)
		})
	slow := func(_ context.Context, value string) error {
		if value == "slow" {
			time.Sleep(3 * time.Second)
		}
		return nil
	}
	for place, where := range places {
		t.Run(where, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := group(t, slow, understudytest.ServerOptions([2]grpc.ServerOption{grpc.UnaryInterceptor(hurried),
					grpc.ChainUnaryInterceptor(hurried)}[place]))
				conn := c.Dial("client")
				var calls sync.WaitGroup
				calls.Go(func() { mustSend(t, conn, "slow") })
				time.Sleep(100 * time.Millisecond) // fake: it has its turn
				began := time.Now()
				_, err := send(t.Context(), conn, "x") // waits for its own
				wants(t, "the call", err, codes.DeadlineExceeded)
				if took := time.Since(began); took > 1100*time.Millisecond {
					t.Errorf("it took %v", took)
				}
				calls.Wait()
				mustSend(t, conn, "second")
				once(t, agreed(t, c, 0, 1, 2), "slow", "second")
			})
		})
	}
}

// TestHandlerCalledTwiceHasOneTurn: an interceptor that calls its handler once more, after the
// first call or beside it, gets what the first one got, and the call has one turn.
func TestHandlerCalledTwiceHasOneTurn(t *testing.T) {
	t.Parallel()
	after := func(ctx context.Context, req any, handler grpc.UnaryHandler) (first, second any, err1, err2 error) {
		first, err1 = handler(ctx, req)
		second, err2 = handler(ctx, req)
		return
	}
	beside := func(ctx context.Context, req any, handler grpc.UnaryHandler) (first, second any, err1, err2 error) {
		var other sync.WaitGroup
		other.Go(func() { second, err2 = handler(ctx, req) })
		first, err1 = handler(ctx, req)
		other.Wait()
		return
	}
	for name, tt := range map[string]struct {
		option func(grpc.UnaryServerInterceptor) grpc.ServerOption
		twice  func(context.Context, any, grpc.UnaryHandler) (any, any, error, error)
	}{
		"before ours": {grpc.UnaryInterceptor, after},
		"after ours": {func(i grpc.UnaryServerInterceptor) grpc.ServerOption {
			return grpc.ChainUnaryInterceptor(i)
		}, after},
		"after ours, beside each other": {func(i grpc.UnaryServerInterceptor) grpc.ServerOption {
			return grpc.ChainUnaryInterceptor(i)
		}, beside},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				last := false
				twice := func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any,
					error) {
					first, second, err1, err2 := tt.twice(ctx, req, handler)
					if status.Code(err1) != status.Code(err2) || err1 == nil && first != second {
						t.Errorf("first %v, %v; then %v, %v", first, err1, second, err2)
					}
					if last {
						return second, err2
					}
					return first, err1
				}
				c := group(t, func(_ context.Context, value string) error {
					time.Sleep(time.Millisecond)
					if value == "bad" {
						return status.Error(codes.Aborted, "bad")
					}
					return nil
				}, understudytest.ServerOptions(tt.option(twice)))
				conn := c.Dial("client")
				mustSend(t, conn, "first")
				_, err := send(t.Context(), conn, "bad")
				wants(t, "the call", err, codes.Aborted, "bad")
				last = true
				mustSend(t, conn, "second")
				once(t, agreed(t, c, 0, 1, 2), "first", "bad", "second")
			})
		})
	}
}

// TestRequestReplacedIsRefused: an interceptor that hands down another request, wherever it is
// listed. Backups execute the caller's bytes, so that the primary mustn't execute others.
func TestRequestReplacedIsRefused(t *testing.T) {
	t.Parallel()
	changes := valued("x",
		func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
			other := proto.Clone(req.(proto.Message)).(*testpb.PingRequest)
			other.Value = "y"
			return handler(ctx, other)
		})
	for place, where := range places {
		t.Run(where, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := group(t, nil, understudytest.ServerOptions([2]grpc.ServerOption{grpc.UnaryInterceptor(changes),
					grpc.ChainUnaryInterceptor(changes)}[place]))
				conn := c.Dial("client")
				mustSend(t, conn, "first")
				_, err := send(t.Context(), conn, "x")
				wants(t, "the call", err, codes.Internal, "replaced the request", "Registrar")
				mustSend(t, conn, "second")
				once(t, agreed(t, c, 0, 1, 2), "first", "second")
			})
		})
	}
}

// TestHeaderKeyIsOurs: what handlers and interceptors say under our key doesn't become a header of
// the protocol, and callers don't see ours.
func TestHeaderKeyIsOurs(t *testing.T) {
	t.Parallel()
	theirs := metadata.MD{wire.HeaderKey: {"\x08\x01 nonsense"}, "mine": {"seen"}}
	synctest.Test(t, func(t *testing.T) {
		within := func(ctx context.Context, value string) error {
			for _, err := range []error{grpc.SetHeader(ctx, theirs), grpc.SetTrailer(ctx, theirs)} {
				if err != nil {
					return err
				}
			}
			if value == "bad" {
				return status.Error(codes.Aborted, "bad")
			}
			return nil
		}
		talks := func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
			if err := grpc.SetHeader(ctx, theirs); err != nil {
				return nil, err
			}
			return handler(ctx, req)
		}
		c := group(t, within, understudytest.ServerOptions(grpc.ChainUnaryInterceptor(talks)))
		conn := c.Dial("client")
		for _, value := range []string{"x", "bad", strings.Repeat("large", wire.MaxInMessage/5+1)} {
			var header, trailer metadata.MD
			resp, err := send(t.Context(), conn, value, grpc.Header(&header), grpc.Trailer(&trailer))
			if value == "bad" {
				wants(t, "the call", err, codes.Aborted, "bad")
			} else if err != nil || resp.GetValue() != value {
				t.Errorf("%.10s: %.50v, %v", value, resp, err)
			}
			if len(header.Get(wire.HeaderKey)) > 0 || len(trailer.Get(wire.HeaderKey)) > 0 {
				t.Errorf("%.10s: the caller sees %q, %q", value, header, trailer)
			}
			if len(header.Get("mine")) == 0 || len(trailer.Get("mine")) == 0 {
				t.Errorf("%.10s: the caller doesn't see what was set: %v, %v", value, header, trailer)
			}
		}
	})
}
