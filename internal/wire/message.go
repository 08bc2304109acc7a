package wire

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// The header's second carrier, besides gRPC metadata: one length-delimited field in front of the message's own bytes. Its number is the highest there is, so that no message has one of its own, and whoever doesn't know it sees an
// unknown field.
const headerField protowire.Number = protowire.MaxValidNumber

// PrependedHeader returns what goes in front of a message's bytes to carry a header.
func PrependedHeader(h *pb.Header) ([]byte, error) {
	size := proto.Size(h)
	b := make([]byte, 0, protowire.SizeTag(headerField)+protowire.SizeBytes(size))
	b = protowire.AppendTag(b, headerField, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(size))
	return proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(b, h)
}

// headerTag is how a message begins that carries a header.
var headerTag = string(protowire.AppendTag(nil, headerField, protowire.BytesType))

// CutHeader splits a message into the header that it carries, nil if it has none, and the message's own bytes. The header aliases nothing of b.
func CutHeader(b []byte) (h *pb.Header, message []byte, err error) {
	if len(b) < len(headerTag) || string(b[:len(headerTag)]) != headerTag {
		return nil, b, nil
	}
	value, n := protowire.ConsumeBytes(b[len(headerTag):])
	if n < 0 {
		return nil, nil, errMalformedHeader
	}
	if h, err = parseHeader(value); err != nil {
		return nil, nil, err
	}
	return h, b[len(headerTag)+n:], nil
}

var errMalformedHeader = errors.New("wire: the header is malformed")

// parseHeader reads a header, whatever carried it, and checks what holds for both directions.
func parseHeader(b []byte) (*pb.Header, error) {
	if len(b) > maxHeaderRead {
		return nil, fmt.Errorf("wire: a header of %d bytes; at most %d are read", len(b), maxHeaderRead)
	}
	h := new(pb.Header)
	if err := proto.Unmarshal(b, h); err != nil {
		return nil, errMalformedHeader
	}
	return h, nil
}
