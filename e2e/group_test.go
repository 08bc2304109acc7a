package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/understudy-rpc/understudy"
	"github.com/understudy-rpc/understudy/e2e/cluster"
	"github.com/understudy-rpc/understudy/e2e/etcdproc"
	"github.com/understudy-rpc/understudy/e2e/journal"
	"github.com/understudy-rpc/understudy/replica"
)

// The times of the design that bounds are made of. What a test allows beyond them is for a machine
// that is busy with something else.
const (
	authority = time.Second            // A
	silence   = 500 * time.Millisecond // then a replica is suspected
	busy      = 8 * time.Second
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

// However often the primary is killed under load, no call fails, none is lost, and none is executed
// twice.
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

// A primary that stands still is replaced; what it says afterwards is refused by whoever hears only
// it, and it comes back as another incarnation.
//
// Below Stable the client on the old primary's side is a second fault: it may be told that it lost
// something.
func TestPrimaryStopped(t *testing.T) {
	atEachLevel(t, func(t *testing.T, l understudy.Level) {
		c := cluster.New(t, l)
		c.StartReplicas("a", "b", "c")
		x, y := c.StartClient("x"), c.StartClient("y")

		links := linksTo(t, c, y, "a", "b", "c")
		for _, client := range []*cluster.Client{x, y} {
			client.Load(cluster.Steady)
			client.Await(20)
		}

		c.AwaitInSync("a", "b", "c")
		old := c.Primary()
		epoch := old.Epoch()
		// Replies to y are on their way when the primary stops, and stay so until others have taken
		// over.
		links[old.Name].StallReplies()
		y.AwaitHeld(old, cluster.Steady.Callers)
		c.Last(50 * time.Millisecond)
		stopped := old.Stop()
		for name, link := range links {
			if name != old.Name {
				link.Cut()
			}
		}
		next := c.AwaitPrimary(epoch)
		x.Await(20)
		c.Last(3*time.Second - (c.Now() - stopped))
		continued := old.Continue()
		links[old.Name].Resume()
		old.AwaitRole(replica.Following, epoch)
		c.AwaitInSync("a", "b", "c")

		refused := y.Stats()
		t.Logf("y on the old primary's side: %+v", refused)
		if refused.Expired+refused.Fenced == 0 {
			t.Error("no late reply was refused")
		}
		for _, link := range links {
			link.Mend()
		}
		x.Await(20)
		y.Await(20)
		if c.Primary() != next {
			t.Logf("the primary isn't %s any more", next.Name)
		}
		r := c.Finish()
		if l == understudy.Stable {
			r.NoneFailed()
		} else {
			r.FailedOnly(codes.DataLoss)
		}
		r.HeldUp("x, when the primary stopped", stopped, stopped+time.Second, x)
		r.HeldUp("x, when it went on", continued, continued+time.Second, x)
	})
}

// While etcd is away calls are held up, and nobody takes over from anybody; then they complete.
func TestEtcdAway(t *testing.T) {
	t.Parallel()
	for _, away := range []struct {
		name        string
		fail, mend  func(*etcdproc.Server)
		description string
	}{
		{"Stopped", (*etcdproc.Server).Stop, (*etcdproc.Server).Continue, "it stands still"},
		{"Killed", (*etcdproc.Server).Kill, (*etcdproc.Server).Restart, "it is killed, and restarted on its data"},
	} {
		t.Run(away.name, func(t *testing.T) {
			t.Parallel()
			const outage = 5 * time.Second
			c, x, y := threeUnderLoad(t, understudy.Reflected)
			epoch := c.Primary().Epoch()
			from := c.Now()
			away.fail(c.Etcd)
			c.Last(outage)
			away.mend(c.Etcd)
			to := c.Now()
			x.Await(20)
			y.Await(20)
			r := c.Finish().NoneFailed()
			if now := c.Primary().Epoch(); now != epoch {
				t.Errorf("the epoch was %d, and is %d", epoch, now)
			}
			if held := r.HeldUp("while etcd was away", from, to); held > to-from+authority+busy {
				t.Errorf("a call was held up for %v, etcd was away for %v", held, to-from)
			}
		})
	}
}

// When a client dies together with the primary, the others lose nothing, and go on.
func TestClientAndPrimaryKilled(t *testing.T) {
	atEachLevel(t, func(t *testing.T, l understudy.Level) {
		c, x, y := threeUnderLoad(t, l)
		z := c.StartClient("z")
		z.Load(cluster.Steady)
		z.Await(20)
		p := c.Primary()
		epoch := p.Epoch()
		z.Kill()
		at := p.Kill()
		next := c.AwaitPrimary(epoch)
		x.Await(20)
		y.Await(20)
		p.Start()
		c.AwaitInSync("a", "b", "c")
		r := c.Finish()
		if l == understudy.Stable {
			r.NoneFailed()
		} else {
			r.FailedOnly(codes.DataLoss) // z's last message may have died with all its holders
		}
		t.Logf("%+v", next.Failovers())
		if held := r.HeldUp("takeover", at, at+time.Second); held > authority+authority/10+busy {
			t.Errorf("a call was held up for %v", held)
		}
	})
}

// A group whose backups are all dead goes on with its primary alone, at Stable once they are
// evicted.
func TestBackupsKilled(t *testing.T) {
	atEachLevel(t, func(t *testing.T, l understudy.Level) {
		c, x, y := threeUnderLoad(t, l)
		p := c.Primary()
		var at time.Duration
		for _, name := range []string{"a", "b", "c"} {
			if name != p.Name {
				at = c.Replica(name).Kill()
			}
		}
		x.Await(50)
		y.Await(50)
		c.AwaitInSync(p.Name)
		r := c.Finish().NoneFailed()
		r.HeldUp("the backups' death", at-100*time.Millisecond, at+time.Second)
		if now := c.Primary(); now != p {
			t.Errorf("the primary is %s, it was %s", now.Name, p.Name)
		}
	})
}

// With MinInSync a primary that is alone refuses calls, as never to be executed, until a backup is
// back.
func TestMinInSync(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, understudy.Stable)
	c.StartReplica("a", "-min", "2")
	c.AwaitPrimary(0)
	c.StartReplica("b", "-min", "2")
	c.AwaitInSync("a", "b")
	x := c.StartClient("x")
	x.Load(cluster.Steady)
	x.Await(20)
	b := c.Replica("b")
	b.Kill()
	x.AwaitFailed(10)
	b.Start()
	c.AwaitInSync("a", "b")
	x.Await(20)
	c.Finish().FailedOnly(codes.Unavailable)
}

// When the successor is killed as soon as it is elected, the last replica takes over from both.
func TestSuccessorKilled(t *testing.T) {
	atEachLevel(t, func(t *testing.T, l understudy.Level) {
		c, x, y := threeUnderLoad(t, l)
		first := c.Primary()
		epoch := first.Epoch()
		at := first.Kill()
		second := c.AwaitElected(epoch)
		epoch = second.Epoch()
		t.Logf("the successor is killed %v after the primary", second.Kill()-at)
		c.AwaitPrimary(epoch)
		x.Await(20)
		y.Await(20)
		first.Start()
		second.Start()
		c.AwaitInSync("a", "b", "c")
		r := c.Finish().NoneFailed()
		r.HeldUp("both takeovers", at, at+time.Second)
	})
}

// When all replicas are dead, calls that may have been executed wait until their own deadlines, and
// others end at once, as never to be executed: callers are told that the group is down, and since
// when. A replica that is started says so, too, and makes no new one.
func TestAllKilled(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, understudy.Reflected)
	c.StartReplicas("a", "b")
	x := c.StartClient("x")
	x.Load(journal.Load{Callers: 4, Pause: 10 * time.Millisecond, Deadline: 2 * time.Second})
	x.Await(20)
	for _, name := range []string{"a", "b"} {
		c.Replica(name).Kill()
	}
	x.AwaitFailed(4)
	a := c.Replica("a")
	a.Start()
	a.AwaitLog("the group is down")
	x.AwaitFailed(4)
	x.Rest()
	waited, refused := 0, 0
	for _, call := range x.Calls() {
		switch {
		case call.Code == codes.OK:
		case call.Code == codes.DeadlineExceeded:
			waited++
		case call.Code == codes.Unavailable && strings.Contains(call.Text, "the group is down since"):
			refused++
		default:
			t.Errorf("x/%d: %v: %s", call.Call, call.Code, call.Text)
		}
		if held := call.End - call.Start; held > 2*time.Second+busy {
			t.Errorf("x/%d took %v, its deadline was 2 s", call.Call, held)
		}
	}
	if role := a.Status().Role; role != "joining" {
		t.Errorf("the replica that was started again is %s", role)
	}
	if refused == 0 {
		t.Error("no caller was told that the group is down")
	}
	t.Logf("%d calls ended by their deadlines, %d at once", waited, refused)
}

// A backup that stands still slows no call below Stable, and each at most until it is evicted at
// Stable; then it comes back.
func TestBackupStopped(t *testing.T) {
	atEachLevel(t, func(t *testing.T, l understudy.Level) {
		c, x, y := threeUnderLoad(t, l)
		p := c.Primary()
		epoch := p.Epoch()
		b := c.Replica("b")
		if b == p {
			b = c.Replica("c")
		}
		at := b.Stop()
		c.AwaitInSync(othersOf(b.Name)...)
		x.Await(50)
		y.Await(50)
		evicted := c.Now()
		c.Last(2*time.Second - (c.Now() - at))
		b.Continue()
		c.AwaitInSync("a", "b", "c")
		r := c.Finish().NoneFailed()
		bound := busy
		if l == understudy.Stable {
			bound += silence + authority
		}
		if held := r.HeldUp("until it was evicted", at, evicted); held > bound {
			t.Errorf("a call was held up for %v", held)
		}
		if now := c.Primary().Epoch(); now != epoch {
			t.Logf("the epoch was %d, and is %d", epoch, now)
		}
	})
}

func othersOf(name string) (others []string) {
	for _, n := range []string{"a", "b", "c"} {
		if n != name {
			others = append(others, n)
		}
	}
	return others
}

// A process that is started again has its name at once, whatever is left of the one before it; and
// of two live processes the second can't have the name of the first.
func TestName(t *testing.T) {
	t.Parallel()
	c, x, _ := threeUnderLoad(t, understudy.Direct)
	for _, r := range []*cluster.Replica{c.Primary(), c.Replica("c")} {
		at := r.Kill()
		r.Start()
		r.AwaitRole(replica.Following, 0)
		t.Logf("%s follows %v after its predecessor's death", r.Name, (c.Now() - at).Round(time.Millisecond))
		c.AwaitInSync("a", "b", "c")
	}
	x.Await(20)
	for _, r := range []*cluster.Replica{c.Primary(), c.Replica("b")} {
		log, err := r.Rival()
		if err == nil {
			t.Errorf("a second %s ended without an error", r.Name)
		}
		if want := fmt.Sprintf("the name %q is taken", r.Name); !strings.Contains(log, want) {
			t.Errorf("a second %s doesn't say %q:\n%s", r.Name, want, log)
		}
	}
	x.Await(20)
	c.AwaitInSync("a", "b", "c")
	c.Finish().NoneFailed()
}

// A replica joins with a state of 20 MiB while calls go on, and then leads.
func TestBigState(t *testing.T) {
	atEachLevel(t, func(t *testing.T, l understudy.Level) {
		if l == understudy.Direct {
			t.Skip("nothing is different at Direct, and transfers are slow with the race detector")
		}
		const ballast = 20 << 20
		c := cluster.New(t, l)
		a := c.StartReplica("a", "-ballast", fmt.Sprint(ballast))
		c.AwaitPrimary(0)
		x := c.StartClient("x")
		x.Load(cluster.Steady)
		x.Await(20)
		from := c.Now()
		b := c.StartReplica("b")
		c.AwaitInSync("a", "b")
		to := c.Now()
		epoch := a.Epoch()
		at := a.Kill()
		if next := c.AwaitPrimary(epoch); next != b {
			t.Errorf("%s leads", next.Name)
		}
		x.Await(50)
		a.Start()
		c.AwaitInSync("a", "b")
		r := c.Finish().NoneFailed()
		t.Logf("b was in-sync after %v", (to - from).Round(time.Millisecond))
		r.HeldUp("while it joined", from, to)
		r.HeldUp("while it took over", at, at+time.Second)
	})
}

// Calls in flight on a connection that is reset complete, once.
func TestConnectionReset(t *testing.T) {
	atEachLevel(t, func(t *testing.T, l understudy.Level) {
		c, links, x := behindLinks(t, l)
		for range 5 {
			links[c.Primary().Name].Reset()
			x.Await(50)
		}
		c.Finish().NoneFailed()
	})
}

// Calls in flight on a connection to the primary that is half-open complete, once, when it breaks
// at last, and when another primary takes over: that, the client hears from the others.
func TestConnectionHalfOpen(t *testing.T) {
	atEachLevel(t, func(t *testing.T, l understudy.Level) {
		c, links, x := behindLinks(t, l)
		p := c.Primary()
		from := c.Now()
		links[p.Name].Strand()
		c.Last(time.Second)
		links[p.Name].Reset()
		x.Await(50)

		p = c.Primary()
		links[p.Name].Strand()
		c.Last(100 * time.Millisecond)
		at := p.Kill()
		x.Await(50)
		p.Start()
		c.AwaitInSync("a", "b")
		r := c.Finish().NoneFailed()
		r.HeldUp("half-open for a second", from, from+time.Second)
		r.HeldUp("half-open, and then the primary dies", at, at+time.Second)
	})
}

// behindLinks starts replicas a and b, and a client x that reaches each over a link, and calls
// nearly without a pause.
func behindLinks(
	t *testing.T, l understudy.Level,
) (c *cluster.Cluster, links map[string]*etcdproc.Link, x *cluster.Client) {
	t.Helper()
	c = cluster.New(t, l)
	c.StartReplicas("a", "b")
	x = c.StartClient("x")
	links = linksTo(t, c, x, "a", "b")
	load := cluster.Steady
	load.Pause = time.Millisecond
	x.Load(load)
	x.Await(50)
	return c, links, x
}

// linksTo puts a link between a client and each replica. A replica that is started again is reached
// without.
func linksTo(t *testing.T, c *cluster.Cluster, x *cluster.Client, names ...string) map[string]*etcdproc.Link {
	t.Helper()
	links, routes := map[string]*etcdproc.Link{}, map[string]string{}
	for _, name := range names {
		addr := c.Replica(name).Addr()
		links[name] = etcdproc.NewLink(t, addr)
		routes[addr] = links[name].Addr()
	}
	x.Route(routes)
	return links
}
