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
)

// Clocks that leap, and a store that takes its time.

// slowLedger takes so long for a turn that its client's frame leaves before the client has the
// order: what reflects the order of an idle client's last calls is a null message, and nothing
// else.
type slowLedger struct{ ledger }

func (l *slowLedger) add(ctx context.Context, name string) (int64, error) {
	time.Sleep(20 * time.Millisecond) // fake
	return l.ledger.add(ctx, name)
}

func registerSlowLedger(s grpc.ServiceRegistrar) replica.Snapshotter {
	l := &slowLedger{}
	s.RegisterService(&counterDesc, l)
	return l
}

// leaping is a cluster in which replica0's wall clock is ahead by as much as is stored.
func leaping(t *testing.T, ahead *atomic.Int64) *understudytest.Cluster {
	return understudytest.New(t, 3, registerSlowLedger, understudytest.WallClocks(func(host string) func() time.Time {
		if host != "replica0" {
			return time.Now
		}
		return func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	}))
}

// The primary's clock was an hour ahead, and is set right, or a replica whose clock is right takes
// over: backups get the order of an idle client's last calls as ever (R4), and Now goes on, neither
// back nor for ever away from the clocks.
func TestWallClockLeapsHoldNothingUp(t *testing.T) {
	for _, failover := range []bool{false, true} {
		t.Run(fmt.Sprint("failover=", failover), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var ahead atomic.Int64
				c := leaping(t, &ahead)
				conn := c.Dial("client")
				var last time.Time
				// call says how far Now is ahead of the right time.
				call := func(name string) time.Duration {
					t.Helper()
					ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
					defer cancel()
					if _, err := add(ctx, conn, name); err != nil {
						t.Fatal(err)
					}
					all := c.State(c.Primary()).(*slowLedger).all()
					now := time.UnixMicro(all[len(all)-1].At)
					if now.Before(last) {
						t.Errorf("%s: Now goes back from %v to %v", name, last, now)
					}
					last = now
					return time.Until(now).Round(time.Second)
				}
				call("before")
				ahead.Store(int64(time.Hour))
				if d := call("ahead"); d != time.Hour {
					t.Errorf("Now is %v ahead while the primary's clock is an hour", d)
				}
				time.Sleep(time.Second)
				ahead.Store(0)
				if failover {
					c.Kill(0)
				}
				for i := range 3 {
					call(fmt.Sprint("after", i))
				}
				time.Sleep(200 * time.Millisecond)
				p := c.Primary()
				want := c.Replica(p).Status().Executed
				for i := range 3 {
					if s := c.Replica(i).Status(); s.Role == replica.Following && s.Executed < want {
						t.Errorf("200 ms after the last call replica %d has executed %d of %d", i, s.Executed, want)
					}
				}
				for _, step := range []struct{ sleep, ahead time.Duration }{
					{time.Minute, time.Hour - 30*time.Second}, {59 * time.Minute, 30 * time.Minute},
					{time.Hour + 10*time.Second, 0},
				} {
					time.Sleep(step.sleep)
					if d := call("later"); d-step.ahead > 5*time.Second || d-step.ahead < -5*time.Second {
						t.Errorf("Now is %v ahead, want about %v", d, step.ahead)
					}
				}
			})
		})
	}
}

// late answers after a while: a store whose disk is busy. What it says was so when it was asked.
type late struct {
	election.Election
	by *atomic.Int64
}

func (s late) Primary(ctx context.Context) (election.Member, uint64, error) {
	m, e, err := s.Election.Primary(ctx)
	if err := s.sleep(ctx); err != nil {
		return election.Member{}, 0, err
	}
	return m, e, err
}

func (s late) sleep(ctx context.Context) error {
	select {
	case <-time.After(time.Duration(s.by.Load())):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// A store that answers slowly isn't one that is away: calls are held up only for as long as an
// answer that is as late gives no authority, since reads begin every A/4 (R10).
func TestSlowStoreHoldsCallsUpBriefly(t *testing.T) {
	for _, by := range []time.Duration{300 * time.Millisecond, 500 * time.Millisecond, 740 * time.Millisecond,
		900 * time.Millisecond} {
		for _, level := range []understudy.Level{understudy.Reflected, understudy.Stable} {
			t.Run(fmt.Sprint(by, level), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					delay := new(atomic.Int64)
					c := understudytest.New(t, 3, registerLedger, understudytest.Level(level),
						understudytest.Between(func(_ string, e election.Election) election.Election {
							return late{e, delay}
						}))
					l := startLoad(t, c, 2, 5*time.Millisecond)
					time.Sleep(100 * time.Millisecond)
					delay.Store(int64(by))
					time.Sleep(10 * time.Second)
					l.finish()
					const authority = time.Second
					most := max(0, by+authority/4-authority) + 10*time.Millisecond
					for _, m := range l.calls {
						if took := m.end - m.began; m.began > 200*time.Millisecond && took > most {
							t.Fatalf("%s was held up for %v, at most %v is due to answers after %v", m.name, took, most,
								by)
						}
					}
					l.check(others(3))
				})
			})
		}
	}
}
