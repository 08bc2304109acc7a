package transport

import (
	"errors"
	"fmt"
	"reflect"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	grpcproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/protoadapt"

	"github.com/understudy-rpc/understudy/internal/wire"
)

// prepared is the codec of one call: the request was marshalled once, so that frames, the RPC and every further attempt carry the same bytes, which a digest binds to the
// order. It puts the header of each attempt in front of the message, and takes that of the reply off. Otherwise it is the codec that is registered as "proto".
type prepared struct {
	encoding.CodecV2
	request any
	payload []byte
	// header is the present attempt's, as a field of the message; empty when the metadata carries it.
	header []byte
	// received is what the reply's message carried, if it did; bad says why it can't be read.
	received *wire.Header
	bad      error
}

func standardCodec() encoding.CodecV2 { return encoding.GetCodecV2(grpcproto.Name) }

// prepare marshals a request.
func prepare(request any) (*prepared, error) {
	codec := standardCodec()
	if t := reflect.TypeOf(request); t == nil || !t.Comparable() {
		return nil, fmt.Errorf("the request is a %T, not a protobuf message", request)
	}
	buffers, err := codec.Marshal(request)
	if err != nil {
		return nil, err
	}
	p := &prepared{CodecV2: codec, request: request}
	if whole, ok := one(buffers); ok {
		p.payload = whole
	} else { // in buffers of a pool
		p.payload = buffers.Materialize()
		buffers.Free()
	}
	return p, nil
}

// one returns the only buffer, if it isn't of a pool.
func one(buffers mem.BufferSlice) ([]byte, bool) {
	if len(buffers) != 1 {
		return nil, false
	}
	b, ok := buffers[0].(mem.SliceBuffer)
	return b, ok
}

// Marshal implements encoding.CodecV2.
func (p *prepared) Marshal(v any) (mem.BufferSlice, error) {
	if v != p.request {
		return nil, errors.New("understudy: an interceptor has replaced the request; it must come before Understudy's")
	}
	if len(p.header) == 0 {
		return mem.BufferSlice{mem.SliceBuffer(p.payload)}, nil
	}
	return mem.BufferSlice{mem.SliceBuffer(p.header), mem.SliceBuffer(p.payload)}, nil
}

// Unmarshal implements encoding.CodecV2.
func (p *prepared) Unmarshal(data mem.BufferSlice, v any) error {
	m := messageOf(v)
	if m == nil {
		return p.CodecV2.Unmarshal(data, v) // says what is wrong
	}
	buffer := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer buffer.Free()
	h, message, err := wire.FromMessage(buffer.ReadOnlyData())
	if err != nil {
		p.bad = err
		return nil // an answer, and one that nobody has signed
	}
	p.received = h
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
