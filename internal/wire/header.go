// Package wire turns what travels between processes into what package orderstate works on, and back: nothing from the network gets further without having been bounded
// and checked here.
//
// It has the header in gRPC metadata (ParseHeader), runs with their seals (Seal), frames in chunks (Chunks, Assembler), and the sizes that bound them all.
package wire

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

const (
	// HeaderKey is the one metadata key: in the header of requests, in the trailer of replies.
	HeaderKey = "understudy-bin"
	// MaxHeader bounds a header that is sent (R5), in bytes before base64; what doesn't fit goes on the session's stream.
	MaxHeader = 2 << 10
	// maxHeaderRead bounds a header that is read.
	maxHeaderRead = 8 << 10
	// MaxMessage bounds one request's bytes.
	MaxMessage = 64 << 20
	// MaxInMessage bounds a message that carries the header itself.
	MaxInMessage = 64 << 10
	// MaxMethod bounds a full method name.
	MaxMethod = 1 << 10
	// ChunkSize bounds what one frame, and one message on a stream of ours, carries.
	ChunkSize = 256 << 10
)

// MarshalHeader returns the metadata value of a header.
func MarshalHeader(h *pb.Header) (string, error) {
	b, err := proto.Marshal(h)
	return string(b), err
}

// ParseHeader reads the metadata value of a header, and checks what holds for both directions. values is what the metadata has under HeaderKey.
func ParseHeader(values []string) (*pb.Header, error) {
	if len(values) != 1 {
		return nil, fmt.Errorf("wire: %d headers under %s, there must be one", len(values), HeaderKey)
	}
	return parseHeader([]byte(values[0]))
}

// CheckRequest checks what a request's header must have. Without a seqNum it is of a read-only method.
func CheckRequest(h *pb.Header) error {
	switch {
	case h.GetSession() == 0:
		return errors.New("wire: a request needs a session")
	case (h.GetOutstanding() == 0) != (h.GetSeqNum() == 0) || h.GetOutstanding() > h.GetSeqNum():
		return fmt.Errorf("wire: seqNum %d can't have %d outstanding", h.GetSeqNum(), h.GetOutstanding())
	case h.GetLevel() < 0 || h.GetLevel() > pb.Level_LEVEL_STABLE:
		return fmt.Errorf("wire: unknown level %d", h.GetLevel())
	}
	return nil
}

// Request returns the name of the message that a request's header declares, and the low-water mark.
func Request(h *pb.Header) (orderstate.MessageID, orderstate.SeqNum) {
	return orderstate.MessageID{Session: orderstate.Session(h.GetSession()), SeqNum: orderstate.SeqNum(h.GetSeqNum())},
		orderstate.SeqNum(h.GetSeqNum() - h.GetOutstanding())
}

// StartsToProto wraps a table of epoch starts.
func StartsToProto(starts []orderstate.Start) []*pb.Start {
	ps := make([]*pb.Start, len(starts))
	for i, s := range starts {
		ps[i] = &pb.Start{Epoch: uint64(s.Epoch), FirstOrderNum: uint64(s.First)}
	}
	return ps
}

// StartsFromProto reads a table of epoch starts.
func StartsFromProto(ps []*pb.Start) []orderstate.Start {
	starts := make([]orderstate.Start, len(ps))
	for i, p := range ps {
		starts[i] = orderstate.Start{Epoch: orderstate.Epoch(p.GetEpoch()), First: orderstate.OrderNum(p.GetFirstOrderNum())}
	}
	return starts
}
