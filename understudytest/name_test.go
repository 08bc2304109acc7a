package understudytest_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/understudy-rpc/understudy/replica"
	"github.com/understudy-rpc/understudy/understudytest"
)

// namedAs gives one host's replica another one's name.
func namedAs(host, name string) understudytest.Option {
	return understudytest.EachReplica(func(h string) []replica.Option {
		if h != host {
			return nil
		}
		return []replica.Option{replica.Name(name)}
	})
}

// TestALivePrimarysNameIsNotTaken: a process of the same name that can't reach the primary (other
// credentials, a firewall, another network) proves nothing by that. It waits, and the group goes
// on.
func TestALivePrimarysNameIsNotTaken(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := understudytest.New(t, 3, registerLedger, understudytest.Logger(verbose), namedAs("replica3", "replica0"))
		l := startLoad(t, c, 1, 10*time.Millisecond)
		before := c.View()
		c.Grow()
		for _, other := range []string{"replica0", "replica1", "replica2"} {
			partition(c, "replica3", other)
		}
		c.Start(3)
		time.Sleep(10 * time.Second)
		if s := c.Replica(3).Status(); s.Role != replica.Joining {
			t.Errorf("the twin is %+v", s)
		}
		if s := c.Replica(0).Status(); s.Role != replica.Leading || s.Epoch != before.Epoch {
			t.Errorf("the primary is %+v", s)
		}
		// Its lease's end is proof.
		c.Kill(0)
		for _, other := range []string{"replica1", "replica2"} {
			mend(c, "replica3", other)
		}
		time.Sleep(5 * time.Second)
		if s := c.Replica(3).Status(); s.Role != replica.Following || len(c.View().InSync) != 3 {
			t.Errorf("after the lease's end the twin is %+v", s)
		}
		l.finish()
		c.AwaitExecuted()
		l.check(others(4, 0))
	})
}

// TestRestartAtTheSameAddressIsQuick: a process that has its former one's address proves that this
// one is gone; it needn't wait for the lease.
func TestRestartAtTheSameAddressIsQuick(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := understudytest.New(t, 3, registerLedger, understudytest.Logger(verbose))
		l := startLoad(t, c, 1, 10*time.Millisecond)
		for i := range 3 {
			c.Kill(i)
			c.AwaitInSync(2)
			began := time.Now()
			c.Start(i)
			c.AwaitInSync(3)
			if took := time.Since(began); took > time.Second {
				t.Errorf("replica %d is back after %v", i, took)
			}
		}
		l.settle(others(3))
	})
}
