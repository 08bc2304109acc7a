package replica

import (
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/runtime/protoiface"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/understudy-rpc/understudy/internal/wire"
)

// raw is a proto.Message that is its own bytes: a request as it was received (the digest is over
// these bytes, and backups execute these bytes), a reply as the reply log has it. It goes through
// gRPC's proto codec, so that compression and limits are as ever.
type raw struct {
	protoreflect.Message
	header *wire.Header // in front of b: it is written when r is marshalled, and read when r is unmarshalled; nil: none
	b      []byte

	// Of an unmarshalled one.
	carried   bool  // there was a header
	malformed error // it can't be read
}

// set makes r the message of some bytes.
func (r *raw) set(b []byte) { *r = raw{Message: noMessage, b: b} }

// noMessage has what nobody calls of a raw's protoreflect.Message.
var noMessage = (*emptypb.Empty)(nil).ProtoReflect()

// ProtoReflect implements proto.Message.
func (r *raw) ProtoReflect() protoreflect.Message { return r }

// Interface implements protoreflect.Message.
func (r *raw) Interface() protoreflect.ProtoMessage { return r }

// IsValid implements protoreflect.Message.
func (r *raw) IsValid() bool { return true }

// ProtoMethods implements protoreflect.Message.
func (r *raw) ProtoMethods() *protoiface.Methods { return &rawMethods }

// Reset is called before unmarshalling.
func (r *raw) Reset() { r.b = nil }

var rawMethods = protoiface.Methods{
	Flags: protoiface.SupportMarshalDeterministic,
	Size: func(in protoiface.SizeInput) protoiface.SizeOutput {
		r := in.Message.(*raw)
		size := len(r.b)
		if r.header != nil {
			size += r.header.SizeFront()
		}
		return protoiface.SizeOutput{Size: size}
	},
	Marshal: func(in protoiface.MarshalInput) (protoiface.MarshalOutput, error) {
		r := in.Message.(*raw)
		if r.header != nil {
			in.Buf = r.header.AppendFront(in.Buf)
		}
		return protoiface.MarshalOutput{Buf: append(in.Buf, r.b...)}, nil
	},
	Unmarshal: func(in protoiface.UnmarshalInput) (protoiface.UnmarshalOutput, error) {
		r := in.Message.(*raw)
		message := in.Buf
		if r.header != nil {
			message, r.carried, r.malformed = r.header.FromMessage(in.Buf)
		}
		// gRPC takes its buffer back; and the log, which counts a message's own bytes, should keep
		// no others
		r.b = append([]byte(nil), message...)
		return protoiface.UnmarshalOutput{Flags: protoiface.UnmarshalInitialized}, nil
	},
	// Whether required fields are there is for the message that the bytes are.
	CheckInitialized: func(protoiface.CheckInitializedInput) (protoiface.CheckInitializedOutput, error) {
		return protoiface.CheckInitializedOutput{}, nil
	},
}

var _ proto.Message = (*raw)(nil)
