package understudytest_test

import (
	"context"
	"fmt"
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

// Connections that are half-open, which nobody tells, and connections to those who are gone.

// The connection between two backups is half-open, as after a firewall has forgotten it: it has
// carried nothing since one of them joined. When the primary dies, the one that is elected reaches
// the other on a new connection, evicts nobody, and is as quick as ever but for the one question
// that wasn't answered.
func TestHalfOpenConnectionBetweenBackups(t *testing.T) {
	for _, level := range levels {
		t.Run(level.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := understudytest.New(t, 3, registerLedger, understudytest.Level(level),
					understudytest.Between(func(host string, e election.Election) election.Election {
						// replica2 has its state from it
						return candidates{e, func() bool { return host != "replica1" }}
					}))
				l := startLoad(t, c, 1, 20*time.Millisecond)
				time.Sleep(10 * time.Second)
				before := c.View()
				c.Network().Strand("replica1", "replica2")
				killed := time.Since(zero)
				c.Kill(0)
				time.Sleep(5 * time.Second)
				l.settle([]int{2, 1})
				if after := c.View(); len(after.InSync) != 2 || !after.IsInSync(before.InSync[1]) ||
					!after.IsInSync(before.InSync[2]) {
					t.Errorf("in-sync were %v, and are %v", before.InSync, after.InSync)
				}
				for _, m := range l.calls {
					if took := m.end - m.began; m.end > killed && took > 250*time.Millisecond {
						t.Errorf("%s took %v", m.name, took)
					}
				}
			})
		})
	}
}

// The connection between primary and backup goes dead for good, and a new one works: the backup is
// in-sync again, as another incarnation or the same.
func TestHalfOpenConnectionToThePrimary(t *testing.T) {
	for _, level := range levels {
		t.Run(level.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := understudytest.New(t, 3, registerLedger, understudytest.Level(level))
				l := startLoad(t, c, 1, 5*time.Millisecond)
				time.Sleep(time.Second)
				c.Network().Strand("replica0", "replica1")
				time.Sleep(3 * time.Second)
				l.settle(others(3))
			})
		})
	}
}

// Replicas and clients stop dialling those who have left the view: who is replaced comes back at
// another address.
func TestNobodyDialsWhoHasLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := understudytest.New(t, 3, registerLedger, understudytest.Level(understudy.Stable))
		l := startLoad(t, c, 1, 10*time.Millisecond)
		for range 2 {
			c.Kill(c.Primary())
			time.Sleep(5 * time.Second)
		}
		p := c.Primary()
		l.finish()
		time.Sleep(5 * time.Second)
		from := []string{fmt.Sprint("replica", p), "client0"}
		before := map[simnet.Link]int{}
		for _, host := range from {
			for i := range 3 {
				link := simnet.Link{From: host, To: fmt.Sprint("replica", i)}
				before[link] = c.Network().Dials(link)
			}
		}
		time.Sleep(time.Minute)
		for link, n := range before {
			if more := c.Network().Dials(link) - n; more > 0 {
				t.Errorf("%s has dialled %s, which is gone, %d times in a minute", link.From, link.To, more)
			}
		}
	})
}

// An idle client's connections are half-open, all or some of them, and then it calls: each gets a
// new connection, and the call ends within a second or so, not at its deadline. So does one whose
// connections go dead while it is in flight.
func TestHalfOpenConnectionsOfAClient(t *testing.T) {
	for _, to := range [][]string{{"replica0"}, {"replica1"}, {"replica0", "replica1", "replica2"}} {
		for _, level := range levels {
			t.Run(fmt.Sprint(level, to), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					c := understudytest.New(t, 3, registerSlowLedger, understudytest.Level(level))
					conn := c.Dial("client0")
					call := func(name string, most time.Duration, cut func()) {
						t.Helper()
						ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
						defer cancel()
						began := time.Now()
						if cut != nil {
							time.AfterFunc(10*time.Millisecond, cut)
						}
						if _, err := add(ctx, conn, name); err != nil {
							t.Fatalf("%s: %v", name, err)
						}
						if took := time.Since(began); took > most {
							t.Errorf("%s took %v", name, took)
						}
					}
					strand := func() {
						for _, host := range to {
							c.Network().Strand("client0", host)
						}
					}
					call("first", 500*time.Millisecond, nil)
					time.Sleep(20 * time.Second)
					strand()
					call("after", 1500*time.Millisecond, nil)
					time.Sleep(5 * time.Second)
					call("later", 100*time.Millisecond, nil)
					call("meanwhile", 1500*time.Millisecond, strand)
					time.Sleep(5 * time.Second)
					call("finds it", 500*time.Millisecond, nil) // what only a backup didn't hear
					time.Sleep(5 * time.Second)
					call("last", 100*time.Millisecond, nil)
					if n := len(c.State(c.Primary()).(*slowLedger).all()); n != 6 {
						t.Errorf("%d calls were executed, not 6", n)
					}
				})
			})
		}
	}
}

// An idle client's connections are half-open when the primary dies without a word, too.
func TestHalfOpenConnectionsAtAFailover(t *testing.T) {
	for _, level := range levels {
		t.Run(level.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := understudytest.New(t, 3, registerLedger, understudytest.Level(level))
				conn := c.Dial("client0")
				for i, name := range []string{"before", "after"} {
					ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
					defer cancel()
					began := time.Now()
					if _, err := add(ctx, conn, name); err != nil {
						t.Fatalf("%s: %v", name, err)
					}
					if took := time.Since(began); took > 3*time.Second {
						t.Errorf("%s took %v", name, took)
					}
					if i > 0 {
						break
					}
					time.Sleep(10 * time.Second)
					for i := range 3 {
						c.Network().Strand("client0", fmt.Sprint("replica", i))
					}
					c.Kill(0)
				}
			})
		})
	}
}

// A turn that takes long is no silence: the primary answers on the stream, and the connection
// stays.
func TestLongTurnKeepsItsConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := understudytest.New(t, 3, registerSlowestLedger)
		conn := c.Dial("client0")
		link := simnet.Link{From: "client0", To: "replica0"}
		for i := range 2 {
			dials := c.Network().Dials(link)
			if _, err := add(t.Context(), conn, fmt.Sprint(i)); err != nil {
				t.Fatal(err)
			}
			if n := c.Network().Dials(link); i > 0 && n != dials {
				t.Errorf("the primary was dialled %d times during a turn of 10 s", n-dials)
			}
		}
	})
}

type slowestLedger struct{ ledger }

func (l *slowestLedger) add(ctx context.Context, name string) (int64, error) {
	time.Sleep(10 * time.Second) // fake
	return l.ledger.add(ctx, name)
}

func registerSlowestLedger(s grpc.ServiceRegistrar) replica.Snapshotter {
	l := &slowestLedger{}
	s.RegisterService(&counterDesc, l)
	return l
}
