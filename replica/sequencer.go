package replica

import (
	"container/list"
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/understudy-rpc/understudy/internal/clock"
)

// sequencer grants turns, one at a time, in the order of reception (¶42). The wait of whoever gives up costs the others nothing; without contention a turn costs one mutex.
type sequencer struct {
	clock clock.Clock

	mu      sync.Mutex
	busy    bool
	waiting list.List // of chan struct{}; closed when granted

	// For the watchdog.
	method  atomic.Pointer[string]
	started atomic.Int64
}

// take waits for a turn; ctx may end the wait, with its cause.
func (s *sequencer) take(ctx context.Context) error {
	s.mu.Lock()
	if !s.busy {
		s.busy = true
		s.mu.Unlock()
		return nil
	}
	granted := make(chan struct{})
	place := s.waiting.PushBack(granted)
	s.mu.Unlock()
	select {
	case <-granted:
		return nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	select {
	case <-granted: // at the same time: pass it on
		s.mu.Unlock()
		s.end()
	default:
		s.waiting.Remove(place)
		s.mu.Unlock()
	}
	return ctx.Err()
}

// end gives the turn to the one who has waited longest.
func (s *sequencer) end() {
	s.method.Store(nil)
	s.mu.Lock()
	defer s.mu.Unlock()
	if next := s.waiting.Front(); next != nil {
		close(s.waiting.Remove(next).(chan struct{}))
		return
	}
	s.busy = false
}

// running notes what the turn executes, for the watchdog.
func (s *sequencer) running(method *string) {
	s.started.Store(int64(s.clock()))
	s.method.Store(method)
}

// slow returns the method that has been executing for longer than limit.
func (s *sequencer) slow(limit time.Duration) (string, bool) {
	m := s.method.Load()
	if m == nil || s.clock()-time.Duration(s.started.Load()) < limit {
		return "", false
	}
	return *m, true
}
