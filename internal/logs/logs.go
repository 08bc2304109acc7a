// Package logs stands between the library and its user's logger. A user's slog.Handler is code that
// the library knows nothing of: it may block (a full pipe), panic, or ask the replica, or the
// client, that logs. So it is never called where the library logs, which may be under a lock, but
// in a goroutine that lives while there are lines. New takes the user's logger; nothing else of the
// library may have it.
package logs

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// limit is how many lines may wait for the user's handler. Those beyond are dropped, and counted.
const limit = 1024

// Logger hands lines to a user's logger, in the order in which they were logged. Its methods never
// wait, and may be called concurrently, under any lock. What they are given mustn't change
// afterwards.
type Logger struct {
	*slog.Logger
	queue *queue // nil: discards
}

// New returns a Logger for the user's; nil discards.
func New(user *slog.Logger) *Logger {
	if user == nil || user.Handler() == slog.DiscardHandler {
		return &Logger{Logger: slog.New(slog.DiscardHandler)}
	}
	q := &queue{}
	return &Logger{slog.New(&handler{queue: q, made: user.Handler()}), q}
}

// With is slog.Logger's.
func (l *Logger) With(args ...any) *Logger { return &Logger{l.Logger.With(args...), l.queue} }

// Flush waits until the user's handler has had all lines, for so long at most. It must not be
// called under a lock.
func (l *Logger) Flush(within time.Duration) {
	if l.queue == nil {
		return
	}
	done := l.queue.drained()
	timer := time.NewTimer(within)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	}
}

// handler is what stands for the user's, or for one that is derived from it, which is made when it
// is needed: to derive it is the user's code, too.
type handler struct {
	queue *queue
	from  *handler // nil: this is the user's own
	with  func(slog.Handler) slog.Handler
	made  slog.Handler // used by the queue's goroutine alone, but for the user's own
}

// Enabled implements slog.Handler. Whether the user's is, is asked later.
func (h *handler) Enabled(context.Context, slog.Level) bool { return true }

// Handle implements slog.Handler.
func (h *handler) Handle(_ context.Context, r slog.Record) error {
	h.queue.add(line{h, r.Clone(), 0})
	return nil
}

// WithAttrs implements slog.Handler.
func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &handler{queue: h.queue, from: h, with: func(user slog.Handler) slog.Handler {
		return user.WithAttrs(attrs)
	}}
}

// WithGroup implements slog.Handler.
func (h *handler) WithGroup(name string) slog.Handler {
	return &handler{queue: h.queue, from: h, with: func(user slog.Handler) slog.Handler { return user.WithGroup(name) }}
}

// users is the user's handler.
func (h *handler) users() slog.Handler {
	if h.made == nil {
		h.made = h.with(h.from.users())
	}
	return h.made
}

// line is one line that waits.
type line struct {
	handler *handler
	record  slog.Record
	lost    int // before it
}

// queue has the lines that wait. Its goroutine ends when there are none, and is started again.
type queue struct {
	mu      sync.Mutex // guards what follows; never held while the user's handler is called
	lines   []line
	lost    int      // since the last line
	last    *handler // of the last line that was handled
	running bool
	empty   chan struct{} // closed when all lines are handled; nil while nobody waits for that
}

func (q *queue) add(l line) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.lines) >= limit {
		q.lost++
		return
	}
	l.lost, q.lost = q.lost, 0
	q.lines = append(q.lines, l)
	if !q.running {
		q.running = true
		go q.run()
	}
}

// drained returns a channel that is closed when there are no lines.
func (q *queue) drained() <-chan struct{} {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.empty == nil {
		q.empty = make(chan struct{})
	}
	empty := q.empty
	if !q.running {
		close(empty)
		q.empty = nil
	}
	return empty
}

// run handles lines until there are none.
func (q *queue) run() {
	done := false
	defer func() {
		if !done { // the user's handler has ended the goroutine
			go q.run()
		}
	}()
	for {
		l, ok := q.next()
		switch {
		case !ok:
			done = true
			return
		case l.lost > 0:
			l.handler.say(lostLine(l.lost))
		default:
			q.handle(l)
		}
	}
}

// next takes the next line. Where others were lost, one comes first that only says how many.
func (q *queue) next() (line, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case len(q.lines) > 0:
		l := q.lines[0]
		q.last = l.handler
		if l.lost > 0 {
			q.lines[0].lost = 0
			return line{handler: l.handler, lost: l.lost}, true
		}
		q.lines[0] = line{}
		q.lines = q.lines[1:]
		return l, true
	case q.lost > 0:
		l := line{handler: q.last, lost: q.lost}
		q.lost = 0
		return l, true
	}
	q.lines, q.last, q.running = nil, nil, false
	if q.empty != nil {
		close(q.empty)
		q.empty = nil
	}
	return line{}, false
}

// handle counts a line as lost on which the user's handler panics, or ends the goroutine.
func (q *queue) handle(l line) {
	handled := false
	defer func() {
		if !handled {
			q.mu.Lock()
			defer q.mu.Unlock()
			q.lost++
		}
	}()
	handled = l.handler.say(l.record)
}

// say calls the user's handler, and returns false if that has panicked. What it returns as an error
// nobody can be told.
func (h *handler) say(r slog.Record) (said bool) {
	defer func() { _ = recover() }()
	ctx := context.Background()
	if user := h.users(); user.Enabled(ctx, r.Level) {
		_ = user.Handle(ctx, r)
	}
	return true
}

func lostLine(n int) slog.Record {
	r := slog.NewRecord(time.Now(), slog.LevelWarn,
		"lines were dropped: the log's handler is too slow, or it has panicked", 0)
	r.Add("lines", n)
	return r
}
