package replica

import (
	"context"
	"errors"

	"github.com/understudy-rpc/understudy/election"
)

// backAgain lists the members that are there, and whose eviction was tried with an unknown outcome:
// it may have taken place, or do so at any time.
func (in *incarnation) backAgain() (back []election.Member) {
	in.mu.Lock()
	defer in.mu.Unlock()
	for _, p := range in.roster {
		if p.doubted && p.stage.isMember() && p.stream != nil {
			back = append(back, p.member)
		}
	}
	return back
}

// keep makes sure that a member is in-sync: once it is written again, no removal from before can
// take place. It has been in the required set all the time, so it holds what it must (R13).
func (in *incarnation) keep(m election.Member) {
	ctx, cancel := context.WithTimeout(in.ctx, authority)
	defer cancel()
	err := in.r.store.AddInSync(ctx, uint64(in.primary.Epoch()), m)
	switch {
	case errors.Is(err, election.ErrDeposed):
		in.end(errDeposed)
	case err != nil: // tried again
		in.log.Info("can't keep a member in-sync", "member", m.String(), "error", err)
	default:
		in.mu.Lock()
		if p := in.roster[replicaID(m)]; p != nil {
			p.doubted = false
		}
		in.mu.Unlock()
	}
}
