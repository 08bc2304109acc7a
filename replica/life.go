package replica

import (
	"errors"
	"fmt"
	"time"

	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/internal/wire"
	"github.com/understudy-rpc/understudy/orderstate"
)

// This file has a life of a replica from its beginning: it registers, makes the group or follows,
// and watches.

// run runs the incarnation until its end, and returns why it ended; then it must be closed. After a
// panic nothing is closed: to wait for the lock of member, for ever maybe, would hide the panic.
func (in *incarnation) run() error {
	view, err := in.firstView()
	if err != nil {
		return err
	}
	begins, err := in.begins(view)
	if err != nil {
		return err
	}
	if err := in.register(view); err != nil {
		return err
	}
	in.viewed(view)
	in.goes(in.watch)
	in.goes(in.executor)
	in.goes(in.watchdog)
	in.goes(in.idler)
	if begins {
		err := in.found(view)
		if !errors.Is(err, election.ErrExists) {
			return err
		}
	}
	return pursuit{in}.follow()
}

// watch keeps the view.
func (in *incarnation) watch() {
	for view := range in.r.store.Watch(in.ctx) {
		in.viewed(view)
	}
}

// watchdog names the method of a turn that takes too long: a handler that waits for something
// outside holds up everyone.
func (in *incarnation) watchdog() {
	t := time.NewTicker(slowTurn)
	defer t.Stop()
	slow := in.r.app.Watch()
	for {
		select {
		case <-t.C:
			if m, ok := slow(); ok {
				in.log.Warn("a turn takes long", "method", m, "longerThan", slowTurn)
			}
			if methods, waiting := in.r.app.SlowReads(); len(methods) > 0 {
				in.log.Warn("a read-only method takes long, and no turn is taken before it ends", "methods", methods,
					"longerThan", slowTurn, "waiting", waiting)
			}
		case <-in.ctx.Done():
			return
		}
	}
}

// idler does what is done lazily, for one part of the sessions after the other: what many are told
// at once holds up calls.
func (in *incarnation) idler() {
	t := time.NewTicker(lazily / lazyParts)
	defer t.Stop()
	for part := orderstate.Session(0); ; part = (part + 1) % lazyParts {
		select {
		case <-t.C:
			in.m.mu.Lock()
			for s, a := range in.m.sources.bySession {
				if s%lazyParts == part {
					a.tellLazily()
				}
			}
			view := in.m.view
			in.m.mu.Unlock()
			if part == 0 {
				in.peers.prune(view)
			}
		case <-in.ctx.Done():
			return
		}
	}
}

// register publishes this incarnation. A predecessor of the same name whose lease hasn't run out is
// displaced only if it is proved to be gone.
func (in *incarnation) register(view election.State) error {
	me := election.Replica{Member: in.self, Addr: in.r.addr, PeerAddr: in.r.peerAddr, Host: thisHost()}
	var displaces election.Member
	var waiting error
	for {
		reg, err := in.r.store.Register(in.ctx, me, displaces)
		var taken *election.NameTakenError
		switch {
		case err == nil:
			in.reg = reg
			in.goes(func() {
				select {
				case <-reg.Lost():
					in.end(reg.Err())
				case <-in.ctx.Done():
				}
			})
			return nil
		case !errors.As(err, &taken):
			return err
		}
		alive, unproved := in.isAlive(taken.Holder)
		switch {
		case alive:
			return err
		case unproved != nil: // it answers, or is proved to be gone, or its lease runs out
			if waiting == nil || waiting.Error() != unproved.Error() {
				in.log.Warn(
					"the name is taken by a process that may be alive: waiting for its answer, or its lease's end",
					"holder", taken.Holder.Member.String(), "error", unproved,
				)
			}
			waiting = unproved
			if err := in.later(0, nil); err != nil {
				return err
			}
			continue
		}
		in.log.Info("taking the name of a predecessor whose address this name's new process has", "predecessor",
			taken.Holder.Member.String())
		displaces = taken.Holder.Member
	}
}

// found makes the group, with this replica as its first primary, in the place of the one that an
// operator gives up, or of none.
func (in *incarnation) found(view election.State) error {
	secret, id, old := newSecret(), newNumber(), in.r.config.replaces
	group := election.Group{ID: id, Protocol: wire.Protocol, Level: in.r.config.level.String(),
		Version: in.r.config.version}
	if old != 0 {
		group = group.Replacing(old, view.Group)
	}
	epoch, err := in.r.store.Create(in.ctx, group, in.reg)
	for unknown := false; election.IsUnknown(err) || unknown && errors.Is(err, election.ErrExists); {
		unknown = true
		view, readErr := in.r.store.Read(in.ctx)
		switch {
		case readErr != nil:
			return readErr
		case view.Group.ID == id:
			epoch, err = view.Epoch, nil
		case view.Group.IsZero(), view.Group.ID == old: // it may take place later, so that this replica must know
			epoch, err = in.r.store.Create(in.ctx, group, in.reg)
		default:
			return election.ErrExists
		}
	}
	if err != nil {
		return err
	}
	began := in.r.clock() // the authority counts from the first read; this is only its order
	history, err := orderstate.NewHistory(0, 0, nil, nil)
	if err != nil {
		return err
	}
	primary, err := orderstate.NewPrimary(history, orderstate.Epoch(epoch), 0, nil, in.r.pendingMax())
	if err != nil {
		return err
	}
	in.machine.Begin(secret)
	in.m.mu.Lock()
	in.group, in.secret, in.seal, in.m.fence = id, secret, wire.NewSeal(secret), int64(epoch)
	l := in.m.leads(primary, nil, others{})
	in.m.mu.Unlock()
	if old != 0 {
		in.log.Warn("began the group anew, without the state of the one that it replaces", "replaced",
			fmt.Sprintf("%x", old), "group", fmt.Sprintf("%x", id))
	}
	in.log.Info("made the group", "epoch", epoch)
	return (&reign{in, l}).lead(began, Failover{})
}
