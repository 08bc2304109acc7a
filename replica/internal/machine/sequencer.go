package machine

import (
	"container/list"
	"context"
	"slices"
	"sync"
	"sync/atomic"
)

// sequencer grants turns, one at a time, in the order of reception (¶42), and between them to
// read-only methods, to any number at once. The wait of whoever gives up costs the others nothing;
// without contention a turn costs one mutex.
type sequencer struct {
	mu      sync.Mutex
	busy    bool      // a turn is taken
	readers int       // that read now
	places  []place   // of the readers
	free    []int     // places that nobody has
	looks   uint64    // the watchdog has taken so many at the readers
	waiting list.List // of *waiter

	// For the watchdog: what the turn executes, and how many turns have executed something.
	method  atomic.Pointer[string]
	entered atomic.Uint64
}

type waiter struct {
	reads   *string       // nil: it waits for a turn
	place   int           // of a reader, once it is granted
	granted chan struct{} // closed then
}

// place is one reader's, for the watchdog.
type place struct {
	method *string // nil: free
	since  uint64  // looks
}

// take waits for a turn; ctx may end the wait, with its cause.
func (s *sequencer) take(ctx context.Context) error {
	s.mu.Lock()
	if !s.busy && s.readers == 0 {
		s.busy = true
		s.mu.Unlock()
		return nil
	}
	return s.wait(ctx, &waiter{granted: make(chan struct{})}, s.end)
}

// end ends a turn.
func (s *sequencer) end() {
	s.method.Store(nil)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.busy = false
	s.grant()
}

// read waits until no turn is taken; who waits for one already comes first. ctx may end the wait,
// with its cause. endRead wants the place that is returned.
func (s *sequencer) read(ctx context.Context, method *string) (place int, err error) {
	s.mu.Lock()
	if !s.busy && s.waiting.Len() == 0 {
		place = s.enter(method)
		s.mu.Unlock()
		return place, nil
	}
	w := &waiter{reads: method, granted: make(chan struct{})}
	err = s.wait(ctx, w, func() { s.endRead(w.place) })
	return w.place, err
}

// enter gives a reader its place. Called with mu held.
func (s *sequencer) enter(method *string) (at int) {
	s.readers++
	if n := len(s.free); n > 0 {
		at, s.free = s.free[n-1], s.free[:n-1]
	} else {
		at, s.places = len(s.places), append(s.places, place{})
	}
	s.places[at] = place{method, s.looks}
	return at
}

// endRead ends a read.
func (s *sequencer) endRead(at int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.readers--
	s.places[at].method = nil
	s.free = append(s.free, at)
	s.grant()
}

// wait waits in the queue. Called with mu held, which it gives up.
func (s *sequencer) wait(ctx context.Context, w *waiter, end func()) error {
	place := s.waiting.PushBack(w)
	s.mu.Unlock()
	select {
	case <-w.granted:
		return nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	select {
	case <-w.granted: // at the same time: pass it on
		s.mu.Unlock()
		end()
	default:
		s.waiting.Remove(place)
		s.grant() // those behind may have waited for this one only
		s.mu.Unlock()
	}
	return ctx.Err()
}

// grant lets those in who have waited longest: one turn, or reads up to the next turn. Called with
// mu held.
func (s *sequencer) grant() {
	for !s.busy && s.waiting.Len() > 0 {
		w := s.waiting.Front().Value.(*waiter)
		switch {
		case w.reads != nil:
			w.place = s.enter(w.reads)
		case s.readers > 0:
			return
		default:
			s.busy = true
		}
		s.waiting.Remove(s.waiting.Front())
		close(w.granted)
	}
}

// slowReads names the methods of readers that read already when it was called the last time but
// one, and says how many turns and reads wait.
func (s *sequencer) slowReads() (methods []string, waiting int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.looks++
	for _, p := range s.places {
		if p.method != nil && s.looks-p.since >= 2 && !slices.Contains(methods, *p.method) {
			methods = append(methods, *p.method)
		}
	}
	return methods, s.waiting.Len()
}

// running notes what the turn executes, for the watchdog.
func (s *sequencer) running(method *string) {
	s.entered.Add(1)
	s.method.Store(method)
}

// executes names what the turn executes; empty if it executes nothing.
func (s *sequencer) executes() string {
	if m := s.method.Load(); m != nil {
		return *m
	}
	return ""
}

// watch returns a function that names the method of a turn which was executing already when it was
// called the last time.
func (s *sequencer) watch() (slow func() (method string, ok bool)) {
	var before uint64
	return func() (string, bool) {
		method := s.method.Load() // first: a turn is counted before it names its method
		turn := s.entered.Load()
		same := turn == before
		before = turn
		if method == nil || !same {
			return "", false
		}
		return *method, true
	}
}
