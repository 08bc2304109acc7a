package simulation

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/election/memory"
)

// group is what understudytest calls its group.
const group = "test"

// This file has the faults of what surrounds a group: a store that isn't the group's any more and
// is put back later, one that answers late, and clocks that leap. Only one seed of five has them,
// so that the others keep their plans.

// world draws them, and often that the primary dies meanwhile. A group is held up when authority
// has run out, so this takes longer.
func (p *Plan) world(d dice) {
	const longer = 3 * time.Second
	p.Load, p.Heal, p.Pause = p.Load+longer, p.Heal+longer, 2*p.Pause
	for range 1 + d.IntN(3) {
		f := Fault{
			At:  d.between(50*time.Millisecond, p.Heal),
			For: oneOf(d, d.between(50*time.Millisecond, time.Second), d.between(time.Second, 4*time.Second)),
		}
		f.Kind = oneOf(d, "store emptied", "store restored", "store restored", "store keys", "store slow",
			"store hangs", "clock", "clock")
		switch f.Kind {
		case "store restored": // from a backup that is so old
			f.Extra = d.between(0, f.At)
		case "store keys":
			f.Way = oneOf(d, "all", "id", "primary", "insync")
		case "store slow":
			f.Extra = d.between(100*time.Millisecond, 900*time.Millisecond)
			f.Hosts = p.some(d)
		case "store hangs":
			f.Hosts = p.some(d)
		case "clock":
			f.Hosts = oneOf(d, []string{"primary"}, []string{"primary"},
				[]string{fmt.Sprintf("backup%d", d.IntN(p.Replicas-1))})
			if f.Extra = d.between(time.Millisecond, oneOf(d, time.Second, time.Minute, time.Hour)); d.percent(50) {
				f.Extra = -f.Extra
			}
		}
		p.Faults = append(p.Faults, f)
		if d.percent(50) {
			p.Faults = append(p.Faults, Fault{
				At: f.At + d.between(0, f.For), For: d.between(20*time.Millisecond, 2*time.Second), Kind: "crash",
				Hosts: []string{"primary"},
			})
		}
	}
}

// some draws one replica, or all.
func (p Plan) some(d dice) (hosts []string) {
	if d.percent(40) {
		return []string{oneOf(d, "primary", fmt.Sprintf("backup%d", d.IntN(p.Replicas-1)))}
	}
	for i := range p.Replicas - 1 {
		hosts = append(hosts, fmt.Sprintf("backup%d", i))
	}
	return append(hosts, "primary")
}

// leaps are the furthest that wall clocks are behind, and ahead.
func (p Plan) leaps() (behind, ahead time.Duration) {
	for _, f := range p.Faults {
		if f.Kind == "clock" {
			behind, ahead = min(behind, f.Extra), max(ahead, f.Extra)
		}
	}
	return behind, ahead
}

// span is some time.
type span struct{ from, to time.Duration }

// suspect makes the store another one than the group's, until it is put back as it was.
func (n *nemesis) suspect(f Fault, old *backup) func() {
	n.mu.Lock()
	defer n.mu.Unlock()
	store := n.r.cluster.Store()
	if n.truth != nil || n.holding {
		return nil
	}
	truth := &truth{backup: store.Backup(), view: n.r.cluster.View(), from: n.r.elapsed()}
	truth.groupless = f.Kind == "store emptied" || f.Kind == "store keys" && (f.Way == "all" || f.Way == "id")
	for i := range n.r.plan.Replicas {
		if !n.crashed[i] && truth.groupless && len(n.r.cluster.Replica(i).Status().InSync) == 0 {
			n.r.trace("       not made: replica%d doesn't know the group yet, and would make another one", i)
			return nil
		}
	}
	switch f.Kind {
	case "store emptied":
		store.Restore(nil)
	case "store keys":
		if f.Way == "all" {
			store.Delete(group)
		} else {
			store.Delete(group, f.Way)
		}
	case "store restored":
		if old == nil {
			return nil
		}
		if old.view.Epoch == truth.view.Epoch && old.view.Fence == truth.view.Fence {
			n.r.trace("       not made: the backup has all there is but registrations, which come back")
			return nil
		}
		store.Restore(old.Backup)
	}
	n.truth = truth
	return n.putBack
}

// truth is what the store had before it became suspect.
type truth struct {
	backup    *memory.Backup
	view      election.State
	from      time.Duration
	groupless bool // the store doesn't have the group's id: a new process would begin a group of its own
}

// backup is an older one.
type backup struct {
	*memory.Backup
	view election.State
}

// backup is nil while the store isn't the group's.
func (n *nemesis) backup() *backup {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.truth != nil {
		return nil
	}
	return &backup{n.r.cluster.Store().Backup(), n.r.cluster.View()}
}

// putBack ends the suspicion. If nobody who knew more could be reached, the group may have gone on
// in the older store: then that is the group's. Whoever puts a store back bumps its revision, as
// docs/production.md says.
func (n *nemesis) putBack() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.truth == nil {
		return
	}
	truth, store := n.truth, n.r.cluster.Store()
	n.truth = nil
	if now := n.r.cluster.View(); now.Epoch > truth.view.Epoch {
		n.r.coverage.add("the group went on in an older store", 1)
		n.r.trace("the store isn't put back: the group has gone on in it, in epoch %d", now.Epoch)
		return
	}
	n.r.trace("the store is put back as it was")
	seen := store.Revision()
	for store.Restore(truth.backup); store.Revision() < seen; {
		store.Tamper("another", func(*election.State) {})
	}
	n.suspected = append(n.suspected, span{truth.from, n.r.elapsed()})
}

// view is who has which role by the store, or by what it had before it became suspect: nothing
// changes meanwhile.
func (n *nemesis) view() election.State {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.lockedView()
}

func (n *nemesis) lockedView() election.State {
	if n.truth != nil {
		return n.truth.view
	}
	return n.r.cluster.View()
}

// putBackFirst puts a store back that doesn't have the group's id before a new process asks it: who
// knows no group begins one, as ever, and that one would be gone when the store is put back.
func (n *nemesis) putBackFirst() {
	n.mu.Lock()
	groupless := n.truth != nil && n.truth.groupless
	n.mu.Unlock()
	if groupless {
		n.putBack()
	}
}

// weather is what one host's clock and its way to the store are like.
type weather struct {
	ahead atomic.Int64 // of its wall clock
	late  atomic.Int64 // how late the store's answers come

	mu             sync.Mutex
	hangs          chan struct{} // closed when requests hang no longer; nil: none do
	hanging, asked int           // how many faults are under way, and requests there were
}

func (r *run) wall(host string) func() time.Time {
	w := r.weather[host]
	return func() time.Time { return time.Now().Add(time.Duration(w.ahead.Load())) }
}

// hang lets every other request wait.
func (w *weather) hang(on bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case on:
		if w.hanging++; w.hanging == 1 {
			w.hangs = make(chan struct{})
		}
	default:
		if w.hanging--; w.hanging == 0 {
			close(w.hangs)
			w.hangs = nil
		}
	}
}

// hung is what the next request waits for, if it is one that hangs.
func (w *weather) hung() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.asked++; w.hangs == nil || w.asked%2 == 0 {
		return nil
	}
	return w.hangs
}

// weathered is a host's election: requests may hang, and answers may be late. Of what was to change
// something and is answered too late, the outcome is unknown. Who registers has luck.
type weathered struct {
	election.Election
	*weather
}

func (r *run) between(host string, e election.Election) election.Election {
	return weathered{e, r.weather[host]}
}

// do asks the store.
func (w weathered) do(ctx context.Context, ask func() error) (late error) {
	if hung := w.hung(); hung != nil {
		select {
		case <-hung:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	err := ask()
	if d := time.Duration(w.late.Load()); d > 0 {
		select {
		case <-time.After(d):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return err
}

// change is do for what changes something.
func (w weathered) change(ctx context.Context, op string, ask func() error) error {
	answer := error(nil)
	if late := w.do(ctx, func() error { answer = ask(); return nil }); late != nil {
		return &election.UnknownError{Op: op, Err: late}
	}
	return answer
}

// Read implements election.Election.
func (w weathered) Read(ctx context.Context) (s election.State, err error) {
	err = w.do(ctx, func() error { s, err = w.Election.Read(ctx); return err })
	return s, err
}

// Primary implements election.Election.
func (w weathered) Primary(ctx context.Context) (m election.Member, epoch uint64, err error) {
	err = w.do(ctx, func() error { m, epoch, err = w.Election.Primary(ctx); return err })
	return m, epoch, err
}

// Elect implements election.Election.
func (w weathered) Elect(ctx context.Context, self election.Registration, seen uint64) (epoch uint64, err error) {
	err = w.change(ctx, "elect", func() error { epoch, err = w.Election.Elect(ctx, self, seen); return err })
	return epoch, err
}

// AddInSync implements election.Election.
func (w weathered) AddInSync(ctx context.Context, epoch uint64, m election.Member) error {
	return w.change(ctx, "add in sync", func() error { return w.Election.AddInSync(ctx, epoch, m) })
}

// RemoveInSync implements election.Election.
func (w weathered) RemoveInSync(ctx context.Context, epoch uint64, m election.Member) error {
	return w.change(ctx, "remove in sync", func() error { return w.Election.RemoveInSync(ctx, epoch, m) })
}

// disturb begins a fault of the weather at some hosts.
func (n *nemesis) disturb(f Fault, hosts []string) (undo func()) {
	each := func(do func(w *weather)) {
		for _, h := range hosts {
			do(n.r.weather[h])
		}
	}
	n.r.coverage.add(map[string]string{
		"clock": "a wall clock leapt", "store slow": "the store was slow", "store hangs": "the store hung",
	}[f.Kind], 1)
	switch f.Kind {
	case "clock":
		each(func(w *weather) { w.ahead.Store(int64(f.Extra)) })
		return func() { each(func(w *weather) { w.ahead.Store(0) }) }
	case "store slow":
		each(func(w *weather) { w.late.Store(int64(f.Extra)) })
		return func() { each(func(w *weather) { w.late.Store(0) }) }
	default:
		each(func(w *weather) { w.hang(true) })
		return func() { each(func(w *weather) { w.hang(false) }) }
	}
}
