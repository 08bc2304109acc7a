package transport

import (
	"context"

	"google.golang.org/grpc/metadata"

	"github.com/understudy-rpc/understudy/internal/wire"
	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// This file has the two carriers of the header. Metadata costs a call the more the longer the header is (HPACK, base64, lists of strings); a field in front of the message's bytes hardly more than to copy it. So that is the default, up
// to wire.MaxInMessage: beyond, metadata costs little beside the message, and the header doesn't count in the limits of its size. The reply's header comes the same way, or in the trailer if it is an error, or an interceptor's.

// carry puts an attempt's header where the request takes it along.
func (p *prepared) carry(ctx context.Context, h *pb.Header, inMetadata bool) (context.Context, error) {
	p.header, p.received, p.bad = nil, nil, nil
	var err error
	if !inMetadata && len(p.payload) <= wire.MaxInMessage {
		p.header, err = wire.PrependedHeader(h)
		return ctx, err
	}
	value, err := wire.MarshalHeader(h)
	return metadata.AppendToOutgoingContext(ctx, wire.HeaderKey, value), err
}

// arrival is how an attempt has ended.
type arrival struct {
	header *pb.Header // nil: none
	runs   []orderstate.Announcement
	bad    error // why the header can't be read
	err    error // the RPC's
}

// arrived takes the header off a reply.
func (p *prepared) arrived(trailer metadata.MD, err error) arrival {
	a := arrival{header: p.received, bad: p.bad, err: err}
	if values := trailer.Get(wire.HeaderKey); len(values) > 0 {
		a.header, a.bad = wire.ParseHeader(values)
	}
	if a.bad == nil {
		a.runs, a.bad = wire.RunsFromProto(a.header.GetSourceOrderInfo())
	}
	return a
}
