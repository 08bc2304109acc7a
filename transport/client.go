package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"

	"github.com/understudy-rpc/understudy/internal/source"
	"github.com/understudy-rpc/understudy/internal/trust"
	"github.com/understudy-rpc/understudy/transport/internal/route"
)

// client is the source's side of the multicast connection to one group. It serves one ClientConn,
// and ends with it. Its methods may run concurrently.
//
// Its goroutines are one that follows the election (replicas.go), and for each replica one that
// keeps a stream and reads it (stream.go), with a second one that sends while the stream is open.
// close stops them all, and waits. There is none per call.
type client struct {
	cfg    config
	calls  atomic.Uint64 // begun
	life   *lifecycle
	source *source.Source
	work   sync.WaitGroup

	mu    sync.Mutex // guards what follows
	store io.Closer
	trust *trust.Store // nil until opened
}

func newClient(opts ...Option) *client {
	c := &client{cfg: newConfig(opts)}
	c.life = newLifecycle(c.cfg.log)
	c.source = source.New(c.life.ctx, c.cfg.log, c.cfg.elapsed)
	c.cfg.monitor.client.Store(c)
	if err := errors.Join(c.cfg.wrong...); err != nil {
		c.life.fail(err)
	}
	return c
}

// connect makes sure that this client serves conn, and waits until its replicas are known for the
// first time.
func (c *client) connect(ctx context.Context, conn *grpc.ClientConn) error {
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
func (c *client) storeProblem() string {
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

// limited gives a call without a deadline the end of WithGiveUp. It isn't made a deadline, which
// servers would see.
func (c *client) limited(ctx context.Context) (context.Context, func()) {
	if _, ok := ctx.Deadline(); ok || c.cfg.giveUp <= 0 {
		return ctx, func() {}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(c.cfg.giveUp, func() { cancel(errGaveUp) })
	return ctx, func() { timer.Stop(); cancel(nil) }
}

// routes is the client as gRPC's resolver and balancer see it.
func (c *client) routes() *route.Client {
	return &route.Client{
		Group: func(target string) (string, error) {
			t, err := parseTarget(target)
			return t.group, err
		},
		Open: c.open, Balanced: c.life.balanced, Reached: c.source.Reached, Reconnected: c.source.Reconnected,
		Close: c.close,
	}
}

// open starts the client. publish gives the replicas to the ClientConn.
func (c *client) open(target string, publish func([]route.Address) error) error {
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
	trusted := trust.New(elect)
	c.source.Trust(trusted)
	c.mu.Lock()
	c.store, c.trust = store, trusted
	c.mu.Unlock()
	c.work.Go(func() { c.follow(trusted, publish) })
	return nil
}

// close ends the client with its ClientConn: calls in flight fail as gRPC's do, and no goroutine is
// left.
func (c *client) close() {
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

// goodbye tells the primary that the session is over. It takes a round trip, and no longer than
// farewell.
func (c *client) goodbye() {
	gone := c.source.Goodbye()
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
