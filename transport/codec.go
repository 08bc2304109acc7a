package transport

import (
	"errors"
	"fmt"
	"reflect"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
)

// prepared is the codec of one call: the request was marshalled once, so that frames, the RPC and every further attempt carry the same bytes, which a digest binds to the
// order. Otherwise it is the codec that is registered as "proto".
type prepared struct {
	encoding.CodecV2
	request any
	data    mem.BufferSlice
}

func standardCodec() encoding.CodecV2 { return encoding.GetCodecV2(proto.Name) }

// prepare marshals a request.
func prepare(request any) (*prepared, []byte, error) {
	codec := standardCodec()
	if t := reflect.TypeOf(request); t == nil || !t.Comparable() {
		return nil, nil, fmt.Errorf("the request is a %T, not a protobuf message", request)
	}
	buffers, err := codec.Marshal(request)
	if err != nil {
		return nil, nil, err
	}
	payload := buffers.Materialize()
	buffers.Free()
	return &prepared{codec, request, mem.BufferSlice{mem.SliceBuffer(payload)}}, payload, nil
}

func (p *prepared) Marshal(v any) (mem.BufferSlice, error) {
	if v != p.request {
		return nil, errors.New("understudy: an interceptor has replaced the request; it must come before Understudy's")
	}
	return p.data, nil
}

// foreignCodec says whether a call has a codec of its own.
func foreignCodec(opts []grpc.CallOption) bool {
	for _, o := range opts {
		switch o := o.(type) {
		case grpc.ForceCodecCallOption, grpc.ForceCodecV2CallOption, grpc.CustomCodecCallOption:
			return true
		case grpc.ContentSubtypeCallOption:
			if o.ContentSubtype != proto.Name {
				return true
			}
		}
	}
	return false
}
