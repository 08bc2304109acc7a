package understudytest_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"

	"github.com/understudy-rpc/understudy"
	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/replica"
	"github.com/understudy-rpc/understudy/understudytest"
	"github.com/understudy-rpc/understudy/understudytest/simnet"
)

// A client that has left before the primary dies doesn't hold up the takeover, whether it said
// goodbye or vanished (R11: it was detached); one that vanishes with the primary does, for A and
// its margin (R12.2). At Stable, too, since the service has a read-only method.
func TestSessionsThatHaveLeftHoldUpNoTakeover(t *testing.T) {
	for name, leave := range map[string]struct {
		how   func(c *understudytest.Cluster, goes *grpc.ClientConn)
		quick bool
	}{
		"goodbye": {func(c *understudytest.Cluster, goes *grpc.ClientConn) {
			_ = goes.Close()
			time.Sleep(10 * time.Millisecond)
			c.Crash(c.Primary())
		}, true},
		"before the primary": {func(c *understudytest.Cluster, _ *grpc.ClientConn) {
			c.Network().Kill("goes")
			time.Sleep(10 * time.Millisecond)
			c.Crash(c.Primary())
		}, true},
		"with the primary": {func(c *understudytest.Cluster, _ *grpc.ClientConn) {
			c.Network().Kill("goes")
			c.Crash(c.Primary())
		}, false},
	} {
		for _, level := range levels {
			t.Run(name+"/"+level.String(), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					reports := make(chan replica.Failover, 3)
					c := understudytest.New(t, 3, registerCounter, understudytest.Level(level),
						understudytest.Logger(verbose),
						understudytest.ReplicaOptions(replica.OnFailover(func(f replica.Failover) { reports <- f })))
					stays, goes := c.Dial("stays"), c.Dial("goes")
					for _, conn := range []*grpc.ClientConn{stays, goes} {
						if _, err := add(t.Context(), conn, "x"); err != nil {
							t.Fatal(err)
						}
					}
					c.AwaitExecuted()
					first := c.Primary()
					leave.how(c, goes)
					if n, err := add(t.Context(), stays, "x"); n != 3 || err != nil {
						t.Fatalf("after the failover: %d, %v", n, err)
					}
					f := <-reports
					if took := f.Opened.Sub(f.Elected); took < 100*time.Millisecond != leave.quick {
						t.Errorf("the takeover took %v", took)
					}
					// A new epoch begins with no session detached: the next one finds it so again.
					c.Bury(first)
					c.AwaitInSync(2)
					time.Sleep(10 * time.Millisecond)
					second := c.Primary()
					c.Crash(second)
					if n, err := add(t.Context(), stays, "x"); n != 4 || err != nil {
						t.Fatalf("after the next failover: %d, %v", n, err)
					}
					c.Bury(second)
					f = <-reports
					if took := f.Opened.Sub(f.Elected); took > 100*time.Millisecond {
						t.Errorf("the next takeover took %v", took)
					}
				})
			})
		}
	}
}

// deaf starts two clients' load, and cuts client0 off from replica1, which then isn't waited for
// long: 3 s later its session is detached there.
func deaf(
	t *testing.T, level understudy.Level, n int, way string, opts ...understudytest.Option,
) (*understudytest.Cluster, *load) {
	c := understudytest.New(t, n, registerLedger,
		append(opts, understudytest.Level(level), understudytest.Logger(verbose))...)
	l := startLoad(t, c, 2, 10*time.Millisecond)
	time.Sleep(20 * time.Millisecond)
	if way != "from the backup" {
		cut(c, "client0", "replica1")
	}
	if way != "to the backup" {
		cut(c, "replica1", "client0")
	}
	l.every(40 * time.Millisecond)
	time.Sleep(1950 * time.Millisecond)
	l.every(10 * time.Millisecond)
	time.Sleep(1050 * time.Millisecond)
	if d := c.Replica(0).Status().Detached; d != 1 {
		t.Errorf("%d detached sessions", d)
	}
	return c, l
}

var ways = []string{"both ways", "to the backup", "from the backup"}

// The network between one client and one backup drops everything, silently: the client's calls go
// on, at Stable, too. Then the two find each other again, though the backup's stream to the primary
// has just begun anew.
func TestOneBackupCantHearOneClient(t *testing.T) {
	for _, way := range ways {
		t.Run(way, func(t *testing.T) {
			alternatives(t, 2, func(t *testing.T, level understudy.Level, k int) {
				c, l := deaf(t, level, 3, way)
				if k == 1 {
					partition(c, "replica0", "replica1")
				}
				l.every(20 * time.Millisecond)
				mend(c, "client0", "replica1")
				if k == 1 {
					time.Sleep(100 * time.Millisecond)
					mend(c, "replica0", "replica1")
				}
				time.Sleep(time.Second)
				if d := c.Replica(0).Status().Detached; d != 0 {
					t.Errorf("%d detached sessions after all", d)
				}
				l.settle(others(3))
				calls := 0
				for _, m := range l.calls {
					if m.began < 2*time.Second || m.end > 3*time.Second || m.name[:7] != "client0" {
						continue
					}
					calls++
					if took := m.end - m.began; took > 4*time.Millisecond {
						t.Errorf("%q took %v while its session was detached", m.name, took)
					}
				}
				if calls < 50 {
					t.Errorf("%d calls in a second while its session was detached", calls)
				}
			})
		})
	}
}

// The primary dies right after each of many messages to a client that the only backup can't hear:
// the takeover doesn't wait for that client, and yet nothing of what it was told is lost (R11).
func TestPrimaryDiesWhileOneIsDetached(t *testing.T) {
	for _, way := range ways {
		t.Run(way, func(t *testing.T) {
			alternatives(t, 6, func(t *testing.T, level understudy.Level, k int) {
				reports := make(chan replica.Failover, 3)
				c, l := deaf(t, level, 2, way,
					understudytest.ReplicaOptions(replica.OnFailover(func(f replica.Failover) { reports <- f })))
				link := simnet.Link{From: "replica0", To: "client0"}
				c.KillWhen(0, link, c.Network().Writes()[link]+1+k, false)
				f := <-reports
				if took := f.Opened.Sub(f.Elected); took > 100*time.Millisecond {
					t.Errorf("the takeover took %v", took)
				}
				c.Bury(0)
				mend(c, "client0", "replica1")
				time.Sleep(500 * time.Millisecond)
				l.settle([]int{1})
			})
		})
	}
}

// killAfterReply kills a replica right after the k-th message that it sends to client0 from now on;
// later the client finds the replicas that it couldn't hear.
func killAfterReply(c *understudytest.Cluster, i, k int, later time.Duration, deafTo ...string) {
	link := simnet.Link{From: hostOf(i), To: "client0"}
	c.KillWhen(i, link, c.Network().Writes()[link]+k, false)
	time.Sleep(later)
	c.Bury(i)
	for _, host := range deafTo {
		mend(c, "client0", host)
	}
}

// No backup has ever heard a client, which has just begun to call, and the primary dies: nothing
// that the client was told is lost (R11: a session begins detached). It is no second fault that it
// finds them 2 s later only, when a takeover would have given up a session that it waits for.
func TestClientThatNoBackupHasHeard(t *testing.T) {
	alternatives(t, 6, func(t *testing.T, level understudy.Level, k int) {
		c := understudytest.New(t, 3, registerLedger, understudytest.Level(level), understudytest.Logger(verbose))
		for i := range 2 {
			partition(c, "client0", hostOf(1+i))
		}
		l := startLoad(t, c, 1, 10*time.Millisecond)
		time.Sleep(20 * time.Millisecond)
		killAfterReply(c, 0, 1+k, 2*time.Second, "replica1", "replica2")
		l.settle(others(3, 0))
	})
}

// candidates says who may be elected: the others lose every election.
type candidates struct {
	election.Election
	may func() bool
}

func (s candidates) Elect(ctx context.Context, self election.Registration, seen uint64) (uint64, error) {
	if !s.may() {
		return 0, election.ErrLost
	}
	return s.Election.Elect(ctx, self, seen)
}

// A client is cut off from the other backup as the primary dies, and goes on with the new one,
// which dies, too (R11: an epoch begins with every session detached). That it finds the third
// replica only after a takeover would have given it up is no second fault: it was cut off long
// before the second death.
func TestClientThatTheThirdHasntHeard(t *testing.T) {
	alternatives(t, 6, func(t *testing.T, level understudy.Level, k int) {
		var second atomic.Bool
		c := understudytest.New(t, 3, registerLedger, understudytest.Level(level), understudytest.Logger(verbose),
			understudytest.Between(func(host string, e election.Election) election.Election {
				return candidates{e, func() bool { return host != "replica2" || second.Load() }}
			}))
		l := startLoad(t, c, 2, 10*time.Millisecond)
		time.Sleep(100 * time.Millisecond)
		partition(c, "client0", "replica2")
		c.Kill(0)
		if p := c.Primary(); p != 1 {
			t.Fatalf("replica %d was elected", p)
		}
		second.Store(true)
		killAfterReply(c, 1, 3+k, 4*time.Second, "replica2")
		l.settle([]int{2})
	})
}

// The stream of a backup to its primary begins anew, and at that moment the primary dies: a client
// that the backup can't hear loses nothing (R11: on a new stream every session is detached).
func TestFollowStreamBeginsAnewWhileOneIsDetached(t *testing.T) {
	alternatives(t, 6, func(t *testing.T, level understudy.Level, k int) {
		c, l := deaf(t, level, 2, "both ways")
		l.wg.Go(func() { // a reply at any moment
			for k := 0; ; k++ {
				select {
				case <-l.stop:
					return
				default:
					l.call(l.conns[0], fmt.Sprintf("client0 burst%d", k))
				}
			}
		})
		mend(c, "replica0", "replica1") // resets their connections
		heard := messages(c, func(l simnet.Link) bool { return l.From == "replica1" && l.To == "replica0" }, 0, nil)
		for heard() < 1+k {
			time.Sleep(10 * time.Microsecond)
		}
		killAfterReply(c, 0, 1, 2*time.Second, "replica1")
		l.settle([]int{1})
	})
}
