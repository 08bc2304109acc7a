package replica

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/understudy-rpc/understudy/internal/clock"
)

func TestTurnsInOrderOfReception(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &sequencer{clock: clock.Monotonic()}
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
		s := &sequencer{clock: clock.Monotonic()}
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
	synctest.Test(t, func(t *testing.T) {
		s := &sequencer{clock: clock.Monotonic()}
		_ = s.take(t.Context())
		name := "/a.B/C"
		s.running(&name)
		if _, slow := s.slow(time.Second); slow {
			t.Error("a turn is slow at once")
		}
		time.Sleep(2 * time.Second) // fake
		if m, slow := s.slow(time.Second); !slow || m != name {
			t.Errorf("after 2 s: %q, %v", m, slow)
		}
		s.end()
		if _, slow := s.slow(time.Second); slow {
			t.Error("a turn that is over is slow")
		}
	})
}

func BenchmarkTurnUncontended(b *testing.B) {
	s := &sequencer{clock: clock.Monotonic()}
	ctx := context.Background()
	b.ReportAllocs()
	for b.Loop() {
		_ = s.take(ctx)
		s.end()
	}
}
