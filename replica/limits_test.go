package replica_test

import (
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/grpc-ecosystem/go-grpc-middleware/v2/testing/testpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/understudy-rpc/understudy/interceptor"
	"github.com/understudy-rpc/understudy/transport"
	"github.com/understudy-rpc/understudy/understudytest"
)

// TestServeRefusesLimitsThatStreamsNeed: a server whose limits would cut the sessions' streams
// again and again, or leave no stream for calls. (It fails, too, if gRPC has renamed what is read
// here.)
func TestServeRefusesLimitsThatStreamsNeed(t *testing.T) {
	t.Parallel()
	for words, option := range map[string]grpc.ServerOption{
		"grpc.MaxConcurrentStreams(1)": grpc.MaxConcurrentStreams(1),
		"grpc.MaxRecvMsgSize(16384)":   grpc.MaxRecvMsgSize(16 << 10),
		"grpc.MaxSendMsgSize(4096)":    grpc.MaxSendMsgSize(4 << 10),
	} {
		synctest.Test(t, func(t *testing.T) {
			l := newLab(t)
			r, lis := l.join("replica0", &ping{})
			s := grpc.NewServer(append(interceptor.ServerOptions(r), option)...)
			testpb.RegisterTestServiceServer(r.Registrar(s), &ping{})
			mentions(t, "Serve", r.Serve(t.Context(), s, lis), words, "at least")
		})
	}
}

// TestTwoStreamsAreEnough: one is the session's, the calls share the other one.
func TestTwoStreamsAreEnough(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := group(t, nil, understudytest.ServerOptions(grpc.MaxConcurrentStreams(2)))
		conn := c.Dial("client")
		var values []string
		var calls sync.WaitGroup
		for i := range 16 {
			v := strings.Repeat("v", i+1)
			values = append(values, v)
			calls.Go(func() { mustSend(t, conn, v) })
		}
		calls.Wait()
		c.Kill(c.Primary())
		mustSend(t, conn, "after")
		once(t, agreed(t, c, c.Primary()), append(values, "after")...)
	})
}

// TestRequestAboveTheServersLimit is ResourceExhausted, as in plain gRPC, and was executed nowhere;
// one of exactly the limit is taken.
func TestRequestAboveTheServersLimit(t *testing.T) {
	t.Parallel()
	for _, limit := range []int{1 << 20, 2 << 20} {
		synctest.Test(t, func(t *testing.T) {
			c := group(t, nil, understudytest.ServerOptions(grpc.MaxRecvMsgSize(limit)))
			conn := c.Dial("client")
			mustSend(t, conn, "first")
			framing := proto.Size(&testpb.PingRequest{Value: strings.Repeat("m", limit-5)}) - (limit - 5)
			most := strings.Repeat("m", limit-framing)
			_, err := send(t.Context(), conn, most+"x")
			wants(t, "the call", err, codes.ResourceExhausted, "at most")
			mustSend(t, conn, most)
			c.AwaitExecuted()
			mustSend(t, conn, "second")
			once(t, agreed(t, c, 0, 1, 2), "first", most, "second")
		})
	}
}

// TestCallersLimits: our header doesn't count in them, wherever they are given, and what is above
// is told at once.
func TestCallersLimits(t *testing.T) {
	t.Parallel()
	const value, limit = "sixteen bytes...", 18 // with the field's tag and length
	synctest.Test(t, func(t *testing.T) {
		reply := limit + 2 // and its counter
		config := transport.WithServiceConfig(
			`{"methodConfig": [{"name": [{}], "maxRequestMessageBytes": 18, "maxResponseMessageBytes": 20}]}`,
		)
		c := group(t, nil)
		configured := group(t, nil, understudytest.ClientOptions(config))
		for name, conn := range map[string]*grpc.ClientConn{
			"the reply's":           c.Dial("a", grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(reply))),
			"the request's":         c.Dial("b", grpc.WithDefaultCallOptions(grpc.MaxCallSendMsgSize(limit))),
			"of the service config": configured.Dial("c"),
		} {
			resp, err := send(t.Context(), conn, value)
			if err != nil || resp.GetValue() != value || proto.Size(resp) != reply {
				t.Errorf("%s: %v of %d bytes, %v", name, resp, proto.Size(resp), err)
			}
			if name != "the reply's" {
				_, err = send(t.Context(), conn, value+"x")
				wants(t, "the call", err, codes.ResourceExhausted, "19 bytes", "at most 18")
			}
		}
		if n := executed(agreed(t, c, 0, 1, 2)); len(n) != 1 || n[value] != 2 {
			t.Errorf("executed were %v", n)
		}
	})
}
