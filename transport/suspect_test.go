package transport_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/understudy-rpc/understudy/election"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// TestOnlyTheStoreSaysWhoAReplicaIs: whoever answers at a replica's address, and isn't of the group
// that the store names, or isn't that replica, isn't spoken to; the error says who it is. That
// holds for the first Welcome, too.
func TestOnlyTheStoreSaysWhoAReplicaIs(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		other func(w *pb.Welcome)
		says  string
	}{
		"another group": {func(w *pb.Welcome) {
			w.Group = 0xbad
		}, "a's address a:1 is answered by a of group bad; the store has a of group beef there"},
		"another replica": {func(w *pb.Welcome) {
			w.Replica = "b"
		}, "a's address a:1 is answered by b of group beef; the store has a of group beef there"},
	} {
		for _, first := range []bool{true, false} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				within(t, func(t *testing.T, ctx context.Context) {
					c := newCluster(t, "a")
					conn := c.dial()
					if !first {
						must(t, "hello from a", <-sayLater(ctx, conn, "hello"))
					}
					c.set(func() {
						c.hello = func(s *stream, h *pb.Hello) bool {
							w := s.replica.welcome(h)
							tt.other(w)
							s.send(&pb.AttachResponse{Welcome: w})
							return true
						}
						c.answer = func(*request) *answer { return &answer{err: status.Error(codes.Unavailable, "")} }
					})
					for _, s := range c.streams() {
						s.kill(nil)
					}
					ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
					defer cancel()
					_, err := say(ctx, conn, "hello")
					fails(t, err, codes.DeadlineExceeded, tt.says)
				})
			})
		}
	}
}

// TestSuspectStoreIsSaid: calls go on with the replicas that are known, and the error of one that
// ends says why it waited.
func TestSuspectStoreIsSaid(t *testing.T) {
	t.Parallel()
	within(t, func(t *testing.T, ctx context.Context) {
		c := newCluster(t, "a")
		conn := c.dial()
		must(t, "hello from a", <-sayLater(ctx, conn, "hello"))
		good := c.now
		c.show(election.State{Revision: good.Revision + 1})
		time.Sleep(time.Second)
		must(t, "hello from a", <-sayLater(ctx, conn, "hello"))
		c.set(func() { c.answer = func(*request) *answer { return &answer{err: status.Error(codes.Unavailable, "")} } })
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		_, err := say(short, conn, "hello")
		fails(t, err, codes.DeadlineExceeded,
			"the store is suspect: it has nothing of the group; group beef keeps its state")
		c.set(func() { c.answer = nil })
		c.show(good)
		must(t, "hello from a", <-sayLater(ctx, conn, "hello"))
	})
}

// TestCallersOfAReplacedGroupAreToldOnce: another group is another group's only if it says, in the
// store, that it replaces this one.
func TestCallersOfAReplacedGroupAreToldOnce(t *testing.T) {
	t.Parallel()
	within(t, func(t *testing.T, ctx context.Context) {
		c := newCluster(t, "a")
		conn, idle := c.dial(), c.dial()
		idle.Connect()
		must(t, "hello from a", <-sayLater(ctx, conn, "hello"))
		other := c.now
		other.Revision, other.Group.ID = 1, 0xcafe // of a store that began anew
		c.show(other)
		time.Sleep(time.Second)
		must(t, "hello from a", <-sayLater(ctx, conn, "hello")) // nobody has proved anything
		other.Group = other.Group.Replacing(0xbeef, election.Group{})
		c.show(other)
		time.Sleep(time.Second)
		_, err := say(ctx, conn, "hello")
		fails(t, err, codes.DataLoss,
			"the group with id beef was replaced: an operator has begun it anew, as cafe, without its state")
		for range 3 {
			_, err = say(ctx, conn, "hello")
			fails(t, err, codes.FailedPrecondition, "as cafe, without its state; dial again")
		}
		// A connection that had done nothing in the old group is for the new one.
		c.set(func() {
			c.hello = func(s *stream, h *pb.Hello) bool {
				w := s.replica.welcome(h)
				w.Group = 0xcafe
				s.send(&pb.AttachResponse{Welcome: w})
				return true
			}
		})
		must(t, "hello from a", <-sayLater(ctx, idle, "hello"))
	})
}

// TestDownGroupRefusesAtOnce: what was never sent ends as Unavailable, and says who was in-sync;
// what may have been executed waits.
func TestDownGroupRefusesAtOnce(t *testing.T) {
	t.Parallel()
	within(t, func(t *testing.T, ctx context.Context) {
		c := newCluster(t, "a")
		conn := c.dial()
		must(t, "hello from a", <-sayLater(ctx, conn, "hello"))
		hold := make(chan struct{})
		c.set(func() {
			c.answer = func(*request) *answer {
				<-hold
				return &answer{err: status.Error(codes.Unavailable, "")}
			}
		})
		sent := sayLater(ctx, conn, "sent")
		time.Sleep(time.Second)
		close(hold)
		c.crash("a")
		down := c.now
		down.Revision++
		down.Replicas = nil
		c.show(down)
		time.Sleep(time.Second)
		began := time.Now()
		_, err := say(ctx, conn, "hello")
		fails(t, err, codes.Unavailable, "the group is down since ")
		if !strings.Contains(err.Error(), "none of its last in-sync replicas (primary, a) is registered") ||
			time.Since(began) > 0 {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
		select {
		case r := <-sent:
			t.Errorf("what was sent ended: %v", r)
		default:
		}
		c.set(func() { c.answer = nil })
		c.start("a", "a:1", 1)
		c.list("a")
		must(t, "sent from a", <-sent)
	})
}
