package understudytest_test

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"

	"github.com/understudy-rpc/understudy"
	"github.com/understudy-rpc/understudy/internal/turn"
	"github.com/understudy-rpc/understudy/replica"
	"github.com/understudy-rpc/understudy/understudytest"
	"github.com/understudy-rpc/understudy/understudytest/simnet"
)

// journal is a counter that notes what it executes, in which order, and when it was recorded.
type journal struct {
	counter
	executed []execution
}

type execution struct {
	orderNum uint64
	name     string
	at       time.Time
	value    int64
}

func (j *journal) add(ctx context.Context, name string) (int64, error) {
	n, err := j.counter.add(ctx, "sum")
	j.mu.Lock()
	defer j.mu.Unlock()
	e := execution{name: name, at: understudy.Now(ctx), value: n}
	if t := turn.FromContext(ctx); t != nil {
		e.orderNum = uint64(t.OrderNum())
	}
	j.executed = append(j.executed, e)
	return n, err
}

func registerJournal(s grpc.ServiceRegistrar) replica.Snapshotter {
	j := &journal{counter: counter{count: map[string]int64{}}}
	s.RegisterService(&counterDesc, j)
	return j
}

const clients, callsEach = 2, 3

// history runs 3 calls by each of two clients, and returns what each call was given.
func history(t *testing.T, conns []*grpc.ClientConn) map[string]int64 {
	var mu sync.Mutex
	given := map[string]int64{}
	var wg sync.WaitGroup
	for i, conn := range conns {
		wg.Go(func() {
			time.Sleep(time.Duration(i) * 37 * time.Microsecond) // fake; staggered, so that runs repeat
			for k := range callsEach {
				name := fmt.Sprintf("client%d call%d", i, k)
				n, err := add(t.Context(), conn, name)
				if err != nil {
					t.Errorf("%s: %v", name, err)
				}
				mu.Lock()
				given[name] = n
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return given
}

// checkHistory holds the replicas' journals and the callers' ledger against the invariants.
func checkHistory(t *testing.T, c *understudytest.Cluster, alive []int, given map[string]int64) {
	t.Helper()
	longest := c.State(alive[0]).(*journal)
	for _, i := range alive {
		j := c.State(i).(*journal)
		if got := j.String(); got != longest.String() {
			t.Errorf("I1: replica %d has the state %v, replica %d %v", i, got, alive[0], longest)
		}
		seen := map[string]bool{}
		last := execution{}
		for _, e := range j.executed {
			if seen[e.name] {
				t.Errorf("I4: replica %d executed %q twice", i, e.name)
			}
			seen[e.name] = true
			if e.orderNum <= last.orderNum {
				t.Errorf("I2: replica %d executed %d after %d", i, e.orderNum, last.orderNum)
			}
			if e.at.Before(last.at) {
				t.Errorf("R7: replica %d: Now went back from %v to %v", i, last.at, e.at)
			}
			last = e
			if n, ok := given[e.name]; ok && n != e.value {
				t.Errorf("I5: %q was given %d, replica %d executed it as %d", e.name, n, i, e.value)
			}
		}
		if len(j.executed) != clients*callsEach {
			t.Errorf("I2: replica %d executed %d messages, want %d", i, len(j.executed), clients*callsEach)
		}
		if !slices.Equal(j.executed, longest.executed) {
			t.Errorf("I1: replica %d executed %v, replica %d %v", i, j.executed, alive[0], longest.executed)
		}
	}
	numbers := slices.Sorted(maps.Values(given))
	for i, n := range numbers {
		if n != int64(i+1) {
			t.Errorf("I4, I5: the callers were given %v", numbers)
			break
		}
	}
}

// links are those that the primary has in the history.
func links() []simnet.Link {
	var ls []simnet.Link
	for _, other := range []string{"replica1", "replica2", "client0", "client1"} {
		ls = append(ls, simnet.Link{From: "replica0", To: other}, simnet.Link{From: other, To: "replica0"})
	}
	return ls
}

// run runs the history on a new cluster; arm may set a trap before it. It returns how many writes
// each link had before and after.
func runHistory(
	t *testing.T, level understudy.Level, arm func(*understudytest.Cluster, map[simnet.Link]int),
) (before, after map[simnet.Link]int) {
	c := understudytest.New(t, 3, registerJournal, understudytest.Level(level), understudytest.Logger(verbose))
	var conns []*grpc.ClientConn
	for i := range clients {
		conns = append(conns, c.Dial(fmt.Sprintf("client%d", i)))
	}
	before = c.Network().Writes()
	if arm != nil {
		arm(c, before)
	}
	given := history(t, conns)
	after = c.Network().Writes()
	alive := []int{0, 1, 2}
	if arm != nil {
		c.Bury(0)
		alive = alive[1:]
		c.Primary()
		c.AwaitInSync(2)
	}
	c.AwaitExecuted()
	checkHistory(t, c, alive, given)
	return before, after
}

// TestPrimaryDiesAtEveryMessage kills the primary before and after each message of each of its
// links in the history, the opening of the sessions included.
func TestPrimaryDiesAtEveryMessage(t *testing.T) {
	every := 1
	if testing.Short() {
		every = 7
	}
	if s := os.Getenv("UNDERSTUDY_EVERY"); s != "" {
		every, _ = strconv.Atoi(s)
	}
	for _, level := range []understudy.Level{understudy.Reflected, understudy.Direct, understudy.Stable} {
		var before, after map[simnet.Link]int
		t.Run(level.String()+"/nobody dies", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { before, after = runHistory(t, level, nil) })
		})
		for _, link := range links() {
			for k := 1; k <= after[link]-before[link]+1; k += every {
				for _, when := range []string{"before", "after"} {
					t.Run(fmt.Sprintf("%s/%s>%s/%s %d", level, link.From, link.To, when, k), func(t *testing.T) {
						t.Parallel()
						synctest.Test(t, func(t *testing.T) {
							runHistory(t, level, func(c *understudytest.Cluster, base map[simnet.Link]int) {
								c.KillWhen(0, link, base[link]+k, when == "before")
							})
						})
					})
				}
			}
		}
	}
}
