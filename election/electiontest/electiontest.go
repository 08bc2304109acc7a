// Package electiontest is the contract of election.Election as tests: whatever passes Run may stand
// under a replica.
//
//	func TestContract(t *testing.T) {
//		electiontest.Run(t, func(t *testing.T) electiontest.Factory { … })
//	}
//
// No case waits on the clock: each waits for a State, for an error, or for the end of a context
// that it made.
package electiontest

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/understudy-rpc/understudy/election"
)

// A Factory is one store, empty when it is opened, with faults.
type Factory struct {
	// Client returns one more process's handle of a group. Its leases outlive a case's slowest run,
	// so that none expires that isn't meant to.
	Client func(t *testing.T, group string) Client
	// Brief is Client with leases that expire soon, for those that are meant to. Nil: Client's do.
	Brief func(t *testing.T, group string) Client
	// SetDown takes the store away from every client, and brings it back.
	SetDown func(down bool)
	// Put writes keys and their values, for RunMalformed. Nil if the store has no keys.
	Put func(t *testing.T, values map[string]string)
}

// A Client is one process's handle, with a link of its own.
type Client interface {
	election.Election
	// Cut lets nothing through until Mend. Leases expire at the store, operations wait.
	Cut()
	Mend()
	// HoldNext holds the next transaction: its caller is told that the outcome is unknown, and
	// release lets it arrive at the store. Release returns when the store has answered.
	HoldNext() (release func())
}

const (
	limit = 2 * time.Minute // ends a case whose State never comes
	slack = 5 * time.Second // how late a call may return after its deadline, on a busy machine
)

// Run runs the contract; open is called once for each case.
func Run(t *testing.T, open func(t *testing.T) Factory) {
	RunIn(t, func(t *testing.T, f func(*testing.T)) { f(t) }, open)
}

// RunIn is Run with each case run by in, such as synctest.Test.
func RunIn(t *testing.T, in func(t *testing.T, f func(*testing.T)), open func(t *testing.T) Factory) {
	run(t, contract, in, open)
}

type testCase struct {
	name string
	f    func(t *testing.T, h *harness)
}

func run(t *testing.T, cases []testCase, in func(*testing.T, func(*testing.T)), open func(*testing.T) Factory) {
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			in(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), limit)
				defer cancel()
				h := &harness{ctx: ctx, Factory: open(t)}
				if h.Brief == nil {
					h.Brief = h.Client
				}
				c.f(t, h)
			})
		})
	}
}

// harness is a Factory and short words for what every case does.
type harness struct {
	Factory
	ctx context.Context
}

// group is the group of most cases.
const group = "greeter"

var what = election.Group{ID: 0xfeed, Protocol: 3, Level: "stable", Version: "v1"}

func member(name string, incarnation uint64) election.Member {
	return election.Member{Name: name, Incarnation: incarnation}
}

func replica(m election.Member) election.Replica {
	return election.Replica{Member: m, Addr: m.Name + ".example:1", PeerAddr: m.Name + ".example:2"}
}

// A node is one process: its client and its registration.
type node struct {
	Client
	t    *testing.T
	h    *harness
	self election.Registration
	me   election.Member
}

// node registers one more process of the group.
func (h *harness) node(t *testing.T, name string, incarnation uint64) *node {
	t.Helper()
	return h.nodeAt(t, h.Client(t, group), name, incarnation)
}

func (h *harness) nodeAt(t *testing.T, c Client, name string, incarnation uint64) *node {
	t.Helper()
	m := member(name, incarnation)
	r, err := c.Register(h.ctx, replica(m), election.Member{})
	if err != nil {
		t.Fatalf("Register(%v) = %v", m, err)
	}
	closeLater(t, r)
	return &node{Client: c, t: t, h: h, self: r, me: m}
}

// closeLater ends a registration with the test; the store may be away then.
func closeLater(t *testing.T, r election.Registration) {
	t.Cleanup(func() {
		ended, cancel := context.WithCancel(context.Background())
		cancel()
		_ = r.Close(ended)
	})
}

// brief registers one more process, whose lease expires soon. On a slow machine it may do so before
// its time; it comes back, and addAlive and electAlive wait for that.
func (h *harness) brief(t *testing.T, name string, incarnation uint64) *node {
	t.Helper()
	return h.nodeAt(t, h.Brief(t, group), name, incarnation)
}

// founded returns a group of these nodes, all in sync, the first being primary, and its epoch.
func (h *harness) founded(t *testing.T, names ...string) (nodes []*node, epoch uint64) {
	t.Helper()
	for i, name := range names {
		n := h.node(t, name, 0xa0+uint64(i))
		nodes = append(nodes, n)
		if i == 0 {
			epoch = n.create()
		} else {
			nodes[0].add(epoch, n.me)
		}
	}
	return nodes, epoch
}

// addAlive is add of a brief node, as soon as it is registered.
func (n *node) addAlive(epoch uint64, m election.Member) {
	n.t.Helper()
	n.retry("AddInSync", func() error { return n.AddInSync(n.h.ctx, epoch, m) })
}

// electAlive is elect of a brief node, as soon as its registration knows its lease.
func (n *node) electAlive(seen uint64) (epoch uint64) {
	n.t.Helper()
	n.retry("Elect", func() (err error) {
		epoch, err = n.Elect(n.h.ctx, n.self, seen)
		return err
	})
	return epoch
}

func (n *node) retry(call string, f func() error) {
	n.t.Helper()
	for {
		err := f()
		if err == nil {
			return
		}
		if !errors.Is(err, election.ErrNotRegistered) {
			n.t.Fatalf("%s = %v", call, err)
		}
	}
}

func (n *node) create() uint64 {
	n.t.Helper()
	epoch, err := n.Create(n.h.ctx, what, n.self)
	if err != nil {
		n.t.Fatalf("Create by %v = %v", n.me, err)
	}
	return epoch
}

func (n *node) elect(seen uint64) uint64 {
	n.t.Helper()
	epoch, err := n.Elect(n.h.ctx, n.self, seen)
	if err != nil {
		n.t.Fatalf("Elect(%v, %d) = %v", n.me, seen, err)
	}
	return epoch
}

func (n *node) add(epoch uint64, m election.Member) {
	n.t.Helper()
	if err := n.AddInSync(n.h.ctx, epoch, m); err != nil {
		n.t.Fatalf("AddInSync(%d, %v) = %v", epoch, m, err)
	}
}

func (n *node) remove(epoch uint64, m election.Member) {
	n.t.Helper()
	if err := n.RemoveInSync(n.h.ctx, epoch, m); err != nil {
		n.t.Fatalf("RemoveInSync(%d, %v) = %v", epoch, m, err)
	}
}

func (n *node) read() election.State {
	n.t.Helper()
	return read(n.t, n.h.ctx, n)
}

func read(t *testing.T, ctx context.Context, e election.Election) election.State {
	t.Helper()
	s, err := e.Read(ctx)
	if err != nil {
		t.Fatalf("Read = %v", err)
	}
	return s
}

// await returns the first State that satisfies ok.
func await(
	t *testing.T, ctx context.Context, e election.Election, what string, ok func(election.State) bool,
) election.State {
	t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var last election.State
	for last = range e.Watch(ctx) {
		if ok(last) {
			return last
		}
	}
	t.Fatalf("never seen: %s; last seen %+v", what, last)
	return last
}

// alive says that this incarnation is registered, or that nobody of its name is.
func alive(m election.Member, want bool) func(election.State) bool {
	return func(s election.State) bool {
		r, ok := s.Replica(m.Name)
		if want {
			return ok && r.Member == m
		}
		return !ok
	}
}

// wantErr checks an error that must be want, and not be unknown.
func wantErr(t *testing.T, call string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s = %v, want %v", call, err, want)
	}
	if election.IsUnknown(err) {
		t.Errorf("%s = %v, want a known outcome", call, err)
	}
}

// wantUnknown checks the error of a transaction that was held.
func wantUnknown(t *testing.T, call string, err error) {
	t.Helper()
	if !election.IsUnknown(err) {
		t.Fatalf("%s = %v, want an unknown outcome", call, err)
	}
}

func wantTaken(t *testing.T, call string, err error, holder election.Replica) {
	t.Helper()
	var taken *election.NameTakenError
	if !errors.As(err, &taken) || taken.Holder != holder {
		t.Errorf("%s = %v, want the name taken by %v", call, err, holder)
	}
}

func wantInSync(t *testing.T, s election.State, want ...election.Member) {
	t.Helper()
	if !slices.Equal(s.InSync, want) {
		t.Errorf("in sync are %v, want %v", s.InSync, want)
	}
}

func wantPrimary(t *testing.T, s election.State, m election.Member, epoch uint64) {
	t.Helper()
	if s.Primary != m || s.Epoch != epoch {
		t.Errorf("primary is %v in epoch %d, want %v in %d", s.Primary, s.Epoch, m, epoch)
	}
}

// lost waits for the loss of a registration.
func lost(t *testing.T, ctx context.Context, r election.Registration) error {
	t.Helper()
	select {
	case <-r.Lost():
	case <-ctx.Done():
		t.Fatalf("%v was never lost", r.Replica().Member)
	}
	if r.Err() == nil {
		t.Errorf("%v is lost without a reason", r.Replica().Member)
	}
	return r.Err()
}

func notLost(t *testing.T, r election.Registration) {
	t.Helper()
	select {
	case <-r.Lost():
		t.Errorf("%v is lost: %v", r.Replica().Member, r.Err())
	default:
		if err := r.Err(); err != nil {
			t.Errorf("%v isn't lost, but its Err is %v", r.Replica().Member, err)
		}
	}
}
