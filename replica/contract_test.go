package replica_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/grpc-ecosystem/go-grpc-middleware/v2/testing/testpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/understudy-rpc/understudy"
	"github.com/understudy-rpc/understudy/understudytest"
	"github.com/understudy-rpc/understudy/understudytest/simnet"
)

// R7 for unary handlers: what a turn may depend on, and what it may not.

// TestNowAndRandAreTheSameEverywhere: Now and Rand are the same wherever a turn is taken, in the
// primary that died as in those that took over, and Now never goes back.
func TestNowAndRandAreTheSameEverywhere(t *testing.T) {
	t.Parallel()
	for _, level := range []understudy.Level{understudy.Reflected, understudy.Direct, understudy.Stable} {
		t.Run(level.String(), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := group(t, func(context.Context, string) error {
					time.Sleep(time.Millisecond)
					return nil
				}, understudytest.Level(level))
				first, second := c.Dial("first"), c.Dial("second")
				var values []string
				var calls sync.WaitGroup
				var accepted sync.Map
				for i := range 20 {
					v := fmt.Sprint(i)
					values = append(values, v)
					calls.Go(func() {
						time.Sleep(time.Duration(i) * 900 * time.Microsecond)
						mustSend(t, []*grpc.ClientConn{first, second}[i%2], v)
						accepted.Store(v, true)
					})
				}
				time.Sleep(10 * time.Millisecond)
				dead := c.Primary()
				var took []pinged // and a caller has seen it
				for _, p := range c.State(dead).(*ping).took() {
					if _, ok := accepted.Load(p.Value); ok {
						took = append(took, p)
					}
				}
				c.Kill(dead)
				calls.Wait()
				c.Start(dead)
				c.AwaitInSync(3)
				values = append(values, "at the end")
				mustSend(t, first, "at the end")
				turns := agreed(t, c, 0, 1, 2)
				once(t, turns, values...)

				if !slices.IsSortedFunc(turns, func(a, b pinged) int { return a.Now.Compare(b.Now) }) {
					t.Errorf("Now went back: %v", turns)
				}
				rands := map[uint64]bool{}
				byValue := map[string]pinged{}
				for _, p := range turns {
					rands[p.Rand], byValue[p.Value] = true, p
				}
				if len(rands) != len(turns) {
					t.Errorf("%d turns had %d random numbers", len(turns), len(rands))
				}
				if len(took) < 3 {
					t.Errorf("the primary had taken only %d turns that callers have seen", len(took))
				}
				for _, p := range took {
					if now := byValue[p.Value]; !same(now, p) {
						t.Errorf("the dead primary took %+v, the others %+v", p, now)
					}
				}
			})
		})
	}
}

// TestTurnOutlivesItsCaller: a client that cancels in the middle of a turn, or whose deadline
// passes. The turn has neither cancellation nor deadline, finishes, and is there on every replica,
// and after a failover.
func TestTurnOutlivesItsCaller(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := group(t, func(ctx context.Context, value string) error {
			time.Sleep(300 * time.Millisecond)
			if _, ok := ctx.Deadline(); ok || ctx.Done() != nil || ctx.Err() != nil {
				t.Errorf("in the turn of %q the context can end: %v", value, ctx.Err())
			}
			return nil
		})
		conn := c.Dial("client")
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(100*time.Millisecond, cancel)
		_, err := send(ctx, conn, "cancelled")
		wants(t, "the call", err, codes.Canceled, "the outcome is unknown")
		ctx, cancel = context.WithTimeout(t.Context(), 500*time.Millisecond) // its turn begins after 200
		defer cancel()
		_, err = send(ctx, conn, "expired")
		wants(t, "the call", err, codes.DeadlineExceeded, "the outcome is unknown")
		once(t, agreed(t, c, 0, 1, 2), "cancelled", "expired")
		c.Kill(c.Primary())
		mustSend(t, conn, "after")
		once(t, agreed(t, c, c.Primary()), "cancelled", "expired", "after")
	})
}

// TestNoTurnForWhoHasGone: a message whose caller has gone before its turn is never executed,
// whether it waits for the turn, or for an interceptor, or finds the turn free when it comes.
func TestNoTurnForWhoHasGone(t *testing.T) {
	t.Parallel()
	deaf := func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		if p, ok := req.(*testpb.PingRequest); ok && strings.HasPrefix(p.Value, "held up") {
			time.Sleep(200 * time.Millisecond) // whatever the context says
		}
		return handler(ctx, req)
	}
	synctest.Test(t, func(t *testing.T) {
		c := group(t, func(_ context.Context, value string) error {
			if value == "long" {
				time.Sleep(time.Second)
			}
			return nil
		}, understudytest.ServerOptions(grpc.ChainUnaryInterceptor(deaf)))
		conn := c.Dial("client")
		gone := func(value string, cancel bool, after time.Duration) {
			ctx, stop := context.WithTimeout(t.Context(), after)
			defer stop()
			want := codes.DeadlineExceeded
			if cancel {
				ctx, stop = context.WithCancel(t.Context())
				time.AfterFunc(after, stop)
				want = codes.Canceled
			}
			_, err := send(ctx, conn, value)
			wants(t, "the call", err, want)
		}
		mustSend(t, conn, "first")
		var calls sync.WaitGroup
		calls.Go(func() { mustSend(t, conn, "long") })
		time.Sleep(10 * time.Millisecond)
		calls.Go(func() { gone("queued, cancelled", true, 100*time.Millisecond) })
		calls.Go(func() { gone("queued, expired", false, 110*time.Millisecond) })
		calls.Wait()
		gone("held up, cancelled", true, 50*time.Millisecond)
		gone("held up, expired", false, 60*time.Millisecond)
		time.Sleep(time.Second)
		mustSend(t, conn, "last")
		once(t, agreed(t, c, 0, 1, 2), "first", "long", "last")
		c.Kill(c.Primary())
		mustSend(t, conn, "after")
		once(t, agreed(t, c, c.Primary()), "first", "long", "last", "after")
	})
}

// TestPanicInAHandlerIsTheSameErrorEverywhere: Internal on every replica, with one text, and the
// state as the handler left it.
func TestPanicInAHandlerIsTheSameErrorEverywhere(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := &loss{value: "lost", kill: true}
		l.c = group(t, func(ctx context.Context, value string) error {
			_ = l.within(ctx, value)
			if value == "bad" || value == "lost" {
				panic(fmt.Sprintf("at %p", &value)) // on each replica another text
			}
			return nil
		}, understudytest.Level(understudy.Direct))
		c := l.c
		conn := c.Dial("client")
		mustSend(t, conn, "first")
		_, bad := send(t.Context(), conn, "bad")
		wants(t, "the bad one", bad, codes.Internal, "Ping panicked")
		_, lost := send(t.Context(), conn, "lost") // from a backup's reply log
		wants(t, "the lost one", lost, codes.Internal, "Ping panicked")
		l.dead.Wait()
		if bad.Error() != lost.Error() {
			t.Errorf("the first primary said %q, the second one %q", bad, lost)
		}
		mustSend(t, conn, "last")
		once(t, agreed(t, c, 1, 2), "first", "bad", "lost", "last")
		if d := c.Replica(c.Primary()).Status().Duplicates; d == 0 {
			t.Error("the reply didn't come from the log")
		}
	})
}

// TestReplyMetadataArrivesFromEveryReplica: what a handler says besides its reply arrives from
// its first execution, from the reply log, and from another replica's.
func TestReplyMetadataArrivesFromEveryReplica(t *testing.T) {
	t.Parallel()
	for name, l := range map[string]*loss{
		"at once":             {},
		"from the reply log":  {value: "said"},
		"from another's log":  {value: "said", kill: true},
		"failing, at once":    {},
		"failing, from a log": {value: "said", kill: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				*l = loss{value: l.value, kill: l.kill}
				l.c = group(t, func(ctx context.Context, value string) error {
					if err := grpc.SetHeader(ctx, metadata.Pairs("first", value, "bytes-bin", "\x00\xff")); err != nil {
						t.Errorf("SetHeader: %v", err)
					}
					if err := grpc.SendHeader(ctx, metadata.Pairs("first", "and second")); err != nil {
						t.Errorf("SendHeader: %v", err)
					}
					if err := grpc.SetTrailer(ctx,
						metadata.Pairs("last", value, "last", fmt.Sprint(understudy.Rand(ctx).Uint64()))); err != nil {
						t.Errorf("SetTrailer: %v", err)
					}
					if m, ok := grpc.Method(ctx); !ok || m == "" {
						t.Error("no method")
					}
					return l.within(ctx, value)
				}, understudytest.Level(understudy.Direct))
				c := l.c
				conn := c.Dial("client")
				mustSend(t, conn, "first")
				var header, trailer metadata.MD
				if strings.HasPrefix(name, "failing") {
					_, err := testpb.NewTestServiceClient(conn).PingError(t.Context(),
						&testpb.PingErrorRequest{Value: "said",
							ErrorCodeReturned: uint32(codes.AlreadyExists)}, grpc.Header(&header),
						grpc.Trailer(&trailer))
					failsAsAsked(t, err)
				} else if resp, err := send(
					t.Context(), conn, "said", grpc.Header(&header), grpc.Trailer(&trailer),
				); err != nil || resp.GetValue() != "said" || resp.GetCounter() != 2 {
					t.Errorf("got %v, %v", resp, err)
				}
				l.dead.Wait()
				if got := header.Get("first"); !slices.Equal(got, []string{"said", "and second"}) {
					t.Errorf("header: %q", got)
				}
				if got := header.Get("bytes-bin"); !slices.Equal(got, []string{"\x00\xff"}) {
					t.Errorf("binary header: %q", got)
				}
				if got := trailer.Get("last"); len(got) != 2 || got[0] != "said" {
					t.Errorf("trailer: %q", got)
				}
				if (c.Replica(c.Primary()).Status().Duplicates > 0) != (l.value != "") {
					t.Errorf("it came from the wrong place: %+v", c.Replica(c.Primary()).Status())
				}
				once(t, agreed(t, c, 1, 2), "first", "said")
			})
		})
	}
}

// TestReplyComesFromASnapshot: the reply to a call is lost, and with it, one after the other, every
// replica that has executed the call. Who leads then has its reply log from a snapshot.
func TestReplyComesFromASnapshot(t *testing.T) {
	t.Parallel()
	for _, failing := range []bool{false, true} {
		t.Run(fmt.Sprint("failing: ", failing), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var c *understudytest.Cluster
				var executing sync.Once // by the primary
				c = group(t, func(ctx context.Context, value string) error {
					if value == "said" {
						executing.Do(func() { c.Network().Cut(simnet.Link{From: "replica0", To: "client"}) })
					}
					_ = grpc.SetTrailer(ctx, metadata.Pairs("last", value))
					return grpc.SetHeader(ctx, metadata.Pairs("first", value, "bytes-bin", "\x00\xff"))
				}, understudytest.Level(understudy.Direct))
				conn := c.Dial("client")
				mustSend(t, conn, "first")
				var call sync.WaitGroup
				var header, trailer metadata.MD
				call.Go(func() {
					if failing {
						_, err := testpb.NewTestServiceClient(conn).PingError(t.Context(),
							&testpb.PingErrorRequest{Value: "said",
								ErrorCodeReturned: uint32(codes.AlreadyExists)}, grpc.Header(&header),
							grpc.Trailer(&trailer))
						failsAsAsked(t, err)
					} else if resp, err := send(
						t.Context(), conn, "said", grpc.Header(&header), grpc.Trailer(&trailer),
					); err != nil || resp.GetValue() != "said" || resp.GetCounter() != 2 {
						t.Errorf("got %v, %v", resp, err)
					}
				})
				time.Sleep(100 * time.Millisecond)
				for _, i := range []int{1, 2, 0} {
					c.Kill(i)
					c.AwaitInSync(2)
					c.Start(i)
					c.AwaitInSync(3)
				}
				c.Network().Mend(simnet.Link{From: "replica0", To: "client"})
				call.Wait()
				if got := append(header.Get("first"), trailer.Get("last")...); !slices.Equal(got,
					[]string{"said", "said"}) {
					t.Errorf("header and trailer: %q", got)
				}
				if got := header.Get("bytes-bin"); !slices.Equal(got, []string{"\x00\xff"}) {
					t.Errorf("binary header: %q", got)
				}
				once(t, agreed(t, c, 0, 1, 2), "first", "said")
			})
		})
	}
}

// TestErrorsOfHandlersAreAsInPlainGRPC: errors that aren't gRPC's become what they do without
// us, and are the same from the log.
func TestErrorsOfHandlersAreAsInPlainGRPC(t *testing.T) {
	t.Parallel()
	failures := map[string]error{
		"plain":      fmt.Errorf("plain"),
		"wrapped":    fmt.Errorf("wrapped: %w", status.Error(codes.NotFound, "inner")),
		"cancelled":  context.Canceled,
		"expired":    fmt.Errorf("it: %w", context.DeadlineExceeded),
		"exhausted":  status.Error(codes.ResourceExhausted, "too much"),
		"aborted":    status.Error(codes.Aborted, "again"),
		"unknown 99": status.Error(codes.Code(99), "no such code"),
		"lost":       fmt.Errorf("wrapped: %w", status.Error(codes.DataLoss, "inner")),
	}
	want := map[string]codes.Code{"plain": codes.Unknown, "wrapped": codes.NotFound, "cancelled": codes.Canceled,
		"expired":   codes.DeadlineExceeded,
		"exhausted": codes.ResourceExhausted, "aborted": codes.Aborted, "unknown 99": 99, "lost": codes.DataLoss}
	synctest.Test(t, func(t *testing.T) {
		l := &loss{value: "lost", kill: true}
		l.c = group(t, func(ctx context.Context, value string) error {
			_ = l.within(ctx, value)
			return failures[value]
		}, understudytest.Level(understudy.Direct))
		conn := l.c.Dial("client")
		var values []string
		for v := range failures {
			if v != "lost" {
				values = append(values, v)
			}
		}
		values = append(values, "lost")
		for _, v := range values {
			_, err := send(t.Context(), conn, v)
			wants(t, "the call", err, want[v])
			if text := status.Convert(err).Message(); text != failures[v].Error() &&
				text != status.Convert(failures[v]).Message() {
				t.Errorf("%s: %q", v, text)
			}
		}
		l.dead.Wait()
		once(t, agreed(t, l.c, 1, 2), values...)
	})
}
