package e2e

import (
	"cmp"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/understudy-rpc/understudy"
	"github.com/understudy-rpc/understudy/e2e/cluster"
	"github.com/understudy-rpc/understudy/e2e/etcdproc"
	"github.com/understudy-rpc/understudy/e2e/journal"
	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/replica"
)

// unharmed fails the test unless the group has the replicas, their processes and incarnations, that
// it had, and the same one leads.
func unharmed(t *testing.T, c *cluster.Cluster, had election.State) {
	t.Helper()
	has := c.Group()
	if has.Group != had.Group || has.Epoch != had.Epoch || has.Primary != had.Primary ||
		!slices.Equal(has.InSync, had.InSync) {
		t.Errorf("the group was %+v\nand is %+v", had, has)
	}
}

// While etcd isn't the one that the group knows, calls are held up, nobody gives up anything, and
// every replica says so. When etcd is right again, all goes on: no call has failed, and none is
// lost.
func TestEtcdIsWrong(t *testing.T) {
	t.Parallel()
	for _, wrong := range []struct {
		name string
		// prepare may change the group. make makes it wrong, and returns how it is put right.
		prepare func(c *cluster.Cluster) (data string)
		make    func(c *cluster.Cluster, data string) (mend func())
	}{
		{"Emptied", nil, func(c *cluster.Cluster, _ string) func() {
			newest := c.Replace("")
			return func() { c.Replace(newest) }
		}},
		{"Restored", func(c *cluster.Cluster) string {
			earlier := c.Data()
			p := c.Primary()
			epoch := p.Epoch()
			p.Kill()
			c.AwaitPrimary(epoch)
			p.Start()
			c.AwaitInSync("a", "b", "c")
			return earlier
		}, func(c *cluster.Cluster, earlier string) func() {
			newest := c.Replace(earlier)
			return func() { c.Replace(newest) }
		}},
		{"KeysDeleted", (*cluster.Cluster).Data, func(c *cluster.Cluster, whole string) func() {
			c.DeleteKeys()
			return func() {
				seen := c.Revision()
				c.Replace(whole)
				c.Advance(seen)
			}
		}},
	} {
		t.Run(wrong.name, func(t *testing.T) {
			t.Parallel()
			const outage = 4 * time.Second
			c, x, y := threeUnderLoad(t, understudy.Stable)
			data := ""
			if wrong.prepare != nil {
				data = wrong.prepare(c)
			}
			x.Await(20)
			had := c.Group()
			at := c.Now()
			mend := wrong.make(c, data)
			for _, name := range []string{"a", "b", "c"} {
				c.Replica(name).AwaitSuspect()
			}
			c.Last(outage - (c.Now() - at))
			before := len(x.Calls())
			c.Last(200 * time.Millisecond)
			if n := len(x.Calls()) - before; n > 0 {
				t.Errorf("%d calls ended while etcd was wrong", n)
			}
			mend()
			x.Await(20)
			y.Await(20)
			r := c.Finish().NoneFailed()
			unharmed(t, c, had)
			r.HeldUp("while etcd was wrong", at, at+outage)
		})
	}
}

// A process that knows no group makes one in an etcd that was emptied. It has nothing to do with
// the group that was there: no call of that one's clients is executed by it, whose replicas and
// clients wait for their etcd, and go on with it.
func TestAnotherGroupInAnEmptyEtcd(t *testing.T) {
	t.Parallel()
	c, x, y := threeUnderLoad(t, understudy.Stable)
	had := c.Group()
	newest := c.Replace("")
	other := c.Replica("a").Beside("other", "replica", "-etcd", c.Etcd.Addr(), "-name", "d", "-level",
		c.Level().String())
	other.AwaitRole(replica.Leading)
	c.Last(2 * time.Second)
	if n := other.Executed(); n > 0 {
		t.Errorf("%d calls of the group that was there were executed by another one", n)
	}
	other.Kill()
	c.Replace(newest)
	x.Await(20)
	y.Await(20)
	c.Finish().NoneFailed()
	unharmed(t, c, had)
}

// A group whose processes are all dead is begun anew by an operator's act only. Then its clients
// are told that what was stable is lost, and to dial again; whoever dials again is served.
func TestGroupIsReplaced(t *testing.T) {
	t.Parallel()
	c, x, y := threeUnderLoad(t, understudy.Stable)
	x.Idle()
	y.Idle()
	had := c.Group()
	for _, name := range []string{"a", "b", "c"} {
		c.Replica(name).Kill()
	}
	b := c.Replica("b")
	b.Start()
	c.Last(4 * time.Second)                       // longer than the leases of the dead
	if now := c.Group(); now.Group != had.Group { // one may have been elected before it died
		t.Fatalf("the group was %+v, and is %+v, and nobody has said so", had, now)
	}
	b.Kill()
	b.Replace(had.Group.ID)
	c.AwaitInSync("b")
	for _, name := range []string{"a", "c"} {
		c.Replica(name).Replace(had.Group.ID) // which is no longer there
	}
	c.AwaitInSync("a", "b", "c")
	if now := c.Group(); now.Group == had.Group {
		t.Fatalf("the group is still %x", now.Group)
	}
	for _, client := range []*cluster.Client{x, y} {
		client.Load(cluster.Steady)
		client.AwaitFailed(20)
		client.Rest()
		failed := slices.DeleteFunc(client.Calls(), func(c journal.Call) bool { return c.Code == codes.OK })
		slices.SortFunc(failed, func(a, b journal.Call) int { return cmp.Compare(a.End, b.End) })
		first, last := failed[0].Code, failed[len(failed)-1].Code
		if first != codes.DataLoss || last != codes.FailedPrecondition {
			t.Errorf("%s's calls ended as %v first, and %v in the end", client.Name, first, last)
		}
	}
	z := c.StartClient("z")
	z.Load(cluster.Steady)
	z.Await(20)
	c.Finish().FailedOnly(codes.DataLoss, codes.FailedPrecondition)
}

// An election doesn't wait for a node of etcd that hangs, whichever it is.
func TestEtcdNodeHangs(t *testing.T) {
	t.Parallel()
	c := cluster.NewOn(t, understudy.Stable, etcdproc.StartMembers(t, 3)...)
	c.StartReplicas("a", "b", "c")
	x := c.StartClient("x")
	x.Load(cluster.Steady)
	x.Await(20)
	for i, node := range c.Etcds {
		p := c.Primary()
		epoch := p.Epoch()
		node.Stop()
		at := p.Kill()
		c.AwaitPrimary(epoch)
		x.Await(20)
		took := c.Now() - at
		t.Logf("node %d hangs: calls are answered %v after the primary's death", i+1, took.Round(time.Millisecond))
		if took > 2*time.Second+busy {
			t.Errorf("node %d hangs: calls are answered %v after the primary's death", i+1, took)
		}
		node.Continue()
		p.Start()
		c.AwaitInSync("a", "b", "c")
	}
	c.Finish().NoneFailed()
}
