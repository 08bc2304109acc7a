package replica

import (
	"context"

	"github.com/understudy-rpc/understudy/internal/wire"
	"github.com/understudy-rpc/understudy/replica/internal/machine"
)

// RequestHeader is the header that a request's message carried, nil if none did, in the context of
// the server's interceptors.
func RequestHeader(ctx context.Context) *wire.Header {
	if c := callFrom(ctx); c != nil && c.request.carried {
		return &c.header
	}
	return nil
}

// Sessions is how many sessions this replica knows.
func (r *Replica) Sessions() int {
	in := r.current()
	in.m.mu.Lock()
	defer in.m.mu.Unlock()
	return len(in.m.history().Sessions())
}

// ReplyBytes is what the replies count that this replica keeps.
func (r *Replica) ReplyBytes() int {
	return r.current().machine.ReplyBytes()
}

// MaxReplyBytes bounds ReplyBytes.
const MaxReplyBytes = machine.MaxReplyBytes

// Waiting is how many streams wait for their sessions.
func (r *Replica) Waiting() int {
	in := r.current()
	in.m.mu.Lock()
	defer in.m.mu.Unlock()
	n := 0
	for _, c := range in.m.sources.coming {
		n += c.streams
	}
	return n
}
