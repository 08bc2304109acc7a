package understudytest_test

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/understudy-rpc/understudy"
	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/election/memory"
	"github.com/understudy-rpc/understudy/replica"
	"github.com/understudy-rpc/understudy/understudytest"
)

// A store that goes back, or is emptied, or changed by hand: who has known the group believes none
// of it, and gives nothing up.

// damages are what may become of a store. old is what it held before the last change of who is
// in-sync.
var damages = map[string]func(s *memory.Store, old *memory.Backup){
	"emptied":     func(s *memory.Store, _ *memory.Backup) { s.Restore(nil) },
	"restored":    func(s *memory.Store, old *memory.Backup) { s.Restore(old) },
	"no id":       tamper(func(s *election.State) { s.Group = election.Group{}; s.Fence = 0 }),
	"no primary":  tamper(func(s *election.State) { s.Primary, s.Epoch = election.Member{}, 0 }),
	"another id":  tamper(func(s *election.State) { s.Group.ID++ }),
	"not in-sync": tamper(func(s *election.State) { s.InSync = s.InSync[:1] }),
	"primary out": tamper(func(s *election.State) { s.InSync = s.InSync[1:] }),
}

func tamper(change func(*election.State)) func(*memory.Store, *memory.Backup) {
	return func(s *memory.Store, _ *memory.Backup) { s.Tamper("test", change) }
}

// TestSuspectStoreEndsNothing: whatever becomes of the store, no incarnation ends, nobody is
// elected, calls wait, and go on when the store is as it was.
func TestSuspectStoreEndsNothing(t *testing.T) {
	for _, level := range levels {
		for name, damage := range damages {
			t.Run(fmt.Sprintf("%v/%s", level, name), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					c := understudytest.New(t, 2, registerLedger, understudytest.Level(level),
						understudytest.Logger(verbose))
					old := c.Store().Backup()
					c.Start(c.Grow())
					c.AwaitInSync(3)
					l := startLoad(t, c, 2, 10*time.Millisecond)
					time.Sleep(50 * time.Millisecond)
					before := c.View()
					good := c.Store().Backup()
					damage(c.Store(), old)
					time.Sleep(8 * time.Second) // longer than a lease, and than a store isn't listed anew
					for i := range 3 {
						s := c.Replica(i).Status()
						if s.Suspect == "" || s.Epoch != before.Epoch ||
							s.Role != map[bool]replica.Role{true: replica.Leading, false: replica.Following}[i == 0] {
							t.Errorf("replica %d is now %+v", i, s)
						}
					}
					ctx, cancel := context.WithTimeout(t.Context(), time.Second)
					defer cancel()
					if _, err := add(ctx, c.Dial("late"), "late"); err == nil {
						t.Error("a call is executed while the store is suspect")
					}
					c.Store().Restore(good)
					l.settle(others(3))
					for i := range 3 {
						if s := c.Replica(i).Status(); s.Suspect != "" || s.Epoch != before.Epoch {
							t.Errorf("the store is as it was, and replica %d is %+v", i, s)
						}
					}
				})
			})
		}
	}
}

// TestNobodyIsElectedWhileTheStoreIsSuspect: nobody takes over until the store makes sense
// again; then somebody does, and nothing is lost.
func TestNobodyIsElectedWhileTheStoreIsSuspect(t *testing.T) {
	for name, damage := range damages {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := understudytest.New(t, 2, registerLedger, understudytest.Logger(verbose))
				old := c.Store().Backup()
				c.Start(c.Grow())
				c.AwaitInSync(3)
				l := startLoad(t, c, 2, 10*time.Millisecond)
				time.Sleep(50 * time.Millisecond)
				good := c.Store().Backup()
				damage(c.Store(), old)
				time.Sleep(10 * time.Millisecond)
				c.Kill(0)
				time.Sleep(8 * time.Second)
				for i := 1; i < 3; i++ {
					if s := c.Replica(i).Status(); s.Role != replica.Following || s.Suspect == "" {
						t.Errorf("replica %d is now %+v", i, s)
					}
				}
				c.Store().Restore(good)
				l.settle(others(3, 0))
			})
		})
	}
}

// evictedBy makes a group of three at Stable, of which replica 2 is evicted and doesn't know it. It
// returns what the store held before, and a client whose last call was stable.
func evictedUnawares(t *testing.T) (*understudytest.Cluster, *memory.Backup, *load) {
	c := understudytest.New(t, 3, registerLedger, understudytest.Level(understudy.Stable),
		understudytest.Logger(verbose))
	old := c.Store().Backup()
	l := startLoad(t, c, 1, 10*time.Millisecond)
	time.Sleep(20 * time.Millisecond)
	c.Link(2).Cut()
	for _, other := range []string{"replica0", "replica1", "client0"} {
		partition(c, other, "replica2")
	}
	c.AwaitInSync(2)
	time.Sleep(100 * time.Millisecond)
	return c, old, l
}

// TestEvictedReplicaLearnsFromAPeer: a store that was restored calls an evicted replica in-sync. A
// peer has seen more, and says so: it isn't elected.
func TestEvictedReplicaLearnsFromAPeer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, old, l := evictedUnawares(t)
		good := c.Store().Backup()
		c.Store().Restore(old)
		for _, other := range []string{"replica1", "client0"} {
			mend(c, other, "replica2")
		}
		c.Link(2).Mend()
		time.Sleep(8 * time.Second)
		for i := range 3 {
			if s := c.Replica(i).Status(); s.Suspect == "" ||
				s.Role != map[bool]replica.Role{true: replica.Leading, false: replica.Following}[i == 0] {
				t.Errorf("replica %d is now %+v", i, s)
			}
		}
		c.Store().Restore(good)
		mend(c, "replica0", "replica2")
		l.settle(others(3))
	})
}

// TestEvictedReplicaLearnsFromAClient: all that have seen more are dead but a client, which brings
// what a replica has sealed for it.
func TestEvictedReplicaLearnsFromAClient(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, old, l := evictedUnawares(t)
		close(l.stop)
		l.wg.Wait()
		mend(c, "client0", "replica2")
		time.Sleep(2 * time.Second) // the client's stream
		c.Kill(0)
		c.Kill(1)
		c.Store().Restore(old)
		c.Link(2).Mend()
		time.Sleep(8 * time.Second)
		if s := c.Replica(2).Status(); s.Suspect == "" || s.Role != replica.Following {
			t.Errorf("the evicted one is now %+v", s)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := add(ctx, l.conns[0], "late"); status.Code(err) != codes.DeadlineExceeded {
			t.Errorf("a call: %v", err)
		}
	})
}

// TestEvictedReplicaIsElectedByAnOldStore: nobody could tell it in time. What the client is not
// told is that all is well: it takes no word of that primary, or is told DataLoss.
func TestEvictedReplicaIsElectedByAnOldStore(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, old, l := evictedUnawares(t)
		close(l.stop)
		l.wg.Wait()
		c.Kill(0)
		c.Kill(1)
		c.Store().Restore(old)
		c.Link(2).Mend()
		time.Sleep(8 * time.Second)
		if s := c.Replica(2).Status(); s.Role != replica.Leading {
			t.Fatalf("the evicted one is now %+v", s)
		}
		mend(c, "client0", "replica2")
		time.Sleep(2 * time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		_, err := add(ctx, l.conns[0], "late")
		if code := status.Code(err); code != codes.DataLoss && code != codes.DeadlineExceeded {
			t.Errorf("the client is told %v: replies that were stable are gone", err)
		}
	})
}

// TestOldPrimaryIsBackInAnOldStore: a primary was cut off, and deposed without its knowing; when it
// is back, a restored store names it still. The others have seen more, and say so: it evicts
// nobody, and takes nobody in.
func TestOldPrimaryIsBackInAnOldStore(t *testing.T) {
	for _, level := range levels {
		t.Run(level.String(), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := understudytest.New(t, 3, registerLedger, understudytest.Level(level),
					understudytest.Logger(verbose))
				l := startLoad(t, c, 1, 10*time.Millisecond)
				time.Sleep(50 * time.Millisecond)
				old := c.Store().Backup()
				c.Link(0).Cut()
				rest := []string{"replica1", "replica2", "client0"}
				for _, other := range rest {
					partition(c, other, "replica0")
				}
				time.Sleep(5 * time.Second)
				good := c.View()
				backup := c.Store().Backup()
				c.Store().Restore(old)
				c.Link(0).Mend()
				for _, other := range rest {
					mend(c, other, "replica0")
				}
				time.Sleep(8 * time.Second)
				if s := c.Replica(0).Status(); s.Suspect == "" || len(c.View().InSync) != 3 {
					t.Errorf("the old primary is %+v, in-sync are %v", s, c.View().InSync)
				}
				for i := 1; i < 3; i++ {
					if s := c.Replica(i).Status(); s.Epoch != good.Epoch || s.Role == replica.Ended ||
						s.Role == replica.Joining {
						t.Errorf("replica %d is %+v", i, s)
					}
				}
				c.Store().Restore(backup)
				l.settle(others(3))
			})
		})
	}
}

// TestNewProcessInAnEmptiedStore: it makes a group, as ever, which replaces nothing: replicas and
// callers of the old one wait, and say why. The old store comes back, and all goes on.
func TestNewProcessInAnEmptiedStore(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := understudytest.New(t, 2, registerLedger, understudytest.Logger(verbose))
		l := startLoad(t, c, 1, 10*time.Millisecond)
		time.Sleep(50 * time.Millisecond)
		good := c.Store().Backup()
		c.Store().Restore(nil)
		c.Start(c.Grow())
		time.Sleep(5 * time.Second)
		if s := c.Replica(2).Status(); s.Role != replica.Leading {
			t.Errorf("the new process is %+v", s)
		}
		for i := range 2 {
			if s := c.Replica(i).Status(); s.Suspect == "" || s.Role == replica.Ended || s.Executed == 0 {
				t.Errorf("replica %d is now %+v", i, s)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := add(ctx, l.conns[0], "late")
		if status.Code(err) != codes.DeadlineExceeded {
			t.Errorf("a call: %v", err)
		}
		c.Kill(2)
		c.Store().Restore(good)
		l.settle(others(2))
	})
}

// TestGroupIsBegunAnew: an operator begins a group anew whose state is gone, or whose store is. Its
// callers are told once; what lives of the old group joins the new one.
func TestGroupIsBegunAnew(t *testing.T) {
	for name, lose := range map[string]func(c *understudytest.Cluster){
		"all replicas died":  func(c *understudytest.Cluster) { c.Kill(0); c.Kill(1) },
		"the store is empty": func(c *understudytest.Cluster) { c.Store().Restore(nil) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var opts []replica.Option
				c := understudytest.New(t, 2, registerLedger, understudytest.Logger(verbose),
					understudytest.EachReplica(func(string) []replica.Option { return opts }))
				conn := c.Dial("client")
				for i := range 3 {
					if _, err := add(t.Context(), conn, fmt.Sprint(i)); err != nil {
						t.Fatal(err)
					}
				}
				id := c.View().Group.ID
				lose(c)
				time.Sleep(5 * time.Second)
				opts = []replica.Option{replica.ReplaceGroup(fmt.Sprintf("%x", id))}
				c.Start(c.Grow())
				time.Sleep(5 * time.Second)
				if s := c.Replica(2).Status(); s.Role != replica.Leading {
					t.Fatalf("the operator's replica is %+v", s)
				}
				if g := c.View().Group; g.ID == id || !g.HasReplaced(id) {
					t.Errorf("the store has %+v", g)
				}
				_, err := add(t.Context(), conn, "told")
				if status.Code(err) != codes.DataLoss {
					t.Errorf("the first call: %v", err)
				}
				_, err = add(t.Context(), conn, "told again")
				if status.Code(err) != codes.FailedPrecondition {
					t.Errorf("the second call: %v", err)
				}
				if n, err := add(t.Context(), c.Dial("another"), "new"); err != nil || n != 1 {
					t.Errorf("the new group: %d, %v", n, err)
				}
				if name == "all replicas died" { // with the option, too: it was replaced
					c.Start(0)
				}
				time.Sleep(5 * time.Second)
				if s := c.Replica(0).Status(); s.Role != replica.Following || s.Epoch != c.View().Epoch {
					t.Errorf("an old replica is now %+v", s)
				}
			})
		})
	}
}
