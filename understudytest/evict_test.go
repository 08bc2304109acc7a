package understudytest_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/understudy-rpc/understudy"
	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/election/memory"
	"github.com/understudy-rpc/understudy/understudytest"
)

// The transaction that evicts a backup takes place late, when the backup has been heard again:
// in-sync must have it nevertheless, or nobody could take over. The primary evicts it, or one that
// is taking over.
func TestEvictionTakesPlaceLate(t *testing.T) {
	for _, takeover := range []bool{false, true} {
		t.Run(fmt.Sprintf("takeover %v", takeover), func(t *testing.T) {
			alternatives(t, 2, func(t *testing.T, level understudy.Level, k int) {
				held, released := make(chan struct{}), make(chan struct{})
				var once sync.Once
				n := 2
				if takeover {
					n = 3
				}
				c := understudytest.New(t, n, registerLedger, understudytest.Level(level),
					understudytest.Logger(verbose), slow(func(host string, s *slowStore) {
						s.remove = func(ctx context.Context, epoch uint64, m election.Member) error {
							once.Do(func() {
								release := s.Election.(*memory.Client).HoldNext()
								close(held)
								go func() {
									<-released
									release()
								}()
							})
							return s.Election.RemoveInSync(ctx, epoch, m)
						}
					}))
				l := startLoad(t, c, 2, 5*time.Millisecond)
				time.Sleep(20 * time.Millisecond)
				first, dead := "replica0", []int{0}
				if takeover {
					first = "replica1"
					partition(c, "replica1", "replica2")
					c.Kill(0)
				} else {
					partition(c, "replica0", "replica1")
				}
				<-held
				time.Sleep(time.Duration(k) * 700 * time.Microsecond)
				mend(c, first, fmt.Sprintf("replica%d", n-1))
				time.Sleep(300 * time.Millisecond)
				close(released)
				time.Sleep(200 * time.Millisecond)
				c.AwaitInSync(2)
				p := c.Primary()
				c.Kill(p)
				if takeover {
					dead = append(dead, p)
				}
				l.settle(others(n, dead...))
			})
		})
	}
}
