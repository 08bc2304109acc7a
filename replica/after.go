package replica

import (
	"context"

	"github.com/understudy-rpc/understudy"
	"github.com/understudy-rpc/understudy/orderstate"
)

// This file has who waits for what. Whoever changes something says what has moved, and after alone
// rings.

// moved is what an event has moved: in the protocol's state, and besides.
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

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// after does what follows when something has moved. Called with mu held.
func (m *member) after(what moved) {
	l := m.leading()
	if f := m.logs(); f != nil && (what.Grown > 0 || what.Lacks) {
		f.grows(what.Moved)
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

// forget cuts the log at what is executed, stable, and not kept for a joiner. Called with mu held.
func (m *member) forget() {
	executed := m.machine.Executed()
	if f := m.logs(); f != nil {
		f.backup.Executed(executed)
	}
	l := m.leading()
	if l == nil {
		return
	}
	upTo := min(executed, l.roster.keptAbove())
	if upTo < min(executed, l.primary.Stable()) && l.halfFull() {
		l.roster.dropPinning()
		upTo = executed
	}
	l.primary.Executed(upTo)
}

// grows acknowledges what the order has grown by, and fetches what it lacks. Called with mu held.
func (f *following) grows(what orderstate.Moved) {
	if what.Lacks {
		signal(f.lacking)
	}
	if what.Grown > 0 {
		f.m.upstream.grows(f.backup)
	}
	for _, o := range f.backup.History().Newest(what.Grown) {
		if o.Kind == orderstate.Open {
			m, _ := f.backup.History().Has(o.Message())
			f.m.sources.opened(m.Nonce)
			f.m.upstream.isDue()
			continue
		}
		if len(f.suspects) > 0 {
			if s := f.suspects[o.Session]; s != nil && s.score > 0 {
				s.score--
			}
		}
		if a := f.m.sources.bySession[o.Session]; a != nil && f.backup.Started() &&
			(a.stable || f.m.r.config.level == understudy.Stable) {
			a.acknowledge(f.backup)
		}
	}
}

// await waits, with mu held, until cond holds, and says why it can't any more. mu is given up while
// it waits. What cond says depends on what is rare.
func (m *member) await(ctx context.Context, cond func() bool) error {
	for !cond() {
		if err := m.rings(ctx, m.bells.changed, nil); err != nil {
			return err
		}
	}
	return nil
}

// changes waits for one change that is rare. Called with mu held.
func (m *member) changes(ctx context.Context) error {
	return m.rings(ctx, m.bells.changed, nil)
}

// awaitProgress is await for a condition that turns, the stable point or what a member has
// acknowledged decide, too: the members are asked to acknowledge at once. Called with mu held.
func (m *member) awaitProgress(ctx context.Context, cond func() bool) error {
	if cond() {
		return nil
	}
	m.bells.waiting++
	defer func() { m.bells.waiting-- }()
	if l := m.leading(); l != nil {
		l.roster.wake()
	}
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
