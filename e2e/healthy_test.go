package e2e

import (
	"slices"
	"testing"
	"time"

	"github.com/understudy-rpc/understudy"
	"github.com/understudy-rpc/understudy/e2e/cluster"
	"github.com/understudy-rpc/understudy/e2e/journal"
	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/replica"
)

// Whichever process stands still for 300 ms, nobody is deposed or evicted for it.
//
// It isn't parallel: what else runs here would make it stand still for longer.
func TestStall(t *testing.T) {
	const stall = 300 * time.Millisecond
	c, x, y := threeUnderLoad(t, understudy.Stable)
	p := c.Primary()
	b := c.Replica("a")
	if b == p {
		b = c.Replica("b")
	}
	for _, of := range []struct {
		name         string
		stop, goesOn func()
	}{
		{"the primary", func() { p.Stop() }, func() { p.Continue() }},
		{"a backup", func() { b.Stop() }, func() { b.Continue() }},
		{"a client", x.Stop, x.Continue},
		{"etcd", c.Etcd.Stop, c.Etcd.Continue},
	} {
		had := c.Group()
		for range 2 {
			at := c.Now()
			of.stop()
			c.Last(stall - (c.Now() - at))
			of.goesOn()
			x.Await(20)
			y.Await(20)
			c.Last(stall)
		}
		if has := c.Group(); has.Epoch != had.Epoch || !slices.Equal(has.InSync, had.InSync) {
			t.Errorf("%s stood still for %v: in-sync were %v in epoch %d, and are %v in epoch %d",
				of.name, stall, had.InSync, had.Epoch, has.InSync, has.Epoch)
		}
	}
	c.Finish().NoneFailed()
}

// The address of a replica that died is another group's, whose replica has the same name: no client
// of ours is served by it, neither one that knows the group nor one that comes only now.
func TestAddressReused(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, understudy.Stable)
	c.StartReplicaOnItsPort("a")
	c.AwaitPrimary(0)
	c.StartReplica("b")
	c.AwaitInSync("a", "b")
	x := c.StartClient("x")
	x.Load(cluster.Steady)
	x.Await(20)
	a := c.Replica("a")
	epoch := a.Epoch()
	a.Kill()
	other := a.Squat("another")
	y := c.StartClient("y")
	y.Load(cluster.Steady)
	other.AwaitRole(replica.Leading)
	c.AwaitPrimary(epoch)
	x.Await(50)
	y.Await(50)
	if n := other.Executed(); n > 0 {
		t.Errorf("%d calls were executed by another group", n)
	}
	other.Kill()
	a.Start()
	c.AwaitInSync("a", "b")
	x.Await(20)
	y.Await(20)
	c.Finish().NoneFailed()
}

// A name is its process's as long as that lives: further processes of all names, with the group's
// credentials or with others, change nothing.
func TestTwins(t *testing.T) {
	t.Parallel()
	for _, credentials := range []string{"Same", "Others"} {
		t.Run(credentials, func(t *testing.T) {
			t.Parallel()
			group, others := t.TempDir(), t.TempDir()
			for _, folder := range []string{group, others} {
				if err := journal.WriteTLS(folder); err != nil {
					t.Fatal(err)
				}
			}
			c := cluster.New(t, understudy.Stable)
			for i, name := range []string{"a", "b", "c"} {
				c.StartReplica(name, "-peer-tls", group)
				if i == 0 {
					c.AwaitPrimary(0)
				}
			}
			c.AwaitInSync("a", "b", "c")
			x := c.StartClient("x")
			x.Load(cluster.Steady)
			x.Await(20)
			had := c.Group()
			var twins []*cluster.Other
			for _, name := range []string{"a", "b", "c"} {
				r := c.Replica(name)
				if credentials == "Same" {
					twins = append(twins, r.Twin("twin"))
				} else {
					twins = append(twins, r.Twin("twin", "-peer-tls", others))
				}
			}
			c.Last(2 * election.DefaultTTL)
			for _, twin := range twins {
				if role := twin.Role(); role != "" && role != replica.Joining && role != replica.Ended {
					t.Errorf("a twin is %s", role)
				}
				twin.Kill()
			}
			x.Await(20)
			c.Finish().NoneFailed()
			unharmed(t, c, had)
		})
	}
}

// A replica that is terminated, and so stops its server gracefully, hands over what it has ordered,
// and ends soon. Nobody notices.
func TestTerminated(t *testing.T) {
	atEachLevel(t, func(t *testing.T, l understudy.Level) {
		c, x, y := threeUnderLoad(t, l)
		for _, leads := range []bool{true, false} {
			p := c.Primary()
			epoch := p.Epoch()
			r := p
			if !leads {
				r = c.Replica(othersOf(p.Name)[0])
			}
			at, took := r.Terminate()
			t.Logf("%s (leads: %t) ends within %v", r.Name, leads, took.Round(time.Millisecond))
			if took > time.Second+busy {
				t.Errorf("%s ends only after %v", r.Name, took)
			}
			if leads {
				c.AwaitPrimary(epoch)
			}
			x.Await(20)
			y.Await(20)
			t.Logf("calls are answered again within %v", c.Now()-at)
			r.Start()
			c.AwaitInSync("a", "b", "c")
		}
		c.Finish().NoneFailed()
	})
}

// A client whose connections a NAT has forgotten, while it was idle, makes new ones: its next call
// is answered, and others' calls aren't held up.
func TestConnectionsForgotten(t *testing.T) {
	atEachLevel(t, func(t *testing.T, l understudy.Level) {
		c := cluster.New(t, l)
		c.StartReplicas("a", "b", "c")
		x, y := c.StartClient("x"), c.StartClient("y")
		y.Load(cluster.Steady)
		x.Load(cluster.Steady)
		x.Await(20)
		x.Idle()
		at := x.Strand()
		x.Load(journal.Load{Callers: 2, Pause: 10 * time.Millisecond, Deadline: 20 * time.Second})
		x.Await(20)
		y.Await(20)
		r := c.Finish().NoneFailed()
		if held := r.HeldUp("x, after its connections are half-open", at, at+time.Second,
			x); held > 5*time.Second+busy {
			t.Errorf("a call was held up for %v", held)
		}
		r.HeldUp("y", at, at+time.Second, y)
	})
}
