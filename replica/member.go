package replica

import (
	"context"
	"fmt"
	"sync"

	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/internal/wire"
	"github.com/understudy-rpc/understudy/orderstate"
	"github.com/understudy-rpc/understudy/replica/internal/machine"
)

// member is what this replica is in its group: all that one lock guards, which is never held while
// something is sent, executed, or asked of etcd. Turns are taken before it.
//
// Whoever drives it takes mu, and calls its methods, and those of what it has (the roles, their
// roster, the sources with their attachments, upstream), with that. The few that take mu themselves
// say so, as do those that give it up to wait. Who panics may never give it up.
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
}

func newMember(e *common) *member {
	m := &member{common: e, bells: newBells(), role: joining{}}
	m.sources = newSources(m)
	return m
}

// moved is what an event has moved: in the protocol's state, and besides. Whoever changes something
// says so, and after alone knows who is to be told, or waits for it.
type moved struct {
	orderstate.Moved
	rare     bool // role, epoch, gate, authority, who is in-sync or answers, what is believed of the store
	executed bool // turns were
	member   bool // what a joiner has acknowledged
	begun    bool // what is held already may be executed
	kept     bool // what must be kept is less
}

// bells are what goroutines wait for.
type bells struct {
	changed  chan struct{} // closed, and made anew, at what is rare
	progress chan struct{} // closed, and made anew, at all that replies wait for, while somebody waits
	waiting  int           // for progress
	work     chan struct{} // capacity 1: there may be something to execute
}

func newBells() bells {
	return bells{changed: make(chan struct{}), progress: make(chan struct{}), work: make(chan struct{}, 1)}
}

// after does what follows when something has moved.
func (m *member) after(what moved) {
	l := m.leading()
	if f := m.role.logs(); f != nil && (what.Grown > 0 || what.Lacks) {
		f.grows(what.Moved)
	}
	if what.Required && l != nil {
		l.tellRequired()
	}
	if what.executed || what.Stable || what.kept {
		m.forget()
	}
	if what.Stable && l != nil {
		for a := range l.asking {
			a.tellStable(l.primary)
		}
		clear(l.asking)
	}
	if (what.Stable || what.Gate) && l != nil && !l.gate { // that may open, or a reign end
		what.rare = true
	}
	if what.Push && l != nil {
		signal(l.push)
	}
	if what.begun || what.Grown > 0 {
		signal(m.bells.work)
	}
	if m.bells.waiting > 0 && (what.executed || what.Stable || what.Gate || what.Leave || what.member) {
		close(m.bells.progress)
		m.bells.progress = make(chan struct{})
	}
	if what.rare {
		close(m.bells.changed)
		m.bells.changed = make(chan struct{})
	}
}

// forget cuts the log at what is executed, stable, and not kept for a joiner.
func (m *member) forget() {
	executed := m.machine.Executed()
	if f := m.role.logs(); f != nil {
		f.backup.Executed(executed)
	}
	if l := m.leading(); l != nil {
		l.forget(executed)
	}
}

// await waits until cond holds, and says why it can't any more. It gives up mu while it waits.
// What cond says depends on what is rare.
func (m *member) await(ctx context.Context, cond func() bool) error {
	for !cond() {
		if err := m.rings(ctx, m.bells.changed, nil); err != nil {
			return err
		}
	}
	return nil
}

// changes waits for one change that is rare.
func (m *member) changes(ctx context.Context) error {
	return m.rings(ctx, m.bells.changed, nil)
}

// awaitProgress is await for a condition that turns, the stable point or what a member has
// acknowledged decide, too: the members are asked to acknowledge at once.
func (m *member) awaitProgress(ctx context.Context, cond func() bool) error {
	if cond() {
		return nil
	}
	m.bells.waiting++
	defer func() { m.bells.waiting-- }()
	m.role.others().wake()
	for !cond() {
		if err := m.rings(ctx, m.bells.changed, m.bells.progress); err != nil {
			return err
		}
	}
	return nil
}

// rings gives up mu until one of two bells has rung.
func (m *member) rings(ctx context.Context, one, other <-chan struct{}) error {
	m.mu.Unlock()
	select {
	case <-one:
	case <-other:
	case <-ctx.Done():
	case <-m.ctx.Done():
	}
	m.mu.Lock()
	if m.ctx.Err() != nil {
		return context.Cause(m.ctx)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// role is what a replica is in its group now, with all that it knows as that, and not longer. It is
// guarded by the member's mu.
type role interface {
	public() Role                 // as Status has it
	epoch() orderstate.Epoch      // the acknowledged one; 0 without a state
	history() *orderstate.History // what is held; nil without a state
	stable() orderstate.OrderNum
	wasInSync() bool // has been in-sync in this life
	others() others  // the other replicas; nil for who doesn't need to know them

	// logs is what messages and order are logged to: by a backup, also while it takes over. The
	// primary has its messages from the RPCs.
	logs() *following
}

// joining is a replica without a state.
type joining struct{}

func (joining) public() Role                 { return Joining }
func (joining) epoch() orderstate.Epoch      { return 0 }
func (joining) history() *orderstate.History { return nil }
func (joining) stable() orderstate.OrderNum  { return 0 }
func (joining) wasInSync() bool              { return false }
func (joining) others() others               { return nil }
func (joining) logs() *following             { return nil }

// ended is what an incarnation was.
type ended struct{ role }

func (ended) public() Role     { return Ended }
func (ended) others() others   { return nil }
func (ended) logs() *following { return nil }

// epoch is the acknowledged epoch.
func (m *member) epoch() orderstate.Epoch { return m.role.epoch() }

// history is what this replica holds; nil without a state.
func (m *member) history() *orderstate.History { return m.role.history() }

// leading is this replica as primary, nil if it isn't.
func (m *member) leading() *leading {
	l, _ := m.role.(*leading)
	return l
}

// ordering is this replica as a primary whose gate is open, nil if it isn't.
func (m *member) ordering() *leading {
	if l := m.leading(); l != nil && l.gate {
		return l
	}
	return nil
}

// following is this replica as a backup, nil if it isn't.
func (m *member) following() *following {
	f, _ := m.role.(*following)
	return f
}

// isMember says whether the incarnation has been in-sync. It takes mu.
func (m *member) isMember() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.role.wasInSync()
}

// own does the turn of an entry of the group's own. In a turn.
func (m *member) own(o orderstate.OrderInfo) {
	if o.Kind == orderstate.Expire {
		delete(m.sources.known, o.Session)
	}
	m.machine.Own(o)
	m.turned()
}

// turned: the primary has just executed a turn.
func (m *member) turned() {
	m.r.stats.turns.Add(1)
	m.after(moved{executed: true})
}

// next takes from messageOrder, up to as much as may be executed at once; while leading what was
// ordered before the epoch.
func (m *member) next(turns []machine.Entry) []machine.Entry {
	var messageOrder interface {
		Next() (orderstate.Ordered, orderstate.Message, bool)
	}
	switch role := m.role.(type) {
	case *following:
		messageOrder = role.backup
	case *leading:
		if role.tail == nil {
			return turns
		}
		messageOrder = role.tail
	default:
		return turns
	}
	for m.ctx.Err() == nil && len(turns) < machine.AtOnce {
		o, m, ok := messageOrder.Next()
		if !ok {
			break
		}
		turns = append(turns, machine.Entry{Ordered: o, Logged: m})
	}
	return turns
}

// noteReplaced ends an incarnation when the view that it believes has another group, which then has
// taken its group's place.
func (m *member) noteReplaced() {
	if m.group != 0 && !m.view.Group.IsZero() && m.view.Group.ID != m.group {
		m.end(fmt.Errorf("%w: group %x by %x", errReplaced, m.group, m.view.Group.ID))
	}
}

// compatible compares this replica with the group that it joins.
func (m *member) compatible() error {
	g := m.view.Group
	switch {
	case g.IsZero():
		return nil
	case m.group != 0 && m.group != g.ID: // the view is believed
		return errReplaced
	case g.Protocol != wire.Protocol:
		return mismatchedProtocol(g.Protocol)
	case g.Level != m.r.config.level.String():
		return &MismatchError{"level", m.r.config.level.String(), g.Level}
	case g.Version != m.r.config.version:
		return &MismatchError{"version", m.r.config.version, g.Version}
	}
	return nil
}
