package transport

import (
	"context"

	"google.golang.org/grpc/metadata"

	"github.com/understudy-rpc/understudy/internal/wire"
)

// This file has the two carriers of the header. Metadata costs a call the more the longer the header is (HPACK, base64, lists of strings); a field in front of the message's bytes hardly more than to copy it. So that is the default, up
// to wire.MaxInMessage: beyond, metadata costs little beside the message, and the header doesn't count in the limits of its size. The reply's header comes the same way, or in the trailer if it is an error, or an interceptor's.

// carry puts an attempt's header where the request takes it along.
func (p *prepared) carry(ctx context.Context, h *wire.Header, inMetadata bool) context.Context {
	p.header, p.received, p.bad = nil, nil, nil
	if !inMetadata && len(p.payload) <= wire.MaxInMessage {
		p.header = h.Front()
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, wire.HeaderKey, h.MetadataValue())
}

// arrival is how an attempt has ended.
type arrival struct {
	header *wire.Header // nil: none
	bad    error        // why the header can't be read
	err    error        // the RPC's
}

// arrived takes the header off a reply.
func (p *prepared) arrived(trailer metadata.MD, err error) arrival {
	a := arrival{header: p.received, bad: p.bad, err: err}
	if values := trailer.Get(wire.HeaderKey); len(values) > 0 {
		a.header, a.bad = wire.FromMetadata(values)
	}
	return a
}
