package replica

import (
	"context"
	"sync"

	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/internal/logs"
	"github.com/understudy-rpc/understudy/internal/wire"
	"github.com/understudy-rpc/understudy/orderstate"
	"github.com/understudy-rpc/understudy/replica/internal/machine"
)

// common is what all parts of an incarnation share, and which doesn't change.
type common struct {
	r       *env
	self    election.Member
	log     *logs.Logger
	lines   rareLines
	machine *machine.Machine // the application in this life

	ctx context.Context // of this life
	end context.CancelCauseFunc
	wg  sync.WaitGroup // its goroutines

	// Set before the first role, and constant then.
	group  uint64
	secret []byte
	seal   *wire.Seal
}

// goes starts a goroutine of this life; close waits for it.
func (e *common) goes(f func()) {
	e.wg.Add(1)
	go func() {
		defer e.wg.Done()
		f()
	}()
}

// member is what this replica is in its group: all that one lock guards, which is never held while
// something is sent, executed, or asked of etcd. Turns are taken before it.
type member struct {
	*common
	mu    sync.Mutex
	bells bells
	role  role

	view    election.State // the newest that is believed; what was, not what is
	suspect error          // why the store isn't believed now; nil: it is

	leader   election.Member // of the acknowledged epoch
	fence    int64           // as the leader has read it since its election (pb.NewEpoch)
	upstream *upstream       // to the primary; nil without one

	sources sources
	rpcs    rpcs                                 // that wait
	known   map[orderstate.Session]*knownSession // of sessions that are open
}

func newMember(e *common) *member {
	m := &member{common: e, bells: newBells(), role: joining{}, known: map[orderstate.Session]*knownSession{}}
	m.sources = newSources(m)
	return m
}
