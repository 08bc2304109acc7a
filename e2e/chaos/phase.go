//go:build linux

package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/understudy-rpc/understudy"
	"github.com/understudy-rpc/understudy/e2e/cluster"
	"github.com/understudy-rpc/understudy/e2e/journal"
	"github.com/understudy-rpc/understudy/election"
)

const (
	authority = time.Second      // A of the design (R10)
	recovery  = 30 * time.Second // after which a healed group is said not to come back
)

// A fault is one that was made.
type fault struct {
	kind, what string
	at         time.Duration
	held       time.Duration // the longest of the calls in flight from then until the phase's end
}

// A phase makes a few faults at once, lets them last, heals everything, and sees whether the group
// comes back and has kept its promises.
type phase struct {
	w      *world
	kinds  []kind
	rng    *rand.Rand
	log    func(format string, args ...any)
	faults []fault
	hold   time.Duration // for which the faults last after the last one
	spared bool          // every fault leaves the replicas as they are

	// Whether a replica died, stood still, or was out of somebody's reach; whether a client died;
	// and since when one stood still or was out of somebody's reach.
	replicaHurt, clientKilled bool
	clientAway, healed        time.Duration
}

// run is a phase. An error is a promise not kept, unless it is context's.
func (p *phase) run(ctx context.Context) error {
	from, before := now(), p.w.inSync
	p.w.phases++
	if p.w.savedIn == 0 || p.rng.IntN(4) == 0 {
		if err := p.w.save(earlier); err != nil {
			return err
		}
		p.w.savedIn = p.w.phases
	}
	p.spared = true
	if err := p.hurtAll(ctx); err != nil {
		return err
	}
	if err := p.heal(ctx); err != nil {
		return fmt.Errorf("%s: %w", p, err)
	}
	err := p.cameBack(ctx)
	if err == nil {
		err = p.judge(ctx, from, before)
	}
	to := now()
	for i := range p.faults {
		p.w.mu.Lock()
		for _, l := range p.w.ledgers {
			p.faults[i].held = max(p.faults[i].held, cluster.Longest([]cluster.Ledger{*l}, p.faults[i].at, to))
		}
		p.w.mu.Unlock()
	}
	if err != nil {
		return fmt.Errorf("%s: %w", p, err)
	}
	return nil
}

func (p *phase) String() string {
	var what []string
	for _, f := range p.faults {
		what = append(what, fmt.Sprintf("%s (%s)", f.kind, f.what))
	}
	return "after " + strings.Join(what, ", ")
}

// hurtAll makes the faults, and waits as long as they last.
func (p *phase) hurtAll(ctx context.Context) error {
	count := 1 + min(p.rng.IntN(3), p.rng.IntN(3)) // one in five ninths, two in three, three in one
	p.hold = p.lasting()
	for tries := 0; len(p.faults) < count && tries < 10; tries++ {
		k := draw(p.rng, p.kinds)
		at := now()
		what, err := k.make(ctx, p)
		if err != nil {
			return fmt.Errorf("%s: %w", k.name, err)
		}
		if what == "" {
			continue
		}
		p.faults = append(p.faults, fault{kind: k.name, what: what, at: at})
		p.spared = p.spared && k.spares()
		p.log("%s: %s", k.name, what)
		if err := last(ctx, time.Duration(p.rng.IntN(700))*time.Millisecond); err != nil {
			return err
		}
	}
	return last(ctx, p.hold)
}

// lasting draws for how long faults last: mostly shorter than what the protocol waits for anything,
// and sometimes longer than all of it (ReconcileTimeout is 3 s).
func (p *phase) lasting() time.Duration {
	least, most := 50, 600
	switch at := p.rng.IntN(10); {
	case at >= 9:
		least, most = 3200, 5000
	case at >= 6:
		least, most = 600, 2500
	}
	return time.Duration(least+p.rng.IntN(most-least)) * time.Millisecond
}

// last is how long a fault lasts: the program does nothing meanwhile.
func last(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// heal ends all faults, in any order, and starts what was killed.
func (p *phase) heal(ctx context.Context) error {
	for _, r := range p.w.replicas {
		if err := r.evict(ctx); err != nil {
			return err
		}
	}
	var seen int64
	if p.w.kept {
		var err error
		if seen, err = p.w.putBack(ctx); err != nil {
			return err
		}
	}
	nodes := slices.Concat(p.w.etcds, p.w.replicas, p.w.clients)
	p.rng.Shuffle(len(nodes), func(i, j int) { nodes[i], nodes[j] = nodes[j], nodes[i] })
	mend := p.rng.IntN(len(nodes))
	var launched []*node
	for i, n := range nodes {
		if i == mend {
			if err := p.w.net.heal(); err != nil {
				return err
			}
		}
		if n.process == nil {
			if err := n.launch(); err != nil {
				return err
			}
			launched = append(launched, n)
			continue
		}
		if err := n.proceed(); err != nil {
			return err
		}
		if n.off {
			if err := n.stepClock(ctx, 0); err != nil {
				return err
			}
			n.off = false
		}
	}
	for _, n := range launched {
		if err := n.begun(ctx); err != nil {
			return err
		}
		if n.isClient() {
			if err := n.load(ctx, p.rng); err != nil {
				return err
			}
		}
	}
	if seen > 0 {
		if err := p.w.advance(ctx, seen); err != nil {
			return err
		}
	}
	p.healed = now()
	p.log("healed")
	return nil
}

// cameBack waits until each client's calls are answered again, and all replicas are in-sync.
func (p *phase) cameBack(ctx context.Context) error {
	for _, x := range p.w.clients {
		err := poll(ctx, recovery, func() error {
			p.w.mu.Lock()
			defer p.w.mu.Unlock()
			for _, c := range slices.Backward(x.ledger.Calls) {
				if c.Start < p.healed {
					break
				}
				if c.Code == codes.OK {
					return nil
				}
			}
			return fmt.Errorf("%s has no reply of a call made since all is healed: %s", x.host, p.w.describe())
		})
		if err != nil {
			return err
		}
	}
	return poll(ctx, recovery, func() error { return p.w.whole(ctx) })
}

// judge lets the clients rest, compares the replicas' states, and the replies with what was
// executed. The last verdict stays with the world.
func (p *phase) judge(ctx context.Context, from time.Duration, before election.State) error {
	if err := p.w.rest(ctx); err != nil {
		return err
	}
	var history *journal.Dump
	if err := poll(ctx, recovery, func() (err error) { history, err = p.w.settled(ctx); return err }); err != nil {
		if errors.Is(err, errDiffers) {
			p.w.differ++
		}
		return err
	}
	told := p.w.verdict.Told
	v := p.w.judge(history)
	if v.Told != told {
		p.log("%d calls are lost in two faults at once, and their callers told or dead", v.Told-told)
	}
	var broken []error
	if !v.Sound() {
		broken = append(broken, fmt.Errorf("%v: %s", v, strings.Join(v.Findings, "; ")))
	}
	if p.w.undone > 0 {
		broken = append(broken,
			fmt.Errorf("%d calls of earlier phases aren't where they were on all replicas", p.w.undone))
	}
	if history.Backward > 0 {
		broken = append(broken, fmt.Errorf("time went back %d times", history.Backward))
	}
	broken = append(broken, p.failures(from)...)
	if after := p.w.inSync; p.spared && (after.Epoch != before.Epoch || !slices.Equal(after.InSync, before.InSync)) {
		p.w.gone++
		broken = append(broken,
			fmt.Errorf("a replica that was healthy is gone: in-sync were %v in epoch %d, and are %v in epoch %d",
				before.InSync, before.Epoch, after.InSync, after.Epoch))
	}
	if broken != nil {
		return errors.Join(broken...)
	}
	for _, x := range p.w.clients {
		if err := x.load(ctx, p.rng); err != nil {
			return err
		}
	}
	return nil
}

// twoFaults says whether callers may be told of a loss: below Stable, when a replica was hurt, and
// a client at the same time. A client that is away is one only after a takeover may go on without
// it (R12.2).
func (p *phase) twoFaults() bool {
	away := p.clientAway != 0 && p.healed-p.clientAway > authority+authority/10
	return p.w.level < understudy.Stable && p.replicaHurt && (p.clientKilled || away)
}

// failures says which calls failed though the level masks the phase's faults: the only error that
// there may be is DataLoss, after two faults.
func (p *phase) failures(from time.Duration) (broken []error) {
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	excused := p.twoFaults()
	for _, l := range p.w.ledgers {
		for _, c := range slices.Backward(l.Calls) {
			if c.End < from {
				break
			}
			if c.Code == codes.OK || c.Code == codes.DataLoss && excused {
				continue
			}
			if c.Code == codes.DataLoss {
				p.w.unmasked++
			}
			if len(broken) < 5 {
				broken = append(broken,
					fmt.Errorf("%s/%d failed after %v, at %v: %v: %s", l.Client, c.Call, c.End-c.Start, c.End, c.Code,
						c.Text))
			}
		}
	}
	return broken
}
