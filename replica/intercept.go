package replica

import (
	"context"
	"errors"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/understudy-rpc/understudy/internal/wire"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// This file carries the header between gRPC's messages or metadata and the front door.

// ServerOptions are what interceptor.ServerOptions returns, which says what they do. Serve refuses
// a server that was made without them.
func (r *Replica) ServerOptions() []grpc.ServerOption {
	r.served.optioned.Store(true)
	return []grpc.ServerOption{
		grpc.ChainUnaryInterceptor(r.interceptUnary), grpc.ChainStreamInterceptor(r.interceptStream),
		grpc.StaticStreamWindowSize(wire.StreamWindow), grpc.StaticConnWindowSize(wire.ConnWindow),
	}
}

// interceptUnary is the first of the server's chain, in the RPC's own goroutine.
func (r *Replica) interceptUnary(
	ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler,
) (any, error) {
	if r.app.Method(info.FullMethod) == nil {
		return handler(ctx, req)
	}
	c := callFrom(ctx)
	if c == nil {
		return nil, status.Error(codes.Internal,
			"understudy: the service wasn't registered through Replica.Registrar")
	}
	if err := c.readHeader(ctx); err != nil {
		return nil, err
	}
	o := r.handle(ctx, c, func(ctx context.Context) (any, error) { return handler(ctx, req) })
	if err := c.send(ctx, &o); err != nil {
		return nil, status.Errorf(codes.Internal, "understudy: %v", err)
	}
	return o.reply, o.err
}

// readHeader reads the header that the request's message or its metadata carries.
func (c *call) readHeader(ctx context.Context) error {
	if values := metadata.ValueFromIncomingContext(ctx, wire.HeaderKey); len(values) > 0 {
		if c.request.carried {
			return errHeader(errors.New("a header in the metadata and one in the message"))
		}
		if err := c.header.FromMetadata(values); err != nil {
			return errHeader(err)
		}
	} else if !c.request.carried {
		return errPlainClient(c.invocation.Method.Name)
	}
	if err := wire.CheckRequest(&c.header); err != nil {
		return errHeader(err)
	}
	return nil
}

// send puts what the handler set, and our header, where the reply takes them along: the header in
// the message, if the request's was in its own, or in the trailer, since a response header would
// stop native retries.
func (c *call) send(ctx context.Context, o *outcome) error {
	if len(o.header) > 0 {
		if err := grpc.SetHeader(ctx, o.header); err != nil {
			return err
		}
	}
	trailer := o.trailer
	if !c.request.carried || !o.carries(&c.replyHeader) {
		ours := metadata.MD{wire.HeaderKey: {c.replyHeader.MetadataValue()}}
		if len(trailer) == 0 {
			trailer = ours
		} else {
			trailer = metadata.Join(trailer, ours)
		}
	}
	if len(trailer) == 0 {
		return nil
	}
	return grpc.SetTrailer(ctx, trailer)
}

// carries lets the reply's message carry the header; false if it can't: it is an error, or an
// interceptor's, or too large.
func (o *outcome) carries(h *wire.Header) bool {
	r, ok := o.reply.(*raw)
	if !ok || o.err != nil || len(r.b) > wire.MaxInMessage {
		return false
	}
	r.header = h
	return true
}

// interceptStream serves Connection without the rest of the chain, whose authentication knows
// nothing of it (AuthenticateSession does). Other streams go on: those of replicated services to an
// error, those of others as ever.
func (r *Replica) interceptStream(
	srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler,
) error {
	if info.FullMethod == pb.Connection_Attach_FullMethodName {
		return (&connection{r: r}).Attach(
			&grpc.GenericServerStream[pb.AttachRequest, pb.AttachResponse]{ServerStream: ss})
	}
	return handler(srv, ss)
}
