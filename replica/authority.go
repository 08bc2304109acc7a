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
// A primary whose authority has lapsed was cut off, or the store was away: then it may be deposed,
// and the store be one from before that names it still. So it asks the other replicas first what
// they have seen of the store.
func (re *reign) check() bool {
	if !re.l.hasAuthority() {
		re.in.hearMarks()
	}
	start := re.in.r.clock()
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
	re.l.m.mu.Lock()
	defer re.l.m.mu.Unlock()
	lapsed := re.l.authority <= re.in.r.clock()
	re.l.authority = max(re.l.authority, start+authority)
	re.l.m.after(moved{rare: lapsed})
	return true
}

// hasAuthority says whether this primary may transmit now, and change who is in-sync.
func (l *leading) hasAuthority() bool {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	return l.m.r.clock() < l.authority
}
