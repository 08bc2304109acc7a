package replica

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/internal/wire"
	"github.com/understudy-rpc/understudy/orderstate"
	"github.com/understudy-rpc/understudy/replica/internal/machine"
)

// incarnation is one life of a replica, from joining its group to being deposed or evicted: its
// goroutines, and what they are connected to. What it held is not carried into the next one.
type incarnation struct {
	*common
	life  context.Context // Serve's
	reg   election.Registration
	peers *peers
	m     *member
}

func newIncarnation(ctx context.Context, r *env) *incarnation {
	e := &common{
		r: r, self: election.Member{Name: r.config.name, Incarnation: newNumber()}, machine: machine.New(r.app),
	}
	e.log = r.log.With("replica", e.self.String())
	e.ctx, e.end = context.WithCancelCause(ctx)
	return &incarnation{common: e, life: ctx, peers: newPeers(r), m: newMember(e)}
}

// run runs the incarnation until its end, and returns why it ended; then it must be closed. After a
// panic nothing is closed: who panicked may hold mu, and to wait for that would hide the panic.
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

func (in *incarnation) close() {
	in.end(errStopped)
	in.m.mu.Lock()
	in.m.role = ended{in.m.role}
	in.machine.Close()
	in.m.after(moved{rare: true})
	in.m.mu.Unlock()
	in.peers.close()
	if in.reg != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(in.ctx), heartbeat)
		_ = in.reg.Close(ctx) // best effort: the lease expires by itself
		cancel()
	}
	in.awaitGoroutines()
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

// executor executes messageOrder, one entry after the other: all of a backup's turns, and those
// that a takeover found ordered.
func (in *incarnation) executor() { in.executes(nil) }

// executes goes on in a goroutine of its own if a handler ends this one. turns are taken from
// messageOrder, and not executed yet.
func (in *incarnation) executes(turns []machine.Entry) {
	returned := false
	defer func() {
		if !returned {
			in.goes(func() { in.executes(turns) })
		}
	}()
	for in.ctx.Err() == nil {
		in.m.mu.Lock()
		turns = in.m.next(turns)
		in.m.mu.Unlock()
		if len(turns) > 0 {
			in.machine.Replay(in.ctx, &turns, in.m.replayed)
			continue
		}
		select {
		case <-in.m.bells.work:
		case <-in.ctx.Done():
		}
	}
	returned = true
}

// awaitGoroutines waits for those of an incarnation that has ended: a handler of the user's, or
// Restore, may hang. The next one can't begin before, since there is one state; but Serve ends when
// its context has.
func (in *incarnation) awaitGoroutines() {
	done := make(chan struct{})
	go func() {
		in.wg.Wait()
		close(done)
	}()
	for said := false; !endsWithin(silence, done); said = true {
		if in.life.Err() != nil {
			return
		}
		if !said {
			in.log.Warn("can't begin again while user code doesn't return", "method", in.r.app.Executes())
		}
	}
}
