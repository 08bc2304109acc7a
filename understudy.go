// Package understudy lets a stateful gRPC service survive the death of its process, with no extra
// message on the path of a call.
//
// It has what handlers of a replicated service call. A handler's effects may depend only on its
// state, its request, and these functions; then every replica that executes the same messages in
// the same order has the same state (the determinism contract):
//
//	func (s *server) Draw(ctx context.Context, req *pb.DrawRequest) (*pb.DrawReply, error) {
//		s.drawn = append(s.drawn, understudy.Rand(ctx).IntN(49))   // not math/rand
//		s.at = understudy.Now(ctx)                                 // not time.Now
//		...
//	}
//
// Package replica serves a replicated service, package interceptor has the options for
// grpc.NewServer and grpc.NewClient.
package understudy

import (
	"context"
	crand "crypto/rand"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/understudy-rpc/understudy/internal/turn"
)

// Level says how the order reaches the backups, and when a caller has its reply. It is chosen per
// group, and may be raised per call. Its zero value is Reflected.
type Level int

const (
	// Reflected: the order travels to the source on the reply, and from there to all replicas on
	// its next request. Two message delays, as without replication. It masks any crashes of
	// replicas that leave one in-sync while the clients live, and any crashes of clients while the
	// primary lives.
	Reflected Level = iota
	// Direct: the primary also sends the order to its backups at once, concurrently with the reply.
	// Two message delays; what Reflected doesn't mask has a window of one hop only.
	Direct
	// Stable: the caller has its reply when every in-sync backup has acknowledged to the caller's
	// process that it holds the order and the message. Three message delays; any crashes are masked
	// that leave one in-sync replica.
	Stable
)

func (l Level) String() string {
	switch l {
	case Reflected:
		return "Reflected"
	case Direct:
		return "Direct"
	case Stable:
		return "Stable"
	default:
		return fmt.Sprintf("Level(%d)", int(l))
	}
}

// ParseLevel is the inverse of String; it ignores case.
func ParseLevel(s string) (Level, error) {
	for l := Reflected; l <= Stable; l++ {
		if strings.EqualFold(s, l.String()) {
			return l, nil
		}
	}
	return 0, fmt.Errorf("understudy: unknown level %q: it is Reflected, Direct or Stable", s)
}

// Now returns the time of the turn that ctx belongs to: the primary recorded it when it ordered the
// message, in microseconds, by its wall clock, and it never goes back from one turn to the next. So
// it is as right as the clock of the machine that leads: it leaps ahead with that clock, and where
// a clock was ahead and is set right, or a replica takes over whose clock is behind, Now goes on at
// half speed until that clock has caught up: after an hour that was too much, within two hours. It
// is ahead of the primary's clock by no more than the clocks of two primaries differ, or one clock
// from itself before it was set; and it never stands still. What a read-only method sees is the
// primary's time, too, but recorded nowhere: from one primary to the next it may go back.
//
// Outside of a turn (in a unit test of a handler, say) it is time.Now.
func Now(ctx context.Context) time.Time {
	if t := turn.FromContext(ctx); t != nil {
		return t.Now()
	}
	return time.Now()
}

// Rand returns the turn's source of random numbers, the same on every replica that takes the turn,
// and not to be guessed by clients. It must not be used concurrently, nor after the turn. Outside
// of a turn it is seeded afresh.
func Rand(ctx context.Context) *rand.Rand {
	if t := turn.FromContext(ctx); t != nil {
		return t.Rand()
	}
	var seed [32]byte
	_, _ = crand.Read(seed[:]) // never fails, says its documentation
	return rand.New(rand.NewChaCha8(seed))
}
