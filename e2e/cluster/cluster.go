//go:build unix

// Package cluster runs replicas of the journal service, clients of it, and an etcd, each a process
// that a test kills, stops, continues and starts again; and then says whether the service kept its
// promises.
//
//	c := cluster.New(t, understudy.Stable)
//	c.StartReplicas("a", "b", "c")
//	x := c.StartClient("x")
//	x.Load(cluster.Steady)
//	p := c.Primary()
//	p.Kill()
//	c.AwaitPrimary(p.Epoch())
//	p.Start()
//	c.Finish().NoneFailed()
//
// Every wait is for an event, and ends with the test's patience. A process never outlives the test.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"

	"github.com/understudy-rpc/understudy"
	"github.com/understudy-rpc/understudy/e2e/etcdproc"
	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/replica"
)

// patience is how long a test may take; then whatever it waits for is said not to happen.
const patience = 60 * time.Second

const group = "journal"

// LogsVariable names the directory in which the processes' logs stay, one folder for each test.
// Without it they go with the test, and their ends are shown if it fails.
const LogsVariable = "UNDERSTUDY_E2E_LOGS"

// Cluster is one group, its clients and its etcd. Its methods are called from the test's goroutine,
// and end the test when they can't do what they say.
type Cluster struct {
	Etcd  *etcdproc.Server   // the first of its nodes
	Etcds []*etcdproc.Server // all of them: mostly it has one

	t      *testing.T
	ctx    context.Context
	level  understudy.Level
	binary string
	logs   string
	etcd   *clientv3.Client
	store  election.Election

	replicas []*Replica
	clients  []*Client
	others   []*Other

	mu      sync.Mutex    // guards what follows, and what replicas and clients say is guarded so
	changed chan struct{} // closed, and made anew, when anything changes
	faults  []fault
}

// fault is what a test did, for the report.
type fault struct {
	at   time.Duration
	what string
}

// New starts an etcd for a group of this level. Everything ends with the test.
func New(t *testing.T, level understudy.Level) *Cluster {
	t.Helper()
	return NewOn(t, level, etcdproc.Start(t))
}

// NewOn is New on an etcd of these nodes.
func NewOn(t *testing.T, level understudy.Level, etcds ...*etcdproc.Server) *Cluster {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(context.Background(), patience, errors.New("the test's patience is over"))
	c := &Cluster{Etcd: etcds[0], Etcds: etcds, t: t, ctx: ctx, level: level, changed: make(chan struct{})}
	var err error
	if c.binary, err = build(); err != nil {
		cancel()
		t.Fatal(err)
	}
	if dir := os.Getenv(LogsVariable); dir != "" {
		c.logs = filepath.Join(dir, strings.ReplaceAll(t.Name(), "/", "-"))
		if err := os.MkdirAll(c.logs, 0o755); err != nil {
			cancel()
			t.Fatal(err)
		}
	} else {
		c.logs = t.TempDir()
	}
	client, err := election.Dial(strings.Split(c.endpoints(), ","))
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	c.etcd, c.store = client, election.NewEtcd(client, group)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		for range c.store.Watch(ctx) {
			c.broadcast(func() {})
		}
	}()
	t.Cleanup(func() {
		c.end()
		cancel()
		<-watched
		c.closeStore(client)
	})
	return c
}

func (c *Cluster) closeStore(client *clientv3.Client) {
	if err := client.Close(); err != nil && !errors.Is(err, context.Canceled) {
		c.t.Errorf("closing etcd's client: %v", err)
	}
}

// end kills every process, and shows the ends of their logs if the test has failed.
func (c *Cluster) end() {
	for _, r := range c.replicas {
		if r.process != nil {
			r.process.KillAndWait()
		}
	}
	for _, x := range c.clients {
		x.process.KillAndWait()
	}
	for _, o := range c.others {
		o.Kill()
	}
	c.searchLogs()
	if c.t.Failed() {
		c.showLogs()
	}
}

// searchLogs fails the test for what must not be in any log.
func (c *Cluster) searchLogs() {
	for _, path := range c.logFiles() {
		log, err := os.ReadFile(path)
		if err != nil {
			c.t.Error(err)
			continue
		}
		for _, bad := range []string{"WARNING: DATA RACE", "panic: ", "fatal error: ", "said what is no event"} {
			if i := strings.Index(string(log), bad); i >= 0 {
				c.t.Errorf("%s: %.6000s", filepath.Base(path), log[i:])
			}
		}
	}
}

func (c *Cluster) logFiles() []string {
	files, err := filepath.Glob(filepath.Join(c.logs, "*.log"))
	if err != nil {
		c.t.Error(err)
	}
	return files
}

const logLines = 40 // of each process that are shown

// showLogs shows the ends of the logs, without what goroutines were doing.
func (c *Cluster) showLogs() {
	for _, path := range c.logFiles() {
		log, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		lines := slices.DeleteFunc(strings.SplitAfter(string(log), "\n"), func(line string) bool {
			return !strings.HasPrefix(line, "time=")
		})
		c.t.Logf("%s, the last of %d lines:\n%s", filepath.Base(path), len(lines),
			strings.Join(lines[max(0, len(lines)-logLines):], ""))
	}
}

const pause = 200 * time.Millisecond

// broadcast makes a change that somebody may wait for.
func (c *Cluster) broadcast(change func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change()
	close(c.changed)
	c.changed = make(chan struct{})
}

// await waits until cond holds. It is called, with mu held, at every change.
func (c *Cluster) await(what string, cond func() bool) {
	c.t.Helper()
	for {
		c.mu.Lock()
		ok, changed := cond(), c.changed
		c.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-time.After(pause): // what etcd says is told late, or never, after its data was replaced
		case <-c.ctx.Done():
			c.vain(what)
		}
	}
}

// vain ends the test, whose patience is over. The replicas' logs then say what each of their
// goroutines was doing.
func (c *Cluster) vain(what string) {
	c.t.Helper()
	c.t.Errorf("in vain: %s\n%s", what, c.describe())
	for _, r := range c.replicas {
		if r.process != nil && !r.stopped {
			c.t.Logf("%s is %s", r.Name, r.process.State())
			r.process.Quit()
		}
	}
	c.t.FailNow()
}

// describe says what the replicas last said of themselves, and what was done to them.
func (c *Cluster) describe() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var b strings.Builder
	for _, r := range c.replicas {
		how := "killed"
		switch {
		case r.stopped:
			how = "stopped"
		case r.process != nil && r.process.Ended():
			how = fmt.Sprintf("ended by itself (%v)", r.process.Err)
		case r.process != nil:
			how = "running"
		}
		fmt.Fprintf(&b, "%s: %s, %+v\n", r.Name, how, r.status)
	}
	for _, f := range c.faults {
		fmt.Fprintf(&b, "%v: %s\n", f.at, f.what)
	}
	return b.String()
}

// did notes a fault, and returns when.
func (c *Cluster) did(format string, args ...any) time.Duration {
	f := fault{now(), fmt.Sprintf(format, args...)}
	c.broadcast(func() { c.faults = append(c.faults, f) })
	return f.at
}

// now is the machine's monotonic clock, as the processes read it.
func now() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err)
	}
	return time.Duration(ts.Nano())
}

// Level is the group's.
func (c *Cluster) Level() understudy.Level { return c.level }

// Now is the clock of the ledgers.
func (c *Cluster) Now() time.Duration { return now() }

// Last is how long a fault lasts: the test's goroutine does nothing meanwhile.
func (c *Cluster) Last(d time.Duration) { time.Sleep(d) }

// StartReplicas starts replicas of these names, one after the other so that the first one makes the
// group, and waits until all are in-sync.
func (c *Cluster) StartReplicas(names ...string) {
	c.t.Helper()
	for i, name := range names {
		c.StartReplica(name)
		if i == 0 {
			c.AwaitPrimary(0)
		}
	}
	c.AwaitInSync(names...)
}

// Primary returns the replica that leads now, or soon will.
func (c *Cluster) Primary() *Replica { return c.AwaitPrimary(0) }

// AwaitPrimary waits until a replica leads in an epoch above that one, and returns it.
func (c *Cluster) AwaitPrimary(above uint64) *Replica {
	c.t.Helper()
	var primary *Replica
	c.await(fmt.Sprintf("a primary in an epoch above %d", above), func() bool {
		primary = c.leader()
		return primary != nil && primary.status.Epoch > above
	})
	return primary
}

// AwaitElected waits until a replica was elected in an epoch above that one, and returns it; it may
// still be taking over.
func (c *Cluster) AwaitElected(above uint64) *Replica {
	c.t.Helper()
	var elected *Replica
	c.await(fmt.Sprintf("an election above epoch %d", above), func() bool {
		for _, r := range c.replicas {
			if r.process != nil && r.status.Epoch > above &&
				(r.status.Role == replica.TakingOver || r.status.Role == replica.Leading) {
				elected = r
			}
		}
		return elected != nil
	})
	return elected
}

// leader is the running replica that leads in the highest epoch. mu is held.
func (c *Cluster) leader() *Replica {
	var leader *Replica
	for _, r := range c.replicas {
		if r.process != nil && !r.stopped && r.status.Role == replica.Leading &&
			(leader == nil || r.status.Epoch > leader.status.Epoch) {
			leader = r
		}
	}
	return leader
}

// AwaitInSync waits until just these replicas are in-sync, their processes of now: one leads and
// the others follow it.
func (c *Cluster) AwaitInSync(names ...string) {
	c.t.Helper()
	names = slices.Sorted(slices.Values(names))
	c.await(fmt.Sprintf("%v in-sync", names), func() bool {
		leader := c.leader()
		if leader == nil {
			return false
		}
		for _, r := range c.replicas {
			if !slices.Contains(names, r.Name) || r == leader {
				continue
			}
			if r.process == nil || r.stopped || r.status.Role != replica.Following ||
				r.status.Epoch != leader.status.Epoch {
				return false
			}
		}
		return c.storeSays(leader.status.Epoch, names)
	})
}

// storeSays asks etcd who is in-sync. A replica's process follows after it has registered, so that
// what is asked now can't be about an earlier process of that name.
func (c *Cluster) storeSays(epoch uint64, names []string) bool {
	ctx, cancel := context.WithTimeout(c.ctx, time.Second)
	defer cancel()
	s, err := c.store.Read(ctx)
	if err != nil || s.Epoch != epoch || len(s.InSync) != len(names) {
		return false
	}
	for i, m := range s.InSync {
		if r, ok := s.Replica(m.Name); m.Name != names[i] || !ok || r.Member != m {
			return false
		}
	}
	return true
}

// AwaitRegistered waits until etcd has a live registration of just these replicas.
func (c *Cluster) AwaitRegistered(names ...string) {
	c.t.Helper()
	c.await(fmt.Sprintf("%v registered", names), func() bool {
		ctx, cancel := context.WithTimeout(c.ctx, time.Second)
		defer cancel()
		s, err := c.store.Read(ctx)
		if err != nil || len(s.Replicas) != len(names) {
			return false
		}
		return !slices.ContainsFunc(s.Replicas, func(r election.Replica) bool {
			return !slices.Contains(names, r.Name)
		})
	})
}
