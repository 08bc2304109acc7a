package memory_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/election/memory"
)

func member(name string) election.Member { return election.Member{Name: name, Incarnation: 1} }

func register(t *testing.T, c *memory.Client, name string) election.Registration {
	t.Helper()
	r, err := c.Register(t.Context(), election.Replica{Member: member(name), Addr: name + ":1"}, election.Member{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func alive(t *testing.T, e election.Election, name string) bool {
	t.Helper()
	s, err := e.Read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, ok := s.Replica(name)
	return ok
}

// settle lets everything happen that happens up to d from now.
func settle(d time.Duration) {
	time.Sleep(d) // virtual
	synctest.Wait()
}

// A lease lasts its TTL from the cut, to the instant.
func TestLeaseExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := memory.NewStore(memory.TTL(4 * time.Second))
		a, b := store.Client("g"), store.Client("g")
		register(t, a, "a")
		settle(time.Hour)
		if !alive(t, b, "a") {
			t.Fatal("a lease expired though nothing was cut")
		}
		a.Cut()
		settle(4*time.Second - 1)
		if !alive(t, b, "a") {
			t.Error("the lease expired too early")
		}
		settle(1)
		if alive(t, b, "a") {
			t.Error("the lease did not expire")
		}
		a.Mend()
		if !alive(t, b, "a") {
			t.Error("the registration did not come back")
		}
		a.Cut()
		settle(3 * time.Second)
		a.Mend()
		a.Cut()
		settle(3 * time.Second)
		if !alive(t, b, "a") {
			t.Error("the TTL did not begin anew with the second cut")
		}
	})
}

// While the store is down no lease expires, and when it comes back each has its whole TTL: of who
// is cut off, and of who closed without being heard.
func TestLeaseRestsWhileDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := memory.NewStore(memory.TTL(4 * time.Second))
		a, b, c := store.Client("g"), store.Client("g"), store.Client("g")
		register(t, a, "a")
		closed := register(t, b, "b")
		a.Cut()
		b.Cut()
		soon, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := closed.Close(soon); err == nil {
			t.Error("Close through a cut link = nil")
		}
		settle(2 * time.Second) // 3 s since the cut
		store.SetDown(true)
		settle(time.Hour)
		store.SetDown(false)
		settle(4*time.Second - 1)
		if !alive(t, c, "a") || !alive(t, c, "b") {
			t.Error("a lease had less than its TTL after the store's return")
		}
		settle(1)
		if alive(t, c, "a") || alive(t, c, "b") {
			t.Error("a lease outlived its TTL")
		}
	})
}

// A transaction whose answer is lost has taken place.
func TestAnswerLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := memory.NewStore(memory.Latency(10 * time.Millisecond))
		a, b := store.Client("g"), store.Client("g")
		self := register(t, a, "a")
		time.AfterFunc(15*time.Millisecond, a.Cut)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begin := time.Now()
		if _, err := a.Create(ctx, election.Group{ID: 1}, self); !election.IsUnknown(err) ||
			!errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Create = %v, want an unknown outcome by the deadline", err)
		}
		if took := time.Since(begin); took != time.Second {
			t.Errorf("it took %v", took)
		}
		s, err := b.Read(t.Context())
		if err != nil || s.Primary != member("a") {
			t.Errorf("Read = %+v, %v", s, err)
		}
	})
}

// A registration whose maker never learnt of it expires.
func TestRegisterAnswerLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := memory.NewStore(memory.Latency(10*time.Millisecond), memory.TTL(4*time.Second))
		a, b := store.Client("g"), store.Client("g")
		time.AfterFunc(35*time.Millisecond, a.Cut) // one operation there and back, another there
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := a.Register(ctx, election.Replica{Member: member("a"), Addr: "a:1"},
			election.Member{}); !election.IsUnknown(err) {
			t.Fatalf("Register = %v, want an unknown outcome", err)
		}
		if !alive(t, b, "a") {
			t.Error("the registration did not take place")
		}
		a.Mend()
		settle(4 * time.Second)
		if alive(t, b, "a") {
			t.Error("nobody's registration lives on")
		}
	})
}

func TestLatency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := memory.NewStore(memory.Latency(10 * time.Millisecond))
		a, b := store.Client("g"), store.Client("g")
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		states := b.Watch(ctx)
		<-states
		begin := time.Now()
		if _, _, err := a.Primary(t.Context()); err != nil || time.Since(begin) != 20*time.Millisecond {
			t.Errorf("Primary = %v after %v", err, time.Since(begin))
		}
		begin = time.Now()
		register(t, a, "a") // two operations
		s := <-states
		if _, ok := s.Replica("a"); !ok || time.Since(begin) != 40*time.Millisecond {
			t.Errorf("Watch has %+v after %v", s, time.Since(begin))
		}
	})
}

// A restored store goes back in revisions, its leases are gone, and those who reach it register
// again.
func TestBackup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := memory.NewStore()
		a, b := store.Client("g"), store.Client("g")
		selfA, selfB := register(t, a, "a"), register(t, b, "b")
		first, err := a.Create(t.Context(), election.Group{ID: 1}, selfA)
		if err != nil {
			t.Fatal(err)
		}
		if err := a.AddInSync(t.Context(), first, member("b")); err != nil {
			t.Fatal(err)
		}
		backup := store.Backup()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		states := a.Watch(ctx)
		if _, err := b.Elect(t.Context(), selfB, first); err != nil {
			t.Fatal(err)
		}
		for range 10 {
			if err := b.RemoveInSync(t.Context(), first, member("c")); !errors.Is(err, election.ErrDeposed) {
				t.Fatal(err)
			}
		}
		after := store.Revision()
		b.Cut()
		store.Restore(backup)
		synctest.Wait()
		s := <-states
		if s.Revision > after || s.Primary != member("a") || s.Epoch != first || !s.IsInSync(member("b")) {
			t.Errorf("restored: %+v", s)
		}
		if !alive(t, a, "a") || alive(t, a, "b") {
			t.Error("after the restore, who reaches the store isn't who is alive")
		}
		b.Mend()
		second, err := b.Elect(t.Context(), selfB, first)
		if err != nil || second <= first {
			t.Errorf("Elect = %d, %v", second, err)
		}
		store.Restore(nil)
		s, err = a.Read(t.Context())
		if err != nil || !s.Group.IsZero() || len(s.Replicas) != 2 {
			t.Errorf("replaced: %+v, %v", s, err)
		}
	})
}

func Example() {
	ctx := context.Background()
	store := memory.NewStore()
	a, b := store.Client("greeter"), store.Client("greeter")

	// a founds the group, and takes b in sync.
	selfA, _ := a.Register(ctx,
		election.Replica{Member: election.Member{Name: "a", Incarnation: 1}, Addr: "a.example:1"}, election.Member{})
	selfB, _ := b.Register(ctx,
		election.Replica{Member: election.Member{Name: "b", Incarnation: 1}, Addr: "b.example:1"}, election.Member{})
	epoch, err := a.Create(ctx, election.Group{ID: 1, Level: "stable"}, selfA)
	if err != nil {
		fmt.Println(err)
	}
	if err := a.AddInSync(ctx, epoch, selfB.Replica().Member); err != nil {
		fmt.Println(err)
	}

	// b stands, and a finds itself deposed.
	if _, err := b.Elect(ctx, selfB, epoch); err != nil {
		fmt.Println(err)
	}
	fmt.Println(a.AddInSync(ctx, epoch, selfB.Replica().Member))
	_, err = a.Elect(ctx, selfA, epoch)
	fmt.Println(err)

	state, _ := a.Read(ctx)
	fmt.Println("primary:", state.Primary, "in sync:", state.InSync)
	// Output:
	// election: deposed, the epoch is over
	// election: the primary has changed since it was seen
	// primary: b#1 in sync: [b#1]
}
