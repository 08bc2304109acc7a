package transport

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"

	"github.com/understudy-rpc/understudy/internal/source"
	"github.com/understudy-rpc/understudy/internal/wire"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
	"github.com/understudy-rpc/understudy/transport/internal/route"
)

const (
	// linger is how long a frame waits for others, below Stable, unless many of them are there.
	linger = 3 * time.Millisecond
	// maxStreamMessage bounds one message of a stream, received or sent: chunks and their runs.
	maxStreamMessage = 4 << 20
	// farewell bounds how long closing waits for the primary to have ended the session.
	farewell = 100 * time.Millisecond
)

// keep keeps a stream to one replica, made anew whenever it ends, until the link does.
func (c *client) keep(l *source.Link) {
	select {
	case <-c.life.bound:
	case <-l.Ctx.Done():
		return
	}
	pause := source.Pauses{Base: 10 * time.Millisecond, Max: time.Second}
	for l.Ctx.Err() == nil {
		welcomed, err := c.attach(l)
		if l.Ctx.Err() != nil {
			break
		}
		if welcomed {
			pause.Reset()
		}
		c.cfg.log.Info("a stream ended", "replica", l.Name, "addr", l.Addr, "err", err)
		timer := time.NewTimer(pause.Next())
		select {
		case <-timer.C:
		case <-l.Ctx.Done():
			timer.Stop()
		}
	}
}

// attach keeps one stream, until it ends. It says whether the replica welcomed it.
func (c *client) attach(l *source.Link) (welcomed bool, err error) {
	ctx, cancel := context.WithCancel(l.Ctx)
	defer cancel()
	hello := l.Begin(cancel)
	var sender sync.WaitGroup
	var refusal pb.Refusal // the replica's own word for the end, which nothing on the way can say
	defer func() {
		cancel()
		sender.Wait()
		l.End(source.StreamEnd{
			Err: err, InOrder: refusal == pb.Refusal_REFUSAL_NOT_PRIMARY,
			Unknown: refusal == pb.Refusal_REFUSAL_UNKNOWN_SESSION && hello.Session != 0,
			Refused: refusal == pb.Refusal_REFUSAL_PROTOCOL || isRefusal(err),
		})
	}()

	to := &route.Choice{Replica: l.Name, Wait: true}
	stream, err := pb.NewConnectionClient(c.life.conn).Attach(to.In(ctx), grpc.MaxCallRecvMsgSize(maxStreamMessage),
		grpc.MaxCallSendMsgSize(maxStreamMessage), grpc.ForceCodecV2(linkCodec{standardCodec()}))
	if err != nil {
		return false, err
	}
	receive := func() (*pb.AttachResponse, error) {
		msg, err := stream.Recv()
		if err != nil {
			refusal = wire.RefusalIn(stream.Trailer().Get(wire.HeaderKey))
		}
		return msg, err
	}
	if err := stream.Send(&pb.AttachRequest{Hello: hello}); err != nil {
		_, err = receive() // has the reason
		return false, err
	}
	hung := time.AfterFunc(source.Unheard, l.Renew)
	_, _ = stream.Header() // comes at once; if it doesn't, Recv knows why
	hung.Stop()
	for {
		msg, err := receive()
		if err != nil {
			return welcomed, err
		}
		if err := l.Receive(msg); err != nil {
			return welcomed, err
		}
		if !welcomed {
			welcomed = true
			sender.Go(func() { send(ctx, l, stream) })
		}
	}
}

// isRefusal says whether a stream has ended since the client isn't let in, or doesn't go together
// with the replica.
func isRefusal(err error) bool {
	e := new(source.Error)
	code := status.Code(err)
	return code == codes.Unauthenticated || code == codes.PermissionDenied ||
		errors.As(err, &e) && e.Kind == source.Mismatched
}

// send is the sender of one stream. It ends with ctx, or when the stream doesn't take anything any
// more, as the receiver will notice.
func send(ctx context.Context, l *source.Link, stream pb.Connection_AttachClient) {
	timer := time.NewTimer(linger)
	defer timer.Stop()
	for {
		select {
		case <-l.Wake():
		case <-ctx.Done():
			return
		}
		if l.MayLinger() {
			timer.Reset(linger)
			select {
			case <-timer.C:
			case <-l.Wake():
			case <-ctx.Done():
				return
			}
		} else {
			runtime.Gosched() // callers that are ready come first: one message takes all their frames
		}
		for msgs := l.Take(); len(msgs) > 0; msgs = l.Take() {
			for i, msg := range msgs {
				if err := stream.Send(msg); err != nil {
					return
				}
				if i > 0 {
					l.Moved()
				}
			}
			l.Sent()
		}
		if l.Leaves() {
			_ = stream.CloseSend() // never fails, says its documentation; the receiver sees the end
			return
		}
	}
}

// linkCodec is gRPC's for protobuf, but that retained messages that are large aren't copied for
// each replica.
type linkCodec struct{ encoding.CodecV2 }

// Marshal implements encoding.CodecV2.
func (c linkCodec) Marshal(v any) (mem.BufferSlice, error) {
	req, ok := v.(*pb.AttachRequest)
	if !ok {
		return c.CodecV2.Marshal(v)
	}
	parts, err := wire.Parts(req)
	switch {
	case err != nil:
		return nil, err
	case parts == nil:
		return c.CodecV2.Marshal(v)
	}
	buffers := make(mem.BufferSlice, len(parts))
	for i, part := range parts {
		buffers[i] = mem.SliceBuffer(part)
	}
	return buffers, nil
}
