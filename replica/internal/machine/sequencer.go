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
	mu    sync.Mutex // guards queue
	queue queue

	// For the watchdog: what the turn executes, and how many turns have executed something.
	method  atomic.Pointer[string]
	entered atomic.Uint64
}

// take waits for a turn; ctx may end the wait, with its cause.
func (s *sequencer) take(ctx context.Context) error {
	s.mu.Lock()
	w := s.queue.take()
	s.mu.Unlock()
	if w == nil {
		return nil
	}
	return s.wait(ctx, w, s.end)
}

// end ends a turn.
func (s *sequencer) end() {
	s.method.Store(nil)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queue.end()
}

// read waits until no turn is taken; who waits for one already comes first. ctx may end the wait,
// with its cause. endRead wants the place that is returned.
func (s *sequencer) read(ctx context.Context, method *string) (place int, err error) {
	s.mu.Lock()
	place, w := s.queue.read(method)
	s.mu.Unlock()
	if w == nil {
		return place, nil
	}
	err = s.wait(ctx, w, func() { s.endRead(w.reader) })
	return w.reader, err
}

// endRead ends a read.
func (s *sequencer) endRead(at int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queue.endRead(at)
}

// wait waits until w is granted; end ends what was.
func (s *sequencer) wait(ctx context.Context, w *waiter, end func()) error {
	select {
	case <-w.granted:
		return nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	left := s.queue.leave(w)
	s.mu.Unlock()
	if !left { // granted at the same time: pass it on
		end()
	}
	return ctx.Err()
}

// queue says who has the turn, who reads, and who waits. It isn't safe for concurrent use.
type queue struct {
	busy    bool      // a turn is taken
	readers int       // that read now
	places  []place   // of the readers
	free    []int     // places that nobody has
	looks   uint64    // the watchdog has taken so many at the readers
	waiting list.List // of *waiter
}

type waiter struct {
	reads   *string       // nil: it waits for a turn
	reader  int           // the reader's place, once it is granted
	granted chan struct{} // closed then
	at      *list.Element // in the queue
}

// place is one reader's, for the watchdog.
type place struct {
	method *string // nil: free
	since  uint64  // looks
}

// take takes a turn, or returns who waits for one.
func (q *queue) take() *waiter {
	if q.busy || q.readers > 0 {
		return q.join(nil)
	}
	q.busy = true
	return nil
}

func (q *queue) end() {
	q.busy = false
	q.grant()
}

// read gives a reader its place, or returns who waits for one.
func (q *queue) read(method *string) (place int, w *waiter) {
	if q.busy || q.waiting.Len() > 0 {
		return 0, q.join(method)
	}
	return q.enter(method), nil
}

// enter gives a reader its place.
func (q *queue) enter(method *string) (at int) {
	q.readers++
	if n := len(q.free); n > 0 {
		at, q.free = q.free[n-1], q.free[:n-1]
	} else {
		at, q.places = len(q.places), append(q.places, place{})
	}
	q.places[at] = place{method, q.looks}
	return at
}

func (q *queue) endRead(at int) {
	q.readers--
	q.places[at].method = nil
	q.free = append(q.free, at)
	q.grant()
}

func (q *queue) join(reads *string) *waiter {
	w := &waiter{reads: reads, granted: make(chan struct{})}
	w.at = q.waiting.PushBack(w)
	return w
}

// leave takes out who waits; it says false of one who was granted.
func (q *queue) leave(w *waiter) bool {
	select {
	case <-w.granted:
		return false
	default:
	}
	q.waiting.Remove(w.at)
	q.grant() // those behind may have waited for this one only
	return true
}

// grant lets those in who have waited longest: one turn, or reads up to the next turn.
func (q *queue) grant() {
	for !q.busy && q.waiting.Len() > 0 {
		w := q.waiting.Front().Value.(*waiter)
		switch {
		case w.reads != nil:
			w.reader = q.enter(w.reads)
		case q.readers > 0:
			return
		default:
			q.busy = true
		}
		q.waiting.Remove(w.at)
		close(w.granted)
	}
}

// slow names the methods of readers that read already when it was called the last time but one.
func (q *queue) slow() (methods []string) {
	q.looks++
	for _, p := range q.places {
		if p.method != nil && q.looks-p.since >= 2 && !slices.Contains(methods, *p.method) {
			methods = append(methods, *p.method)
		}
	}
	return methods
}

// slowReads names the methods of readers that read already when it was called the last time but
// one, and says how many turns and reads wait.
func (s *sequencer) slowReads() (methods []string, waiting int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.queue.slow(), s.queue.waiting.Len()
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
