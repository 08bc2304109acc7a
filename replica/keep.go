package replica

import (
	"errors"

	"github.com/understudy-rpc/understudy/election"
)

// backAgain lists the members that are there, and whose eviction was tried with an unknown outcome:
// it may have taken place, or do so at any time.
func (rs *roster) backAgain() (back []election.Member) {
	rs.m.mu.Lock()
	defer rs.m.mu.Unlock()
	for _, p := range rs.peers {
		if p.doubted && p.stage.isMember() && p.stream != nil {
			back = append(back, p.member)
		}
	}
	return back
}

// keep makes sure that a member is in-sync: once it is written again, no removal from before can
// take place. It has been in the required set all the time, so it holds what it must (R13).
func (re *reign) keep(m election.Member) {
	ctx, cancel := re.underAuthority()
	defer cancel()
	err := re.in.r.store.AddInSync(ctx, uint64(re.l.primary.Epoch()), m)
	switch {
	case errors.Is(err, election.ErrDeposed):
		re.in.end(errDeposed)
	case err != nil: // tried again
		re.in.log.Info("can't keep a member in-sync", "member", m.String(), "error", err)
	default:
		re.l.m.mu.Lock()
		if p := re.l.roster.peers[replicaID(m)]; p != nil {
			p.doubted = false
		}
		re.l.m.mu.Unlock()
	}
}
