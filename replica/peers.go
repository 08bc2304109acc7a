package replica

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/internal/wire"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// maxPeerMessage bounds a message between replicas: a queue's bound, and the frame that overran it.
const maxPeerMessage = maxQueueBytes + wire.MaxMessage + 1<<20

// peers is one incarnation's connections to the other replicas, by address.
type peers struct {
	r     *env
	mu    sync.Mutex // guards conns, and when each was asked for
	conns map[string]*peerConn
}

// peerConn is the way to one address. A connection that says nothing may be half-open: a NAT has
// forgotten it, or the machine at the other end is gone. Nobody tells, and a new RPC on it would
// hang as the one before has. So it is closed when an RPC has ended by its context while nothing
// was heard there, and the next RPC makes another one.
type peerConn struct {
	cc    *grpc.ClientConn
	asked time.Duration // when it was asked for last

	clock func() time.Duration
	heard atomic.Int64             // when something was read last, by clock
	conn  atomic.Pointer[net.Conn] // made last
}

func newPeers(r *env) *peers { return &peers{r: r, conns: map[string]*peerConn{}} }

// client returns a client of the replica at an address, whose connection is made if there is none.
// One that is tried in vain is tried again every silence/2, so that whoever waits for silence sees
// a try. (grpc.ClientConn.ResetConnectBackoff would try at once; it races with new subconnections.)
func (p *peers) client(addr string) (pb.PeerClient, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conns == nil {
		return nil, errStopped
	}
	if c := p.conns[addr]; c != nil {
		c.asked = p.r.clock()
		return pb.NewPeerClient(c.cc), nil
	}
	creds := p.r.config.peerCreds
	if creds == nil {
		creds = insecure.NewCredentials()
	}
	dial := p.r.config.dial
	if dial == nil {
		dial = func(ctx context.Context, addr string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", addr)
		}
	}
	c := &peerConn{clock: p.r.clock, asked: p.r.clock()}
	cc, err := grpc.NewClient("passthrough:///"+addr,
		grpc.WithTransportCredentials(creds), grpc.WithIdleTimeout(0),
		grpc.WithStaticStreamWindowSize(wire.StreamWindow), grpc.WithStaticConnWindowSize(wire.ConnWindow),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxPeerMessage), grpc.MaxCallSendMsgSize(maxPeerMessage)),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: reconnect / 5, Multiplier: 1.6, MaxDelay: silence / 2},
			MinConnectTimeout: time.Second,
		}),
		grpc.WithNoProxy(),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			conn, err := dial(ctx, addr)
			if err != nil {
				return nil, err
			}
			c.conn.Store(&conn)
			return heardConn{conn, c}, nil
		}),
		grpc.WithUnaryInterceptor(c.unary), grpc.WithStreamInterceptor(c.stream),
	)
	if err != nil {
		return nil, err
	}
	c.cc = cc
	p.conns[addr] = c
	return pb.NewPeerClient(cc), nil
}

// prune closes the connections to replicas that have left the view, but for those on which somebody
// is reached, and those that somebody has just asked for: what isn't closed is dialled for ever.
func (p *peers) prune(view election.State) {
	listed := map[string]bool{}
	for _, r := range view.Replicas {
		listed[r.PeerAddr] = true
	}
	p.mu.Lock()
	var left []*peerConn
	for addr, c := range p.conns {
		if !listed[addr] && c.cc.GetState() != connectivity.Ready && p.r.clock()-c.asked > 2*silence {
			left = append(left, c)
			delete(p.conns, addr)
		}
	}
	p.mu.Unlock()
	for _, c := range left {
		_ = c.cc.Close()
	}
}

func (p *peers) close() {
	p.mu.Lock()
	conns := p.conns
	p.conns = nil
	p.mu.Unlock()
	for _, c := range conns { // which may take a while: whoever asks for one now is refused
		_ = c.cc.Close()
	}
}

// heardConn notes when something is read.
type heardConn struct {
	net.Conn
	c *peerConn
}

// Read implements net.Conn.
func (h heardConn) Read(b []byte) (int, error) {
	n, err := h.Conn.Read(b)
	if n > 0 {
		h.c.heard.Store(int64(h.c.clock()))
	}
	return n, err
}

// ended is told that an RPC has ended. If that was by its context, and nothing was heard on the
// connection since it began, which wasn't just now, or for so long that a replica would be suspect,
// the connection is closed.
func (c *peerConn) ended(ctx context.Context, began time.Duration) {
	if ctx.Err() == nil {
		return
	}
	heard, now := time.Duration(c.heard.Load()), c.clock()
	if conn := c.conn.Load(); conn != nil && (heard < now-silence || heard < began && now-began >= hearsTimeout) {
		_ = (*conn).Close()
	}
}

// unary is a grpc.UnaryClientInterceptor.
func (c *peerConn) unary(
	ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker,
	opts ...grpc.CallOption,
) error {
	began := c.clock()
	err := invoke(ctx, method, req, reply, cc, opts...)
	if err != nil {
		c.ended(ctx, began)
	}
	return err
}

// stream is a grpc.StreamClientInterceptor.
func (c *peerConn) stream(
	ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, streamer grpc.Streamer,
	opts ...grpc.CallOption,
) (grpc.ClientStream, error) {
	began := c.clock()
	s, err := streamer(ctx, desc, cc, method, opts...)
	if err != nil {
		c.ended(ctx, began)
		return nil, err
	}
	return &heardStream{s, ctx, c, began}, nil
}

// heardStream says when the stream has ended.
type heardStream struct {
	grpc.ClientStream
	ctx   context.Context // the caller's: the stream's own ends with the stream
	c     *peerConn
	began time.Duration
}

// RecvMsg implements grpc.ClientStream.
func (s *heardStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if err != nil {
		s.c.ended(s.ctx, s.began)
	}
	return err
}
