package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/understudy-rpc/understudy/e2e/etcdproc"
	"github.com/understudy-rpc/understudy/election"
)

func etcdAt(t *testing.T, addr string) election.Election {
	t.Helper()
	return election.NewEtcd(dialEtcd(t, addr), "greeter", election.WithTTL(briefTTL))
}

// mustFail runs f with a deadline, while etcd is away.
func mustFail(
	t *testing.T, ctx context.Context, patience time.Duration, call string, f func(context.Context) error,
) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	begin := time.Now()
	err := f(ctx)
	if err == nil {
		t.Errorf("%s = nil while etcd is away", call)
	}
	if took := time.Since(begin); took > patience+3*time.Second {
		t.Errorf("%s took %v, with %v to do it", call, took, patience)
	}
	return err
}

// What is in etcd survives its death; registrations and watches go on by themselves.
func TestElectionEtcdKilled(t *testing.T) {
	t.Parallel()
	ctx := electionContext(t)
	etcd := etcdproc.Start(t)
	e := etcdAt(t, etcd.Addr())
	rs, first := foundElection(t, ctx, e, memberA, memberB)
	states := e.Watch(ctx)
	before := <-states

	etcd.Kill()
	mustFail(t, ctx, 200*time.Millisecond, "Read", func(ctx context.Context) error {
		_, err := e.Read(ctx)
		return err
	})
	mustFail(t, ctx, 200*time.Millisecond, "Primary", func(ctx context.Context) error {
		_, _, err := e.Primary(ctx)
		return err
	})
	mustFail(t, ctx, 200*time.Millisecond, "Elect", func(ctx context.Context) error {
		_, err := e.Elect(ctx, rs[1], first)
		return err
	})
	err := mustFail(t, ctx, 200*time.Millisecond, "Create", func(ctx context.Context) error {
		_, err := e.Create(ctx, election.Group{ID: 1}, rs[0])
		return err
	})
	if !election.IsUnknown(err) {
		t.Errorf("Create = %v, want an unknown outcome", err)
	}
	etcd.Restart()

	s, err := e.Read(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if s.Primary != memberA || s.Epoch != first || s.Group != before.Group || !slices.Equal(s.InSync, before.InSync) {
		t.Errorf("etcd came back with %+v, it had %+v", s, before)
	}
	awaitElection(t, ctx, e, "both alive", func(s election.State) bool { return len(s.Replicas) == 2 })
	second := electSoon(t, ctx, e, rs[1], first)
	for s := range states {
		if s.Epoch == second {
			break
		}
	}
	if ctx.Err() != nil {
		t.Error("the watch that was there before never saw the election")
	}
	for _, r := range rs {
		if r.Err() != nil {
			t.Errorf("%v is lost: %v", r.Replica().Member, r.Err())
		}
	}
}

// electSoon elects r as soon as its lease is back.
func electSoon(
	t *testing.T, ctx context.Context, e election.Election, r election.Registration, seen uint64,
) (epoch uint64) {
	t.Helper()
	untilRegistered(t, func() (err error) {
		epoch, err = e.Elect(ctx, r, seen)
		return err
	})
	return epoch
}

// An etcd that stands still answers nobody, for longer than the leases last; then it answers
// everything at once.
func TestElectionEtcdStopped(t *testing.T) {
	t.Parallel()
	ctx := electionContext(t)
	etcd := etcdproc.Start(t)
	e := etcdAt(t, etcd.Addr())
	rs, first := foundElection(t, ctx, e, memberA, memberB, memberC)

	etcd.Stop()
	mustFail(t, ctx, 200*time.Millisecond, "Primary", func(ctx context.Context) error {
		_, _, err := e.Primary(ctx)
		return err
	})
	for range 3 {
		mustFail(t, ctx, 200*time.Millisecond, "AddInSync", func(ctx context.Context) error {
			return e.AddInSync(ctx, first, memberB)
		})
	}
	err := mustFail(t, ctx, 2*briefTTL, "Create", func(ctx context.Context) error {
		_, err := e.Create(ctx, election.Group{ID: 1}, rs[0])
		return err
	})
	if !election.IsUnknown(err) {
		t.Errorf("Create = %v, want an unknown outcome", err)
	}
	etcd.Continue()

	s := awaitElection(t, ctx, e, "all alive", func(s election.State) bool { return len(s.Replicas) == 3 })
	if s.Primary != memberA || s.Epoch != first || len(s.InSync) != 3 {
		t.Errorf("etcd went on with %+v", s)
	}
	second := electSoon(t, ctx, e, rs[1], first)
	s = awaitElection(t, ctx, e, "the election", func(s election.State) bool { return s.Epoch == second })
	if s.Primary != memberB || s.IsInSync(memberA) {
		t.Errorf("after the election: %+v", s)
	}
	for _, r := range rs {
		if r.Err() != nil {
			t.Errorf("%v is lost: %v", r.Replica().Member, r.Err())
		}
	}
}

// A member of etcd that hangs, of those that a client has connections to, holds nothing up:
// registrations live on, reads and elections take a tenth of a second longer, and a watch goes to
// another member. (Two addresses of one etcd stand for two members: the network to one of them
// accepts everything, and brings nothing.)
func TestElectionMemberHangs(t *testing.T) {
	ctx := electionContext(t)
	etcd := etcdproc.Start(t)
	links := []*etcdproc.Link{etcdproc.NewLink(t, etcd.Addr()), etcdproc.NewLink(t, etcd.Addr())}
	e := election.NewEtcd(dialEtcd(t, links[0].Addr(), links[1].Addr()), "greeter", election.WithTTL(briefTTL))
	rs, epoch := foundElection(t, ctx, e, memberA, memberB, memberC)
	for range 10 { // both connections are there
		if _, err := e.Read(ctx); err != nil {
			t.Fatal(err)
		}
	}
	for i, hung := range links {
		states := e.Watch(ctx)
		before := <-states
		hung.Stall()
		began := time.Now()
		quick := func(call string, limit time.Duration) {
			t.Helper()
			if took := time.Since(began); took > limit {
				t.Errorf("%s took %v", call, took)
			}
			began = time.Now()
		}
		for range 10 {
			if _, _, err := e.Primary(ctx); err != nil {
				t.Fatal(err)
			}
			quick("Primary", time.Second)
		}
		var err error
		former := before.Primary
		for epoch, err = e.Elect(ctx, rs[1+i], epoch); election.IsUnknown(err); {
			var s election.State
			if s, err = e.Read(ctx); err == nil && s.Primary == rs[1+i].Replica().Member {
				epoch = s.Epoch
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		quick("Elect", 2*time.Second)
		if err := e.AddInSync(ctx, epoch, former); err != nil {
			t.Fatal(err)
		}
		quick("AddInSync", 2*time.Second)
		for s := range states {
			if s.Epoch == epoch {
				break
			}
		}
		quick("the watch", 10*time.Second)
		for until := time.Now().Add(3 * briefTTL); time.Now().Before(until); {
			s, err := e.Read(ctx)
			if err != nil || len(s.Replicas) != 3 {
				t.Fatalf("with a member that hangs: %v, %+v", err, s.Replicas)
			}
			select {
			case <-time.After(100 * time.Millisecond): // real: a lease runs out in real time
			case <-ctx.Done():
			}
		}
		for _, r := range rs {
			if r.Err() != nil {
				t.Errorf("%v is lost: %v", r.Replica().Member, r.Err())
			}
		}
		hung.Resume()
	}
}

// A replaced etcd shows by its Group and its revision, to a watch too: that one waits for a
// revision that the new etcd hasn't reached. When it is back, with an earlier lease of each
// replica, they are registered as before.
func TestElectionEtcdReplaced(t *testing.T) {
	t.Parallel()
	ctx := electionContext(t)
	etcd := etcdproc.Start(t)
	e := etcdAt(t, etcd.Addr())
	rs, first := foundElection(t, ctx, e, memberA, memberB)
	for range 20 { // so that the revision is well above what the new etcd reaches at once
		if err := e.AddInSync(ctx, first, memberB); err != nil {
			t.Fatal(err)
		}
	}
	states := e.Watch(ctx)
	before := <-states
	etcd.Kill()
	backup := etcd.Save()
	etcd.Wipe()
	etcd.Restart()
	s := awaitElection(t, ctx, e, "both alive", func(s election.State) bool { return len(s.Replicas) == 2 })
	if !s.Group.IsZero() || !s.Primary.IsZero() || s.Revision >= before.Revision {
		t.Errorf("an empty etcd has %+v", s)
	}
	for s := range states {
		if s.Group.IsZero() && s.Revision < before.Revision {
			break
		}
	}
	if ctx.Err() != nil {
		t.Error("the watch that was there before never saw that etcd was replaced")
	}
	_, err := e.Elect(ctx, rs[1], first)
	if !errors.Is(err, election.ErrLost) {
		t.Errorf("Elect in an etcd without the group = %v", err)
	}

	etcd.Kill()
	etcd.Load(backup)
	etcd.Restart()
	second := electSoon(t, ctx, e, rs[1], first)
	if err := e.AddInSync(ctx, second, memberA); err != nil {
		t.Error(err)
	}
	electSoon(t, ctx, e, rs[0], second)
	for _, r := range rs {
		if r.Err() != nil {
			t.Errorf("%v is lost: %v", r.Replica().Member, r.Err())
		}
	}
}

// An etcd restored from a backup shows by its revision.
func TestElectionEtcdRestored(t *testing.T) {
	t.Parallel()
	ctx := electionContext(t)
	etcd := etcdproc.Start(t)
	e := etcdAt(t, etcd.Addr())
	rs, first := foundElection(t, ctx, e, memberA, memberB)
	etcd.Kill()
	backup := etcd.Save()
	etcd.Restart()
	second := electSoon(t, ctx, e, rs[1], first)
	after, err := e.Read(ctx)
	if err != nil {
		t.Fatal(err)
	}
	etcd.Kill()
	etcd.Load(backup)
	etcd.Restart()
	s, err := e.Read(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if s.Primary != memberA || s.Epoch != first || s.Group != after.Group || s.Revision >= after.Revision {
		t.Errorf("the restored etcd has %+v; epoch %d had begun at revision %d", s, second, after.Revision)
	}
}

// I7: one primary per epoch, whatever happens to etcd, and whoever believes what about an unknown
// outcome.
func TestElectionUnderKills(t *testing.T) {
	t.Parallel()
	const elections, kills = 60, 4
	ctx := electionContext(t)
	etcd := etcdproc.Start(t)
	members := []election.Member{memberA, memberB, memberC}
	history := &electionHistory{primaries: map[uint64]election.Member{}}
	founder := etcdAt(t, etcd.Addr())
	rs, first := foundElection(t, ctx, founder, members...)
	history.saw(t, first, memberA, "create")

	enough, stop := context.WithCancel(ctx)
	defer stop()
	var work sync.WaitGroup
	for i, m := range members {
		e := etcdAt(t, etcd.Addr())
		work.Go(func() { // stands whenever it may
			rng := rand.New(rand.NewPCG(1, uint64(i)))
			for enough.Err() == nil {
				try, cancel := context.WithTimeout(enough, time.Duration(1+rng.IntN(100))*time.Millisecond)
				history.step(t, try, e, rs[i])
				cancel()
				if history.len() > elections {
					stop()
				}
			}
		})
		work.Go(func() { // sees what is there
			var last election.State
			for s := range e.Watch(enough) {
				history.saw(t, s.Epoch, s.Primary, "watch of "+m.Name)
				if s.Revision < last.Revision || s.Epoch < last.Epoch {
					t.Errorf("%v saw %+v after %+v", m, s, last)
				}
				last = s
			}
		})
	}
	for kill := range kills {
		// Spread over the test: the next kill when so many elections have been seen.
		at := (kill + 1) * elections / (kills + 1)
		for range founder.Watch(enough) {
			if history.len() >= at {
				break
			}
		}
		if enough.Err() != nil {
			break
		}
		etcd.Kill()
		etcd.Restart()
	}
	work.Wait()
	if n := history.len(); n < elections {
		t.Errorf("%d elections, want %d", n, elections)
	}
	t.Logf("%d epochs, %d unknown outcomes", history.len(), history.unknown)
}

// electionHistory is what anybody has seen of who was primary when.
type electionHistory struct {
	mu        sync.Mutex // guards all below
	primaries map[uint64]election.Member
	unknown   int
}

func (h *electionHistory) len() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.primaries)
}

func (h *electionHistory) saw(t *testing.T, epoch uint64, m election.Member, where string) {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	if before, ok := h.primaries[epoch]; ok && before != m {
		t.Errorf("%s: %v is primary in epoch %d, which was %v's", where, m, epoch, before)
	}
	h.primaries[epoch] = m
}

// step reads, and then does what a replica would: the primary takes in sync who isn't, another one
// stands.
func (h *electionHistory) step(t *testing.T, ctx context.Context, e election.Election, self election.Registration) {
	me := self.Replica().Member
	s, err := e.Read(ctx)
	if err != nil {
		return
	}
	h.saw(t, s.Epoch, s.Primary, "read by "+me.Name)
	if s.Primary == me {
		for _, r := range s.Replicas {
			if !s.IsInSync(r.Member) {
				h.note(t, fmt.Sprintf("AddInSync by %v", me), e.AddInSync(ctx, s.Epoch, r.Member), election.ErrDeposed,
					election.ErrNotRegistered)
			}
		}
		return
	}
	epoch, err := e.Elect(ctx, self, s.Epoch)
	h.note(t, fmt.Sprintf("Elect of %v", me), err, election.ErrLost, election.ErrNotInSync, election.ErrNotRegistered)
	if err == nil {
		h.saw(t, epoch, me, "elect")
		if epoch <= s.Epoch {
			t.Errorf("epoch %d follows %d", epoch, s.Epoch)
		}
	}
}

// note counts unknown outcomes, and checks that a known one has a reason that it may have.
func (h *electionHistory) note(t *testing.T, call string, err error, may ...error) {
	if election.IsUnknown(err) {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.unknown++
		return
	}
	if err == nil || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return
	}
	for _, want := range may {
		if errors.Is(err, want) {
			return
		}
	}
	t.Errorf("%s = %v", call, err)
}
