package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"

	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/internal/wire"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
	"github.com/understudy-rpc/understudy/transport/internal/route"
)

// A Client is the source's side of the multicast connection to one group. It serves one ClientConn,
// and ends with it. Its methods may run concurrently.
//
// Its goroutines are one that follows the election (replicas.go), and for each replica one that
// keeps a stream and reads it (link.go), with a second one that sends while the stream is open.
// close stops them all, and waits. There is none per call.
type Client struct {
	cfg    config
	counts counters
	life   *lifecycle
	work   sync.WaitGroup

	// mu guards what follows, sessions, calls and links included. It is never held across a send,
	// an RPC, or a call of gRPC's that can block.
	mu    sync.Mutex
	store io.Closer
	trust *election.Trusted // set when opened

	group   uint64        // as the store's view has it; 0 before
	view    groupView     // of the store
	adopted bool          // a session was open once
	over    error         // a status: the group was replaced, and every call fails with it
	mark    *pb.StoreMark // as a replica has sealed it
	level   pb.Level
	primary election.Member // of the acknowledged epoch; zero while none is known
	session *session
	links   []*link
	changed chan struct{}            // closed, and another one made, when an attempt that failed may do better
	parted  map[election.Member]bool // who has ended its stream in order
	loss    error                    // DataLoss that no call has been told yet
	// stale asks the goroutine in replicas.go to look at the links again.
	stale chan struct{}

	// Late calls (late.go): how often they were looked for, by a timer that runs while some are in
	// flight.
	looks   uint64
	looking bool
	looker  *time.Timer
}

// DialOptions are what interceptor.DialOptions returns, which says what they do. They serve one
// ClientConn: the replicated: scheme, the load-balancing policy, connections that never go idle and
// come back within a second, windows of flow control of a fixed size (1 MiB for a stream, 4 MiB for
// a connection), and the interceptors. Options of the same kind that come after these take their
// place. Nothing happens before a ClientConn uses them.
func DialOptions(opts ...Option) []grpc.DialOption {
	c := newClient(opts...)
	return append(c.dialOptions(), grpc.WithChainUnaryInterceptor(c.unary), grpc.WithChainStreamInterceptor(c.stream))
}

func newClient(opts ...Option) *Client {
	c := &Client{
		cfg:     newConfig(opts),
		changed: make(chan struct{}),
		stale:   make(chan struct{}, 1),
		parted:  map[election.Member]bool{},
	}
	c.life = newLifecycle(c.cfg.log)
	c.session = newSession()
	c.cfg.monitor.client.Store(c)
	if err := errors.Join(c.cfg.wrong...); err != nil {
		c.life.fail(err)
	}
	return c
}

// dialOptions are those of DialOptions besides the interceptors.
func (c *Client) dialOptions() []grpc.DialOption {
	opts := []grpc.DialOption{
		grpc.WithResolvers(route.Resolvers(c.routes())...),
		grpc.WithNoProxy(),
		grpc.WithIdleTimeout(0),
		grpc.WithStaticStreamWindowSize(wire.StreamWindow), grpc.WithStaticConnWindowSize(wire.ConnWindow),
		grpc.WithConnectParams(grpc.ConnectParams{
			// The first attempt is at once. A process that has died isn't back soon after it, and
			// to dial it would only compete with the failover.
			Backoff: backoff.Config{BaseDelay: 200 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2,
				MaxDelay: time.Second},
			MinConnectTimeout: time.Second,
		}),
	}
	json, err := route.ServiceConfig(c.cfg.serviceConfig)
	if err != nil {
		c.life.fail(err)
		return opts
	}
	return append(opts, grpc.WithDefaultServiceConfig(json))
}

// unary is a grpc.UnaryClientInterceptor.
func (c *Client) unary(
	ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoker grpc.UnaryInvoker,
	opts ...grpc.CallOption,
) error {
	if !c.cfg.isUnreplicated(method) {
		return c.invoke(ctx, method, req, reply, conn, invoker, opts)
	}
	ctx, err := c.unreplicated(ctx, conn)
	if err != nil {
		return err
	}
	return invoker(ctx, method, req, reply, conn, opts...)
}

// stream is a grpc.StreamClientInterceptor.
func (c *Client) stream(
	ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, streamer grpc.Streamer,
	opts ...grpc.CallOption,
) (grpc.ClientStream, error) {
	if method == pb.Connection_Attach_FullMethodName && route.IsChosen(ctx) { // a link's
		return streamer(ctx, desc, conn, method, opts...)
	}
	if !c.cfg.isUnreplicated(method) {
		return nil, statusStreaming(method)
	}
	ctx, err := c.unreplicated(ctx, conn)
	if err != nil {
		return nil, err
	}
	return streamer(ctx, desc, conn, method, opts...)
}

// unreplicated sends a call to the primary's address, or to any.
func (c *Client) unreplicated(ctx context.Context, conn *grpc.ClientConn) (context.Context, error) {
	if err := c.connect(ctx, conn); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return (&route.Choice{Replica: c.primary.Name, Any: true}).In(ctx), nil
}

// connect makes sure that this Client serves conn, and waits until its replicas are known for the
// first time.
func (c *Client) connect(ctx context.Context, conn *grpc.ClientConn) error {
	if ready, err := c.life.serve(conn); ready || err != nil {
		return err
	}
	if !c.life.isOpen() {
		conn.Connect() // has called open when it returns, unless the ClientConn is closed
		if conn.GetState() == connectivity.Shutdown {
			return statusClosing()
		}
	}
	ctx, stop := c.limited(ctx)
	defer stop()
	select {
	case <-c.life.ready:
	case <-c.life.ctx.Done():
	case <-ctx.Done():
		return statusEnded(ctx, false, "the store hasn't told who the replicas are"+c.storeProblem())
	}
	return c.life.ended()
}

// storeProblem says why the store hasn't, if it knows that at once.
func (c *Client) storeProblem() string {
	c.mu.Lock()
	trust := c.trust
	c.mu.Unlock()
	if trust == nil {
		return ""
	}
	p, ok := trust.Election.(problematic)
	if !ok {
		return ""
	}
	ctx, cancel := context.WithTimeout(c.life.ctx, farewell)
	defer cancel()
	if err := p.Problem(ctx); err != nil {
		return ": " + err.Error()
	}
	return ""
}

// problematic is an election that can say why it doesn't answer.
type problematic interface {
	Problem(context.Context) error
}

// limited gives a call without a deadline the end of WithGiveUp. It isn't made a deadline, which
// servers would see.
func (c *Client) limited(ctx context.Context) (context.Context, func()) {
	if _, ok := ctx.Deadline(); ok || c.cfg.giveUp <= 0 {
		return ctx, func() {}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(c.cfg.giveUp, func() { cancel(errGaveUp) })
	return ctx, func() { timer.Stop(); cancel(nil) }
}

// routes is the Client as gRPC's resolver and balancer see it.
func (c *Client) routes() *route.Client {
	return &route.Client{
		Group: func(target string) (string, error) {
			t, err := parseTarget(target)
			return t.group, err
		},
		Open: c.open, Balanced: c.life.balanced, Reached: c.reached, Reconnected: c.reconnected, Close: c.close,
	}
}

// open starts the Client. publish gives the replicas to the ClientConn.
func (c *Client) open(target string, publish func([]route.Address) error) error {
	t, err := parseTarget(target)
	if err != nil {
		c.life.fail(err)
		return err
	}
	if err := c.life.open(); err != nil {
		return err
	}
	elect, store, err := c.cfg.elect(t)
	if err != nil {
		err = fmt.Errorf("transport: %w", err)
		c.life.fail(err)
		return err
	}
	trusted := election.Trust(elect)
	c.mu.Lock()
	c.store, c.trust = store, trusted
	c.mu.Unlock()
	c.work.Go(func() { c.follow(trusted, publish) })
	return nil
}

// close ends the Client with its ClientConn: calls in flight fail as gRPC's do, and no goroutine is
// left.
func (c *Client) close() {
	defer c.cfg.log.Flush(farewell)
	c.goodbye()
	c.life.cancel(nil)
	c.work.Wait()
	c.mu.Lock()
	store := c.store
	c.store = nil
	c.mu.Unlock()
	if store != nil {
		if err := store.Close(); err != nil {
			c.cfg.log.Warn("closing the store's client", "err", err)
		}
	}
}

// goodbye tells the primary that the session is over, so that no takeover waits for it: an orderly
// close of the stream, which the primary answers with its own. It takes a round trip, and no longer
// than farewell. A session with calls in flight isn't over: its end is left to the primary's
// time-out.
func (c *Client) goodbye() {
	c.mu.Lock()
	var gone chan struct{}
	if c.session.unlessDone() == nil {
		for _, l := range c.links {
			if l.up && l.session == c.session && l.isPrimary() {
				gone = l.leave()
			}
		}
	}
	c.mu.Unlock()
	if gone == nil {
		return
	}
	timer := time.NewTimer(farewell)
	defer timer.Stop()
	select {
	case <-gone:
	case <-timer.C:
	}
}

// broadcast tells every call whose last attempt failed that the next one may do better. mu is held.
func (c *Client) broadcast() {
	close(c.changed)
	c.changed = make(chan struct{})
}
