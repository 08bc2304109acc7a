package replica

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/internal/clock"
	"github.com/understudy-rpc/understudy/internal/logs"
	"github.com/understudy-rpc/understudy/internal/wire"
	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
	"github.com/understudy-rpc/understudy/replica/internal/machine"
)

// incarnation is one life of a replica, from joining its group to being deposed or evicted. What it
// held is not carried into the next one.
//
// One mutex guards the protocol's state; it is never held while something is sent, executed, or
// asked of etcd. Turns (Replica.turns) are taken before it.
type incarnation struct {
	r    *env
	self election.Member
	log  *logs.Logger

	life context.Context // Serve's
	ctx  context.Context // of this life
	end  context.CancelCauseFunc
	wg   sync.WaitGroup // its goroutines

	reg   election.Registration
	peers *peers

	machine *machine.Machine // the application in this life

	// Set before the first role, and constant then.
	group  uint64
	secret []byte
	seal   *wire.Seal

	mu sync.Mutex
	// closed, and made anew, at changes that are rare: role, epoch, gate, stable point where
	// someone waits for it
	changed chan struct{}
	work    chan struct{} // capacity 1: messageOrder has grown
	lacking chan struct{} // capacity 1: messages are ordered and not held
	role    role
	view    election.State // the newest that is believed; what was, not what is
	suspect error          // why the store isn't believed now; nil: it is

	backup  *orderstate.Backup  // while following, and taking over
	taking  *takeover           // while taking over
	primary *orderstate.Primary // while leading
	tail    *orderstate.Tail    // while leading after a takeover: what is up to N, and not executed yet
	leader  election.Member     // of the acknowledged epoch
	fence   int64               // as the leader has read it since its election (pb.NewEpoch)
	start   *pb.EpochStart      // of the acknowledged epoch, once known

	progressWaiters int           // who wants to be woken when the stable point moves, or a turn was executed
	progress        chan struct{} // closed then, and made anew, while somebody does

	coming   map[orderstate.Nonce]*coming // streams wait until these have opened their sessions
	openings chan struct{}                // has room for the openings that are under way
	crowded  int                          // leading: how many openings wait for a session to end
	lines    rareLines

	// leading: requests between the front door and their turn; a channel where a copy waits
	arriving  map[orderstate.MessageID]chan struct{}
	rpcs      rpcs          // that wait
	gate      bool          // leading: calls may be ordered (R12.4)
	authority time.Duration // leading: up to this reading of the clock (R10)
	wall      *clock.Steady // leading: what is recorded as a turn's time

	attached  map[*attachment]struct{}
	asking    map[*attachment]struct{} // leading: whose sources wait for what is to become stable
	bySession map[orderstate.Session]*attachment
	queued    int                                  // bytes that are queued for sources
	partial   int                                  // bytes that the streams keep of frames that aren't whole yet
	suspects  map[orderstate.Session]*suspect      // following
	absent    map[orderstate.Session]time.Duration // since when a session has no stream here
	known     map[orderstate.Session]*knownSession // of sessions that are open

	// Following.
	upstream *upstream // nil without one
	inSync   bool
	gave     uint64 // bytes of the last snapshot that it gave; 0 once the primary was told

	// Leading.
	roster     roster              // while taking over, too
	push       chan struct{}       // capacity 1: a null message is due
	stoodAt    orderstate.OrderNum // what was executed when it moved last, or when no backup was ahead
	stoodSince time.Duration       // when that was
	warned     time.Duration       // when the primary has last warned of a large state
}

type role int

const (
	joining role = iota
	following
	takingOver
	leading
	ended
)

func (r role) String() string {
	return [...]string{"joining", "following", "taking over", "leading", "ended"}[r]
}

func newIncarnation(ctx context.Context, r *env) *incarnation {
	in := &incarnation{
		r:        r,
		self:     election.Member{Name: r.config.name, Incarnation: newNumber()},
		progress: make(chan struct{}), coming: map[orderstate.Nonce]*coming{},
		openings: make(chan struct{}, maxOpenings),
		changed:  make(chan struct{}), work: make(chan struct{}, 1), lacking: make(chan struct{}, 1),
		push:     make(chan struct{}, 1),
		machine:  machine.New(r.app),
		wall:     clock.NewSteady(r.wall, r.clock),
		attached: map[*attachment]struct{}{}, asking: map[*attachment]struct{}{},
		bySession: map[orderstate.Session]*attachment{}, suspects: map[orderstate.Session]*suspect{},
		absent: map[orderstate.Session]time.Duration{}, known: map[orderstate.Session]*knownSession{},
		roster:   roster{},
		arriving: map[orderstate.MessageID]chan struct{}{},
	}
	in.log = r.log.With("replica", in.self.String())
	in.life = ctx
	in.ctx, in.end = context.WithCancelCause(ctx)
	in.peers = newPeers(r)
	return in
}

// replicaID is how a member is called in acknowledgements and required sets.
func replicaID(m election.Member) orderstate.Replica { return orderstate.Replica(m.String()) }

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
	return in.follow()
}

// goes starts a goroutine of this life; close waits for it.
func (in *incarnation) goes(f func()) {
	in.wg.Add(1)
	go func() {
		defer in.wg.Done()
		f()
	}()
}

func (in *incarnation) close() {
	in.end(errStopped)
	in.mu.Lock()
	in.role = ended
	in.machine.Close()
	in.broadcast()
	in.mu.Unlock()
	in.peers.close()
	if in.reg != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(in.ctx), heartbeat)
		_ = in.reg.Close(ctx) // best effort: the lease expires by itself
		cancel()
	}
	in.awaitGoroutines()
}

// broadcast wakes whoever waits for a change. Called with mu held.
func (in *incarnation) broadcast() {
	close(in.changed)
	in.changed = make(chan struct{})
}

// await waits, with mu held, until cond holds, and says why it can't any more. mu is given up while
// it waits.
func (in *incarnation) await(ctx context.Context, cond func() bool) error {
	for !cond() {
		changed := in.changed
		in.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
		case <-in.ctx.Done():
		}
		in.mu.Lock()
		if in.ctx.Err() != nil {
			return context.Cause(in.ctx)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return nil
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
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
			in.mu.Lock()
			for s, a := range in.bySession {
				if s%lazyParts == part {
					a.tellLazily()
				}
			}
			view := in.view
			in.mu.Unlock()
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
	in.mu.Lock()
	in.group, in.secret, in.seal, in.fence = id, secret, wire.NewSeal(secret), int64(epoch)
	in.leads(primary)
	in.mu.Unlock()
	if old != 0 {
		in.log.Warn("began the group anew, without the state of the one that it replaces", "replaced",
			fmt.Sprintf("%x", old), "group", fmt.Sprintf("%x", id))
	}
	in.log.Info("made the group", "epoch", epoch)
	return in.lead(began, Failover{})
}

// own does the turn of an entry of the group's own. Called with mu held, in a turn.
func (in *incarnation) own(o orderstate.OrderInfo) {
	if o.Kind == orderstate.Expire {
		delete(in.known, o.Session)
	}
	in.machine.Own(o)
	in.turned(1)
}

// turned: the last few turns were just executed. Called with mu held.
func (in *incarnation) turned(turns int) {
	in.r.stats.turns.Add(uint64(turns))
	in.forget()
	in.progressed()
}

// awaitProgress is await for a condition that turns, the stable point or what a member has
// acknowledged decide: the members are asked to acknowledge at once. Called with mu held.
func (in *incarnation) awaitProgress(ctx context.Context, cond func() bool) error {
	if cond() {
		return nil
	}
	in.progressWaiters++
	for _, p := range in.roster {
		if p.stream != nil {
			signal(p.stream.out.wake)
		}
	}
	defer func() { in.progressWaiters-- }()
	for !cond() {
		changed, progress := in.changed, in.progress
		in.mu.Unlock()
		select {
		case <-changed:
		case <-progress:
		case <-ctx.Done():
		case <-in.ctx.Done():
		}
		in.mu.Lock()
		if in.ctx.Err() != nil {
			return context.Cause(in.ctx)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return nil
}

// progressed wakes those who wait for the stable point, for a turn, or for what a member
// acknowledges. Called with mu held.
func (in *incarnation) progressed() {
	if in.progressWaiters > 0 {
		close(in.progress)
		in.progress = make(chan struct{})
	}
}

// forget cuts the log at what is executed, stable, and not kept for a joiner. Called with mu held.
func (in *incarnation) forget() {
	executed := in.machine.Executed()
	upTo := executed
	for _, p := range in.roster {
		if p.stream != nil && p.stream.joins() {
			upTo = min(upTo, p.stream.keptAbove)
		}
	}
	if in.primary != nil && upTo < min(executed, in.primary.Stable()) && in.halfFull() {
		in.dropPinning()
		upTo = executed
	}
	if in.primary != nil {
		in.primary.Executed(upTo)
	} else if in.backup != nil {
		in.backup.Executed(upTo)
	}
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
		in.mu.Lock()
		turns = in.next(turns)
		in.mu.Unlock()
		if len(turns) > 0 {
			in.machine.Replay(in.ctx, &turns, in.replayed)
			continue
		}
		select {
		case <-in.work:
		case <-in.ctx.Done():
		}
	}
	returned = true
}

// next takes from messageOrder, up to as much as may be executed at once; while leading what was
// ordered before the epoch. Called with mu held.
func (in *incarnation) next(turns []machine.Entry) []machine.Entry {
	var messageOrder interface {
		Next() (orderstate.Ordered, orderstate.Message, bool)
	}
	switch {
	case in.backup != nil:
		messageOrder = in.backup
	case in.tail != nil:
		messageOrder = in.tail
	default:
		return turns
	}
	for in.ctx.Err() == nil && len(turns) < machine.AtOnce {
		o, m, ok := messageOrder.Next()
		if !ok {
			break
		}
		turns = append(turns, machine.Entry{Ordered: o, Logged: m})
	}
	return turns
}
