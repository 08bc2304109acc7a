//go:build unix

package cluster

import (
	"time"

	"google.golang.org/grpc/codes"

	"github.com/understudy-rpc/understudy/e2e/journal"
	"github.com/understudy-rpc/understudy/transport"
)

// Steady is a load that leaves two processors time to spare, with deadlines that only a hang
// exceeds.
var Steady = journal.Load{Callers: 4, Pause: 10 * time.Millisecond, Deadline: 20 * time.Second}

// Client is a client's process, and the ledger of its calls.
type Client struct {
	Name string

	c       *Cluster
	process *journal.Process
	killed  bool
	rested  bool
	begun   uint64

	calls []journal.Call // guarded by Cluster.mu
}

// StartClient starts a client, which makes no calls yet.
func (c *Cluster) StartClient(name string) *Client {
	c.t.Helper()
	x := &Client{Name: name, c: c}
	x.process = c.launch(name, []string{"client", "-etcd", c.endpoints(), "-name", name}, func(e journal.Event) {
		if e.Call != nil {
			c.broadcast(func() { x.calls = append(x.calls, *e.Call) })
		}
	})
	c.clients = append(c.clients, x)
	return x
}

func (x *Client) ask(cmd journal.Command) journal.Event {
	x.c.t.Helper()
	e, err := x.process.Ask(x.c.ctx, cmd)
	if err != nil {
		x.c.vain(err.Error())
	}
	return e
}

// Load makes callers begin, until Rest, or until each has made its calls.
func (x *Client) Load(l journal.Load) {
	x.c.t.Helper()
	x.ask(journal.Command{Do: journal.DoLoad, Load: &l})
}

// accepted is how many calls were accepted until now, as far as the test knows.
func (x *Client) accepted() (n int) {
	for _, call := range x.Calls() {
		if call.Code == codes.OK {
			n++
		}
	}
	return n
}

// Await waits until so many further calls were accepted.
func (x *Client) Await(further int) {
	x.c.t.Helper()
	x.ask(journal.Command{Do: journal.DoAccepted, Count: uint64(x.accepted() + further)})
}

// AwaitHeld waits until r has executed so many calls whose replies the client hasn't accepted.
func (x *Client) AwaitHeld(r *Replica, calls int) {
	x.c.t.Helper()
	for tick := time.Tick(20 * time.Millisecond); ; {
		executed := 0
		for _, e := range r.dump().Entries {
			if e.Client == x.Name {
				executed++
			}
		}
		if executed-x.accepted() >= calls {
			return
		}
		select {
		case <-tick:
		case <-x.c.ctx.Done():
			x.c.vain(x.Name + "'s replies are held up")
		}
	}
}

// AwaitFailed waits until so many further calls have failed.
func (x *Client) AwaitFailed(further int) {
	x.c.t.Helper()
	failed := func() (n int) {
		for _, call := range x.calls {
			if call.Code != codes.OK {
				n++
			}
		}
		return n
	}
	x.c.mu.Lock()
	want := failed() + further
	x.c.mu.Unlock()
	x.c.await(x.Name+"'s calls fail", func() bool { return failed() >= want })
}

// Idle makes callers make no more calls until they are loaded again, and waits until the last one
// has ended.
func (x *Client) Idle() {
	x.c.t.Helper()
	x.begun = x.ask(journal.Command{Do: journal.DoRest}).Calls
	x.c.await(x.Name+"'s ledger", func() bool { return len(x.calls) == int(x.begun) })
}

// Rest is Idle for good.
func (x *Client) Rest() {
	x.c.t.Helper()
	x.Idle()
	x.rested = true
}

// Route makes the client dial addresses as routes says: another one, or none if it is empty.
// Connections that there are stay as they are.
func (x *Client) Route(routes map[string]string) {
	x.c.t.Helper()
	x.ask(journal.Command{Do: journal.DoRoute, Routes: routes})
}

// Strand leaves the connections to replicas that the client has half-open: nothing that an end
// sends arrives, ever.
func (x *Client) Strand() time.Duration {
	x.c.t.Helper()
	at := x.c.did("client %s's connections are half-open", x.Name)
	x.ask(journal.Command{Do: journal.DoStrand})
	return at
}

// Stop is SIGSTOP. It returns when the process stands still.
func (x *Client) Stop() {
	x.c.t.Helper()
	x.c.did("client %s is stopped", x.Name)
	if err := x.process.Stop(); err != nil {
		x.c.t.Fatal(err)
	}
}

// Continue is SIGCONT.
func (x *Client) Continue() {
	x.c.t.Helper()
	x.c.did("client %s goes on", x.Name)
	if err := x.process.Continue(); err != nil {
		x.c.t.Fatal(err)
	}
}

// Stats is what the library's client has counted.
func (x *Client) Stats() transport.Stats {
	x.c.t.Helper()
	return *x.ask(journal.Command{Do: journal.DoStats}).Stats
}

// Kill is kill -9.
func (x *Client) Kill() time.Duration {
	x.c.t.Helper()
	at := x.c.did("client %s is killed", x.Name)
	x.process.KillAndWait()
	x.killed = true
	return at
}

// Calls returns a copy of the ledger's calls until now.
func (x *Client) Calls() []journal.Call {
	x.c.mu.Lock()
	defer x.c.mu.Unlock()
	return append([]journal.Call(nil), x.calls...)
}
