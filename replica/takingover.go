package replica

import (
	"time"

	"github.com/understudy-rpc/understudy/orderstate"
)

// takingOver is a backup that was elected: R12, until N is fixed.
type takingOver struct {
	m       *member
	former  *following // what it was, and holds
	state   *orderstate.Takeover
	peers   others // in-sync, and not evicted
	givenUp int
	awaited int // how many sessions may answer before reconcile looks again: each look is at all of them
}

// takingOver is this replica as one that was elected, nil if it isn't.
func (m *member) takingOver() *takingOver {
	t, _ := m.role.(*takingOver)
	return t
}

func (*takingOver) public() Role                   { return TakingOver }
func (t *takingOver) epoch() orderstate.Epoch      { return t.former.epoch() }
func (t *takingOver) history() *orderstate.History { return t.former.history() }
func (t *takingOver) stable() orderstate.OrderNum  { return t.former.stable() }
func (*takingOver) wasInSync() bool                { return true }
func (t *takingOver) others() others               { return t.peers }
func (t *takingOver) logs() *following             { return t.former }

// over says whether N is fixed, or the incarnation has ended.
func (t *takingOver) over() bool { return t.m.role != role(t) }

// heard notes whose streams came up since the election: they have acknowledged it already.
func (t *takingOver) heard(sessions []orderstate.Session) {
	for _, s := range sessions {
		if a := t.m.sources.bySession[s]; a != nil && a.acknowledged >= t.epoch() {
			t.state.SessionAnswered(s)
		}
	}
}

// fix fixes N, and makes this replica the primary (R12.3).
func (t *takingOver) fix(authority time.Duration) (*leading, error) {
	primary, tail, err := t.state.Fix(t.m.r.pendingMax())
	if err != nil {
		return nil, err
	}
	l := t.m.leads(primary, tail, t.peers)
	l.authority = authority // else the first replies would wait for another read
	return l, nil
}

// answered: a session has acknowledged the epoch.
func (t *takingOver) answered(s orderstate.Session) {
	t.state.SessionAnswered(s)
	if t.awaited--; t.awaited <= 0 {
		t.m.after(moved{rare: true})
	}
}
