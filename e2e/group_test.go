package e2e

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/understudy-rpc/understudy"
	"github.com/understudy-rpc/understudy/e2e/cluster"
)

func TestMain(m *testing.M) {
	code := m.Run()
	cluster.Clean()
	os.Exit(code)
}

// atEachLevel runs a scenario at each level, next to the others.
func atEachLevel(t *testing.T, scenario func(*testing.T, understudy.Level)) {
	t.Parallel()
	for l := understudy.Reflected; l <= understudy.Stable; l++ {
		t.Run(l.String(), func(t *testing.T) {
			t.Parallel()
			scenario(t, l)
		})
	}
}

// threeUnderLoad starts replicas a, b and c, and clients x and y that call steadily.
func threeUnderLoad(t *testing.T, l understudy.Level) (c *cluster.Cluster, x, y *cluster.Client) {
	t.Helper()
	c = cluster.New(t, l)
	c.StartReplicas("a", "b", "c")
	x, y = c.StartClient("x"), c.StartClient("y")
	for _, client := range []*cluster.Client{x, y} {
		client.Load(cluster.Steady)
		client.Await(20)
	}
	return c, x, y
}

// However often the primary is killed under load, no call fails, none is lost, and none is executed twice.
func TestPrimaryKilled(t *testing.T) {
	atEachLevel(t, func(t *testing.T, l understudy.Level) {
		const kills = 3
		c, x, y := threeUnderLoad(t, l)
		var at [kills]time.Duration
		for i := range kills {
			p := c.Primary()
			epoch := p.Epoch()
			at[i] = p.Kill()
			c.AwaitPrimary(epoch)
			x.Await(20)
			y.Await(20)
			c.Last(time.Second)
			p.Start()
			c.AwaitInSync("a", "b", "c")
		}
		r := c.Finish().NoneFailed()
		for i := range at {
			r.HeldUp(fmt.Sprintf("kill %d", i+1), at[i], at[i]+time.Second)
		}
	})
}
