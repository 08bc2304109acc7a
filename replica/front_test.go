package replica_test

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/auth"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/recovery"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/testing/testpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/understudy-rpc/understudy/interceptor"
	understudyv1 "github.com/understudy-rpc/understudy/proto/understudy/v1"
	"github.com/understudy-rpc/understudy/replica"
	"github.com/understudy-rpc/understudy/understudytest"
)

// valued is a front door with something to say to calls of one value only.
func valued(value string, say grpc.UnaryServerInterceptor) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		if p, ok := req.(*testpb.PingRequest); ok && p.Value == value {
			return say(ctx, req, info, handler)
		}
		return handler(ctx, req)
	}
}

// TestInterceptorThatAnswersExecutesNothing: an interceptor after ours that answers by itself.
// Nothing is executed, and a failover makes nothing of it.
func TestInterceptorThatAnswersExecutesNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		answers := valued("known", func(context.Context, any, *grpc.UnaryServerInfo, grpc.UnaryHandler) (any, error) {
			return &testpb.PingResponse{Value: "known", Counter: -1}, nil
		})
		c := group(t, nil, understudytest.ServerOptions(grpc.ChainUnaryInterceptor(answers)))
		conn := c.Dial("client")
		mustSend(t, conn, "first")
		var trailer metadata.MD
		resp, err := send(t.Context(), conn, "known", grpc.Trailer(&trailer))
		if err != nil || resp.GetCounter() != -1 {
			t.Errorf("got %v, %v", resp, err)
		}
		mustSend(t, conn, "second")
		c.Kill(c.Primary())
		mustSend(t, conn, "third")
		once(t, agreed(t, c, c.Primary()), "first", "second", "third")
		if resp, err := send(t.Context(), conn, "known"); err != nil || resp.GetCounter() != -1 {
			t.Errorf("after the failover: got %v, %v", resp, err)
		}
	})
}

// TestAnswersWithoutOurHeaderAreNotBelieved: one that answers before ours. The client can't tell
// what became of the call, and says so.
func TestAnswersWithoutOurHeaderAreNotBelieved(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		answers := valued("known", func(context.Context, any, *grpc.UnaryServerInfo, grpc.UnaryHandler) (any, error) {
			return &testpb.PingResponse{Value: "known", Counter: -1}, nil
		})
		c := group(t, nil, understudytest.ServerOptions(grpc.UnaryInterceptor(answers)))
		conn := c.Dial("client")
		_, err := send(t.Context(), conn, "known")
		wants(t, "the call", err, codes.Internal, "without a valid header")
		mustSend(t, conn, "other")
		once(t, agreed(t, c, 0, 1, 2), "other")
	})
}

// TestInterceptorThatPanicsLeavesNoCallInFlight: an interceptor panics before or after the turn,
// before ours or after it, with the middleware's recovery before or after ours.
func TestInterceptorThatPanicsLeavesNoCallInFlight(t *testing.T) {
	t.Parallel()
	recovered := recovery.UnaryServerInterceptor(recovery.WithRecoveryHandlerContext(new(counter).recovered))
	early := valued("bad", func(context.Context, any, *grpc.UnaryServerInfo, grpc.UnaryHandler) (any, error) {
		panic("early")
	})
	late := valued("bad",
		func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
			_, _ = handler(ctx, req)
			panic("late")
		})
	for name, tt := range map[string]struct {
		options  []grpc.ServerOption
		executed bool
	}{
		"early, recovery before": {[]grpc.ServerOption{grpc.UnaryInterceptor(recovered),
			grpc.ChainUnaryInterceptor(early)}, false},
		"early, recovery after": {[]grpc.ServerOption{grpc.ChainUnaryInterceptor(recovered, early)},
			false},
		"late, recovery before": {[]grpc.ServerOption{grpc.UnaryInterceptor(recovered),
			grpc.ChainUnaryInterceptor(late)}, true},
		"late, recovery after": {[]grpc.ServerOption{grpc.ChainUnaryInterceptor(recovered, late)},
			true},
		"early, all before ours": {[]grpc.ServerOption{grpc.UnaryInterceptor(chained(recovered, early))},
			false},
		"late, all before ours": {[]grpc.ServerOption{grpc.UnaryInterceptor(chained(recovered, late))},
			true},
		"late, recovery both before and after": {[]grpc.ServerOption{grpc.UnaryInterceptor(recovered),
			grpc.ChainUnaryInterceptor(recovered, late)}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := group(t, nil, understudytest.ServerOptions(tt.options...))
				conn := c.Dial("client")
				values := []string{"first"}
				mustSend(t, conn, "first")
				began := time.Now()
				_, err := send(t.Context(), conn, "bad")
				wants(t, "the call", err, codes.Internal, "recovered")
				if took := time.Since(began); took > time.Second {
					t.Errorf("the error took %v", took)
				}
				if tt.executed {
					values = append(values, "bad")
				}
				mustSend(t, conn, "second")
				once(t, agreed(t, c, 0, 1, 2), append(values, "second")...)
				c.Kill(c.Primary())
				mustSend(t, conn, "third")
				once(t, agreed(t, c, c.Primary()), append(values, "second", "third")...)
			})
		})
	}
}

// TestInterceptorThatDoesNotWaitLosesNoReply: an interceptor that answers while the call has its
// turn, or before it has: then it never has.
func TestInterceptorThatDoesNotWaitLosesNoReply(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		before   time.Duration // the turn
		executed bool
	}{
		"for the turn's end":       {0, true},
		"for the turn's beginning": {2 * time.Second, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				impatient := valued("slow",
					func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any,
						error) {
						go func() {
							time.Sleep(tt.before)
							_, _ = handler(context.WithoutCancel(ctx), req)
						}()
						time.Sleep(time.Second)
						return nil, status.Error(codes.Unavailable, "too slow")
					})
				slow := func(_ context.Context, value string) error {
					if value == "slow" {
						time.Sleep(3 * time.Second)
					}
					return nil
				}
				c := group(t, slow, understudytest.ServerOptions(grpc.ChainUnaryInterceptor(impatient)))
				conn := c.Dial("client")
				values := []string{"first"}
				mustSend(t, conn, "first")
				resp, err := send(t.Context(), conn, "slow")
				if tt.executed {
					values = append(values, "slow")
					if err != nil || resp.GetValue() != "slow" {
						t.Errorf("executed, and told: %v, %v", resp, err)
					}
				} else {
					wants(t, "the call", err, codes.Unavailable, "too slow")
				}
				time.Sleep(5 * time.Second) // fake: a turn that comes late would have come
				mustSend(t, conn, "second")
				once(t, agreed(t, c, 0, 1, 2), append(values, "second")...)
			})
		})
	}
}

// TestPanicBeforeTheTurnIsIssuedAgain: a panic that somebody before ours tells as Unavailable.
// The client issues the call again, under the same seqNum, and it has its turn.
func TestPanicBeforeTheTurnIsIssuedAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		recovered := recovery.UnaryServerInterceptor(recovery.WithRecoveryHandler(func(p any) error {
			return status.Errorf(codes.Unavailable, "%v", p)
		}))
		a, panicked := new(arrivals), false
		once1 := valued("bad",
			func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
				if !panicked {
					panicked = true
					panic("once")
				}
				return handler(ctx, req)
			})
		c := group(t, nil, understudytest.ServerOptions(grpc.UnaryInterceptor(chained(a.note, recovered)),
			grpc.ChainUnaryInterceptor(once1)))
		mustSend(t, c.Dial("client"), "bad")
		if times, q := a.of("bad"); times != 2 || q != 1 {
			t.Errorf("it arrived %d times, under %d seqNums", times, q)
		}
		once(t, agreed(t, c, 0, 1, 2), "bad")
	})
}

// chained makes one interceptor of two.
func chained(outer, inner grpc.UnaryServerInterceptor) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		return outer(ctx, req, info, func(ctx context.Context, req any) (any, error) {
			return inner(ctx, req, info, handler)
		})
	}
}

// TestCallsWithoutATokenAreExecutedNowhere: calls without the right token are refused, and
// executed nowhere; the session's stream isn't the chain's business.
func TestCallsWithoutATokenAreExecutedNowhere(t *testing.T) {
	t.Parallel()
	for place, where := range places {
		t.Run(where, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := group(t, nil, understudytest.ServerOptions(serverSide(new(counter))["auth"][place],
					grpc.ChainStreamInterceptor(auth.StreamServerInterceptor(checkToken))))
				good, bad, none := c.Dial("good", grpc.WithPerRPCCredentials(token("good"))),
					c.Dial("bad", grpc.WithPerRPCCredentials(token("bad"))), c.Dial("none")
				mustSend(t, good, "first")
				for range 3 {
					_, err := send(t.Context(), bad, "bad")
					wants(t, "the call", err, codes.Unauthenticated, "a bad token")
					_, err = send(t.Context(), none, "none")
					wants(t, "the call", err, codes.Unauthenticated, "with bearer")
				}
				mustSend(t, good, "second")
				once(t, agreed(t, c, 0, 1, 2), "first", "second")
				c.Kill(c.Primary())
				_, err := send(t.Context(), bad, "bad")
				wants(t, "the call", err, codes.Unauthenticated, "a bad token")
				mustSend(t, good, "third")
				once(t, agreed(t, c, c.Primary()), "first", "second", "third")
			})
		})
	}
}

// TestAuthBeforeOursOnStreams: an auth interceptor for streams that is listed before ours sees the
// session's stream. With a token there all is well; without one the caller is told at once.
func TestAuthBeforeOursOnStreams(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := group(
			t, nil, understudytest.ServerOptions(grpc.StreamInterceptor(auth.StreamServerInterceptor(checkToken))),
		)
		mustSend(t, c.Dial("good", grpc.WithPerRPCCredentials(token("good"))), "first")
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		_, err := send(ctx, c.Dial("none"), "none")
		wants(t, "the call", err, codes.Unauthenticated, "nothing was sent",
			"every replica refuses this client", "with bearer")
		if ctx.Err() != nil {
			t.Error("the call waited for its deadline")
		}
		once(t, agreed(t, c, 0, 1, 2), "first")
	})
}

// TestAuthenticateSessionRefusesStreams: the hook for the session's stream.
func TestAuthenticateSessionRefusesStreams(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := group(t, nil, understudytest.ReplicaOptions(replica.AuthenticateSession(func(ctx context.Context) error {
			_, err := checkToken(ctx)
			return err
		})))
		mustSend(t, c.Dial("good", grpc.WithPerRPCCredentials(token("good"))), "first")
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		_, err := send(ctx, c.Dial("bad", grpc.WithPerRPCCredentials(token("bad"))), "bad")
		wants(t, "the call", err, codes.Unauthenticated, "nothing was sent", "a bad token")
		if ctx.Err() != nil {
			t.Error("the call waited for its deadline")
		}
		once(t, agreed(t, c, 0, 1, 2), "first")
	})
}

// TestServerOptionsMayStandAnywhere: grpc.NewServer with ours first, last, and between.
func TestServerOptionsMayStandAnywhere(t *testing.T) {
	t.Parallel()
	guard := []grpc.ServerOption{grpc.ChainUnaryInterceptor(auth.UnaryServerInterceptor(checkToken)),
		grpc.ChainStreamInterceptor(auth.StreamServerInterceptor(checkToken))}
	for i, name := range []string{"ours first", "ours last", "ours between"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t)
				var states []*ping
				for n := range 3 {
					p := &ping{}
					r, lis := l.join(fmt.Sprint("replica", n), p)
					ours := interceptor.ServerOptions(r)
					options := [][]grpc.ServerOption{append(ours, guard...),
						append(append([]grpc.ServerOption(nil), guard...),
							ours...), append([]grpc.ServerOption{guard[0]}, append(ours, guard[1])...)}[i]
					s := grpc.NewServer(options...)
					testpb.RegisterTestServiceServer(r.Registrar(s), p)
					l.serve(r, s, lis)
					states = append(states, p)
				}
				good := l.dial("good", grpc.WithPerRPCCredentials(token("good")))
				mustSend(t, good, "x")
				_, err := send(t.Context(), l.dial("bad", grpc.WithPerRPCCredentials(sessionOnly{token("good")})), "y")
				wants(t, "the call", err, codes.Unauthenticated, "with bearer")
				time.Sleep(time.Second) // fake: until the backups have executed
				for _, p := range states {
					once(t, p.took(), "x")
				}
			})
		})
	}
}

// sessionOnly is a credential for the session's stream, and none for calls.
type sessionOnly struct{ token }

func (k sessionOnly) GetRequestMetadata(ctx context.Context, uri ...string) (map[string]string, error) {
	info, _ := credentials.RequestInfoFromContext(ctx)
	if info.Method != understudyv1.Connection_Attach_FullMethodName {
		return nil, nil
	}
	return k.token.GetRequestMetadata(ctx, uri...)
}

// TestInterceptorsAfterOursSeeACallOnce: an interceptor before ours sees every copy of a call,
// one after it the call once.
func TestInterceptorsAfterOursSeeACallOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		before, after := new(arrivals), new(arrivals)
		l := &loss{value: "x"}
		l.c = group(t, l.within,
			understudytest.ServerOptions(grpc.UnaryInterceptor(before.note), grpc.ChainUnaryInterceptor(after.note)))
		c := l.c
		conn := c.Dial("client")
		mustSend(t, conn, "first")
		mustSend(t, conn, "x")
		if times, q := before.of("x"); times != 2 || q != 1 {
			t.Errorf("before ours it was seen %d times under %d seqNums, want 2 under 1", times, q)
		}
		if times, _ := after.of("x"); times != 1 {
			t.Errorf("after ours it was seen %d times, want once", times)
		}
		once(t, agreed(t, c, 0, 1, 2), "first", "x")
	})
}
