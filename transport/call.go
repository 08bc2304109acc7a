package transport

import (
	"context"

	"google.golang.org/grpc"

	"github.com/understudy-rpc/understudy"
	"github.com/understudy-rpc/understudy/internal/source"
	"github.com/understudy-rpc/understudy/internal/wire"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
	"github.com/understudy-rpc/understudy/transport/internal/route"
)

// unary is a grpc.UnaryClientInterceptor.
func (c *client) unary(
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
func (c *client) stream(
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
func (c *client) unreplicated(ctx context.Context, conn *grpc.ClientConn) (context.Context, error) {
	if err := c.connect(ctx, conn); err != nil {
		return nil, err
	}
	return (&route.Choice{Replica: c.source.Primary(), Any: true}).In(ctx), nil
}

// invoke makes one call.
func (c *client) invoke(
	ctx context.Context, method string, req, resp any, conn *grpc.ClientConn, invoker grpc.UnaryInvoker,
	opts []grpc.CallOption,
) error {
	c.calls.Add(1)
	ctx, stop := c.limited(ctx)
	defer stop()
	if err := c.connect(ctx, conn); err != nil {
		return err
	}
	config := conn.GetMethodConfig(method)
	if timeout := config.Timeout; timeout != nil { // for all attempts together
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, *timeout)
		defer cancel()
	}
	if foreignCodec(opts) {
		return statusCodec(method)
	}
	r := &request{message: req, response: resp, conn: conn, invoker: invoker, opts: opts,
		inMetadata: c.cfg.inMetadata}
	r.Method, r.Level, r.ReadOnly = method, c.levelOf(opts), wire.ReadOnly(method)
	switch err := r.marshal(); {
	case err != nil:
		return statusMarshal(err)
	case !wire.ValidMethod(method): // no stream could carry its frame
		return statusMethod(method)
	case len(r.Message) > wire.MaxMessage:
		return statusTooLarge(len(r.Message), wire.MaxMessage)
	}
	if err := r.obey(config.MaxReqSize, config.MaxRespSize); err != nil {
		return err
	}
	if err := c.source.Call(ctx, &r.Request, r); err != nil {
		return c.statusOf(ctx, err)
	}
	return nil
}

// statusOf is what a caller is told of the end of a call.
func (c *client) statusOf(ctx context.Context, err error) error {
	if err == source.ErrClosed {
		return c.life.ended()
	}
	if e, ok := err.(*source.Error); ok {
		return statusOf(ctx, e)
	}
	return err // a handler's, or an interceptor's
}

func (c *client) levelOf(opts []grpc.CallOption) pb.Level {
	level := c.cfg.level
	for _, o := range opts {
		if o, ok := o.(levelOption); ok {
			level = max(level, o.level)
		}
	}
	return levelToProto(level)
}

func levelToProto(l understudy.Level) pb.Level {
	switch {
	case l >= understudy.Stable:
		return pb.Level_LEVEL_STABLE
	case l == understudy.Direct:
		return pb.Level_LEVEL_DIRECT
	default:
		return pb.Level_LEVEL_REFLECTED
	}
}
