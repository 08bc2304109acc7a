package machine

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
)

func TestTurnsInOrderOfReception(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := new(sequencer)
		if err := s.take(t.Context()); err != nil {
			t.Fatal(err)
		}
		var got []int
		for i := range 5 {
			go func() {
				if s.take(context.Background()) == nil {
					got = append(got, i)
					s.end()
				}
			}()
			synctest.Wait() // it waits in the queue
		}
		s.end()
		synctest.Wait()
		for i, n := range got {
			if i != n {
				t.Fatalf("turns were granted in the order %v", got)
			}
		}
		if len(got) != 5 {
			t.Fatalf("%d turns were granted, want 5", len(got))
		}
	})
}

func TestTurnIsPassedOnByWhoGaveUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := new(sequencer)
		_ = s.take(t.Context())
		ctx, cancel := context.WithCancel(t.Context())
		gaveUp, granted := make(chan error, 1), make(chan error, 1)
		go func() { gaveUp <- s.take(ctx) }()
		synctest.Wait()
		go func() { granted <- s.take(context.Background()) }()
		synctest.Wait()
		cancel()
		if err := <-gaveUp; !errors.Is(err, context.Canceled) {
			t.Fatalf("who gave up got %v", err)
		}
		s.end()
		if err := <-granted; err != nil {
			t.Fatal(err)
		}
		s.end()
		// Granted and cancelled at once: whoever wins, the turn isn't lost.
		for range 100 {
			_ = s.take(t.Context())
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan struct{})
			go func() {
				if s.take(ctx) == nil {
					s.end()
				}
				close(done)
			}()
			synctest.Wait()
			go cancel()
			s.end()
			<-done
			if err := s.take(t.Context()); err != nil {
				t.Fatal(err)
			}
			s.end()
		}
	})
}

func TestSlowTurnIsNamed(t *testing.T) {
	t.Parallel()
	s := new(sequencer)
	slow := s.watch()
	look := func(what, want string) {
		t.Helper()
		if m, ok := slow(); m != want || ok != (want != "") {
			t.Errorf("%s: %q, %v", what, m, ok)
		}
	}
	look("no turn yet", "")
	name := "/a.B/C"
	turn := func(f func()) {
		_ = s.take(t.Context())
		s.running(&name)
		f()
		s.end()
	}
	turn(func() {
		look("a turn, seen for the first time", "")
		look("and again", name)
		look("and again", name)
	})
	look("a turn that is over", "")
	turn(func() { look("another turn", "") })
	turn(func() { look("a third, while the one before was executing at the last look", "") })
	turn(func() {})
	turn(func() { look("after one that nobody saw", "") })
}

func BenchmarkTurnUncontended(b *testing.B) {
	s := new(sequencer)
	ctx := context.Background()
	b.ReportAllocs()
	for b.Loop() {
		_ = s.take(ctx)
		s.end()
	}
}

// Reads go together, never with a turn, and don't overtake a turn that waits; who gives up leaves
// nobody behind.
func TestReadsBetweenTurns(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := new(sequencer)
		var mu sync.Mutex
		var got []string
		try := func(ctx context.Context, name string, enter func(context.Context) error) {
			go func() {
				if enter(ctx) == nil {
					mu.Lock()
					defer mu.Unlock()
					got = append(got, name)
				}
			}()
			synctest.Wait()
		}
		expect := func(want ...string) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			slices.Sort(got)
			if !slices.Equal(got, want) {
				t.Fatalf("%v have entered, want %v", got, want)
			}
			got = nil
		}
		bg := t.Context()
		method, places := "/a.B/C", make(chan int, 5)
		read := func(ctx context.Context) error {
			place, err := s.read(ctx, &method)
			if err == nil {
				places <- place
			}
			return err
		}
		endRead := func() { s.endRead(<-places) }
		try(bg, "read 1", read)
		try(bg, "read 2", read)
		expect("read 1", "read 2")
		impatient, giveUp := context.WithCancel(bg)
		try(impatient, "turn 1", s.take)
		try(bg, "read 3", read)
		expect() // turn 1 waits for the reads, and read 3 for turn 1
		giveUp()
		expect("read 3")
		try(bg, "turn 2", s.take)
		try(bg, "read 4", read)
		try(bg, "read 5", read)
		try(bg, "turn 3", s.take)
		endRead()
		endRead()
		expect()
		endRead()
		expect("turn 2")
		s.end()
		expect("read 4", "read 5")
		endRead()
		expect()
		endRead()
		expect("turn 3")
		s.end()
	})
}
