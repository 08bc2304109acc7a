package transport_test

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/understudy-rpc/understudy/election"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
	"github.com/understudy-rpc/understudy/transport"
)

// TestWrongTargetsAreTold: gRPC's own idea of a target doesn't get in the way, and a wrong one is
// told before anything is sent.
func TestWrongTargetsAreTold(t *testing.T) {
	t.Parallel()
	for target, ok := range map[string]bool{
		"replicated://127.0.0.1:2379,127.0.0.1:2380/greeter": true,
		"replicated://[::1]:1,[::2]:2/greeter":               true, // not a URL
		"127.0.0.1:50051":                                    false,
		"dns:///localhost:50051":                             false,
		"passthrough:///a:1":                                 false,
		"etcd://127.0.0.1:1/test":                            false,
		"replicated://a:1":                                   false,
	} {
		t.Run(target, func(t *testing.T) {
			t.Parallel()
			within(t, func(t *testing.T, ctx context.Context) {
				c := newCluster(t, "a")
				conn, err := grpc.NewClient(target,
					append(transport.DialOptions(c.options()...), c.dialer(),
						grpc.WithTransportCredentials(insecure.NewCredentials()))...)
				if err != nil {
					t.Fatal(err)
				}
				defer c.stop()
				defer func() { _ = conn.Close() }()
				r := <-sayLater(ctx, conn, "hello")
				if ok {
					must(t, "hello from a", r)
					return
				}
				fails(t, r.err, codes.FailedPrecondition, "transport: the target")
			})
		})
	}
}

// TestOptionsServeOneClientConn: the options of one DialOptions serve one ClientConn; a second use
// is told to both.
func TestOptionsServeOneClientConn(t *testing.T) {
	t.Parallel()
	within(t, func(t *testing.T, ctx context.Context) {
		c := newCluster(t, "a")
		opts := append(transport.DialOptions(c.options()...), c.dialer(),
			grpc.WithTransportCredentials(insecure.NewCredentials()))
		defer c.stop()
		var conns []*grpc.ClientConn
		for range 2 {
			conn, err := grpc.NewClient(target, opts...)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			conns = append(conns, conn)
		}
		must(t, "hello from a", <-sayLater(ctx, conns[0], "hello"))
		for _, conn := range []*grpc.ClientConn{conns[1], conns[0]} {
			_, err := say(ctx, conn, "hello")
			fails(t, err, codes.FailedPrecondition, "serve one ClientConn")
		}
	})
}

// TestUsersServiceConfigIsMerged: the user's is merged with our policy; its timeouts hold for a
// call, and not for our streams.
func TestUsersServiceConfigIsMerged(t *testing.T) {
	t.Parallel()
	within(t, func(t *testing.T, ctx context.Context) {
		c := newCluster(t, "a")
		c.answer = func(q *request) *answer {
			if q.header.SeqNum > 1 {
				return &answer{header: &pb.Header{SourceEpoch: 10, Refusal: pb.Refusal_REFUSAL_NOT_PRIMARY},
					delay: 900 * time.Millisecond, err: status.Error(codes.Unavailable, "tries another attempt")}
			}
			return nil
		}
		conn := c.dial(transport.WithServiceConfig(`{"methodConfig": [{"name": [{}], "timeout": "2s"}]}`))
		must(t, "hello from a", <-sayLater(ctx, conn, "hello"))
		r := <-sayLater(ctx, conn, "slow")
		fails(t, r.err, codes.DeadlineExceeded, "")
		if r.took != 2*time.Second {
			t.Errorf("took %v", r.took)
		}
		before := c.stream("a")
		time.Sleep(10 * time.Second)
		if c.stream("a") != before {
			t.Error("the timeout has ended our stream")
		}
	})
}

// TestReplacedPolicyIsTold: a service config that takes our policy away is told by the first call,
// before anything is sent.
func TestReplacedPolicyIsTold(t *testing.T) {
	t.Parallel()
	for name, opts := range map[string]struct {
		more []grpc.DialOption
		ours []transport.Option
		says string
	}{
		"gRPC's option": {more: []grpc.DialOption{grpc.WithDefaultServiceConfig(
			`{"loadBalancingConfig": [{"round_robin": {}}]}`)}, says: "WithServiceConfig"},
		"no policy": {more: []grpc.DialOption{grpc.WithDefaultServiceConfig(`{}`)}, says: "WithServiceConfig"},
		"ours": {ours: []transport.Option{transport.WithServiceConfig(
			`{"loadBalancingConfig": [{"round_robin": {}}]}`)}, says: "loadBalancingConfig would replace"},
		"policy": {ours: []transport.Option{transport.WithServiceConfig(
			`{"loadBalancingPolicy": "round_robin"}`)}, says: "loadBalancingPolicy would replace"},
		"JSON": {ours: []transport.Option{transport.WithServiceConfig(`{`)}, says: "WithServiceConfig"},
		"methods": {ours: []transport.Option{transport.WithServiceConfig(`{"methodConfig": 1}`)},
			says: "methodConfig"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			within(t, func(t *testing.T, ctx context.Context) {
				c := newCluster(t, "a", "b")
				conn := c.dialWith(opts.more, opts.ours...)
				_, err := say(ctx, conn, "hello")
				fails(t, err, codes.FailedPrecondition, opts.says)
				_, err = healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
				fails(t, err, codes.FailedPrecondition, opts.says)
				if n := len(c.received()) + len(c.streams()); n != 0 {
					t.Errorf("%d calls and streams arrived", n)
				}
			})
		})
	}
}

// secret is per-RPC credentials.
type secret struct{ asked atomic.Int32 }

func (k *secret) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	k.asked.Add(1)
	return map[string]string{"authorization": "secret"}, nil
}
func (k *secret) RequireTransportSecurity() bool { return false }

// TestCredentialsHoldForStreams: per-RPC credentials and stream interceptors hold for our streams
// too.
func TestCredentialsHoldForStreams(t *testing.T) {
	t.Parallel()
	within(t, func(t *testing.T, ctx context.Context) {
		c := newCluster(t, "a", "b")
		var intercepted atomic.Int32
		conn := c.dialWith([]grpc.DialOption{
			grpc.WithPerRPCCredentials(new(secret)),
			grpc.WithChainStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn,
				method string, streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
				intercepted.Add(1)
				return streamer(metadata.AppendToOutgoingContext(ctx, "seen", method), desc, cc, method, opts...)
			}),
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(100)), // not for our streams
		})
		must(t, "hello from a", <-sayLater(ctx, conn, "hello"))
		for _, s := range c.streams() {
			for key, want := range map[string]string{"authorization": "secret",
				"seen": pb.Connection_Attach_FullMethodName} {
				if v := metadata.ValueFromIncomingContext(s.ctx, key); len(v) != 1 || v[0] != want {
					t.Errorf("%s: %v", key, v)
				}
			}
		}
		for _, q := range c.received() {
			if v := metadata.ValueFromIncomingContext(q.ctx, "authorization"); len(v) != 1 || v[0] != "secret" {
				t.Errorf("authorization: %v", v)
			}
		}
		if n := intercepted.Load(); n != 2 {
			t.Errorf("%d streams intercepted", n)
		}
		run := c.run(2, 2)
		run.Sealed = make([]byte, 1000)
		c.stream("b").send(&pb.AttachResponse{SourceOrderInfo: []*pb.Run{run}})
		synctest.Wait()
		c.stream("b") // lives
	})
}

// TestUnreplicatedCallsGoToThePrimary: what each replica serves for itself goes to the primary,
// untouched, or while none is known to any replica.
func TestUnreplicatedCallsGoToThePrimary(t *testing.T) {
	t.Parallel()
	within(t, func(t *testing.T, ctx context.Context) {
		c := newCluster(t, "a", "b")
		c.hello = func(*stream, *pb.Hello) bool { return true } // no Welcome: no primary
		conn := c.dial(transport.WithUnreplicated("test.Echo"))
		if _, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{}); err != nil {
			t.Fatal(err)
		}
		watch, err := healthpb.NewHealthClient(conn).Watch(ctx, &healthpb.HealthCheckRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := watch.Recv(); err != nil {
			t.Fatal(err)
		}
		c.set(func() {
			c.hello = nil
			c.answer = func(*request) *answer { return &answer{} }
		})
		for _, s := range c.streams() {
			s.kill(nil)
		}
		time.Sleep(time.Second)
		for range 10 {
			must(t, "hello from a", <-sayLater(ctx, conn, "hello"))
		}
		for _, q := range c.received() {
			if q.header != nil {
				t.Errorf("a header: %v", q.header)
			}
		}
		c.crash("a")
		time.Sleep(time.Second)
		must(t, "hello from b", <-sayLater(ctx, conn, "hello"))
	})
}

// TestCallsWaitForTheStore: calls wait for the store, until their own end; what is known keeps
// working without it.
func TestCallsWaitForTheStore(t *testing.T) {
	t.Parallel()
	within(t, func(t *testing.T, ctx context.Context) {
		c := newCluster(t, "a")
		conn := c.dial(transport.WithStore(store{c: c, away: true}))
		one, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		_, err := say(one, conn, "hello")
		fails(t, err, codes.DeadlineExceeded, "nothing was sent (the store hasn't told who the replicas are)")
		r := <-sayLater(context.Background(), conn, "hello")
		fails(t, r.err, codes.Unknown, "gave up")
	})
	within(t, func(t *testing.T, ctx context.Context) {
		c := newCluster(t, "a")
		conn := c.dial(transport.WithDialled(func([]string, string) (election.Election, io.Closer, error) {
			return nil, nil, errors.New("no such store")
		}))
		_, err := say(ctx, conn, "hello")
		fails(t, err, codes.FailedPrecondition, "no such store")
	})
	within(t, func(t *testing.T, ctx context.Context) {
		c := newCluster(t, "a")
		closed := &closer{}
		conn := c.dial(transport.WithDialled(func(at []string, group string) (election.Election, io.Closer, error) {
			if group != "greeter" || !slices.Equal(at, []string{"127.0.0.1:2379"}) {
				t.Errorf("%q at %q", group, at)
			}
			return store{c: c}, closed, nil
		}))
		must(t, "hello from a", <-sayLater(ctx, conn, "hello"))
		_ = conn.Close()
		if closed.times != 1 {
			t.Errorf("the store's client was closed %d times", closed.times)
		}
	})
}

type closer struct{ times int }

func (c *closer) Close() error { c.times++; return nil }

// TestReplicasAreSpokenToWhileTheirStreamLives: who has left the election is still spoken to while
// the stream lives, and no longer; who has another address is found there; who is new is found.
func TestReplicasAreSpokenToWhileTheirStreamLives(t *testing.T) {
	t.Parallel()
	within(t, func(t *testing.T, ctx context.Context) {
		c := newCluster(t, "a", "b")
		conn := c.dial()
		must(t, "hello from a", <-sayLater(ctx, conn, "hello"))
		c.stream("b")
		c.list() // the store has lost them
		time.Sleep(time.Second)
		must(t, "hello from a", <-sayLater(ctx, conn, "hello"))
		if n := len(c.streams()); n != 2 {
			t.Fatalf("%d streams", n)
		}
		c.stream("b").kill(nil)
		time.Sleep(time.Second)
		if n := len(c.streams()); n != 1 {
			t.Errorf("%d streams, though b is gone from the list and its stream has ended", n)
		}
		c.crash("b")
		c.start("b", "b:2", 7)
		c.start("c", "c:1", 3)
		c.list("a", "b", "c")
		time.Sleep(time.Second)
		for _, name := range []string{"a", "b", "c"} {
			if len(c.stream(name).sent()) == 0 {
				t.Errorf("nothing sent to %s", name)
			}
		}
		c.start("b", "b:3", 8) // while the old process still runs
		c.mu.Lock()
		old := c.replicas["b:2"]
		delete(c.replicas, "b:2")
		c.mu.Unlock()
		defer old.srv.Stop()
		c.list("a", "b", "c")
		time.Sleep(time.Second)
		c.mu.Lock()
		left := len(old.streams)
		c.mu.Unlock()
		if left != 0 || len(c.stream("b").sent()) == 0 {
			t.Errorf("%d streams to the old address", left)
		}

		// A store that was restored, or replaced, is refused.
		good := c.now
		for _, bad := range []election.State{{Revision: good.Revision - 1},
			{Revision: good.Revision + 1, Group: election.Group{ID: 1}}} {
			c.show(bad)
			c.stream("c").kill(nil)
			time.Sleep(time.Second)
			c.stream("c")
		}
	})
}

// TestReplicasThatReturnAreSpokenTo: a replica that was away is spoken to within about a second of
// its return, however long it was away.
func TestReplicasThatReturnAreSpokenTo(t *testing.T) {
	t.Parallel()
	within(t, func(t *testing.T, ctx context.Context) {
		c := newCluster(t, "a", "b")
		conn := c.dial()
		must(t, "hello from a", <-sayLater(ctx, conn, "hello"))
		c.crash("b")
		time.Sleep(40 * time.Second)
		c.start("b", "b:1", 9)
		time.Sleep(2300 * time.Millisecond) // connection and stream, each 1.2 s at most
		c.stream("b")
	})
}

// TestCloseTellsThePrimary: closing tells the primary that the session is over, unless calls are in
// flight; it doesn't wait long for the answer.
func TestCloseTellsThePrimary(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name             string
		deaf, calls, bye bool
		took             time.Duration
	}{
		{name: "idle", bye: true},
		{name: "unanswered", bye: true, deaf: true, took: 100 * time.Millisecond},
		{name: "with a call in flight", calls: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			within(t, func(t *testing.T, ctx context.Context) {
				c := newCluster(t, "a", "b")
				c.deaf = tt.deaf
				conn := c.dial()
				must(t, "hello from a", <-sayLater(ctx, conn, "hello"))
				if tt.calls {
					c.set(func() { c.answer = silentA })
					sayLater(ctx, conn, "hello")
				}
				a, b := c.stream("a"), c.stream("b")
				began := time.Now()
				_ = conn.Close()
				if took := time.Since(began); took != tt.took {
					t.Errorf("took %v", took)
				}
				synctest.Wait()
				for _, s := range []*stream{a, b} {
					s.mu.Lock()
					if want := tt.bye && s == a; s.goodbye != want {
						t.Errorf("%s: goodbye %v", s.replica.member.Name, s.goodbye)
					}
					s.mu.Unlock()
				}
			})
		})
	}
}

// TestUnacknowledgedStreamsBeginAnew: a stream on which nothing that was sent is acknowledged
// begins anew, with all of it; one on which all is acknowledged stays, however long nothing is
// sent.
func TestUnacknowledgedStreamsBeginAnew(t *testing.T) {
	t.Parallel()
	within(t, func(t *testing.T, ctx context.Context) {
		c := newCluster(t, "a", "b")
		c.silent = true
		conn := c.dial()
		must(t, "hello from a", <-sayLater(ctx, conn, "hello"))
		first := c.stream("b")
		time.Sleep(1500 * time.Millisecond) // it has begun anew once
		again := c.stream("b")
		if again == first {
			t.Error("the stream that isn't heard is still there")
		}
		if sent := again.frames(); len(sent) != 1 || sent[0].SeqNum != 1 {
			t.Errorf("the next stream had %v", sent)
		}
		again.send(&pb.AttachResponse{FramesUpTo: 1})
		time.Sleep(5 * time.Second)
		if c.stream("b") != again {
			t.Error("a stream that is heard, and has nothing to say, was ended")
		}
	})
}
