package replica

import (
	"context"
	"log/slog"
	"sync"

	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/internal/logs"
	"github.com/understudy-rpc/understudy/internal/wire"
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

// rarely logs a line about what a client has caused, unless one of its kind, which msg names, was
// logged less than a second ago. The next one says how many were left out.
func (e *common) rarely(level slog.Level, msg string, args ...any) {
	left, ok := e.lines.next(msg, e.r.clock())
	if !ok {
		return
	}
	if left > 0 {
		args = append(args, "leftOut", left)
	}
	e.log.Log(context.Background(), level, msg, args...)
}
