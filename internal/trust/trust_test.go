package trust_test

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/election/memory"
	"github.com/understudy-rpc/understudy/internal/trust"
)

// member of these tests' group, by which its name says which.
func member(name string) election.Member { return election.Member{Name: name, Incarnation: 1} }

// group makes a group of a, who leads, and b.
func group(t *testing.T, store *memory.Store) (client *memory.Client, epoch uint64) {
	t.Helper()
	client = store.Client("g")
	for _, name := range []string{"a", "b"} {
		r, err := client.Register(t.Context(), election.Replica{Member: member(name), Addr: name + ":1"},
			election.Member{})
		if err != nil {
			t.Fatal(err)
		}
		if name == "a" {
			if epoch, err = client.Create(t.Context(), election.Group{ID: 0xfeed}, r); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := client.AddInSync(t.Context(), epoch, member("b")); err != nil {
		t.Fatal(err)
	}
	return client, epoch
}

// TestTrustedBelievesNothingOlder: who has seen more than what the store says is told that the
// store is suspect, by each method that says something.
func TestTrustedBelievesNothingOlder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		store := memory.NewStore()
		client, epoch := group(t, store)
		trusted := trust.New(client)
		if _, err := trusted.Read(ctx); err != nil {
			t.Fatal(err)
		}
		old := store.Backup()
		if err := trusted.RemoveInSync(ctx, epoch, member("b")); err != nil {
			t.Fatal(err)
		}
		store.Restore(old)
		wants := func(what string, err error) {
			t.Helper()
			if !trust.IsSuspect(err) || !strings.Contains(err.Error(), `replica.ReplaceGroup("feed")`) {
				t.Errorf("%s: %v", what, err)
			}
		}
		_, err := trusted.Read(ctx)
		wants("Read", err)
		wants("AddInSync", trusted.AddInSync(ctx, epoch, member("b")))
		wants("RemoveInSync", trusted.RemoveInSync(ctx, epoch, member("b")))
		if _, err := trust.New(client).Read(ctx); err != nil {
			t.Errorf("who knows nothing: %v", err)
		}
		// A peer that has seen less tells nothing; one that has seen more makes the store suspect
		// for who hadn't.
		other := trust.New(client)
		if _, err := other.Read(ctx); err != nil {
			t.Fatal(err)
		}
		trusted.Learn(other.Known())
		other.Learn(trust.Mark{Group: 1, Revision: 1 << 40})
		if _, err := other.Read(ctx); err != nil {
			t.Errorf("another group's mark counts: %v", err)
		}
		other.Learn(trusted.Known())
		_, err = other.Read(ctx)
		wants("Read, after a peer's word", err)
		if err := trusted.JudgeMark(trust.Mark{Epoch: epoch + 100, Fence: other.Known().Fence - 1}); err == nil {
			t.Error("an epoch counts that a store from before has begun")
		}
	})
}

// TestTrustedWatchSaysWhenTheStoreIsSuspect, and when it isn't any more.
func TestTrustedWatchSaysWhenTheStoreIsSuspect(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		store := memory.NewStore()
		client, _ := group(t, store)
		trusted := trust.New(client)
		views := trusted.Watch(ctx)
		newest := func() (s election.State) {
			time.Sleep(time.Second)
			select {
			case s = <-views:
			default:
			}
			return s
		}
		first := newest()
		if first.Suspect != nil || first.Group.ID != 0xfeed {
			t.Fatalf("first: %+v", first)
		}
		good := store.Backup()
		store.Restore(nil)
		if s := newest(); !trust.IsSuspect(s.Suspect) || s.Group != first.Group || len(s.InSync) != 2 {
			t.Errorf("the store is empty: %+v", s)
		}
		if s := newest(); s.Revision != 0 {
			t.Errorf("and again: %+v", s)
		}
		if _, _, err := trusted.Primary(ctx); !trust.IsSuspect(err) {
			t.Errorf("Primary: %v", err)
		}
		store.Restore(good)
		if s := newest(); s.Suspect != nil || s.Epoch != first.Epoch {
			t.Errorf("the store is as it was: %+v", s)
		}
		cancel()
		for range views {
		}
	})
}
