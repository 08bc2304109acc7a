package electiontest

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/understudy-rpc/understudy/election"
)

// contract is what Run runs.
var contract = []testCase{
	{"no group", noGroup},
	{"create", create},
	{"create is won by one", createIsWonByOne},
	{"create needs a live registration", createNeedsLiveRegistration},
	{"create in the place of another", replacing},
	{"elect", elect},
	{"elect is won by one", electIsWonByOne},
	{"elect needs to be in sync", electNeedsInSync},
	{"elect needs a live registration", electNeedsLiveRegistration},
	{"elect needs the lease of this registration", electNeedsThisLease},
	{"elect removes only the incarnation that was primary", electRemovesOnlyFormer},
	{"epochs grow, and are revisions", epochsGrow},
	{"in sync", inSync},
	{"in sync by a deposed primary", inSyncDeposed},
	{"in sync concurrently", inSyncConcurrently},
	{"in sync and incarnations", inSyncIncarnations},
	{"unknown outcome of create", unknownCreate},
	{"unknown outcome of elect", unknownElect},
	{"unknown outcome of add", unknownAdd},
	{"unknown outcome of add, of the past", unknownAddOfThePast},
	{"unknown outcome of remove", unknownRemove},
	{"unknown outcome of register", unknownRegister},
	{"name taken", nameTaken},
	{"name is won by one", nameIsWonByOne},
	{"name is displaced by one", nameIsDisplacedByOne},
	{"name displaced", nameDisplaced},
	{"name taken while away", nameTakenWhileAway},
	{"same incarnation registers again", sameIncarnation},
	{"close", closing},
	{"close while away", closingWhileAway},
	{"lease lost and replaced", leaseReplaced},
	{"watch", watch},
	{"watch is coalesced", watchCoalesced},
	{"watch survives a cut", watchSurvivesCut},
	{"store away", storeAway},
	{"groups are apart", groupsApart},
	{"invalid arguments", invalidArguments},
}

func noGroup(t *testing.T, h *harness) {
	c := h.Client(t, group)
	s := read(t, h.ctx, c)
	if s.Revision <= 0 {
		t.Errorf("the empty store has revision %d", s.Revision)
	}
	s.Revision = 0
	if !reflect.DeepEqual(s, election.State{}) {
		t.Errorf("the empty store has %+v", s)
	}
	if m, epoch, err := c.Primary(h.ctx); !m.IsZero() || epoch != 0 || err != nil {
		t.Errorf("Primary = %v, %d, %v", m, epoch, err)
	}
	n := h.node(t, "a", 1)
	_, err := n.Elect(h.ctx, n.self, 0)
	wantErr(t, "Elect without a group", err, election.ErrLost)
	wantErr(t, "AddInSync without a group", n.AddInSync(h.ctx, 0, n.me), election.ErrDeposed)
	wantErr(t, "RemoveInSync without a group", n.RemoveInSync(h.ctx, 0, n.me), election.ErrDeposed)
}

func create(t *testing.T, h *harness) {
	n := h.node(t, "a", 1)
	before := n.read()
	if want := []election.Replica{replica(n.me)}; !slices.Equal(before.Replicas, want) {
		t.Errorf("replicas are %v, want %v", before.Replicas, want)
	}
	epoch := n.create()
	s := n.read()
	if s.Group != what {
		t.Errorf("group is %+v, want %+v", s.Group, what)
	}
	wantPrimary(t, s, n.me, epoch)
	wantInSync(t, s, n.me)
	if epoch <= uint64(before.Revision) || s.Revision < int64(epoch) {
		t.Errorf("epoch %d is not between revisions %d and %d", epoch, before.Revision, s.Revision)
	}
	m, e, err := n.Primary(h.ctx)
	if m != n.me || e != epoch || err != nil {
		t.Errorf("Primary = %v, %d, %v, want %v in %d", m, e, err, n.me, epoch)
	}
	_, err = n.Create(h.ctx, election.Group{ID: 2}, n.self)
	wantErr(t, "Create again", err, election.ErrExists)
	if again := n.read(); again.Group != what {
		t.Errorf("group is %+v after a second Create", again.Group)
	}
}

// race runs f for each node at once.
func race(nodes []*node, f func(i int, n *node)) {
	var wg sync.WaitGroup
	start := make(chan struct{})
	for i, n := range nodes {
		wg.Go(func() {
			<-start
			f(i, n)
		})
	}
	close(start)
	wg.Wait()
}

// oneWon checks that one racer won and the others got want, and returns the winner's index.
func oneWon(t *testing.T, call string, errs []error, want error) int {
	t.Helper()
	winner := -1
	for i, err := range errs {
		switch {
		case err != nil:
			wantErr(t, call, err, want)
		case winner >= 0:
			t.Errorf("%s was won by %d and %d", call, winner, i)
		default:
			winner = i
		}
	}
	if winner < 0 {
		t.Fatalf("%s was won by nobody", call)
	}
	return winner
}

func createIsWonByOne(t *testing.T, h *harness) {
	nodes := []*node{h.node(t, "a", 1), h.node(t, "b", 2), h.node(t, "c", 3)}
	epochs, errs := make([]uint64, len(nodes)), make([]error, len(nodes))
	race(nodes, func(i int, n *node) {
		epochs[i], errs[i] = n.Create(h.ctx, election.Group{ID: n.me.Incarnation}, n.self)
	})
	w := oneWon(t, "Create", errs, election.ErrExists)
	s := nodes[0].read()
	wantPrimary(t, s, nodes[w].me, epochs[w])
	wantInSync(t, s, nodes[w].me)
	if s.Group.ID != nodes[w].me.Incarnation {
		t.Errorf("group is %v's, primary is %v", s.Group, s.Primary)
	}
}

func createNeedsLiveRegistration(t *testing.T, h *harness) {
	n := h.node(t, "a", 1)
	if err := n.self.Close(h.ctx); err != nil {
		t.Fatal(err)
	}
	_, err := n.Create(h.ctx, what, n.self)
	wantErr(t, "Create by a closed registration", err, election.ErrNotRegistered)
	if s := n.read(); !s.Group.IsZero() || !s.Primary.IsZero() || len(s.InSync) > 0 {
		t.Errorf("a failed Create left %+v", s)
	}
}

// R8.
func elect(t *testing.T, h *harness) {
	nodes, first := h.founded(t, "a", "b", "c")
	a, b, c := nodes[0], nodes[1], nodes[2]
	before := a.read()
	second := b.elect(first)
	if second <= uint64(before.Revision) {
		t.Errorf("epoch %d is not above revision %d", second, before.Revision)
	}
	s := a.read()
	wantPrimary(t, s, b.me, second)
	wantInSync(t, s, b.me, c.me)
	m, e, err := c.Primary(h.ctx)
	if m != b.me || e != second || err != nil {
		t.Errorf("Primary = %v, %d, %v, want %v in %d", m, e, err, b.me, second)
	}
	_, err = c.Elect(h.ctx, c.self, first)
	wantErr(t, "Elect in an old epoch", err, election.ErrLost)
	_, err = b.Elect(h.ctx, b.self, second)
	wantErr(t, "Elect by the primary", err, election.ErrPrimary)
	_, err = a.Elect(h.ctx, a.self, second)
	wantErr(t, "Elect by the former primary", err, election.ErrNotInSync)
	wantPrimary(t, a.read(), b.me, second)
	third := c.elect(second)
	s = a.read()
	wantPrimary(t, s, c.me, third)
	wantInSync(t, s, c.me)
}

func electIsWonByOne(t *testing.T, h *harness) {
	nodes, epoch := h.founded(t, "a", "b", "c", "d")
	for range 5 {
		// The former primary comes back each time, so that there is always a race of three.
		var racers []*node
		s := nodes[0].read()
		for _, n := range nodes {
			if n.me != s.Primary {
				racers = append(racers, n)
			}
		}
		epochs, errs := make([]uint64, len(racers)), make([]error, len(racers))
		race(racers, func(i int, n *node) { epochs[i], errs[i] = n.Elect(h.ctx, n.self, epoch) })
		w := oneWon(t, "Elect", errs, election.ErrLost)
		if epochs[w] <= epoch {
			t.Fatalf("epoch %d follows %d", epochs[w], epoch)
		}
		former := s.Primary
		epoch = epochs[w]
		s = nodes[0].read()
		wantPrimary(t, s, racers[w].me, epoch)
		if s.IsInSync(former) || len(s.InSync) != 3 {
			t.Errorf("in sync are %v, after %v was primary", s.InSync, former)
		}
		racers[w].add(epoch, former)
	}
}

func electNeedsInSync(t *testing.T, h *harness) {
	nodes, epoch := h.founded(t, "a", "b")
	d := h.node(t, "d", 4)
	_, err := d.Elect(h.ctx, d.self, epoch)
	wantErr(t, "Elect by one who never was in sync", err, election.ErrNotInSync)

	// b's next incarnation isn't in sync, though its name is.
	if err := nodes[1].self.Close(h.ctx); err != nil {
		t.Fatal(err)
	}
	again := h.node(t, "b", 0xbb)
	_, err = again.Elect(h.ctx, again.self, epoch)
	wantErr(t, "Elect by another incarnation", err, election.ErrNotInSync)

	s := nodes[0].read()
	wantPrimary(t, s, nodes[0].me, epoch)
	wantInSync(t, s, nodes[0].me, nodes[1].me)
}

// The lease is over, and the registration doesn't know.
func electNeedsLiveRegistration(t *testing.T, h *harness) {
	nodes, epoch := h.founded(t, "a")
	a, b := nodes[0], h.brief(t, "b", 2)
	a.addAlive(epoch, b.me)
	b.Cut()
	await(t, h.ctx, a, "b's expiry", alive(b.me, false))
	_, err := a.Elect(h.ctx, b.self, epoch)
	wantErr(t, "Elect without a lease", err, election.ErrNotRegistered)
	wantPrimary(t, a.read(), a.me, epoch)

	b.Mend()
	await(t, h.ctx, a, "b's return", alive(b.me, true))
	// The store shows the new lease before the registration has heard that it has it.
	second := b.electAlive(epoch)
	wantPrimary(t, a.read(), b.me, second)
}

func electNeedsThisLease(t *testing.T, h *harness) {
	nodes, epoch := h.founded(t, "a", "b")
	b := nodes[1]
	again := h.node(t, "b", b.me.Incarnation) // the same incarnation: the newest registration counts
	_, err := b.Elect(h.ctx, b.self, epoch)
	wantErr(t, "Elect under another's lease", err, election.ErrNotRegistered)
	again.elect(epoch)
}

func electRemovesOnlyFormer(t *testing.T, h *harness) {
	nodes, epoch := h.founded(t, "a", "b")
	a, b := nodes[0], nodes[1]
	if err := a.self.Close(h.ctx); err != nil {
		t.Fatal(err)
	}
	// a/2 gets in sync in the epoch of a/1 (as a restarted name may, design section 10), and stays
	// when b is elected.
	a2 := h.node(t, "a", 2)
	b.add(epoch, a2.me)
	second := b.elect(epoch)
	s := b.read()
	wantPrimary(t, s, b.me, second)
	wantInSync(t, s, a2.me, b.me)
	third := a2.elect(second)
	wantPrimary(t, b.read(), a2.me, third)
}

func epochsGrow(t *testing.T, h *harness) {
	nodes, epoch := h.founded(t, "a", "b")
	other := h.Client(t, "other")
	r, err := other.Register(h.ctx, replica(member("a", 1)), election.Member{})
	if err != nil {
		t.Fatal(err)
	}
	closeLater(t, r)
	theirs, err := other.Create(h.ctx, election.Group{ID: 1}, r)
	if err != nil {
		t.Fatal(err)
	}
	if theirs <= epoch {
		t.Errorf("the second group's epoch is %d, after the first's %d", theirs, epoch)
	}
	if second := nodes[1].elect(epoch); second <= theirs {
		t.Errorf("the first group's second epoch is %d, after the other group's %d", second, theirs)
	}
	s := nodes[0].read()
	if m, e, err := nodes[0].Primary(h.ctx); err != nil || m != s.Primary || e != s.Epoch {
		t.Errorf("Primary = %v, %d, %v; Read has %v, %d", m, e, err, s.Primary, s.Epoch)
	}
	revision := s.Revision
	if s = nodes[0].read(); s.Revision != revision {
		t.Errorf("reading moved the revision from %d to %d", revision, s.Revision)
	}
}

// R13.
func inSync(t *testing.T, h *harness) {
	nodes, epoch := h.founded(t, "a")
	a, b, c := nodes[0], h.node(t, "b", 2), h.node(t, "c", 3)
	a.add(epoch, c.me)
	a.add(epoch, b.me)
	a.add(epoch, b.me) // twice is once
	wantInSync(t, a.read(), a.me, b.me, c.me)
	a.remove(epoch, b.me)
	a.remove(epoch, b.me) // absent
	a.remove(epoch, member("never", 1))
	wantInSync(t, a.read(), a.me, c.me)
	wantErr(t, "RemoveInSync of the primary", a.RemoveInSync(h.ctx, epoch, a.me), election.ErrPrimary)
	wantErr(t, "AddInSync of nobody", a.AddInSync(h.ctx, epoch, member("nobody", 1)), election.ErrNotRegistered)
	wantErr(t, "AddInSync of another incarnation", a.AddInSync(h.ctx, epoch, member("b", 9)), election.ErrNotRegistered)
	s := a.read()
	wantInSync(t, s, a.me, c.me)
	wantPrimary(t, s, a.me, epoch) // no change of insync is a new epoch
	if s.Group != what {
		t.Errorf("group is %+v", s.Group)
	}
}

func inSyncDeposed(t *testing.T, h *harness) {
	nodes, first := h.founded(t, "a", "b", "c")
	a, b, c := nodes[0], nodes[1], nodes[2]
	d := h.node(t, "d", 4)
	second := b.elect(first)
	for _, epoch := range []uint64{0, first, first + 1, second + 1, 1 << 63, 1<<64 - 1} {
		if epoch == second {
			continue
		}
		wantErr(t, "AddInSync", a.AddInSync(h.ctx, epoch, d.me), election.ErrDeposed)
		wantErr(t, "AddInSync of a member", a.AddInSync(h.ctx, epoch, c.me), election.ErrDeposed)
		wantErr(t, "AddInSync of nobody", a.AddInSync(h.ctx, epoch, member("nobody", 1)), election.ErrDeposed)
		wantErr(t, "RemoveInSync", a.RemoveInSync(h.ctx, epoch, c.me), election.ErrDeposed)
		wantErr(t, "RemoveInSync of an absent member", a.RemoveInSync(h.ctx, epoch, d.me), election.ErrDeposed)
		_, err := c.Elect(h.ctx, c.self, epoch)
		wantErr(t, "Elect", err, election.ErrLost)
	}
	wantInSync(t, b.read(), b.me, c.me)
	b.add(second, d.me)
	wantInSync(t, b.read(), b.me, c.me, d.me)
}

func inSyncConcurrently(t *testing.T, h *harness) {
	nodes, epoch := h.founded(t, "a")
	a := nodes[0]
	joiners := []*node{h.node(t, "b", 2), h.node(t, "c", 3), h.node(t, "d", 4), h.node(t, "e", 5)}
	race(joiners, func(i int, n *node) {
		if err := a.AddInSync(h.ctx, epoch, n.me); err != nil {
			t.Errorf("AddInSync(%v) = %v", n.me, err)
		}
	})
	wantInSync(t, a.read(), a.me, joiners[0].me, joiners[1].me, joiners[2].me, joiners[3].me)
	race(joiners, func(i int, n *node) {
		if err := a.RemoveInSync(h.ctx, epoch, n.me); err != nil {
			t.Errorf("RemoveInSync(%v) = %v", n.me, err)
		}
	})
	wantInSync(t, a.read(), a.me)
}

func inSyncIncarnations(t *testing.T, h *harness) {
	nodes, epoch := h.founded(t, "a", "b")
	a, b1 := nodes[0], nodes[1]
	if err := b1.self.Close(h.ctx); err != nil {
		t.Fatal(err)
	}
	b2 := h.node(t, "b", 2)
	wantInSync(t, a.read(), a.me, b1.me) // registering changes nobody's being in sync
	wantErr(t, "AddInSync of the past incarnation", a.AddInSync(h.ctx, epoch, b1.me), election.ErrNotRegistered)
	a.remove(epoch, b2.me) // not in sync yet: nothing happens
	wantInSync(t, a.read(), a.me, b1.me)
	a.add(epoch, b2.me) // replaces
	wantInSync(t, a.read(), a.me, b2.me)
	a.remove(epoch, b1.me) // no more in sync: nothing happens
	wantInSync(t, a.read(), a.me, b2.me)
	b2.elect(epoch)
}

func unknownCreate(t *testing.T, h *harness) {
	n := h.node(t, "a", 1)
	release := n.HoldNext()
	_, err := n.Create(h.ctx, what, n.self)
	wantUnknown(t, "Create", err)
	if s := n.read(); !s.Group.IsZero() {
		t.Fatalf("there is a group already: %+v", s)
	}
	release()
	s := n.read()
	if s.Group != what || s.Primary != n.me {
		t.Errorf("after the transaction arrived: %+v", s)
	}
	_, err = n.Create(h.ctx, what, n.self)
	wantErr(t, "Create again", err, election.ErrExists)
}

func unknownElect(t *testing.T, h *harness) {
	nodes, first := h.founded(t, "a", "b", "c")
	b, c := nodes[1], nodes[2]

	// It arrives, and Read says so.
	release := b.HoldNext()
	_, err := b.Elect(h.ctx, b.self, first)
	wantUnknown(t, "Elect", err)
	wantPrimary(t, b.read(), nodes[0].me, first)
	release()
	s := b.read()
	if s.Primary != b.me || s.Epoch <= first {
		t.Fatalf("after the transaction arrived: %+v", s)
	}
	wantInSync(t, s, b.me, c.me)
	_, err = b.Elect(h.ctx, b.self, first)
	wantErr(t, "Elect again", err, election.ErrLost)

	// It arrives too late: another try was faster.
	second := s.Epoch
	release = c.HoldNext()
	_, err = c.Elect(h.ctx, c.self, second)
	wantUnknown(t, "Elect", err)
	third := c.elect(second)
	release()
	wantPrimary(t, c.read(), c.me, third)
}

// A member that was removed stays out, even if an AddInSync of it is still on its way: else it
// could be elected without what was acknowledged after its removal.
func unknownAdd(t *testing.T, h *harness) {
	nodes, epoch := h.founded(t, "a")
	a, b, c := nodes[0], h.node(t, "b", 2), h.node(t, "c", 3)

	release := a.HoldNext()
	wantUnknown(t, "AddInSync", a.AddInSync(h.ctx, epoch, b.me))
	release()
	wantInSync(t, a.read(), a.me, b.me)
	a.remove(epoch, b.me)

	release = a.HoldNext()
	wantUnknown(t, "AddInSync", a.AddInSync(h.ctx, epoch, b.me))
	wantInSync(t, a.read(), a.me)
	a.remove(epoch, b.me)
	release()
	wantInSync(t, a.read(), a.me)

	release = a.HoldNext()
	wantUnknown(t, "AddInSync", a.AddInSync(h.ctx, epoch, b.me))
	a.add(epoch, c.me) // any change settles it
	release()
	wantInSync(t, a.read(), a.me, c.me)

	// A new epoch settles it too.
	release = a.HoldNext()
	wantUnknown(t, "AddInSync", a.AddInSync(h.ctx, epoch, b.me))
	second := c.elect(epoch)
	release()
	s := a.read()
	wantPrimary(t, s, c.me, second)
	wantInSync(t, s, c.me)
}

// What was decided of one incarnation isn't done to the next.
func unknownAddOfThePast(t *testing.T, h *harness) {
	nodes, epoch := h.founded(t, "a")
	a, b := nodes[0], h.node(t, "b", 2)
	release := a.HoldNext()
	wantUnknown(t, "AddInSync", a.AddInSync(h.ctx, epoch, b.me))
	if err := b.self.Close(h.ctx); err != nil {
		t.Fatal(err)
	}
	h.node(t, "b", 3)
	release()
	wantInSync(t, a.read(), a.me)
}

func unknownRemove(t *testing.T, h *harness) {
	nodes, epoch := h.founded(t, "a", "b")
	a, b := nodes[0], nodes[1]

	release := a.HoldNext()
	wantUnknown(t, "RemoveInSync", a.RemoveInSync(h.ctx, epoch, b.me))
	wantInSync(t, a.read(), a.me, b.me)
	release()
	wantInSync(t, a.read(), a.me)
	a.add(epoch, b.me)

	release = a.HoldNext()
	wantUnknown(t, "RemoveInSync", a.RemoveInSync(h.ctx, epoch, b.me))
	a.add(epoch, b.me) // it is there, and yet this settles it
	release()
	wantInSync(t, a.read(), a.me, b.me)
}

// A registration that nobody learnt of expires, and doesn't keep its own incarnation out.
func unknownRegister(t *testing.T, h *harness) {
	other := h.Client(t, group)
	m := member("a", 1)
	c := h.Brief(t, group)
	before := read(t, h.ctx, other)
	release := c.HoldNext()
	_, err := c.Register(h.ctx, replica(m), election.Member{})
	wantUnknown(t, "Register", err)
	release()
	if after := read(t, h.ctx, other); after.Revision == before.Revision {
		t.Error("the registration never took place")
	}
	await(t, h.ctx, other, "its expiry", alive(m, false))

	c = h.Client(t, group)
	release = c.HoldNext()
	_, err = c.Register(h.ctx, replica(m), election.Member{})
	wantUnknown(t, "Register", err)
	n := h.nodeAt(t, c, "a", 1)
	release()
	n.create() // under the lease of n's registration, not of the one that came late
}

func nameTaken(t *testing.T, h *harness) {
	a := h.node(t, "a", 1)
	b := h.Client(t, group)
	_, err := b.Register(h.ctx, replica(member("a", 2)), election.Member{})
	wantTaken(t, "Register", err, replica(a.me))
	_, err = b.Register(h.ctx, replica(member("a", 2)), member("a", 3))
	wantTaken(t, "Register, displacing another", err, replica(a.me))
	notLost(t, a.self)
	if err := a.self.Close(h.ctx); err != nil {
		t.Fatal(err)
	}
	h.node(t, "a", 2)
}

func nameIsWonByOne(t *testing.T, h *harness) {
	registerRace(t, h, election.Member{})
}

func nameIsDisplacedByOne(t *testing.T, h *harness) {
	registerRace(t, h, h.node(t, "a", 9).me)
}

// registerRace lets three incarnations of a name register at once.
func registerRace(t *testing.T, h *harness, displaces election.Member) {
	nodes := []*node{{me: member("a", 1)}, {me: member("a", 2)}, {me: member("a", 3)}}
	for _, n := range nodes {
		n.Client = h.Client(t, group)
	}
	errs := make([]error, len(nodes))
	race(nodes, func(i int, n *node) { n.self, errs[i] = n.Register(h.ctx, replica(n.me), displaces) })
	winner := -1
	for i, err := range errs {
		if err == nil {
			closeLater(t, nodes[i].self)
			if winner >= 0 {
				t.Errorf("%v and %v have the name", nodes[winner].me, nodes[i].me)
			}
			winner = i
		}
	}
	if winner < 0 {
		t.Fatalf("nobody got the name: %v", errs)
	}
	for i, err := range errs {
		if i != winner {
			wantTaken(t, "Register", err, replica(nodes[winner].me))
		}
	}
	if s := read(t, h.ctx, nodes[winner]); !alive(nodes[winner].me, true)(s) {
		t.Errorf("%v won, and isn't in %+v", nodes[winner].me, s)
	}
}

func nameDisplaced(t *testing.T, h *harness) {
	a := h.node(t, "a", 1)
	epoch := a.create()
	c := h.Client(t, group)
	changes, stop := context.WithCancel(h.ctx)
	seen := c.Watch(changes)
	a2, err := c.Register(h.ctx, replica(member("a", 2)), a.me)
	if err != nil {
		t.Fatalf("Register, displacing %v = %v", a.me, err)
	}
	closeLater(t, a2)
	wantTaken(t, "Err", lost(t, h.ctx, a.self), a2.Replica())
	// One transaction: nobody sees the name free.
	for s := range seen {
		if _, ok := s.Replica("a"); !ok {
			t.Errorf("nobody holds the name in %+v", s)
		}
		if alive(a2.Replica().Member, true)(s) {
			break
		}
	}
	stop()
	_, err = a.Elect(h.ctx, a.self, epoch)
	if err == nil {
		t.Error("a displaced registration was elected")
	}
	// The displaced one's end doesn't touch its successor.
	if err := a.self.Close(h.ctx); err != nil {
		t.Errorf("Close = %v", err)
	}
	wantTaken(t, "Err after Close", a.self.Err(), a2.Replica())
	if s := read(t, h.ctx, c); !alive(a2.Replica().Member, true)(s) {
		t.Errorf("after the displaced one's Close: %+v", s)
	}
	notLost(t, a2)
	_, err = c.Register(h.ctx, replica(a.me), member("a", 3))
	wantTaken(t, "Register by the displaced one", err, a2.Replica())
}

func nameTakenWhileAway(t *testing.T, h *harness) {
	a := h.brief(t, "a", 1)
	a.Cut()
	c := h.Client(t, group)
	await(t, h.ctx, c, "a's expiry", alive(a.me, false))
	a2 := h.nodeAt(t, c, "a", 2)
	notLost(t, a.self)
	a.Mend()
	wantTaken(t, "Err", lost(t, h.ctx, a.self), replica(a2.me))
	notLost(t, a2.self)
	if s := a2.read(); !alive(a2.me, true)(s) {
		t.Errorf("after a's return: %+v", s)
	}
}

func sameIncarnation(t *testing.T, h *harness) {
	a := h.node(t, "a", 1)
	c := h.Client(t, group)
	moved := replica(a.me)
	moved.Addr = "elsewhere.example:1"
	r, err := c.Register(h.ctx, moved, election.Member{})
	if err != nil {
		t.Fatalf("Register of the same incarnation = %v", err)
	}
	closeLater(t, r)
	wantTaken(t, "Err", lost(t, h.ctx, a.self), moved)
	if s := read(t, h.ctx, c); !slices.Equal(s.Replicas, []election.Replica{moved}) {
		t.Errorf("replicas are %v, want %v", s.Replicas, moved)
	}
	notLost(t, r)
}

func closing(t *testing.T, h *harness) {
	nodes, epoch := h.founded(t, "a", "b")
	a, b := nodes[0], nodes[1]
	if err := b.self.Close(h.ctx); err != nil {
		t.Errorf("Close = %v", err)
	}
	if err := lost(t, h.ctx, b.self); err != election.ErrClosed {
		t.Errorf("Err = %v, want ErrClosed", err)
	}
	if err := b.self.Close(h.ctx); err != nil {
		t.Errorf("Close again = %v", err)
	}
	s := a.read()
	if !alive(b.me, false)(s) {
		t.Errorf("after Close: %+v", s)
	}
	wantInSync(t, s, a.me, b.me) // a lease ends nobody's being in sync
	_, err := b.Elect(h.ctx, b.self, epoch)
	wantErr(t, "Elect after Close", err, election.ErrNotRegistered)
	if got := b.self.Replica(); got != replica(b.me) {
		t.Errorf("Replica = %v", got)
	}
}

func closingWhileAway(t *testing.T, h *harness) {
	a, b, c := h.node(t, "a", 1), h.brief(t, "b", 2), h.node(t, "c", 3)
	const patience = 50 * time.Millisecond
	for _, n := range []*node{b, c} { // c's lease would last far longer than that
		n.Cut()
		ctx, cancel := context.WithTimeout(h.ctx, patience)
		begin := time.Now()
		if err := n.self.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Close = %v, want the deadline", err)
		}
		if took := time.Since(begin); took > patience+slack {
			t.Errorf("Close took %v, with %v to do it", took, patience)
		}
		cancel()
		if err := lost(t, h.ctx, n.self); err != election.ErrClosed {
			t.Errorf("Err = %v, want ErrClosed", err)
		}
	}
	await(t, h.ctx, a, "b's expiry", alive(b.me, false))
	b.Mend()
	if s := a.read(); !alive(b.me, false)(s) {
		t.Errorf("a closed registration came back: %+v", s)
	}
}

func leaseReplaced(t *testing.T, h *harness) {
	nodes, epoch := h.founded(t, "a")
	a, b := nodes[0], h.brief(t, "b", 2)
	a.addAlive(epoch, b.me)
	for range 2 {
		b.Cut()
		await(t, h.ctx, a, "b's expiry", alive(b.me, false))
		b.Mend()
		s := await(t, h.ctx, a, "b's return", alive(b.me, true))
		if r, _ := s.Replica("b"); r != replica(b.me) {
			t.Errorf("b returned as %v", r)
		}
		notLost(t, b.self)
		wantInSync(t, s, a.me, b.me)
	}
}

func watch(t *testing.T, h *harness) {
	c := h.Client(t, group)
	ctx, cancel := context.WithCancel(h.ctx)
	states := c.Watch(ctx)
	next := func(what string, ok func(election.State) bool) (s election.State) {
		t.Helper()
		var open bool
		for {
			if s, open = <-states; !open {
				t.Fatalf("the channel was closed before %s", what)
			}
			if ok(s) {
				return s
			}
		}
	}
	if s, ok := <-states; !ok || !s.Group.IsZero() || len(s.Replicas) > 0 {
		t.Fatalf("the first State is %+v, %v", s, ok)
	}
	a := h.node(t, "a", 1)
	next("a's registration", alive(a.me, true))
	first := a.create()
	s := next("the group", func(s election.State) bool { return s.Epoch == first })
	// All of one revision.
	wantPrimary(t, s, a.me, first)
	wantInSync(t, s, a.me)
	if s.Group != what || s.Revision < int64(first) {
		t.Errorf("the group's first State is %+v", s)
	}
	b := h.node(t, "b", 2)
	a.add(first, b.me)
	next("b in sync", func(s election.State) bool { return s.IsInSync(b.me) })
	second := b.elect(first)
	s = next("b's election", func(s election.State) bool { return s.Epoch == second })
	wantPrimary(t, s, b.me, second)
	wantInSync(t, s, b.me)
	if err := a.self.Close(h.ctx); err != nil {
		t.Fatal(err)
	}
	s = next("a's end", alive(a.me, false))
	got := b.read()
	got.Revision = s.Revision
	if !reflect.DeepEqual(s, got) {
		t.Errorf("Watch has %+v\nRead has %+v", s, got)
	}
	cancel()
	for range states {
	}
}

// A receiver that is slow gets the newest State, with nothing before it but what it had not yet
// received.
func watchCoalesced(t *testing.T, h *harness) {
	nodes, epoch := h.founded(t, "a", "b")
	a, b := nodes[0], nodes[1]
	slow, cancel := context.WithCancel(h.ctx)
	defer cancel()
	states := h.Client(t, group).Watch(slow)
	for range 20 {
		a.remove(epoch, b.me)
		a.add(epoch, b.me)
	}
	a.remove(epoch, b.me)
	// Another watch has seen the end, so the slow one may have.
	await(t, h.ctx, a, "b's removal", func(s election.State) bool { return !s.IsInSync(b.me) })
	received := 0
	for s := range states {
		received++
		if !s.IsInSync(b.me) && s.Revision == a.read().Revision {
			break
		}
	}
	if received > 10 {
		t.Errorf("a receiver that was away for 41 changes received %d States", received)
	}
}

func watchSurvivesCut(t *testing.T, h *harness) {
	nodes, epoch := h.founded(t, "a", "b")
	a, b := nodes[0], nodes[1]
	c := h.Client(t, group)
	ctx, cancel := context.WithCancel(h.ctx)
	defer cancel()
	states := c.Watch(ctx)
	<-states
	c.Cut()
	second := b.elect(epoch)
	b.add(second, a.me)
	third := a.elect(second)
	select {
	case s := <-states:
		t.Errorf("through a cut link came %+v", s)
	default:
	}
	c.Mend()
	for s := range states {
		if s.Epoch == third {
			wantPrimary(t, s, a.me, third)
			return
		}
	}
	t.Error("the newest State never came")
}

// Every method ends with its context, and says what it must about the outcome.
func storeAway(t *testing.T, h *harness) {
	nodes, epoch := h.founded(t, "a", "b")
	a, b := nodes[0], nodes[1]
	fresh := h.Client(t, group) // without a connection yet
	h.SetDown(true)
	const patience = 100 * time.Millisecond
	within := func(call string, f func(ctx context.Context) error) {
		ctx, cancel := context.WithTimeout(h.ctx, patience)
		defer cancel()
		begin := time.Now()
		err := f(ctx)
		if err == nil {
			t.Errorf("%s = nil while the store is away", call)
		} else if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s = %v, want the deadline", call, err)
		}
		if took := time.Since(begin); took > patience+slack {
			t.Errorf("%s took %v, with %v to do it", call, took, patience)
		}
	}
	for _, c := range []Client{a, fresh} {
		within("Read", func(ctx context.Context) error { _, err := c.Read(ctx); return err })
		within("Primary", func(ctx context.Context) error { _, _, err := c.Primary(ctx); return err })
		within("Register", func(ctx context.Context) error {
			_, err := c.Register(ctx, replica(member("c", 3)), election.Member{})
			return err
		})
		within("Create", func(ctx context.Context) error { _, err := c.Create(ctx, what, a.self); return err })
		within("Elect", func(ctx context.Context) error { _, err := c.Elect(ctx, b.self, epoch+1); return err })
		within("AddInSync", func(ctx context.Context) error { return c.AddInSync(ctx, epoch, b.me) })
		within("RemoveInSync", func(ctx context.Context) error { return c.RemoveInSync(ctx, epoch, member("c", 1)) })
	}
	ended, cancel := context.WithCancel(h.ctx)
	cancel()
	_, err := a.Create(ended, what, a.self)
	wantErr(t, "Create with a context that has ended", err, context.Canceled)
	for range fresh.Watch(ended) {
		t.Error("Watch sent while the store is away")
	}
	// A watch that begins now is served when the store is back.
	states := fresh.Watch(h.ctx)
	h.SetDown(false)
	if s, ok := <-states; !ok || s.Primary != a.me {
		t.Errorf("after the return: %+v, %v", s, ok)
	}
	await(t, h.ctx, fresh, "both", func(s election.State) bool { return alive(a.me, true)(s) && alive(b.me, true)(s) })
	notLost(t, a.self)
	notLost(t, b.self)
	wantPrimary(t, a.read(), a.me, epoch)
}

func groupsApart(t *testing.T, h *harness) {
	nodes, epoch := h.founded(t, "a", "b")
	for _, name := range []string{"greete", "greeters", "Greeter"} {
		if s := read(t, h.ctx, h.Client(t, name)); !s.Group.IsZero() || len(s.Replicas) > 0 {
			t.Errorf("group %q has %+v", name, s)
		}
	}
	other := h.Client(t, "greeters")
	var invalid *election.InvalidError
	if _, err := other.Create(h.ctx, what, nodes[0].self); !errors.As(err, &invalid) {
		t.Errorf("Create with another group's registration = %v", err)
	}
	if _, err := other.Elect(h.ctx, nodes[0].self, epoch); !errors.As(err, &invalid) {
		t.Errorf("Elect with another group's registration = %v", err)
	}
}

func invalidArguments(t *testing.T, h *harness) {
	a := h.node(t, "a", 1)
	c := a.Client
	want := func(call string, err error) {
		t.Helper()
		var invalid *election.InvalidError
		if !errors.As(err, &invalid) || election.IsUnknown(err) {
			t.Errorf("%s = %v, want an InvalidError", call, err)
		}
	}
	for _, name := range []string{"", "a/b", "a\n", "\xff", strings.Repeat("x", 129)} {
		m := election.Member{Name: name, Incarnation: 1}
		_, err := c.Register(h.ctx, election.Replica{Member: m, Addr: "h:1"}, election.Member{})
		want("Register", err)
		want("AddInSync", c.AddInSync(h.ctx, 1, m))
		want("RemoveInSync", c.RemoveInSync(h.ctx, 1, m))
		other := h.Client(t, name)
		_, err = other.Read(h.ctx)
		want("Read of a group", err)
		_, _, err = other.Primary(h.ctx)
		want("Primary of a group", err)
		_, err = other.Register(h.ctx, replica(member("a", 1)), election.Member{})
		want("Register in a group", err)
		ended, cancel := context.WithCancel(h.ctx)
		cancel()
		for range other.Watch(ended) {
			t.Error("Watch of a group with a bad name sent something")
		}
	}
	for _, r := range []election.Replica{
		{Member: election.Member{Name: "b"}, Addr: "h:1"},
		{Member: member("b", 1)},
		{Member: member("b", 1), Addr: "h:1\x00"},
		{Member: member("b", 1), Addr: "h:1", PeerAddr: strings.Repeat("x", 513)},
	} {
		_, err := c.Register(h.ctx, r, election.Member{})
		want("Register", err)
	}
	for _, g := range []election.Group{{}, {ID: 1, Level: strings.Repeat("x", 129)}, {ID: 1, Version: "\x00"}} {
		_, err := c.Create(h.ctx, g, a.self)
		want("Create", err)
	}
	_, err := c.Create(h.ctx, what, nil)
	want("Create by nobody", err)
	_, err = c.Elect(h.ctx, nil, 1)
	want("Elect of nobody", err)
	if s := a.read(); len(s.Replicas) != 1 || !s.Group.IsZero() {
		t.Errorf("invalid calls left %+v", s)
	}
}
