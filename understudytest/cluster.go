// Package understudytest runs a group of replicas of a service, its clients, and its election, in
// one process and in fake time, so that a test can kill the primary at any moment and see what its
// callers see. It must be used inside a testing/synctest bubble:
//
//	synctest.Test(t, func(t *testing.T) {
//		c := understudytest.New(t, 3, func(s grpc.ServiceRegistrar) replica.Snapshotter {
//			g := &greeter{}
//			pb.RegisterGreeterServer(s, g)
//			return g
//		})
//		conn := c.Dial("client")
//		...
//		c.Kill(c.Primary())
//		...
//	})
//
// The replicas are real (package replica over real grpc-go); the network between them is in memory,
// with a constant latency for each direction of each pair of hosts, and so is the election. Faults
// of the network are made by hosts' names, as package simnet says:
//
//	c.Network().Cut(simnet.Link{From: "replica0", To: "client"})
package understudytest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/understudy-rpc/understudy"
	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/election/memory"
	"github.com/understudy-rpc/understudy/interceptor"
	"github.com/understudy-rpc/understudy/internal/clock"
	"github.com/understudy-rpc/understudy/replica"
	"github.com/understudy-rpc/understudy/transport"
	"github.com/understudy-rpc/understudy/understudytest/simnet"
)

const group = "test"

// Register registers a service's implementation, made anew, and returns its state.
type Register func(grpc.ServiceRegistrar) replica.Snapshotter

// Cluster is a group, its clients and what connects them. Its methods are called from the test's
// goroutine.
type Cluster struct {
	t        testing.TB
	net      *simnet.Network
	store    *memory.Store
	register Register
	level    understudy.Level
	server   []grpc.ServerOption
	replica  []replica.Option
	each     func(host string) []replica.Option
	client   []transport.Option
	log      *slog.Logger
	between  func(host string, e election.Election) election.Election
	nodes    []*node
	clock    func(host string) func() time.Duration
	wall     func(host string) func() time.Time
	monitors map[string]*transport.Monitor
}

type node struct {
	host  string
	state replica.Snapshotter
	r     *replica.Replica
	link  *memory.Client
	ended chan error // of Serve
	dead  bool
}

// Option changes a default of New.
type Option func(*Cluster)

// Level is the group's; the default is understudy.Reflected.
func Level(l understudy.Level) Option { return func(c *Cluster) { c.level = l } }

// ServerOptions are given to each replica's grpc.NewServer after the library's.
func ServerOptions(opts ...grpc.ServerOption) Option { return func(c *Cluster) { c.server = opts } }

// ReplicaOptions are given to each replica's replica.Join.
func ReplicaOptions(opts ...replica.Option) Option { return func(c *Cluster) { c.replica = opts } }

// EachReplica is ReplicaOptions with options of a host's own, asked for when its replica starts.
func EachReplica(opts func(host string) []replica.Option) Option {
	return func(c *Cluster) { c.each = opts }
}

// ClientOptions are given to each client's interceptor.DialOptions.
func ClientOptions(opts ...transport.Option) Option { return func(c *Cluster) { c.client = opts } }

// Logger sees what replicas and clients log; the default discards.
func Logger(l *slog.Logger) Option { return func(c *Cluster) { c.log = l } }

// Clocks gives each host, replica or client, its own clock of elapsed time; the default is that
// they all have one.
func Clocks(of func(host string) func() time.Duration) Option {
	return func(c *Cluster) { c.clock = of }
}

// WallClocks gives each replica's host its own wall clock, which may leap; the default is that they
// all have time.Now.
func WallClocks(of func(host string) func() time.Time) Option {
	return func(c *Cluster) { c.wall = of }
}

// Between puts something between each replica and the election, to delay or fail what it asks of
// it.
func Between(wrap func(host string, e election.Election) election.Election) Option {
	return func(c *Cluster) { c.between = wrap }
}

// New starts n replicas and waits until all are in-sync. Everything is stopped when the test ends.
func New(t testing.TB, n int, register Register, opts ...Option) *Cluster {
	t.Helper()
	elapsed := clock.Monotonic()
	c := &Cluster{
		t: t, net: simnet.New(), store: memory.NewStore(memory.Latency(100 * time.Microsecond)), register: register,
		each: func(string) []replica.Option {
			return nil
		}, log: slog.New(slog.DiscardHandler), clock: func(string) func() time.Duration {
			return elapsed
		}, monitors: map[string]*transport.Monitor{},
	}
	for _, o := range opts {
		o(c)
	}
	t.Cleanup(func() {
		for i, n := range c.nodes {
			if !n.dead {
				c.stop(i, false)
			}
		}
	})
	for i := range n {
		c.Start(c.Grow())
		c.AwaitInSync(i + 1) // one after the other: the first makes the group
	}
	return c
}

// Start starts a replica that isn't running, as a new process would be.
func (c *Cluster) Start(i int) {
	c.t.Helper()
	n := c.nodes[i]
	if !n.dead {
		c.t.Fatalf("replica %d runs already", i)
	}
	c.net.Revive(n.host)
	n.dead, n.link, n.ended = false, c.store.Client(group), make(chan error, 1)
	lis, err := c.net.Listen(n.host)
	if err != nil {
		c.t.Fatal(err)
	}
	peers, err := c.net.Listen(n.host)
	if err != nil {
		c.t.Fatal(err)
	}
	late := &lateState{}
	store := election.Election(n.link)
	if c.between != nil {
		store = c.between(n.host, store)
	}
	ctx := context.Background()
	if c.wall != nil {
		ctx = clock.WithWall(ctx, c.wall(n.host))
	}
	n.r, err = replica.Join(ctx, "etcd:///"+group, replica.State(late), append([]replica.Option{
		replica.Name(n.host), replica.Level(c.level), replica.Store(store), replica.Peers(peers, nil, nil),
		replica.InsecurePeers(),
		replica.PeerDialer(c.net.Dialer(n.host)), replica.Clock(c.clock(n.host)), replica.Logger(c.log),
	}, append(slices.Clone(c.replica), c.each(n.host)...)...)...)
	if err != nil {
		c.t.Fatal(err)
	}
	s := grpc.NewServer(append(interceptor.ServerOptions(n.r), c.server...)...)
	n.state = c.register(n.r.Registrar(s))
	late.Snapshotter = n.state
	r, ended := n.r, n.ended
	go func() { ended <- r.Serve(context.Background(), s, lis) }()
}

// lateState is the state of a service that is made after Join.
type lateState struct{ replica.Snapshotter }

// Grow adds a replica to the cluster, and returns its number. It isn't started.
func (c *Cluster) Grow() int {
	i := len(c.nodes)
	c.nodes = append(c.nodes, &node{host: fmt.Sprintf("replica%d", i), dead: true})
	return i
}

// Kill ends a replica as SIGKILL does: what it has sent arrives, nothing else of it ever does, and
// its lease runs out by itself.
func (c *Cluster) Kill(i int) {
	c.t.Helper()
	n := c.nodes[i]
	n.link.Cut()
	c.net.Kill(n.host)
	n.dead = true
	c.stop(i, true)
}

// Crash is the part of Kill that happens at once, and may be called from a trigger of the
// network's. Bury does the rest, later, from the test's goroutine.
func (c *Cluster) Crash(i int) {
	n := c.nodes[i]
	n.link.Cut()
	c.net.Kill(n.host)
}

// KillWhen arms a trigger: the replica dies when the k-th write on a link from it, or to it,
// happens, before it or after. The rest of Kill must be done by Bury, later, from the test's
// goroutine.
func (c *Cluster) KillWhen(i int, link simnet.Link, k int, before bool) {
	c.net.OnWrite(func(l simnet.Link, count int) bool {
		if l != link || count != k {
			return false
		}
		if !before {
			go c.Crash(i)
			return false
		}
		c.Crash(i)
		return true
	})
}

// Bury ends the goroutines of a replica that a trigger has killed.
func (c *Cluster) Bury(i int) {
	c.net.OnWrite(nil)
	c.Kill(i)
}

func (c *Cluster) stop(i int, killed bool) {
	n := c.nodes[i]
	n.dead = true
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if killed {
		cancel() // who is killed waits for nobody
	}
	if err := n.r.Stop(ctx); err != nil && !errors.Is(err, replica.ErrLastInSync) && !killed {
		c.t.Errorf("replica %d doesn't stop: %v", i, err)
	}
	if err := <-n.ended; err != nil && !killed {
		c.t.Errorf("replica %d: Serve: %v", i, err)
	}
}

// Network is where faults between hosts are made: replicas are replica0, replica1, …, clients as
// Dial calls them.
func (c *Cluster) Network() *simnet.Network { return c.net }

// Store is the election's, to be taken away.
func (c *Cluster) Store() *memory.Store { return c.store }

// Link is a replica's way to the election, to be cut, or to have a transaction held up.
func (c *Cluster) Link(i int) *memory.Client { return c.nodes[i].link }

// View is what the election's store holds at this moment.
func (c *Cluster) View() election.State { return c.store.State(group) }

// Monitor reads what the client on a host counts: the one that was dialled last.
func (c *Cluster) Monitor(host string) *transport.Monitor { return c.monitors[host] }

// Replica returns a replica.
func (c *Cluster) Replica(i int) *replica.Replica { return c.nodes[i].r }

// State returns the state of a replica's service, as Register returned it.
func (c *Cluster) State(i int) replica.Snapshotter { return c.nodes[i].state }

// Dial connects a client, which lives on a host of that name. The connection is closed when the
// test ends.
func (c *Cluster) Dial(host string, opts ...grpc.DialOption) *grpc.ClientConn {
	c.t.Helper()
	c.monitors[host] = new(transport.Monitor)
	ours := interceptor.DialOptions(append([]transport.Option{
		transport.WithStore(c.store.Client(group)), transport.WithClock(c.clock(host)),
		transport.WithLogger(c.log.With("client", host)), transport.WithMonitor(c.monitors[host]),
	}, c.client...)...)
	ours = append(ours,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			return c.net.Dialer(host)(ctx, addr)
		}),
	)
	conn, err := grpc.NewClient("replicated://store:1/"+group, append(ours, opts...)...)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// Primary returns the number of the replica that leads, once one does.
func (c *Cluster) Primary() int {
	c.t.Helper()
	var leads int
	c.await("a primary", func() bool {
		for i, n := range c.nodes {
			if !n.dead && n.r.Status().Role == replica.Leading {
				leads = i
				return true
			}
		}
		return false
	})
	return leads
}

// AwaitInSync waits until n replicas are in-sync, and all that are see it so.
func (c *Cluster) AwaitInSync(n int) {
	c.t.Helper()
	c.await(fmt.Sprintf("%d in-sync replicas", n), func() bool {
		view, err := c.store.Client(group).Read(context.Background())
		if err != nil || len(view.InSync) != n {
			return false
		}
		return !slices.ContainsFunc(view.InSync, func(m election.Member) bool {
			return !slices.ContainsFunc(c.nodes, func(n *node) bool {
				return !n.dead && n.host == m.Name && n.r.Status().Role != replica.Joining
			})
		})
	})
}

// AwaitExecuted waits until every replica that runs has executed as far as the primary has.
func (c *Cluster) AwaitExecuted() {
	c.t.Helper()
	p := c.Primary()
	c.await("the backups to execute", func() bool {
		want := c.nodes[p].r.Status().Executed
		return !slices.ContainsFunc(c.nodes, func(n *node) bool { return !n.dead && n.r.Status().Executed != want })
	})
}

// await polls in fake time.
func (c *Cluster) await(what string, cond func() bool) {
	c.t.Helper()
	for range 60_000 {
		if cond() {
			return
		}
		time.Sleep(time.Millisecond) // fake
	}
	for i, n := range c.nodes {
		c.t.Logf("replica %d: dead %v, %+v", i, n.dead, n.r.Status())
	}
	c.t.Fatalf("no %s within a minute", what)
}
