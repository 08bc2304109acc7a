package interceptor

import (
	"context"
	"errors"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/understudy-rpc/understudy/internal/wire"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
	"github.com/understudy-rpc/understudy/replica"
)

// ServerOptions returns the options for the grpc.NewServer whose replicated services are registered
// with r.Registrar: ChainUnaryInterceptor and ChainStreamInterceptor, and windows of flow control
// of a fixed size, 1 MiB for a stream and 4 MiB for a connection, which options that come after
// these can change.
//
// List them before the options of other interceptors: those that come after ours see each request
// once, however often its source issues it again; those that come before see every copy, and
// replies as their bytes only (a proto.Message of no particular type). Neither kind runs on the
// backups (r.Registrar takes interceptors that do). They must not change the request: one that
// hands down another is refused, one that changes it in place lets replicas differ.
func ServerOptions(r *replica.Replica) []grpc.ServerOption {
	r.Intercepted()
	return []grpc.ServerOption{
		grpc.ChainUnaryInterceptor(unaryServer(r)), grpc.ChainStreamInterceptor(streamServer(r)),
		grpc.StaticStreamWindowSize(wire.StreamWindow), grpc.StaticConnWindowSize(wire.ConnWindow),
	}
}

func unaryServer(r *replica.Replica) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		if !r.Replicated(info.FullMethod) {
			return handler(ctx, req)
		}
		h := replica.RequestHeader(ctx)
		inMessage := h != nil
		if values := metadata.ValueFromIncomingContext(ctx, wire.HeaderKey); len(values) > 0 {
			if inMessage {
				return nil, replica.Malformed(errors.New("a header in the metadata and one in the message"))
			}
			h = new(wire.Header)
			if err := h.FromMetadata(values); err != nil {
				return nil, replica.Malformed(err)
			}
		}
		if h == nil {
			return nil, replica.PlainClient(info.FullMethod)
		}
		if err := wire.CheckRequest(h); err != nil {
			return nil, replica.Malformed(err)
		}
		a := r.Handle(ctx, h, func(ctx context.Context) (any, error) { return handler(ctx, req) })
		if err := send(ctx, &a, inMessage); err != nil {
			return nil, status.Errorf(codes.Internal, "understudy: %v", err)
		}
		return a.Reply, a.Err
	}
}

// send puts what the handler set, and our header, where the reply takes them along: the header in
// the message, or in the trailer, since a response header would stop native retries.
func send(ctx context.Context, a *replica.Answer, inMessage bool) error {
	if len(a.Header) > 0 {
		if err := grpc.SetHeader(ctx, a.Header); err != nil {
			return err
		}
	}
	trailer := a.Trailer
	if a.Wire != nil && !(inMessage && a.CarriesHeader()) {
		ours := metadata.MD{wire.HeaderKey: {a.Wire.MetadataValue()}}
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

// streamServer serves Connection without the rest of the chain, which knows nothing of it; other
// streams go on: those of replicated services to an error, those of others as ever.
func streamServer(r *replica.Replica) grpc.StreamServerInterceptor {
	return func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		if info.FullMethod == pb.Connection_Attach_FullMethodName {
			return r.ServeConnection(ss)
		}
		return handler(srv, ss)
	}
}
