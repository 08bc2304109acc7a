package replica

import (
	"context"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/understudy-rpc/understudy/internal/wire"
	"github.com/understudy-rpc/understudy/orderstate"
	"github.com/understudy-rpc/understudy/replica/internal/machine"
)

// call is one RPC on its way through the chain of interceptors: from the wrapped handler, which has
// its bytes, to the front door, which gives it its place, to its turn.
type call struct {
	request raw                         // its own bytes, as they were received
	header  wire.Header                 // the request's, which its message or its metadata carries
	chain   grpc.UnaryServerInterceptor // the server's

	// The user's handler, the chain's last link, which is known at the chain's beginning, as is its
	// request: as every replica has it, of the request's own bytes.
	invocation machine.Invocation

	// Set by the front door, but for returned.
	received time.Duration // when the front door did
	leads    *leading
	msg      orderstate.Message
	of       *knownSession // that the RPC counts for; nil: none that is known here
	counts   bool          // the RPC counts as one that waits
	stage    callStage     // guarded by the member's mu
	returned bool          // the chain has, whatever it returned

	// What the turn has brought, once it has: an interceptor may not wait for that. It is set once.
	result atomic.Pointer[result]
	turned result // what it points to, unless it was a read

	// The reply, and its header.
	reply       raw
	replyHeader wire.Header
}

// callStage is how far a call has come that is to be ordered.
type callStage uint8

const (
	onItsWay callStage = iota // to its turn
	ordered                   // by this RPC, or a copy of it: its turn finishes (R7)
	gone                      // the chain was done with it before: it won't be ordered
)

// result is what a turn, or a read, has brought.
type result struct {
	said  *machine.Reply
	value any // what the handler returned, while nobody in the chain replaced it
}

// outcome is what the front door makes of one RPC, besides the reply's header.
type outcome struct {
	reply           any
	err             error
	header, trailer metadata.MD // what the handler set, on whichever replica
}

type callKey struct{}

func callFrom(ctx context.Context) *call {
	c, _ := ctx.Value(callKey{}).(*call)
	return c
}

// reads says whether the request is of a read-only method, and to be served without a turn.
func (c *call) reads() bool { return c.header.SeqNum == 0 }

// chained is what the rest of the chain has made of a call.
type chained struct {
	result *result // nil: it isn't there yet, or won't be
	gone   bool    // the call won't be ordered
	value  any
	err    error
}

// outcome is what the chain has made of the turn's result. What nobody replaced isn't marshalled
// again.
func (c *call) outcome(done chained) outcome {
	said := done.result.said
	o := outcome{reply: done.value, err: done.err, header: said.Header, trailer: said.Trailer}
	if done.err == nil && done.value == done.result.value {
		o.reply = c.says(said)
	}
	return o
}

// says is the reply's bytes as a message.
func (c *call) says(r *machine.Reply) proto.Message {
	c.reply.set(r.Payload)
	return &c.reply
}
