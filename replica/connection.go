package replica

import (
	"context"
	"errors"
	"io"
	"runtime"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/understudy-rpc/understudy/internal/wire"
	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// connection serves Connection. It is registered on the user's server; our stream interceptor calls
// it without the user's chain.
type connection struct {
	pb.UnimplementedConnectionServer
	r *Replica
}

// Attach implements pb.ConnectionServer.
func (c *connection) Attach(stream grpc.BidiStreamingServer[pb.AttachRequest, pb.AttachResponse]) error {
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	// The source learns at once that its connection lives, whatever its stream waits for.
	if err := stream.SendHeader(nil); err != nil {
		return err
	}
	if f := c.r.config.authenticate; f != nil {
		if err := c.r.app.Apart(ctx, "AuthenticateSession", func() error { return f(ctx) }); err != nil {
			return errAuthenticate(ctx, err)
		}
	}
	first, err := stream.Recv()
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if err := checkFirst(first); err != nil {
		return endStream(stream, err)
	}
	hello := first.GetHello()
	in, err := c.r.awaitState(ctx)
	if err != nil {
		return err
	}
	if g := hello.GetGroup(); g != 0 && g != in.group {
		return status.Errorf(codes.FailedPrecondition,
			"understudy: the source is attached to group %x, this is a replica of group %x", g, in.group)
	}
	in.broughtBy(hello)
	a := &attachment{
		m: in.m, nonce: orderstate.Nonce(hello.GetNonce()), session: orderstate.Session(hello.GetSession()),
		out: newOutbox[pb.AttachResponse](cancel), told: orderstate.Epoch(hello.GetToldEpoch()),
	}
	stop := context.AfterFunc(in.ctx, func() { cancel(context.Cause(in.ctx)) })
	defer stop()

	sent := make(chan error, 1)
	go func() { sent <- a.send(ctx, stream) }()
	received := make(chan error, 1)
	go func() { // ends with the stream's context, when this returns
		err := a.receive(stream)
		if !errors.Is(err, io.EOF) {
			cancel(err) // also while the stream waits for its session
		}
		received <- err
	}()
	defer in.m.sources.detach(a)
	if err := in.m.sources.attach(ctx, a); err != nil {
		cancel(err)
		<-sent
		return endStream(stream, err)
	}
	select {
	case err = <-sent:
	case err = <-received:
		if errors.Is(err, io.EOF) { // a source that closes its end says goodbye
			in.m.sources.goodbye(ctx, a)
			cancel(nil)
			<-sent
			return nil
		}
	}
	cancel(err)
	if cause := context.Cause(ctx); err == nil || ctx.Err() != nil && cause != nil {
		err = cause
	}
	if in.ctx.Err() != nil { // the source is told that this process hasn't died
		stream.SetTrailer(refusalTrailer(pb.Refusal_REFUSAL_NOT_PRIMARY))
		return statusOf(err)
	}
	return endStream(stream, err)
}

// checkFirst checks the first message of a source's stream; the protocol first, since another one
// may mean other things by all else.
func checkFirst(first *pb.AttachRequest) error {
	switch hello := first.GetHello(); {
	case hello != nil && hello.GetProtocol() != wire.Protocol:
		return errProtocol("source", hello.GetProtocol())
	case len(hello.GetNonce()) != len(orderstate.Nonce{}):
		return status.Error(codes.InvalidArgument,
			"understudy: a stream begins with a hello that has a nonce of 16 bytes")
	case len(first.GetFrames())+len(first.GetDestOrderInfo()) > 0 || first.GetAcknowledgedEpoch() != 0 ||
		first.GetWaitingFor() != nil || first.GetHail():
		return status.Error(codes.InvalidArgument,
			"understudy: a stream's first message has its hello and nothing else")
	}
	return nil
}

// receive takes what the source sends, until the stream ends.
func (a *attachment) receive(stream grpc.BidiStreamingServer[pb.AttachRequest, pb.AttachResponse]) error {
	var frames wire.Assembler
	for {
		req, err := stream.Recv()
		if err != nil {
			return err
		}
		if err := a.take(req, &frames); err != nil {
			a.m.r.stats.refused.Add(1)
			return status.Errorf(codes.InvalidArgument, "understudy: %v", err)
		}
	}
}

// send sends what there is to say, as one message, unless its runs are large; the welcome first.
func (a *attachment) send(
	ctx context.Context, stream grpc.BidiStreamingServer[pb.AttachRequest, pb.AttachResponse],
) error {
	for {
		select {
		case <-a.out.wake:
			runtime.Gosched() // as in pusher
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if out := a.next(); out != nil {
			if err := stream.Send(out); err != nil {
				return err
			}
		}
	}
}
