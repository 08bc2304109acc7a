package replica_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/understudy-rpc/understudy"
	"github.com/understudy-rpc/understudy/replica"
	"github.com/understudy-rpc/understudy/understudytest"
)

// Handlers and interceptors that end in other ways than by returning.

// TestHandlerThatExitsIsTheSameErrorEverywhere: a handler that ends its goroutine, as testing's
// FailNow does, is the same error from each replica, at once, and holds nobody up.
func TestHandlerThatExitsIsTheSameErrorEverywhere(t *testing.T) {
	t.Parallel()
	for _, level := range []understudy.Level{understudy.Reflected, understudy.Stable} {
		t.Run(level.String(), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				l := &loss{value: "lost", kill: true}
				l.c = group(t, func(ctx context.Context, value string) error {
					_ = l.within(ctx, value)
					if value != "first" && value != "innocent" {
						runtime.Goexit()
					}
					return nil
				}, understudytest.Level(level))
				c := l.c
				conn, other := c.Dial("client"), c.Dial("other")
				mustSend(t, other, "first")
				began := time.Now()
				_, bad := send(t.Context(), conn, "bad")
				wants(t, "the bad one", bad, codes.Internal, "Ping has ended its goroutine")
				if took := time.Since(began); took > time.Second {
					t.Errorf("its caller was told after %v", took)
				}
				mustSend(t, other, "innocent")
				once(t, agreed(t, c, 0, 1, 2), "first", "bad", "innocent")
				_, lost := send(t.Context(), conn, "lost") // from a backup's reply log, or its execution
				l.dead.Wait()
				if lost == nil || bad.Error() != lost.Error() {
					t.Errorf("the first primary said %q, the second one %q", bad, lost)
				}
				once(t, agreed(t, c, 1, 2), "first", "bad", "innocent", "lost")
			})
		})
	}
}

// TestABackupExecutesOnThroughHandlersThatExit: those of one batch that a backup executes.
func TestABackupExecutesOnThroughHandlersThatExit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := group(t, func(_ context.Context, value string) error {
			if strings.HasSuffix(value, "0") || strings.HasSuffix(value, "1") {
				runtime.Goexit()
			}
			return nil
		})
		conn := c.Dial("client")
		var calls sync.WaitGroup
		var values []string
		for i := range 100 {
			v := fmt.Sprint("value ", i)
			values = append(values, v)
			calls.Go(func() {
				if _, err := send(t.Context(), conn, v); (err != nil) != (i%10 < 2) {
					t.Errorf("%s: %v", v, err)
				}
			})
		}
		calls.Wait()
		once(t, agreed(t, c, 0, 1, 2), values...)
	})
}

// TestInterceptorThatExitsIsAnError: an interceptor of the server's ends the RPC's goroutine.
// Before the turn the call isn't executed, after it the handler's reply is the one.
func TestInterceptorThatExitsIsAnError(t *testing.T) {
	t.Parallel()
	early := valued("bad", func(context.Context, any, *grpc.UnaryServerInfo, grpc.UnaryHandler) (any, error) {
		runtime.Goexit()
		return nil, nil
	})
	late := valued("bad",
		func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
			_, _ = handler(ctx, req)
			runtime.Goexit()
			return nil, nil
		})
	for name, tt := range map[string]struct {
		exits    grpc.UnaryServerInterceptor
		executed bool
	}{"before the turn": {early, false}, "after the turn": {late, true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := group(t, nil, understudytest.ServerOptions(grpc.ChainUnaryInterceptor(tt.exits)))
				conn := c.Dial("client")
				resp, err := send(t.Context(), conn, "bad")
				values := []string{"good"}
				if tt.executed {
					values = append(values, "bad")
					if err != nil || resp.GetValue() != "bad" {
						t.Errorf("executed, and told: %v, %v", resp, err)
					}
				} else {
					wants(t, "the call", err, codes.Internal, "has ended its goroutine")
				}
				mustSend(t, conn, "good")
				once(t, agreed(t, c, 0, 1, 2), values...)
			})
		})
	}
}

// TestPanicIsLoggedWithItsStack: who reads the log finds the line.
func TestPanicIsLoggedWithItsStack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		logged := &lines{}
		c := group(t, func(_ context.Context, value string) error {
			if value == "bad" {
				thePanic()
			}
			return nil
		}, understudytest.Logger(slog.New(slog.NewTextHandler(logged, nil))))
		_, err := send(t.Context(), c.Dial("client"), "bad")
		wants(t, "the call", err, codes.Internal, "Ping panicked")
		synctest.Wait()
		for _, words := range []string{"Ping", "no such thing", "thePanic", "handlers_test.go"} {
			if !logged.have(words) {
				t.Errorf("the log doesn't mention %q", words)
			}
		}
	})
}

func thePanic() { panic("no such thing") }

// TestANilReplyIsAnEmptyMessage: a handler that returns neither a reply nor an error has said
// what gRPC sends then, an empty message.
func TestANilReplyIsAnEmptyMessage(t *testing.T) {
	t.Parallel()
	for name, reply := range map[string]any{"typed": (*wrapperspb.StringValue)(nil), "untyped": nil} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				desc := grpc.ServiceDesc{ServiceName: "test.Nil", HandlerType: (*any)(nil), Methods: []grpc.MethodDesc{{
					MethodName: "Say",
					Handler: func(srv any, ctx context.Context, dec func(any) error,
						i grpc.UnaryServerInterceptor) (any, error) {
						in := new(wrapperspb.StringValue)
						if err := dec(in); err != nil {
							return nil, err
						}
						h := func(context.Context, any) (any, error) { return reply, nil }
						if i == nil {
							return h(ctx, in)
						}
						return i(ctx, in, &grpc.UnaryServerInfo{Server: srv, FullMethod: "/test.Nil/Say"}, h)
					},
				}}}
				c := understudytest.New(t, 2, func(s grpc.ServiceRegistrar) replica.Snapshotter {
					s.RegisterService(&desc, nil)
					return nothing{}
				})
				conn := c.Dial("client")
				for range 2 {
					got := wrapperspb.String("from before")
					ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
					err := conn.Invoke(ctx, "/test.Nil/Say", wrapperspb.String("x"), got)
					cancel()
					if err != nil || got.Value != "" {
						t.Errorf("got %q, %v", got, err)
					}
				}
				c.AwaitExecuted()
			})
		})
	}
}

// nothing is a service's state that has nothing.
type nothing struct{}

func (nothing) Snapshot() (func(io.Writer) error, error) {
	return func(io.Writer) error { return nil }, nil
}
func (nothing) Restore(io.Reader) error { return nil }

// TestAuthenticateSessionThatPanicsRefuses: a hook that panics, or ends its goroutine, refuses,
// and the process lives; one that blocks holds up nobody else.
func TestAuthenticateSessionThatPanicsRefuses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := group(t, nil, understudytest.ReplicaOptions(replica.AuthenticateSession(func(ctx context.Context) error {
			_, err := checkToken(ctx)
			switch {
			case err == nil:
				return nil
			case strings.Contains(err.Error(), "bad token"):
				panic("a secret")
			}
			runtime.Goexit()
			return nil
		})))
		mustSend(t, c.Dial("good", grpc.WithPerRPCCredentials(token("good"))), "first")
		for _, conn := range []*grpc.ClientConn{c.Dial("bad", grpc.WithPerRPCCredentials(token("bad"))),
			c.Dial("none")} {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			_, err := send(ctx, conn, "bad")
			cancel()
			wants(t, "the call", err, codes.DeadlineExceeded, "nothing was sent", "AuthenticateSession has panicked")
			if strings.Contains(err.Error(), "secret") {
				t.Errorf("the caller is told what was panicked with: %v", err)
			}
		}
		once(t, agreed(t, c, 0, 1, 2), "first")
	})
}

// TestOnFailoverThatPanicsHarmsNobody: a hook that blocks, or panics, holds up neither calls nor
// the replica's end.
func TestOnFailoverThatPanicsHarmsNobody(t *testing.T) {
	t.Parallel()
	for name, hook := range map[string]func(chan struct{}){
		"blocks": func(over chan struct{}) { <-over },
		"panics": func(chan struct{}) { panic("no such thing") },
		"exits":  func(chan struct{}) { runtime.Goexit() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				over := make(chan struct{})
				t.Cleanup(func() { close(over) }) // after the cluster's, which stops the replicas
				c := group(t, nil, understudytest.ReplicaOptions(replica.OnFailover(func(replica.Failover) {
					hook(over)
				})))
				conn := c.Dial("client")
				mustSend(t, conn, "first")
				c.Kill(c.Primary())
				mustSend(t, conn, "second")
				once(t, agreed(t, c, c.Primary()), "first", "second")
			})
		})
	}
}
