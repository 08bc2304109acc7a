package transport

import (
	"context"
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	grpcproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/protoadapt"

	"github.com/understudy-rpc/understudy/internal/source"
	"github.com/understudy-rpc/understudy/internal/wire"
	"github.com/understudy-rpc/understudy/transport/internal/route"
)

// request is one unary call, and carries itself to whatever replica the source says. It was
// marshalled once, so that frames, the RPC and every further attempt carry the same bytes.
type request struct {
	source.Request
	message, response any
	conn              *grpc.ClientConn
	invoker           grpc.UnaryInvoker
	opts              []grpc.CallOption
	inMetadata        bool // where the header goes, whatever its size
	began             bool // the first attempt has
	first             attempt
}

func standardCodec() encoding.CodecV2 { return encoding.GetCodecV2(grpcproto.Name) }

// marshal makes the message's bytes.
func (r *request) marshal() (err error) {
	m := messageOf(r.message)
	if m == nil || !reflect.TypeOf(r.message).Comparable() {
		return fmt.Errorf("the request is a %T, not a protobuf message", r.message)
	}
	r.Message, err = proto.Marshal(m)
	return err
}

// attempt is one RPC of a call: the context under which it runs, the codec that puts its header in
// front of the message and takes that of the reply off, and what has arrived.
//
// The header has two carriers. Metadata costs a call the more the longer the header is (HPACK,
// base64, lists of strings); a field in front of the message's bytes hardly more than to copy it.
// So that is the default, up to wire.MaxInMessage: beyond, metadata costs little beside the
// message, and the header doesn't count in the limits of its size. The reply's header comes the
// same way, or in the trailer if it is an error, or an interceptor's.
type attempt struct {
	route.Choice
	request *request

	front   mem.SliceBuffer // the header, if the message carries it
	buffers [2]mem.Buffer   // of the message, with the header in front

	received wire.Header
	size     uint32 // of the reply's message
	arrived  bool   // a header has, in the reply's message
	bad      error  // why it can't be read
	trailer  metadata.MD
}

// Invoke implements source.Attempt.
func (r *request) Invoke(ctx context.Context, replica string, h wire.Header) source.Arrival {
	a := &r.first
	if r.began {
		a = new(attempt)
	}
	r.began = true
	a.request, a.Replica = r, replica
	a.carry(ctx, &h)
	return a.invoke()
}

// carry makes the attempt carry its header.
func (a *attempt) carry(ctx context.Context, h *wire.Header) {
	if a.request.inMetadata || len(a.request.Message) > wire.MaxInMessage {
		ctx = metadata.AppendToOutgoingContext(ctx, wire.HeaderKey, h.MetadataValue())
	} else {
		a.front = h.AppendFront(make([]byte, 0, h.SizeFront()))
	}
	a.In(ctx)
}

// invoke makes the RPC.
func (a *attempt) invoke() source.Arrival {
	r := a.request
	opts := append(slices.Grow(r.opts[:len(r.opts):len(r.opts)], 2), grpc.ForceCodecV2(a), grpc.Trailer(&a.trailer))
	err := r.invoker(a, r.Method, r.message, r.response, r.conn, opts...)
	r.hideHeader()
	if values := a.trailer.Get(wire.HeaderKey); len(values) > 0 {
		// an interceptor in front of the replica's may have asked it again
		a.bad = a.received.FromMetadata(values[len(values)-1:])
		a.arrived = true
	} else if err != nil { // a message has come, its end hasn't: the error is no replica's
		a.bad, a.arrived = nil, false
	}
	end := source.Arrival{Bad: a.bad, Err: err, Failure: failureOf(err), Sent: a.Picked(), Size: int(a.size)}
	if a.arrived && a.bad == nil {
		end.Header = &a.received
	}
	return end
}

func failureOf(err error) source.Failure {
	switch status.Code(err) {
	case codes.Canceled, codes.DeadlineExceeded:
		return source.FailureExpired
	case codes.Unavailable:
		return source.FailureGone
	case codes.ResourceExhausted:
		return source.FailureFull
	}
	return source.FailureOther
}

// hideHeader takes our key out of the metadata that the caller asked for.
func (r *request) hideHeader() {
	for _, o := range r.opts {
		switch o := o.(type) {
		case grpc.HeaderCallOption:
			delete(*o.HeaderAddr, wire.HeaderKey)
		case grpc.TrailerCallOption:
			delete(*o.TrailerAddr, wire.HeaderKey)
		}
	}
}

// Name implements encoding.CodecV2: none, so that the content type is that of a call without a
// codec of its own.
func (a *attempt) Name() string { return "" }

// Marshal implements encoding.CodecV2.
func (a *attempt) Marshal(v any) (mem.BufferSlice, error) {
	if v != a.request.message {
		return nil, errors.New("understudy: an interceptor has replaced the request; it must come before Understudy's")
	}
	a.buffers = [2]mem.Buffer{&a.front, (*mem.SliceBuffer)(&a.request.Message)}
	if len(a.front) == 0 {
		return a.buffers[1:], nil
	}
	return a.buffers[:], nil
}

// Unmarshal implements encoding.CodecV2.
func (a *attempt) Unmarshal(data mem.BufferSlice, v any) error {
	m := messageOf(v)
	if m == nil {
		return standardCodec().Unmarshal(data, v) // says what is wrong
	}
	buffer := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer buffer.Free()
	a.size = uint32(buffer.Len())
	message, carried, err := a.received.FromMessage(buffer.ReadOnlyData())
	if a.arrived, a.bad = carried, err; err != nil {
		return nil // an answer, and one that nobody has signed
	}
	return proto.Unmarshal(message, m)
}

func messageOf(v any) proto.Message {
	switch v := v.(type) {
	case proto.Message:
		return v
	case protoadapt.MessageV1:
		return protoadapt.MessageV2Of(v)
	}
	return nil
}

// obey refuses a request that is larger than the caller lets it be, and keeps our header from
// counting in its limits: those of the service config, and of the options.
func (r *request) obey(maxRequest, maxReply *int) error {
	send, receive := math.MaxInt, math.MaxInt
	for _, o := range r.opts {
		switch o := o.(type) {
		case grpc.MaxSendMsgSizeCallOption:
			send = o.MaxSendMsgSize
		case grpc.MaxRecvMsgSizeCallOption:
			receive = o.MaxRecvMsgSize
		}
	}
	if maxRequest != nil {
		send = min(send, *maxRequest)
	}
	if maxReply != nil {
		receive = min(receive, *maxReply)
	}
	if len(r.Message) > send {
		return statusTooLarge(len(r.Message), send)
	}
	// the limits leave the header no room
	r.inMetadata = r.inMetadata || min(send, receive) < wire.MaxInMessage+2*wire.MaxHeader
	return nil
}

// foreignCodec says whether a call has a codec of its own.
func foreignCodec(opts []grpc.CallOption) bool {
	for _, o := range opts {
		switch o := o.(type) {
		case grpc.ForceCodecCallOption, grpc.ForceCodecV2CallOption, grpc.CustomCodecCallOption:
			return true
		case grpc.ContentSubtypeCallOption:
			if o.ContentSubtype != grpcproto.Name {
				return true
			}
		}
	}
	return false
}
