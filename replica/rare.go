package replica

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// rareLines lets one line of a kind through in each second: what clients can cause is counted, and
// doesn't fill a log.
type rareLines struct {
	mu   sync.Mutex // guards kinds
	kind map[string]*rareLine
}

type rareLine struct {
	next time.Duration
	left int // since the last line
}

const rarely = time.Second

// rarely logs a line about what a client has caused, unless one of its kind, which msg names, was
// logged less than a second ago. The next one says how many were left out.
func (e *common) rarely(level slog.Level, msg string, args ...any) {
	now := e.r.clock()
	e.lines.mu.Lock()
	l := e.lines.kind[msg]
	if l == nil {
		if e.lines.kind == nil {
			e.lines.kind = map[string]*rareLine{}
		}
		l = &rareLine{next: now}
		e.lines.kind[msg] = l
	}
	if now < l.next {
		l.left++
		e.lines.mu.Unlock()
		return
	}
	left := l.left
	l.next, l.left = now+rarely, 0
	e.lines.mu.Unlock()
	if left > 0 {
		args = append(args, "leftOut", left)
	}
	e.log.Log(context.Background(), level, msg, args...)
}
