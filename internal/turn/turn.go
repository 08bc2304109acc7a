// Package turn carries a turn in the context of the handler that takes it: what a handler may
// depend on besides its state and its request (R7), and what it says besides its reply.
package turn

import (
	"context"
	"crypto/hmac"
	crand "crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/understudy-rpc/understudy/orderstate"
)

// Turn is one turn of one replica. It is also the grpc.ServerTransportStream of the turn's context,
// so that grpc.SetHeader and grpc.SetTrailer work on every replica, and are recorded.
type Turn struct {
	method string
	order  orderstate.OrderInfo
	secret []byte

	mu              sync.Mutex // guards what follows: handlers may have goroutines
	rand            *rand.Rand
	header, trailer metadata.MD
}

// New returns the turn in which a message of a method takes its place in the order. secret is the
// group's.
func New(method string, order orderstate.OrderInfo, secret []byte) *Turn {
	return &Turn{method: method, order: order, secret: secret}
}

// NewRead returns the turn of a read-only method, which has no place of its own in the order: seen
// is of the last one that it sees. Its Rand is seeded afresh.
func NewRead(method string, seen orderstate.OrderInfo) *Turn {
	t := New(method, seen, nil)
	var seed [32]byte
	_, _ = crand.Read(seed[:]) // never fails, says its documentation
	t.rand = rand.New(rand.NewChaCha8(seed))
	return t
}

type key struct{}

// Context returns the context that a handler gets: it carries the turn and nothing else, is never
// cancelled, and has no deadline (R7).
func (t *Turn) Context() context.Context {
	return grpc.NewContextWithServerTransportStream(carrier{t}, t)
}

// ReadContext returns the context that a read-only handler gets: it carries the turn, and ends as
// rpc does. No replica's state depends on a read.
func (t *Turn) ReadContext(rpc context.Context) context.Context {
	return grpc.NewContextWithServerTransportStream(readCarrier{carrier{t}, rpc}, t)
}

// readCarrier is a carrier that ends.
type readCarrier struct {
	carrier
	rpc context.Context
}

// Deadline implements context.Context.
func (c readCarrier) Deadline() (time.Time, bool) { return c.rpc.Deadline() }

// Done implements context.Context.
func (c readCarrier) Done() <-chan struct{} { return c.rpc.Done() }

// Err implements context.Context.
func (c readCarrier) Err() error { return c.rpc.Err() }

// carrier is the context that carries a turn.
type carrier struct{ *Turn }

// Deadline implements context.Context.
func (carrier) Deadline() (time.Time, bool) { return time.Time{}, false }

// Done implements context.Context.
func (carrier) Done() <-chan struct{} { return nil }

// Err implements context.Context.
func (carrier) Err() error { return nil }

// Value implements context.Context.
func (c carrier) Value(k any) any {
	if k == (key{}) {
		return c.Turn
	}
	return nil
}

// FromContext returns the turn, nil outside of one.
func FromContext(ctx context.Context) *Turn {
	t, _ := ctx.Value(key{}).(*Turn)
	return t
}

// OrderNum is the turn's place in the order.
func (t *Turn) OrderNum() orderstate.OrderNum { return t.order.OrderNum }

// Now is the time that the primary recorded when it first ordered the message.
func (t *Turn) Now() time.Time { return time.UnixMicro(t.order.Time).UTC() }

// Rand is seeded from the group's secret, and the epoch and orderNum in which the message was first
// ordered.
func (t *Turn) Rand() *rand.Rand {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.rand == nil {
		h := hmac.New(sha256.New, t.secret)
		b := binary.AppendUvarint([]byte("rand"), uint64(t.order.First))
		h.Write(binary.AppendUvarint(b, uint64(t.order.OrderNum)))
		t.rand = rand.New(rand.NewChaCha8([32]byte(h.Sum(nil))))
	}
	return t.rand
}

// Method implements grpc.ServerTransportStream.
func (t *Turn) Method() string { return t.method }

// SetHeader implements grpc.ServerTransportStream: it records. What can't be sent is refused.
func (t *Turn) SetHeader(md metadata.MD) error {
	if err := check(md); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.header = metadata.Join(t.header, md)
	return nil
}

// SendHeader implements grpc.ServerTransportStream: in a turn, headers leave with the reply.
func (t *Turn) SendHeader(md metadata.MD) error { return t.SetHeader(md) }

// SetTrailer implements grpc.ServerTransportStream: it records. What can't be sent is refused.
func (t *Turn) SetTrailer(md metadata.MD) error {
	if err := check(md); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.trailer = metadata.Join(t.trailer, md)
	return nil
}

// Metadata returns what the handler has set.
func (t *Turn) Metadata() (header, trailer metadata.MD) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.header, t.trailer
}

// check refuses metadata that neither gRPC nor a snapshot can carry: it wouldn't be there after a
// failover, or take the reply with it.
func check(md metadata.MD) error {
	for k, vs := range md {
		if k == "" || strings.ContainsFunc(k, func(r rune) bool {
			return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' && r != '_' && r != '.'
		}) {
			return status.Errorf(codes.Internal,
				"understudy: the metadata key %q has other characters than 0-9, a-z, '-', '_' and '.'", k)
		}
		for _, v := range vs {
			if !strings.HasSuffix(k, "-bin") && strings.ContainsFunc(v, func(r rune) bool {
				return r < ' ' && r != '\t' || r == 0x7f
			}) {
				return status.Errorf(codes.Internal,
					"understudy: the metadata value of %q has control characters; a key for bytes ends in -bin", k)
			}
		}
	}
	return nil
}
