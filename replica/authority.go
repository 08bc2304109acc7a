package replica

import (
	"context"
	"time"
)

// maxChecks bounds the reads of the primary that are outstanding: as many as begin within A, after
// which each is given up.
const maxChecks = int(authority / authorityRefresh)

// keepAuthority is R10: this primary may transmit for A after the start of each linearizable read
// that still names it. A read begins every A/4, whether or not those before it were answered: a
// store that takes long for its answers isn't away. After one that failed the next begins sooner.
func (in *incarnation) keepAuthority() {
	outstanding := make(chan struct{}, maxChecks)
	failed := make(chan struct{}, 1)
	for {
		select {
		case outstanding <- struct{}{}:
		case <-in.ctx.Done():
			return
		}
		in.goes(func() {
			defer func() { <-outstanding }()
			if !in.check() {
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
			case <-in.ctx.Done():
			}
		case <-in.ctx.Done():
		}
		next.Stop()
		if in.ctx.Err() != nil {
			return
		}
	}
}

// check reads once who is primary, and says whether it was told. Of several reads under way, the
// authority is of the one that began last, whichever is answered last.
//
// A primary whose authority has lapsed was cut off, or the store was away: then it may be deposed,
// and the store be one from before that names it still. So it asks the other replicas first what
// they have seen of the store.
func (in *incarnation) check() bool {
	if !in.hasAuthority() {
		in.hearMarks()
	}
	start := in.r.clock()
	ctx, cancel := context.WithTimeout(in.ctx, authority)
	defer cancel()
	leader, e, err := in.r.store.Primary(ctx)
	if err != nil {
		return false
	}
	if leader != in.self || e != uint64(in.primary.Epoch()) {
		in.end(errDeposed)
		return true
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	lapsed := in.authority <= in.r.clock()
	in.authority = max(in.authority, start+authority)
	if lapsed {
		in.broadcast()
	}
	return true
}

// hasAuthority says whether this primary may transmit now, and change who is in-sync.
func (in *incarnation) hasAuthority() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.r.clock() < in.authority
}
