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
func (in *incarnation) rarely(level slog.Level, msg string, args ...any) {
	now := in.r.clock()
	in.lines.mu.Lock()
	l := in.lines.kind[msg]
	if l == nil {
		if in.lines.kind == nil {
			in.lines.kind = map[string]*rareLine{}
		}
		l = &rareLine{next: now}
		in.lines.kind[msg] = l
	}
	if now < l.next {
		l.left++
		in.lines.mu.Unlock()
		return
	}
	left := l.left
	l.next, l.left = now+rarely, 0
	in.lines.mu.Unlock()
	if left > 0 {
		args = append(args, "leftOut", left)
	}
	in.log.Log(context.Background(), level, msg, args...)
}
