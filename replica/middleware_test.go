package replica_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/auth"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/logging"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/recovery"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/retry"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/selector"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/testing/testpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/understudy-rpc/understudy/understudytest"
)

// token is a client's credential; it goes with RPCs and streams alike.
type token string

func (k token) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "bearer " + string(k)}, nil
}
func (token) RequireTransportSecurity() bool { return false }

// checkToken is the auth function of the tests.
func checkToken(ctx context.Context) (context.Context, error) {
	k, err := auth.AuthFromMD(ctx, "bearer")
	if err == nil && k != "good" {
		err = status.Error(codes.Unauthenticated, "a bad token")
	}
	return ctx, err
}

// counter counts what runs.
type counter struct{ n atomic.Int64 }

func (c *counter) auth(ctx context.Context) (context.Context, error) {
	c.n.Add(1)
	return checkToken(ctx)
}

// log formats what it is given, as loggers do.
func (c *counter) log(_ context.Context, _ logging.Level, msg string, fields ...any) {
	c.n.Add(1)
	_ = fmt.Sprintf("%s %+v", msg, fields)
	for _, f := range fields {
		if m, ok := f.(proto.Message); ok {
			_, _ = protojson.Marshal(m)
		}
	}
}

func (c *counter) recovered(context.Context, any) error {
	return status.Error(codes.Internal, "recovered")
}

var (
	events = logging.WithLogOnEvents(logging.StartCall, logging.FinishCall, logging.PayloadReceived,
		logging.PayloadSent)
	always = selector.MatchFunc(func(context.Context, interceptors.CallMeta) bool { return true })
	often  = []retry.CallOption{retry.WithMax(4), retry.WithBackoff(retry.BackoffLinear(10 * time.Millisecond))}
)

// serverSide are the middleware's server interceptors. Before ours they are the server's one
// interceptor, which gRPC puts first.
func serverSide(c *counter) map[string][2]grpc.ServerOption {
	unary := map[string]grpc.UnaryServerInterceptor{
		"auth":     auth.UnaryServerInterceptor(c.auth),
		"logging":  logging.UnaryServerInterceptor(logging.LoggerFunc(c.log), events),
		"recovery": recovery.UnaryServerInterceptor(recovery.WithRecoveryHandlerContext(c.recovered)),
		"selector": selector.UnaryServerInterceptor(auth.UnaryServerInterceptor(c.auth), always),
	}
	stream := map[string]grpc.StreamServerInterceptor{
		"auth stream":     auth.StreamServerInterceptor(c.auth),
		"logging stream":  logging.StreamServerInterceptor(logging.LoggerFunc(c.log), events),
		"recovery stream": recovery.StreamServerInterceptor(recovery.WithRecoveryHandlerContext(c.recovered)),
	}
	sides := map[string][2]grpc.ServerOption{}
	for name, i := range unary {
		sides[name] = [2]grpc.ServerOption{grpc.UnaryInterceptor(i), grpc.ChainUnaryInterceptor(i)}
	}
	for name, i := range stream {
		sides[name] = [2]grpc.ServerOption{grpc.StreamInterceptor(i), grpc.ChainStreamInterceptor(i)}
	}
	return sides
}

// clientSide are the middleware's client interceptors, as serverSide.
func clientSide(c *counter) map[string][2]grpc.DialOption {
	unary := map[string]grpc.UnaryClientInterceptor{
		"retry":    retry.UnaryClientInterceptor(often...),
		"logging":  logging.UnaryClientInterceptor(logging.LoggerFunc(c.log), events),
		"selector": selector.UnaryClientInterceptor(retry.UnaryClientInterceptor(often...), always),
	}
	sides := map[string][2]grpc.DialOption{}
	for name, i := range unary {
		sides[name] = [2]grpc.DialOption{grpc.WithUnaryInterceptor(i), grpc.WithChainUnaryInterceptor(i)}
	}
	i := logging.StreamClientInterceptor(logging.LoggerFunc(c.log), events)
	sides["logging stream"] = [2]grpc.DialOption{grpc.WithStreamInterceptor(i), grpc.WithChainStreamInterceptor(i)}
	return sides
}

var places = [2]string{"before", "after"}

// TestServerMiddlewareWorksBeforeAndAfter has each of the middleware's server interceptors
// before ours and after it, and kills the primary while calls are in flight.
func TestServerMiddlewareWorksBeforeAndAfter(t *testing.T) {
	t.Parallel()
	for name := range serverSide(new(counter)) {
		for place, where := range places {
			t.Run(name+"/"+where, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					c := new(counter)
					ordinary(t, understudytest.ServerOptions(serverSide(c)[name][place]),
						grpc.WithPerRPCCredentials(token("good")))
					if c.n.Load() == 0 && name != "recovery" && name != "recovery stream" &&
						(name != "auth stream" && name != "logging stream" || where == "before") {
						t.Error("the interceptor was never asked")
					}
					if c.n.Load() > 0 && where == "after" && (name == "auth stream" || name == "logging stream") {
						t.Error("an interceptor after ours has seen the session's stream")
					}
				})
			})
		}
	}
}

// TestClientMiddlewareWorksBeforeAndAfter is the same at the client.
func TestClientMiddlewareWorksBeforeAndAfter(t *testing.T) {
	t.Parallel()
	for name := range clientSide(new(counter)) {
		for place, where := range places {
			t.Run(name+"/"+where, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					ordinary(t, func(*understudytest.Cluster) {}, clientSide(new(counter))[name][place])
				})
			})
		}
	}
}

// ordinary is what must hold whatever interceptors are there: right replies, right errors, and each
// call executed once on every replica, a primary's death among them.
func ordinary(t *testing.T, opt understudytest.Option, dial ...grpc.DialOption) {
	c := group(t, func(context.Context, string) error {
		time.Sleep(3 * time.Millisecond) // so that calls are in flight at any moment
		return nil
	}, opt)
	conn := c.Dial("client", dial...)
	client := testpb.NewTestServiceClient(conn)
	var values []string
	for i := range 3 {
		values = append(values, fmt.Sprint("one after the other ", i))
		mustSend(t, conn, values[i])
	}
	_, err := client.PingError(t.Context(),
		&testpb.PingErrorRequest{Value: "failing", ErrorCodeReturned: uint32(codes.AlreadyExists)})
	failsAsAsked(t, err)
	values = append(values, "failing")

	primary := c.Primary()
	var calls sync.WaitGroup
	for i := range 12 {
		v := fmt.Sprint("at once ", i)
		values = append(values, v)
		calls.Go(func() {
			time.Sleep(time.Duration(i) * time.Millisecond)
			mustSend(t, conn, v)
		})
	}
	calls.Go(func() {
		time.Sleep(8 * time.Millisecond)
		_, err := client.PingError(t.Context(),
			&testpb.PingErrorRequest{Value: "failing as it falls", ErrorCodeReturned: uint32(codes.AlreadyExists)})
		failsAsAsked(t, err)
	})
	values = append(values, "failing as it falls")
	time.Sleep(15 * time.Millisecond)
	c.Kill(primary)
	calls.Wait()

	c.Start(primary)
	c.AwaitInSync(3)
	values = append(values, "at the end")
	mustSend(t, conn, "at the end")
	once(t, agreed(t, c, 0, 1, 2), values...)
}

// failsAsAsked checks an error of PingError.
func failsAsAsked(t *testing.T, err error) {
	t.Helper()
	wants(t, "the call", err, codes.AlreadyExists, "Userspace error")
	details := status.Convert(err).Details()
	if len(details) != 1 || !proto.Equal(details[0].(proto.Message), durationpb.New(42*time.Second)) {
		t.Errorf("the error has the details %v", details)
	}
}
