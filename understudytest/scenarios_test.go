package understudytest_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/understudy-rpc/understudy"
	"github.com/understudy-rpc/understudy/understudytest"
	"github.com/understudy-rpc/understudy/understudytest/simnet"
)

// messages arms a trap at the k-th message of those that match, counted from now.
func messages(c *understudytest.Cluster, match func(simnet.Link) bool, k int, trap func()) (count func() int) {
	seen := make(chan int, 1)
	seen <- 0
	c.Network().OnWrite(func(link simnet.Link, _ int) bool {
		if !match(link) {
			return false
		}
		n := <-seen + 1
		seen <- n
		if n != k {
			return false
		}
		trap()
		return true
	})
	return func() int {
		n := <-seen
		seen <- n
		return n
	}
}

// forget drops the calls of a client that died; with accepted, only those whose reply it didn't
// have.
func (l *load) forget(client string, accepted bool) {
	var kept []madeCall
	for _, m := range l.calls {
		if !strings.HasPrefix(m.name, client+" ") || accepted && m.err == nil {
			kept = append(kept, m)
		}
	}
	l.calls = kept
}

// told drops the calls whose accepted replies are lost, if their clients were told so by a later
// call (I5).
func (l *load) told(replica int) {
	executed := map[string]bool{}
	for _, e := range l.c.State(replica).(*ledger).all() {
		executed[e.Name] = true
	}
	client := func(m madeCall) string {
		name, _, _ := strings.Cut(m.name, " ")
		return name
	}
	last := map[string]time.Duration{} // when a client was told
	for _, m := range l.calls {
		if status.Code(m.err) == codes.DataLoss {
			last[client(m)] = max(last[client(m)], m.began)
		}
	}
	l.calls = slices.DeleteFunc(l.calls, func(m madeCall) bool {
		return m.err == nil && !executed[m.name] && m.end <= last[client(m)]
	})
}

// A client dies at each of its messages, and the primary with it: others lose nothing, or are told
// so, where an order died with the client's frame. At Stable nothing is lost, nor is what the
// client had accepted.
func TestClientDiesWithPrimary(t *testing.T) {
	alternatives(t, 24, func(t *testing.T, level understudy.Level, k int) {
		c := understudytest.New(t, 3, registerLedger, understudytest.Level(level), understudytest.Logger(verbose))
		messages(c, func(l simnet.Link) bool { return l.From == "client0" || l.To == "client0" }, 1+3*k, func() {
			c.Network().Kill("client0")
			c.Crash(0)
		})
		l := startLoad(t, c, 3, 200*time.Microsecond)
		time.Sleep(6 * time.Millisecond)
		c.Bury(0)
		_ = l.conns[0].Close()
		l.finish()
		c.AwaitInSync(2)
		c.AwaitExecuted()
		l.forget("client0", level == understudy.Stable)
		if level == understudy.Stable {
			l.check(others(3, 0))
			return
		}
		l.told(1)
		l.check(others(3, 0), codes.DataLoss)
	})
}

// A joiner is under way, under load, and the primary dies at each message from and to it.
func TestPrimaryDiesWhileOneJoins(t *testing.T) {
	alternatives(t, 24, func(t *testing.T, level understudy.Level, k int) {
		c := understudytest.New(t, 2, registerLedger, understudytest.Level(level), understudytest.Logger(verbose))
		l := startLoad(t, c, 2, 300*time.Microsecond)
		time.Sleep(3 * time.Millisecond)
		messages(c, func(l simnet.Link) bool {
			return l.From == "replica2" || l.To == "replica2"
		}, 1+2*k, func() { c.Crash(0) })
		c.Start(c.Grow())
		time.Sleep(8 * time.Millisecond)
		c.Bury(0)
		l.settle(others(3, 0))
	})
}

// Links are cut, one way or both, for longer than it takes to elect another primary, and mended.
func TestPartitionsLoseNothing(t *testing.T) {
	type cuts [][2]string
	for name, cut := range map[string]cuts{
		"to one backup":    {{"replica0", "replica1"}},
		"from one backup":  {{"replica1", "replica0"}},
		"one backup":       {{"replica0", "replica1"}, {"replica1", "replica0"}},
		"to the backups":   {{"replica0", "replica1"}, {"replica0", "replica2"}},
		"from the backups": {{"replica1", "replica0"}, {"replica2", "replica0"}},
		"the backups": {{"replica0", "replica1"}, {"replica1", "replica0"}, {"replica0", "replica2"},
			{"replica2", "replica0"}},
		"to a client":   {{"replica0", "client0"}},
		"from a client": {{"client0", "replica0"}},
		"a client":      {{"replica0", "client0"}, {"client0", "replica0"}},
		"all": {{"replica0", "client0"}, {"client0", "replica0"}, {"replica0", "client1"},
			{"client1", "replica0"}, {"replica0", "replica1"}, {"replica1", "replica0"}, {"replica0", "replica2"},
			{"replica2", "replica0"}},
		"all but a client": {{"replica0", "client0"}, {"client0", "replica0"}, {"replica0", "replica1"},
			{"replica1", "replica0"}, {"replica0", "replica2"}, {"replica2", "replica0"}},
		"the backups from one another": {{"replica1", "replica2"}, {"replica2", "replica1"}},
		"the store":                    {},
		"the store and the backups": {{"replica0", "replica1"}, {"replica1", "replica0"}, {"replica0", "replica2"},
			{"replica2", "replica0"}},
	} {
		t.Run(name, func(t *testing.T) {
			alternatives(t, 2, func(t *testing.T, level understudy.Level, k int) {
				c := understudytest.New(t, 3, registerLedger, understudytest.Level(level),
					understudytest.Logger(verbose))
				l := startLoad(t, c, 2, time.Millisecond)
				time.Sleep(20*time.Millisecond + time.Duration(k)*131*time.Microsecond)
				if strings.HasPrefix(name, "the store") {
					c.Link(0).Cut()
				}
				for _, x := range cut {
					c.Network().Cut(simnet.Link{From: x[0], To: x[1]})
				}
				time.Sleep(10 * time.Millisecond)
				l.every(40 * time.Millisecond)
				time.Sleep(1450 * time.Millisecond)
				l.every(time.Millisecond)
				time.Sleep(40 * time.Millisecond)
				for _, x := range cut {
					c.Network().Mend(simnet.Link{From: x[0], To: x[1]})
				}
				c.Link(0).Mend()
				time.Sleep(10 * time.Millisecond)
				l.every(40 * time.Millisecond)
				time.Sleep(490 * time.Millisecond)
				l.settle(others(3))
			})
		})
	}
}

// The store is away for 5 s: calls are held up, and none fails; with a crash in it, too.
func TestCallsWaitWhileTheStoreIsAway(t *testing.T) {
	for _, crash := range []time.Duration{-1, 100 * time.Microsecond, 2 * time.Second} {
		t.Run(fmt.Sprint(crash), func(t *testing.T) {
			alternatives(t, 2, func(t *testing.T, level understudy.Level, k int) {
				c := understudytest.New(t, 3, registerLedger, understudytest.Level(level),
					understudytest.Logger(verbose))
				l := startLoad(t, c, 2, 10*time.Millisecond)
				time.Sleep(20*time.Millisecond + time.Duration(k)*97*time.Microsecond)
				c.Store().SetDown(true)
				if crash >= 0 {
					time.Sleep(crash)
					c.Crash(0)
				}
				time.Sleep(5 * time.Second)
				c.Store().SetDown(false)
				time.Sleep(300 * time.Millisecond)
				alive := others(3)
				if crash >= 0 {
					c.Bury(0)
					alive = others(3, 0)
				}
				l.settle(alive)
			})
		})
	}
}

// The store goes away and comes back within the milliseconds of an election, so that its outcome is
// unknown.
func TestElectionOfUnknownOutcomeIsSettled(t *testing.T) {
	alternatives(t, 12, func(t *testing.T, level understudy.Level, k int) {
		c := understudytest.New(t, 3, registerLedger, understudytest.Level(level), understudytest.Logger(verbose))
		l := startLoad(t, c, 2, time.Millisecond)
		time.Sleep(5 * time.Millisecond)
		c.Crash(0)
		time.Sleep(time.Duration(k) * 90 * time.Microsecond)
		c.Store().SetDown(true)
		time.Sleep(1200 * time.Millisecond)
		c.Store().SetDown(false)
		time.Sleep(50 * time.Millisecond)
		c.Bury(0)
		l.settle(others(3, 0))
	})
}

// Backups are killed and started again, one after the other, under load; then all at once.
func TestBackupsRestartUnderLoad(t *testing.T) {
	alternatives(t, 1, func(t *testing.T, level understudy.Level, _ int) {
		c := understudytest.New(t, 3, registerLedger, understudytest.Level(level), understudytest.Logger(verbose))
		l := startLoad(t, c, 2, 20*time.Millisecond)
		for range 2 {
			for _, i := range []int{1, 2} {
				c.Kill(i)
				time.Sleep(30 * time.Millisecond)
				c.Start(i)
				time.Sleep(200 * time.Millisecond)
				c.AwaitInSync(3)
			}
		}
		c.Crash(1)
		c.Crash(2)
		c.Bury(1)
		c.Bury(2)
		c.AwaitInSync(1)
		time.Sleep(100 * time.Millisecond)
		c.Start(1)
		time.Sleep(200 * time.Millisecond)
		c.AwaitInSync(2)
		c.Kill(0)
		l.settle([]int{1})
	})
}

// A client's stream to a backup is cut and mended again and again; in the end the primary dies.
func TestBrokenStreamsLoseNothing(t *testing.T) {
	alternatives(t, 2, func(t *testing.T, level understudy.Level, k int) {
		c := understudytest.New(t, 3, registerLedger, understudytest.Level(level), understudytest.Logger(verbose))
		l := startLoad(t, c, 2, 3*time.Millisecond)
		for i := range 10 {
			backup := fmt.Sprintf("replica%d", 1+i%2)
			c.Network().Cut(simnet.Link{From: "client0", To: backup})
			time.Sleep(20*time.Millisecond + time.Duration(k)*113*time.Microsecond)
			mend(c, "client0", backup)
			time.Sleep(30 * time.Millisecond)
		}
		l.every(40 * time.Millisecond)
		time.Sleep(1950 * time.Millisecond)
		l.every(3 * time.Millisecond)
		time.Sleep(50 * time.Millisecond)
		c.Kill(0)
		l.settle(others(3, 0))
	})
}

// Clients come and go; sessions expire; a client that was away for longer than that calls again.
func TestSessionsExpireAndCallAgain(t *testing.T) {
	alternatives(t, 1, func(t *testing.T, level understudy.Level, _ int) {
		c := understudytest.New(t, 3, registerLedger, understudytest.Level(level), understudytest.Logger(verbose))
		l := &load{t: t, c: c, stop: make(chan struct{})}
		away := c.Dial("away")
		l.call(away, "away 1")
		quiet := c.Dial("quiet")
		l.call(quiet, "quiet 1")
		for i := range 30 {
			conn := c.Dial(fmt.Sprintf("guest%d", i))
			l.call(conn, fmt.Sprintf("guest%d", i))
			if i%2 == 0 {
				_ = conn.Close()
			} else {
				c.Network().Kill(fmt.Sprintf("guest%d", i))
				_ = conn.Close()
			}
		}
		for i := range 3 {
			partition(c, "away", fmt.Sprintf("replica%d", i))
		}
		time.Sleep(time.Second)
		for i := range 3 { // its streams' ends must be seen, for its session to have none
			c.Network().Mend(simnet.Link{From: fmt.Sprintf("replica%d", i), To: "away"})
			c.Network().Cut(simnet.Link{From: fmt.Sprintf("replica%d", i), To: "away"})
		}
		time.Sleep(40 * time.Second)
		for i := range 3 {
			mend(c, "away", fmt.Sprintf("replica%d", i))
		}
		l.call(away, "away 2")
		l.call(quiet, "quiet 2")
		c.Kill(0)
		l.call(away, "away 3")
		l.call(quiet, "quiet 3")
		l.settle(others(3, 0))
	})
}

// Large messages, and a large state, with a failover and a joiner among them.
func TestLargeMessagesAndStatesSurviveAFailover(t *testing.T) {
	alternatives(t, 1, func(t *testing.T, level understudy.Level, _ int) {
		c := understudytest.New(t, 3, registerLedger, understudytest.Level(level), understudytest.Logger(verbose))
		l := &load{t: t, c: c, stop: make(chan struct{})}
		conns := []string{"client0", "client1"}
		for i, host := range conns {
			conn := c.Dial(host)
			l.wg.Go(func() {
				for k := range 4 {
					name := fmt.Sprintf("%s call%d ", host, k)
					l.call(conn, name+strings.Repeat("x", 1<<20+(i+k)%3<<20))
				}
			})
		}
		time.Sleep(2 * time.Millisecond)
		c.Kill(0)
		c.Start(0)
		l.wg.Wait()
		time.Sleep(time.Second)
		l.settle(others(3))
	})
}

// Calls that fill what a client may retain go on as soon as the backups hold what was ordered:
// nobody waits for what is told lazily.
func TestRoomIsGivenAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := understudytest.New(t, 3, registerLedger, understudytest.Logger(verbose))
		l := &load{t: t, c: c, stop: make(chan struct{})}
		conn := c.Dial("client")
		began := time.Now()
		for i := range 20 {
			l.wg.Go(func() {
				for k := range 2 {
					l.call(conn, fmt.Sprintf("caller%d call%d ", i, k)+strings.Repeat("x", 1<<20))
				}
			})
		}
		l.wg.Wait()
		if took := time.Since(began); took > 100*time.Millisecond {
			t.Errorf("40 calls of 1 MiB took %v", took)
		}
		l.settle(others(3))
	})
}

// A connection is closed, and a replica stopped, in the middle of calls.
func TestCloseAndStopAmidCalls(t *testing.T) {
	alternatives(t, 4, func(t *testing.T, level understudy.Level, k int) {
		c := understudytest.New(t, 3, registerLedger, understudytest.Level(level), understudytest.Logger(verbose))
		l := startLoad(t, c, 3, 200*time.Microsecond)
		time.Sleep(4*time.Millisecond + time.Duration(k)*43*time.Microsecond)
		_ = l.conns[0].Close()
		time.Sleep(time.Duration(rand.IntN(300)) * time.Microsecond)
		go func() {
			time.Sleep(2 * time.Millisecond)
			_ = l.conns[2].Close()
			close(l.stop)
		}()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := c.Replica(0).Stop(ctx); err != nil {
			t.Error(err)
		}
		l.wg.Wait()
		c.Kill(0)
		c.AwaitInSync(2)
		c.AwaitExecuted()
		l.forget("client0", true)
		l.forget("client2", true)
		l.check(others(3, 0), codes.OK)
	})
}
