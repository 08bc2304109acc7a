package transport

import (
	"context"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/election/memory"
)

// dialled is what stores dial in tests: how often, and how often it was closed.
type dialled struct{ opened, closed atomic.Int32 }

func (d *dialled) stores(below func() election.Election) *stores {
	return &stores{open: map[storeKey]*store{}, dial: func(target, etcdAccess) (election.Election, io.Closer, error) {
		d.opened.Add(1)
		return below(), closer(func() error { d.closed.Add(1); return nil }), nil
	}}
}

// TestStoresAreShared: by those who name the same target, until the last one has left.
func TestStoresAreShared(t *testing.T) {
	t.Parallel()
	d := &dialled{}
	group := memory.NewStore()
	all := d.stores(func() election.Election { return group.Client("greeter") })
	targets := []target{
		{[]string{"a:1", "b:1"}, "greeter"}, {[]string{"a:1", "b:1"}, "greeter"},
		{[]string{"a:1"}, "greeter"}, {[]string{"a:1", "b:1"}, "other"},
	}
	var leave []io.Closer
	for _, to := range targets {
		_, c, err := all.elect(to, etcdAccess{})
		if err != nil {
			t.Fatal(err)
		}
		leave = append(leave, c)
	}
	for i, want := range []struct{ opened, closed int32 }{{3, 0}, {3, 1}, {3, 2}, {3, 3}} {
		for range 2 { // the second time it is nothing
			if err := leave[i].Close(); err != nil {
				t.Fatal(err)
			}
		}
		if opened, closed := d.opened.Load(), d.closed.Load(); opened != want.opened || closed != want.closed {
			t.Errorf("after %d have left: opened %d, closed %d", i+1, opened, closed)
		}
	}
	_, other, _ := all.elect(targets[0], etcdAccess{username: "somebody", password: "else"})
	defer func() { _ = other.Close() }()
	if d.opened.Load() != 4 || len(all.open) != 1 {
		t.Errorf("somebody else: opened %d", d.opened.Load())
	}
	if _, c, _ := all.elect(targets[0], etcdAccess{}); d.opened.Load() != 5 || c.Close() != nil || len(all.open) != 1 {
		t.Errorf("used again: opened %d, and %d are left", d.opened.Load(), len(all.open))
	}
}

// watchCounter counts the watches below a store that is shared.
type watchCounter struct {
	election.Election
	began, running atomic.Int32
}

func (w *watchCounter) Watch(ctx context.Context) <-chan election.State {
	w.began.Add(1)
	w.running.Add(1)
	out := make(chan election.State)
	go func() {
		defer close(out)
		defer w.running.Add(-1)
		for s := range w.Election.Watch(ctx) {
			select {
			case out <- s:
			case <-ctx.Done():
			}
		}
	}()
	return out
}

// TestWatchersShareOneWatch: the watchers of a store share one watch. Each has its own State, the
// last one's end is the watch's, and the next one begins anew.
func TestWatchersShareOneWatch(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		group := memory.NewStore()
		below := &watchCounter{Election: group.Client("greeter")}
		e, c, _ := new(dialled).stores(func() election.Election { return below }).elect(target{}, etcdAccess{})
		defer c.Close()
		self, err := below.Register(t.Context(),
			election.Replica{Member: election.Member{Name: "a", Incarnation: 1}, Addr: "a:1"}, election.Member{})
		if err != nil {
			t.Fatal(err)
		}
		defer self.Close(t.Context())
		for round := range int32(2) {
			ctx, cancel := context.WithCancel(t.Context())
			first := e.Watch(ctx)
			<-first
			second := e.Watch(ctx)
			s := <-second
			if len(s.Replicas) != 1 || below.began.Load() != round+1 {
				t.Fatalf("round %d: %+v, of %d watches", round, s, below.began.Load())
			}
			s.Replicas[0].Name = "mine"
			leaving, leave := context.WithCancel(ctx)
			if s := <-e.Watch(leaving); s.Replicas[0].Name != "a" {
				t.Errorf("one watcher's State is another's: %+v", s)
			}
			leave()
			synctest.Wait()
			if below.running.Load() != 1 {
				t.Error("the watch ended while others go on")
			}
			cancel()
			_, firstOpen := <-first
			_, secondOpen := <-second
			if firstOpen || secondOpen || below.running.Load() != 0 {
				t.Errorf("after the last watcher's end: %v %v, and %d watches run", firstOpen, secondOpen,
					below.running.Load())
			}
		}
	})
}

// TestStoresConcurrently is for the race detector.
func TestStoresConcurrently(t *testing.T) {
	t.Parallel()
	d := &dialled{}
	group := memory.NewStore()
	all := d.stores(func() election.Election { return group.Client("greeter") })
	var using sync.WaitGroup
	for range 8 {
		using.Go(func() {
			for range 100 {
				e, c, err := all.elect(target{}, etcdAccess{})
				if err != nil {
					t.Error(err)
					return
				}
				ctx, cancel := context.WithCancel(t.Context())
				states := e.Watch(ctx)
				<-states
				cancel()
				for range states { // until it has ended
				}
				_ = c.Close()
			}
		})
	}
	using.Wait()
	if d.opened.Load() != d.closed.Load() || len(all.open) != 0 {
		t.Errorf("opened %d, closed %d, and %d are left", d.opened.Load(), d.closed.Load(), len(all.open))
	}
}
