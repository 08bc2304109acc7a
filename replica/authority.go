package replica

import (
	"context"
	"time"
)

// maxChecks bounds the reads of the primary that are outstanding: as many as begin within A, after
// which each is given up.
const maxChecks = int(authority / authorityRefresh)

// reign is what a primary does by itself: the goroutines of its epoch.
type reign struct {
	in *incarnation
	l  *leading
}

// keepAuthority is R10: this primary may transmit for A after the start of each linearizable read
// that still names it. A read begins every A/4, whether or not those before it were answered: a
// store that takes long for its answers isn't away. After one that failed the next begins sooner.
func (re *reign) keepAuthority() {
	outstanding := make(chan struct{}, maxChecks)
	failed := make(chan struct{}, 1)
	for {
		select {
		case outstanding <- struct{}{}:
		case <-re.in.ctx.Done():
			return
		}
		re.in.goes(func() {
			defer func() { <-outstanding }()
			if !re.check() {
				signal(failed)
			}
		})
		next := time.NewTimer(authorityRefresh)
		select {
		case <-next.C:
		case <-failed:
			next.Reset(authorityRefresh / 10)
			select {
			case <-next.C:
			case <-re.in.ctx.Done():
			}
		case <-re.in.ctx.Done():
		}
		next.Stop()
		if re.in.ctx.Err() != nil {
			return
		}
	}
}

// check reads once who is primary, and says whether it was told. Of several reads under way, the
// authority is of the one that began last, whichever is answered last.
//
// A primary whose authority has lapsed was cut off, or the store was away, or is slow: then it may
// be deposed, and the store be one from before that names it still. So it asks the other replicas
// first what they have seen of the store, and has no authority before each that was in-sync has
// answered, or isn't registered any more: its successor is one of them.
func (re *reign) check() bool {
	start, known := re.in.r.clock(), re.in.r.store.Known()
	ctx, cancel := context.WithTimeout(re.in.ctx, authority)
	defer cancel()
	leader, e, err := re.in.r.store.Primary(ctx)
	if err != nil {
		return false
	}
	if leader != re.in.self || e != uint64(re.l.primary.Epoch()) {
		re.in.end(errDeposed)
		return true
	}
	if re.l.extend(start, false) {
		return true
	}
	if !re.in.hearMarks() {
		return false
	}
	if now := re.in.r.store.Known(); now.Epoch != known.Epoch || now.Fence != known.Fence {
		return false // the store is judged anew by what they have seen
	}
	return re.l.extend(start, true)
}

// extend gives authority for A from the start of a read, unless it has lapsed and the others
// weren't heard. It takes mu.
func (l *leading) extend(start time.Duration, heard bool) bool {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	lapsed := l.authority <= l.m.r.clock()
	if lapsed && !heard {
		return false
	}
	l.authority = max(l.authority, start+authority)
	l.m.after(moved{rare: lapsed})
	return true
}

// hasAuthority says whether this primary may transmit now, and change who is in-sync. It takes mu.
func (l *leading) hasAuthority() bool {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	return l.m.r.clock() < l.authority
}

// underAuthority is for a change of who is in-sync: it ends after A, and as soon as this primary
// has no authority any more. A request that is still under way then, as in a partition, might reach
// a store from before, which names this replica still.
func (re *reign) underAuthority() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(re.in.ctx, authority)
	go func() {
		for left := re.l.left(); left > 0; left = re.l.left() {
			if endsWithin(left, ctx.Done()) {
				return
			}
		}
		cancel()
	}()
	return ctx, cancel
}

// left is for how long this primary has authority. It takes mu.
func (l *leading) left() time.Duration {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	return l.authority - l.m.r.clock()
}
