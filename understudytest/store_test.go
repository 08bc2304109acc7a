package understudytest_test

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/understudy-rpc/understudy"
	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/election/memory"
	"github.com/understudy-rpc/understudy/replica"
	"github.com/understudy-rpc/understudy/understudytest"
	"github.com/understudy-rpc/understudy/understudytest/simnet"
)

// An election store that is slow, or whose transactions take place late, at the worst moments.

// slowStore delays what one replica asks of the election.
type slowStore struct {
	election.Election
	create func(ctx context.Context, g election.Group, self election.Registration) (uint64, error)
	elect  func(ctx context.Context, self election.Registration, seen uint64) (uint64, error)
	who    func(ctx context.Context) (election.Member, uint64, error)
	add    func(ctx context.Context, epoch uint64, m election.Member) error
	remove func(ctx context.Context, epoch uint64, m election.Member) error
}

func (s *slowStore) Create(ctx context.Context, g election.Group, self election.Registration) (uint64, error) {
	if s.create != nil {
		return s.create(ctx, g, self)
	}
	return s.Election.Create(ctx, g, self)
}

func (s *slowStore) Elect(ctx context.Context, self election.Registration, seen uint64) (uint64, error) {
	if s.elect != nil {
		return s.elect(ctx, self, seen)
	}
	return s.Election.Elect(ctx, self, seen)
}

func (s *slowStore) Primary(ctx context.Context) (election.Member, uint64, error) {
	if s.who != nil {
		return s.who(ctx)
	}
	return s.Election.Primary(ctx)
}

func (s *slowStore) AddInSync(ctx context.Context, epoch uint64, m election.Member) error {
	if s.add != nil {
		return s.add(ctx, epoch, m)
	}
	return s.Election.AddInSync(ctx, epoch, m)
}

func (s *slowStore) RemoveInSync(ctx context.Context, epoch uint64, m election.Member) error {
	if s.remove != nil {
		return s.remove(ctx, epoch, m)
	}
	return s.Election.RemoveInSync(ctx, epoch, m)
}

// slow makes each replica's store, before the replica starts.
func slow(change func(host string, s *slowStore)) understudytest.Option {
	return understudytest.Between(func(host string, e election.Election) election.Election {
		s := &slowStore{Election: e}
		change(host, s)
		return s
	})
}

func partition(c *understudytest.Cluster, a, b string) {
	cut(c, a, b)
	cut(c, b, a)
}

func cut(c *understudytest.Cluster, from, to string) {
	c.Network().Cut(simnet.Link{From: from, To: to})
}

func mend(c *understudytest.Cluster, a, b string) {
	c.Network().Mend(simnet.Link{From: a, To: b})
	c.Network().Mend(simnet.Link{From: b, To: a})
}

// The transaction by which a replica makes its group takes place after it was told that the outcome
// is unknown, and after it has looked.
func TestGroupIsMadeLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var once sync.Once
		c := understudytest.New(t, 2, registerLedger, understudytest.Logger(verbose),
			slow(func(_ string, s *slowStore) {
				s.create = func(ctx context.Context, g election.Group, self election.Registration) (uint64, error) {
					once.Do(func() { time.AfterFunc(5*time.Millisecond, s.Election.(*memory.Client).HoldNext()) })
					return s.Election.Create(ctx, g, self)
				}
			}))
		l := startLoad(t, c, 1, time.Millisecond)
		time.Sleep(10 * time.Millisecond)
		l.settle(others(2))
	})
}

// The transaction that elects a replica takes place after it was told that the outcome is unknown,
// and after it has looked.
func TestElectionTakesPlaceLate(t *testing.T) {
	alternatives(t, 4, func(t *testing.T, level understudy.Level, k int) {
		c := understudytest.New(t, 2, registerLedger, understudytest.Level(level), understudytest.Logger(verbose))
		l := startLoad(t, c, 1, time.Millisecond)
		time.Sleep(5 * time.Millisecond)
		release := c.Link(1).HoldNext()
		c.Crash(0)
		time.Sleep(2*time.Millisecond + time.Duration(k)*7*time.Millisecond)
		release()
		c.Bury(0)
		l.settle(others(2, 0))
	})
}

// The primary adds a joiner to in-sync after its successor has looked who is, and before it is
// elected.
func TestJoinerIsAddedBeforeElection(t *testing.T) {
	alternatives(t, 1, func(t *testing.T, level understudy.Level, _ int) {
		adding, electing, added, elected := make(chan struct{}), make(chan struct{}), make(chan struct{}),
			make(chan struct{})
		var once sync.Once
		c := understudytest.New(t, 2, registerLedger, understudytest.Level(level), understudytest.Logger(verbose),
			slow(func(host string, s *slowStore) {
				switch host {
				case "replica0":
					s.add = func(ctx context.Context, epoch uint64, m election.Member) error {
						if m.Name == "replica2" {
							close(adding)
							<-electing
							defer close(added)
						}
						return s.Election.AddInSync(ctx, epoch, m)
					}
					s.remove = func(ctx context.Context, epoch uint64, m election.Member) error {
						<-elected
						return s.Election.RemoveInSync(ctx, epoch, m)
					}
				case "replica1":
					s.elect = func(ctx context.Context, self election.Registration, seen uint64) (uint64, error) {
						once.Do(func() {
							close(electing)
							<-added
						})
						defer close(elected)
						return s.Election.Elect(ctx, self, seen)
					}
				}
			}))
		c.Start(c.Grow())
		<-adding
		partition(c, "replica0", "replica1")
		l := startLoad(t, c, 1, time.Millisecond)
		<-elected
		for c.Replica(1).Status().Role != replica.Leading {
			time.Sleep(100 * time.Microsecond)
		}
		time.Sleep(20 * time.Millisecond)
		c.Kill(1)
		mend(c, "replica0", "replica1")
		l.settle(others(3, 1))
	})
}

// The election takes long in the store, and meanwhile the old primary renews its authority: for as
// long as that lasts, a client that only it reaches may accept its replies. Its successor waits so
// long (R12.2).
func TestSuccessorWaitsOutTheOldAuthority(t *testing.T) {
	alternatives(t, 1, func(t *testing.T, level understudy.Level, _ int) {
		forever := make(chan struct{})
		var mu sync.Mutex
		away := false
		reports := make(chan replica.Failover, 1)
		c := understudytest.New(t, 2, registerLedger, understudytest.Level(level), understudytest.Logger(verbose),
			understudytest.ReplicaOptions(replica.OnFailover(func(f replica.Failover) {
				reports <- f
			})), slow(func(host string, s *slowStore) {
				switch host {
				case "replica0":
					s.who = func(ctx context.Context) (election.Member, uint64, error) {
						mu.Lock()
						wait := away
						mu.Unlock()
						if wait {
							<-ctx.Done()
							return election.Member{}, 0, ctx.Err()
						}
						return s.Election.Primary(ctx)
					}
					s.remove = func(ctx context.Context, epoch uint64, m election.Member) error {
						select {
						case <-forever:
						case <-ctx.Done():
						}
						return &election.UnknownError{Op: "remove", Err: ctx.Err()}
					}
				case "replica1":
					s.elect = func(ctx context.Context, self election.Registration, seen uint64) (uint64, error) {
						time.Sleep(700 * time.Millisecond)
						mu.Lock()
						away = true
						mu.Unlock()
						return s.Election.Elect(ctx, self, seen)
					}
				}
			}))
		partition(c, "client0", "replica1")
		l := startLoad(t, c, 1, 5*time.Millisecond)
		time.Sleep(20 * time.Millisecond)
		partition(c, "replica0", "replica1")
		opened := (<-reports).Opened.Sub(zero)
		time.Sleep(500 * time.Millisecond)
		l.mu.Lock()
		defer l.mu.Unlock()
		last := l.calls[len(l.calls)-1]
		if last.err != nil || last.end > opened {
			t.Errorf("%q was accepted at %v, and the gate opened at %v", last.name, last.end, opened)
		}
		go l.finish()
		mend(c, "client0", "replica1")
		mend(c, "replica0", "replica1")
	})
}

// A joiner's stream breaks while its primary writes it to in-sync: from then on it may be elected,
// so it counts.
func TestJoinerLeavesWhileItIsAdded(t *testing.T) {
	alternatives(t, 6, func(t *testing.T, level understudy.Level, k int) {
		var c *understudytest.Cluster
		first := true
		c = understudytest.New(t, 1, registerLedger, understudytest.Level(level), understudytest.Logger(verbose),
			slow(func(host string, s *slowStore) {
				if host != "replica0" {
					return
				}
				s.add = func(ctx context.Context, epoch uint64, m election.Member) error {
					if !first {
						return s.Election.AddInSync(ctx, epoch, m)
					}
					first = false
					if k < 3 {
						mend(c, "replica0", "replica1")
					}
					time.Sleep(time.Duration(k%3) * 150 * time.Microsecond)
					err := s.Election.AddInSync(ctx, epoch, m)
					if k >= 3 {
						mend(c, "replica0", "replica1")
					}
					time.Sleep(time.Duration(k%3) * 150 * time.Microsecond)
					return err
				}
			}))
		l := startLoad(t, c, 1, 3*time.Millisecond)
		time.Sleep(5 * time.Millisecond)
		c.Start(c.Grow())
		time.Sleep(300 * time.Millisecond) // it may have had to begin again
		c.AwaitInSync(2)
		partition(c, "replica0", "replica1")
		time.Sleep(20 * time.Millisecond)
		c.Kill(0)
		l.settle(others(2, 0))
	})
}
