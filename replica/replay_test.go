package replica

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/understudy-rpc/understudy/orderstate"
	"github.com/understudy-rpc/understudy/replica/internal/machine"
)

// replaying is a backup that holds one batch of messages, and their order; handler is what executes
// each.
func replaying(t *testing.T, handler func(in *incarnation)) *incarnation {
	t.Helper()
	in := backup(t)
	in.r.app.Register(machine.NewMethod("/a/b", nil,
		func(any, context.Context, func(any) error, grpc.UnaryServerInterceptor) (any, error) {
			handler(in)
			return new(emptypb.Empty), nil
		}, nil))
	in.m.mu.Lock()
	defer in.m.mu.Unlock()
	in.machine.Own(orderstate.OrderInfo{OrderNum: 1, Session: 1, Kind: orderstate.Open})
	run := orderstate.Run{Envelope: orderstate.Envelope{Epoch: 1, EpochFirst: 1, First: 2, Count: machine.AtOnce}}
	for i := range machine.AtOnce {
		q := orderstate.SeqNum(i + 1)
		(&attachment{m: in.m,
			session: 1}).logFrame(orderstate.Message{MessageID: orderstate.MessageID{Session: 1,
			SeqNum: q}, Digest: uint64(q), Body: &machine.Body{Method: "/a/b"}})
		run.Entries = append(run.Entries,
			orderstate.OrderInfo{OrderNum: orderstate.OrderNum(i + 2), Session: 1, SeqNum: q, First: 1,
				Digest: uint64(q)})
	}
	if _, err := in.m.following().receive([]orderstate.Run{run}); err != nil {
		t.Fatal(err)
	}
	return in
}

// executed checks that the first n messages are recorded as executed, with their replies, and no
// other is.
func executed(t *testing.T, in *incarnation, n int) {
	t.Helper()
	noWait, cancel := context.WithCancel(t.Context())
	cancel()
	if in.machine.Executed() != orderstate.OrderNum(n)+1 || in.r.stats.turns.Load() != uint64(n) {
		t.Errorf("executed up to %d, %d turns; want %d, %d", in.machine.Executed(), in.r.stats.turns.Load(), n+1, n)
	}
	for i := range machine.AtOnce {
		said := in.machine.Await(noWait, orderstate.MessageID{Session: 1, SeqNum: orderstate.SeqNum(i + 1)})
		if logged := said != nil; logged != (i < n) {
			t.Errorf("the reply to message %d is logged: %v, %v", i+1, logged, said)
		}
	}
}

// TestReplayEndsWithItsIncarnation: whoever stops a replica waits for one handler, not for a batch
// of them. What was executed is recorded, nothing else.
func TestReplayEndsWithItsIncarnation(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		in := replaying(t, func(in *incarnation) {
			if calls++; calls == 3 {
				in.end(errStopped)
			}
		})
		in.goes(in.executor)
		in.wg.Wait()
		if calls != 3 {
			t.Errorf("%d handlers were called", calls)
		}
		executed(t, in, 3)
	})
}

// TestReplayWaitsForNoTurnAfterItsEnd: one that waits for its turn gives up.
func TestReplayWaitsForNoTurnAfterItsEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		in := replaying(t, func(*incarnation) { t.Error("a handler was called") })
		if err := in.machine.Take(t.Context()); err != nil {
			t.Fatal(err)
		}
		in.goes(in.executor)
		synctest.Wait()
		in.end(errStopped)
		in.wg.Wait()
		in.machine.End()
		executed(t, in, 0)
	})
}

// TestReplayLetsOthersIn: who wants to be between turns waits some 10 ms, or for one handler,
// however long a batch takes; the batch then goes on where it was.
func TestReplayLetsOthersIn(t *testing.T) {
	t.Parallel()
	for _, each := range []time.Duration{4 * time.Millisecond, time.Second} {
		synctest.Test(t, func(t *testing.T) {
			in := replaying(t, func(*incarnation) { time.Sleep(each) })
			in.goes(in.executor)
			synctest.Wait()
			began := time.Now()
			if err := in.machine.Take(t.Context()); err != nil {
				t.Fatal(err)
			}
			waited := time.Since(began)
			in.machine.End()
			if waited > 10*time.Millisecond+each {
				t.Errorf("waited %v for handlers of %v", waited, each)
			}
			executed(t, in, int(waited/each))
			time.Sleep(machine.AtOnce * each) // fake: what the batch takes
			synctest.Wait()
			executed(t, in, machine.AtOnce)
			in.end(errStopped)
			in.wg.Wait()
		})
	}
}
