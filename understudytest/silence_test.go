package understudytest_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/understudy-rpc/understudy"
	"github.com/understudy-rpc/understudy/replica"
	"github.com/understudy-rpc/understudy/understudytest"
	"github.com/understudy-rpc/understudy/understudytest/simnet"
)

// A primary whose host vanishes, with no sign of it but silence, while the store is away: when that
// is back, its successor is there soon. Its backups must not keep each other waiting, each taking
// the other's attempt to reach the dead host for a sign of life.
func TestSilentPrimaryWithoutStore(t *testing.T) {
	for k := range steps(16) {
		t.Run(fmt.Sprint(k), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := understudytest.New(t, 3, registerLedger, understudytest.Logger(verbose))
				l := startLoad(t, c, 1, 20*time.Millisecond)
				time.Sleep(50 * time.Millisecond)
				c.Store().SetDown(true)
				c.Link(0).Cut()
				partition(c, "replica0", "replica1")
				partition(c, "replica0", "client0")
				time.Sleep(time.Duration(k) * 90 * time.Millisecond)
				partition(c, "replica0", "replica2")
				time.Sleep(3*time.Second + time.Duration(k%4)*170*time.Millisecond)
				c.Store().SetDown(false)
				back := time.Now()
				for c.Replica(1).Status().Role != replica.Leading && c.Replica(2).Status().Role != replica.Leading {
					time.Sleep(time.Millisecond)
					if time.Since(back) > 30*time.Second {
						t.Fatal("nobody leads")
					}
				}
				if took := time.Since(back); took > time.Second {
					t.Errorf("the successor came %v after the store", took)
				}
				c.Kill(0)
				l.settle(others(3, 0))
			})
		})
	}
}

// A source that has learnt of the epoch from a peer, before its stream to the new primary begins,
// has answered when it has sent what it has: not before, and not only when it is given up.
func TestSourceThatKnewTheEpochAnswersByItsFrames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reports := make(chan replica.Failover, 1)
		c := understudytest.New(t, 4, registerLedger, understudytest.Level(understudy.Reflected),
			understudytest.Logger(verbose),
			understudytest.ReplicaOptions(replica.OnFailover(func(f replica.Failover) { reports <- f })))
		l := startLoad(t, c, 1, time.Millisecond)
		time.Sleep(50 * time.Millisecond)
		// whoever is elected waits for one who can't answer
		c.Network().Cut(simnet.Link{From: "replica1", To: "replica3"})
		c.Network().Cut(simnet.Link{From: "replica2", To: "replica3"})
		c.Crash(0)
		second := 0
		for second == 0 {
			for _, i := range []int{1, 2} {
				if c.Replica(i).Status().Role == replica.TakingOver {
					second = i
				}
			}
			if c.Replica(3).Status().Role == replica.TakingOver {
				t.Skip("replica 3 was elected")
			}
			time.Sleep(10 * time.Microsecond)
		}
		peer, winner := fmt.Sprintf("replica%d", 3-second), fmt.Sprintf("replica%d", second)
		partition(c, "client0", winner)
		time.Sleep(20 * time.Millisecond)
		c.Network().Mend(simnet.Link{From: "client0", To: peer}) // its stream begins anew
		time.Sleep(50 * time.Millisecond)
		mend(c, "client0", winner)
		if report := <-reports; report.SessionsGivenUp != 0 {
			t.Errorf("the source was given up: %+v", report)
		}
		l.finish()
		c.Kill(0)
		c.Network().Mend(simnet.Link{From: "replica1", To: "replica3"})
		c.Network().Mend(simnet.Link{From: "replica2", To: "replica3"})
		c.AwaitInSync(3)
		c.AwaitExecuted()
		l.check(others(4, 0))
	})
}
