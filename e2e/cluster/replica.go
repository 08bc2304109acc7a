//go:build unix

package cluster

import (
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/understudy-rpc/understudy/e2e/journal"
	"github.com/understudy-rpc/understudy/replica"
)

// Replica is a name of the group, and the processes that bear it one after the other.
type Replica struct {
	Name string

	c        *Cluster
	args     []string
	peerPort int              // of all its processes
	process  *journal.Process // nil while there is none; written with Cluster.mu held
	stopped  bool

	// Guarded by Cluster.mu:
	addr      string
	status    replica.Status
	failovers []replica.Failover
}

// StartReplica starts a replica; args are further arguments of its process.
func (c *Cluster) StartReplica(name string, args ...string) *Replica {
	c.t.Helper()
	r := &Replica{Name: name, c: c, args: append([]string{"-level", c.level.String()}, args...)}
	var err error
	if r.peerPort, err = freePort(); err != nil {
		c.t.Fatal(err)
	}
	c.mu.Lock()
	c.replicas = append(c.replicas, r)
	c.mu.Unlock()
	r.Start()
	return r
}

// StartReplicaOnItsPort is StartReplica, where clients find all its processes at one address, too.
func (c *Cluster) StartReplicaOnItsPort(name string) *Replica {
	c.t.Helper()
	port, err := freePort()
	if err != nil {
		c.t.Fatal(err)
	}
	return c.StartReplica(name, "-port", fmt.Sprint(port))
}

// Replica returns a replica that was started.
func (c *Cluster) Replica(name string) *Replica {
	c.t.Helper()
	for _, r := range c.replicas {
		if r.Name == name {
			return r
		}
	}
	c.t.Fatalf("there is no replica %s", name)
	return nil
}

// Start starts a process of this name, as a supervisor would after the last one has ended.
func (r *Replica) Start() {
	r.c.t.Helper()
	if r.process != nil {
		r.c.t.Fatalf("%s runs", r.Name)
	}
	p := r.start()
	r.c.broadcast(func() { r.process, r.stopped = p, false })
	r.c.await(r.Name+" listens", func() bool { return r.addr != "" || p.Ended() })
	if p.Ended() {
		r.c.t.Fatalf("%s ended at once: %v\n%s", r.Name, p.Err, r.Log())
	}
}

// Replace starts a process that gives the group with this id up, and begins it anew.
func (r *Replica) Replace(group uint64) {
	r.c.t.Helper()
	r.args = append(r.args, "-replace-group", fmt.Sprintf("%x", group))
	r.Start()
}

func (r *Replica) start() *journal.Process {
	r.c.t.Helper()
	r.c.mu.Lock()
	r.addr, r.status = "", replica.Status{}
	r.c.mu.Unlock()
	r.c.did("%s is started", r.Name)
	p := r.c.launch(r.Name, r.arguments(r.peerPort), r.said)
	go func() {
		<-p.Done
		r.c.broadcast(func() {})
	}()
	return p
}

func (r *Replica) arguments(peerPort int) []string {
	return append([]string{
		"replica", "-etcd", r.c.endpoints(), "-name", r.Name, "-peer-port", fmt.Sprint(peerPort),
	}, r.args...)
}

func (r *Replica) said(e journal.Event) {
	r.c.broadcast(func() {
		switch {
		case e.Addr != "":
			r.addr = e.Addr
		case e.Status != nil:
			r.status = *e.Status
		case e.Failover != nil:
			r.failovers = append(r.failovers, *e.Failover)
		}
	})
}

// Rival starts another process of the same name, on ports of its own, while the first one lives,
// waits until the rival has ended, and returns its log and how it ended.
func (r *Replica) Rival() (log string, err error) {
	r.c.t.Helper()
	rival := r.Beside("rival", r.arguments(0)...)
	defer rival.Kill()
	select {
	case <-rival.process.Done:
	case <-r.c.ctx.Done():
		r.c.vain("the rival's end")
	}
	return rival.Log(), rival.process.Err
}

// An Other is a process of a replica that isn't of the cluster, or shouldn't be.
type Other struct {
	c       *Cluster
	name    string
	process *journal.Process
	status  replica.Status // guarded by Cluster.mu
}

// Beside starts such a process, with these arguments. Its log is found by the replica's name and
// another word.
func (r *Replica) Beside(word string, args ...string) *Other {
	r.c.t.Helper()
	o := &Other{c: r.c, name: r.Name + "-" + word}
	r.c.did("%s is started", o.name)
	o.process = r.c.launch(o.name, args, func(e journal.Event) {
		if e.Status != nil {
			r.c.broadcast(func() { o.status = *e.Status })
		}
	})
	r.c.others = append(r.c.others, o)
	return o
}

// Twin starts another process of the same name, on ports of its own, with further arguments.
func (r *Replica) Twin(word string, args ...string) *Other {
	r.c.t.Helper()
	return r.Beside(word, append(r.arguments(0), args...)...)
}

// Squat starts a replica of another group, of the same name and on the same ports; this one's
// process must be dead.
func (r *Replica) Squat(group string) *Other {
	r.c.t.Helper()
	return r.Beside(group, append(r.arguments(r.peerPort), "-group", group)...)
}

// Kill is kill -9.
func (o *Other) Kill() { o.process.KillAndWait() }

// Log returns what the process has logged until now.
func (o *Other) Log() string { return o.c.log(o.name) }

// AwaitRole waits until the process says that it is this.
func (o *Other) AwaitRole(role replica.Role) {
	o.c.t.Helper()
	o.c.await(fmt.Sprintf("%s is %s", o.name, role), func() bool { return o.status.Role == role })
}

// Role is what the process last said that it is.
func (o *Other) Role() replica.Role {
	o.c.mu.Lock()
	defer o.c.mu.Unlock()
	return o.status.Role
}

// Executed is how many calls the process has executed.
func (o *Other) Executed() int {
	o.c.t.Helper()
	e, err := o.process.Ask(o.c.ctx, journal.Command{Do: journal.DoDump})
	if err != nil {
		o.c.t.Fatal(err)
	}
	return len(e.Dump.Entries)
}

// Log returns what the replica's processes have logged until now.
func (r *Replica) Log() string { return r.c.log(r.Name) }

func (c *Cluster) log(name string) string {
	text, err := os.ReadFile(c.logPath(name))
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// AwaitLog waits until the replica has logged this text.
func (r *Replica) AwaitLog(text string) {
	r.c.t.Helper()
	for tick := time.Tick(10 * time.Millisecond); !strings.Contains(r.Log(), text); {
		select {
		case <-tick:
		case <-r.c.ctx.Done():
			r.c.vain(fmt.Sprintf("%s logs %q", r.Name, text))
		}
	}
}

// Addr is where the replica's process of now serves clients.
func (r *Replica) Addr() string {
	r.c.mu.Lock()
	defer r.c.mu.Unlock()
	return r.addr
}

// Epoch is the epoch that the replica last said it acknowledges.
func (r *Replica) Epoch() uint64 { return r.Status().Epoch }

// Status is what the replica last said of itself, when it changed.
func (r *Replica) Status() replica.Status {
	r.c.mu.Lock()
	defer r.c.mu.Unlock()
	return r.status
}

// Failovers are the takeovers by processes of this name.
func (r *Replica) Failovers() []replica.Failover {
	r.c.mu.Lock()
	defer r.c.mu.Unlock()
	return r.failovers
}

// AwaitRole waits until the replica says that it is this, in an epoch above that one.
func (r *Replica) AwaitRole(role replica.Role, above uint64) {
	r.c.t.Helper()
	r.c.await(fmt.Sprintf("%s is %s in an epoch above %d", r.Name, role, above), func() bool {
		return r.status.Role == role && r.status.Epoch > above
	})
}

// AwaitSuspect waits until the replica says that it doesn't believe etcd.
func (r *Replica) AwaitSuspect() {
	r.c.t.Helper()
	r.c.await(r.Name+" suspects etcd", func() bool { return r.status.Suspect != "" })
}

// Kill is kill -9. It returns when the process is gone, and says when it began.
func (r *Replica) Kill() time.Duration {
	r.c.t.Helper()
	if r.process == nil {
		r.c.t.Fatalf("%s doesn't run", r.Name)
	}
	at := r.c.did("%s is killed", r.Name)
	r.process.KillAndWait()
	r.c.broadcast(func() { r.process, r.stopped, r.status = nil, false, replica.Status{} })
	return at
}

// Terminate is SIGTERM: the process stops its server gracefully. It returns when the process has
// ended, and says when it began and how long that took.
func (r *Replica) Terminate() (at, took time.Duration) {
	r.c.t.Helper()
	at = r.c.did("%s is terminated", r.Name)
	if err := r.process.Terminate(); err != nil {
		r.c.t.Fatal(err)
	}
	select {
	case <-r.process.Done:
	case <-r.c.ctx.Done():
		r.c.vain(r.Name + " ends")
	}
	took = now() - at
	if err := r.process.Err; err != nil {
		r.c.t.Errorf("%s was terminated, and ends with %v", r.Name, err)
	}
	r.c.broadcast(func() { r.process, r.stopped, r.status = nil, false, replica.Status{} })
	return at, took
}

// Stop is SIGSTOP. It returns when the process stands still.
func (r *Replica) Stop() time.Duration {
	r.c.t.Helper()
	at := r.c.did("%s is stopped", r.Name)
	if err := r.process.Stop(); err != nil {
		r.c.t.Fatal(err)
	}
	r.c.broadcast(func() { r.stopped = true })
	return at
}

// Continue is SIGCONT.
func (r *Replica) Continue() time.Duration {
	r.c.t.Helper()
	at := r.c.did("%s goes on", r.Name)
	if err := r.process.Continue(); err != nil {
		r.c.t.Fatal(err)
	}
	r.c.broadcast(func() { r.stopped = false })
	return at
}

// dump asks the replica for its state.
func (r *Replica) dump() journal.Dump {
	r.c.t.Helper()
	e, err := r.process.Ask(r.c.ctx, journal.Command{Do: journal.DoDump})
	if err != nil {
		r.c.t.Fatal(err)
	}
	return *e.Dump
}

// executed waits until the replica has executed so many turns, and returns how many it has.
func (r *Replica) executed(count uint64) uint64 {
	r.c.t.Helper()
	e, err := r.process.Ask(r.c.ctx, journal.Command{Do: journal.DoExecuted, Count: count})
	if err != nil {
		r.c.vain(err.Error())
	}
	return e.Status.Executed
}
