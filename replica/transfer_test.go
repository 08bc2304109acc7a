package replica

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/internal/wire"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// TestJoinerKeepsABoundedPart: what a joiner hears while it restores its snapshot is bounded, and
// heartbeats don't count.
func TestJoinerKeepsABoundedPart(t *testing.T) {
	t.Parallel()
	var k keptBack
	large := &pb.FollowResponse{Messages: []*pb.LoggedMessage{{Message: make([]byte, 1<<20)}}}
	n := 0
	for ; k.bytes+1<<20 < maxJoinBytes-1<<20; n++ {
		for stable := range uint64(3) {
			if err := k.add(&pb.FollowResponse{Stable: stable}); err != nil {
				t.Fatal(err)
			}
		}
		if err := k.add(large); err != nil {
			t.Fatal(err)
		}
	}
	if len(k.responses) != 2*n || k.responses[0].GetStable() != 2 {
		t.Errorf("%d messages are kept of %d, and as many heartbeats; the first has %d", len(k.responses), n,
			k.responses[0].GetStable())
	}
	if err := errors.Join(k.add(large), k.add(large)); !errors.Is(err, errKeepsAll) {
		t.Errorf("beyond the bound: %v", err)
	}
}

// TestSilentJoinerIsDropped: one that is counted holds up the stable point, so it has no longer
// than a member; one that isn't has more patience.
func TestSilentJoinerIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in := leadingAlone(t)
		in.seal = wire.NewSeal(make([]byte, secretSize))
		in.r.clock = func() func() time.Duration {
			began := time.Now()
			return func() time.Duration { return time.Since(began) }
		}()
		joins := func(name string, s stage) context.Context {
			ctx, cut := context.WithCancelCause(t.Context())
			in.m.mu.Lock()
			defer in.m.mu.Unlock()
			p := in.m.leading().roster.peers.add(memberOf(name), s)
			streams(in, p, cut)
			if s == counted {
				in.m.leading().primary.Require(p.id)
			}
			return ctx
		}
		early, late := joins("early", empty), joins("late", counted)
		time.Sleep(silence + time.Millisecond)
		in.m.leading().roster.dropSilent()
		if early.Err() != nil || !errors.Is(context.Cause(late), errSilent) {
			t.Errorf("after %v: %v, %v", silence, context.Cause(early), context.Cause(late))
		}
		if _, set := in.m.leading().primary.Required(); len(set) != 1 {
			t.Errorf("required are %v", set)
		}
		time.Sleep(joinSilence)
		in.m.leading().roster.dropSilent()
		if !errors.Is(context.Cause(early), errSilent) || len(in.m.leading().roster.peers) != 0 {
			t.Errorf("after %v: %v", joinSilence, context.Cause(early))
		}
	})
}

func memberOf(name string) election.Member { return election.Member{Name: name, Incarnation: 1} }
