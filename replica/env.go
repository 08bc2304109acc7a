package replica

import (
	"sync/atomic"
	"time"

	"github.com/understudy-rpc/understudy"
	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/internal/clock"
	"github.com/understudy-rpc/understudy/internal/logs"
	"github.com/understudy-rpc/understudy/replica/internal/machine"
)

// env is what each life of a replica is given: all but joins and stats is constant once Serve has
// begun.
type env struct {
	config         config
	group          string
	store          *election.Trusted
	log            *logs.Logger
	clock          clock.Clock
	wall           func() time.Time
	app            *machine.App
	addr, peerAddr string // published
	maxRequest     int    // bytes that the server takes; 0: not known

	joins joins
	stats stats
}

// stats count what Status tells.
type stats struct {
	turns, duplicates, refused, forged, dropped atomic.Uint64
}

// pendingMax is pendingSourceOrderMax: at Direct and above every order is multicast at once (FIG.
// 5).
func (e *env) pendingMax() int {
	if e.config.level == understudy.Reflected {
		return pendingSourceOrderMax
	}
	return 0
}
