package replica

import (
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

// next says whether a line of a kind may be logged now, and how many were left out since the last
// one.
func (r *rareLines) next(kind string, now time.Duration) (left int, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.kind[kind]
	if l == nil {
		if r.kind == nil {
			r.kind = map[string]*rareLine{}
		}
		l = &rareLine{next: now}
		r.kind[kind] = l
	}
	if now < l.next {
		l.left++
		return 0, false
	}
	left = l.left
	l.next, l.left = now+rarely, 0
	return left, true
}
