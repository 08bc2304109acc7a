package understudytest_test

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/understudy-rpc/understudy"
	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/replica"
	"github.com/understudy-rpc/understudy/understudytest"
)

// Handlers that hang on one replica, or are slow there: what counts is that turns are executed, not
// that the replica is heard.

// hanging returns the registration of a service whose handler hangs on one host when it is called
// "hang", and the function that ends that.
func hanging(host int) (understudytest.Register, func()) {
	hangs := make(chan struct{})
	return registerHooked(func(h *hooked) {
		h.handle = func(ctx context.Context, name string) (int64, error) {
			if name == "hang" && h.host == host {
				<-hangs
			}
			return h.ledger.add(ctx, name)
		}
	}), sync.OnceFunc(func() { close(hangs) })
}

func inSync(c *understudytest.Cluster, host string) bool {
	return slices.ContainsFunc(c.View().InSync, func(m election.Member) bool { return m.Name == host })
}

// A backup that executes nothing leaves in-sync after 5 s, comes back when its handler does, and
// holds up nobody.
func TestBackupThatHangsIsEvicted(t *testing.T) {
	for _, level := range levels {
		t.Run(level.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log := &logged{}
				register, release := hanging(1)
				c := understudytest.New(t, 3, register, understudytest.Level(level), log.to())
				t.Cleanup(release) // before the cluster stops
				conn := c.Dial("client")
				if _, err := add(t.Context(), conn, "hang"); err != nil {
					t.Fatal(err)
				}
				time.Sleep(4 * time.Second)
				if !inSync(c, "replica1") {
					t.Error("it was evicted early")
				}
				time.Sleep(2 * time.Second)
				if inSync(c, "replica1") || !inSync(c, "replica2") {
					t.Errorf("in-sync are %v", c.View().InSync)
				}
				log.wants(t, "evicted", "replica1", "a handler hangs")
				if n, err := add(t.Context(), conn, "x"); n != 2 || err != nil {
					t.Errorf("%d, %v", n, err)
				}
				release()
				c.AwaitInSync(3)
				c.AwaitExecuted()
			})
		})
	}
}

// A backup that is ten times as slow as the primary, but moves, stays, however far it is behind.
func TestSlowBackupThatMovesStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := understudytest.New(t, 2, registerHooked(func(h *hooked) {
			h.handle = func(ctx context.Context, name string) (int64, error) {
				time.Sleep([]time.Duration{300 * time.Millisecond, 3 * time.Second}[h.host])
				return h.ledger.add(ctx, name)
			}
		}))
		conn := c.Dial("client")
		for range 20 {
			if _, err := add(t.Context(), conn, "x"); err != nil {
				t.Fatal(err)
			}
		}
		for range 70 {
			time.Sleep(time.Second)
			if !inSync(c, "replica1") {
				t.Fatalf("it was evicted: %+v", c.Replica(1).Status())
			}
		}
		if s := c.Replica(1).Status(); s.Executed != c.Replica(0).Status().Executed {
			t.Errorf("it is %+v", s)
		}
	})
}

// A backup that hangs leaves in-sync at once when it keeps more than its log may have.
func TestBackupThatKeepsTooMuchIsEvicted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &logged{}
		register, release := hanging(1)
		c := understudytest.New(t, 2, register, log.to())
		t.Cleanup(release)
		conn := c.Dial("client")
		if _, err := add(t.Context(), conn, "hang"); err != nil {
			t.Fatal(err)
		}
		floods(t, conn)
		time.Sleep(300 * time.Millisecond)
		if inSync(c, "replica1") {
			t.Errorf("in-sync are %v", c.View().InSync)
		}
		log.wants(t, "evicted", "replica1", "more messages that it hasn't executed")
	})
}

// A replica is elected whose handler hangs: it gives way to one that has got further, and nothing
// is lost.
func TestElectedReplicaThatHangsGivesWay(t *testing.T) {
	for _, level := range levels {
		t.Run(level.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				register, release := hanging(1)
				slower := slow(func(host string, s *slowStore) {
					s.elect = func(ctx context.Context, self election.Registration, seen uint64) (uint64, error) {
						if host == "replica2" {
							time.Sleep(50 * time.Millisecond)
						}
						return s.Election.Elect(ctx, self, seen)
					}
				})
				c := understudytest.New(t, 3, register, understudytest.Level(level), slower,
					understudytest.Logger(verbose))
				t.Cleanup(release)
				conn := c.Dial("client")
				if n, err := add(t.Context(), conn, "hang"); n != 1 || err != nil {
					t.Fatal(n, err)
				}
				c.Kill(0)
				began := time.Now()
				if n, err := add(t.Context(), conn, "x"); n != 2 || err != nil {
					t.Fatalf("after %v: %d, %v", time.Since(began), n, err)
				}
				if took := time.Since(began); took < 4*time.Second || took > 8*time.Second {
					t.Errorf("it took %v", took)
				}
				if p := c.Primary(); p != 2 {
					t.Errorf("replica %d leads", p)
				}
				release()
				c.AwaitInSync(2)
			})
		})
	}
}

// A primary's handler hangs that doesn't on the backups: they have its reply.
func TestPrimaryThatHangsGivesWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		register, release := hanging(0)
		c := understudytest.New(t, 3, register, understudytest.Level(understudy.Stable))
		t.Cleanup(release)
		conn := c.Dial("client")
		if n, err := add(t.Context(), conn, "hang"); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		awaitStatus(t, c, 0, time.Minute, func(s replica.Status) bool { return s.JoinFailure != "" })
		release()
		awaitStatus(t, c, 0, time.Minute, joined)
		c.AwaitInSync(3)
		c.AwaitExecuted()
	})
}
