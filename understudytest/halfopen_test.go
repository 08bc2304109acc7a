package understudytest_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/understudy-rpc/understudy"
	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/internal/simnet"
	"github.com/understudy-rpc/understudy/understudytest"
)

// Connections that are half-open, which nobody tells, and connections to those who are gone.

// The connection between two backups is half-open, as after a firewall has forgotten it: it has carried nothing since
// one of them joined. When the primary dies, the one that is elected reaches the other on a new connection, evicts
// nobody, and is as quick as ever but for the one question that wasn't answered.
func TestHalfOpenConnectionBetweenBackups(t *testing.T) {
	for _, level := range levels {
		t.Run(level.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := understudytest.New(t, 3, registerLedger, understudytest.Level(level),
					understudytest.Between(func(host string, e election.Election) election.Election {
						return candidates{e, func() bool { return host != "replica1" }} // replica2 has its state from it
					}))
				l := startLoad(t, c, 1, 20*time.Millisecond)
				time.Sleep(10 * time.Second)
				before := c.View()
				c.Network().Strand("replica1", "replica2")
				killed := time.Since(zero)
				c.Kill(0)
				time.Sleep(5 * time.Second)
				l.settle([]int{2, 1})
				if after := c.View(); len(after.InSync) != 2 || !after.IsInSync(before.InSync[1]) || !after.IsInSync(before.InSync[2]) {
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

// The connection between primary and backup goes dead for good, and a new one works: the backup is in-sync again, as
// another incarnation or the same.
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

// Replicas and clients stop dialling those who have left the view: who is replaced comes back at another address.
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
