package simulation

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/understudytest/simnet"
)

// nemesis makes the plan's faults. Its methods are called from the bubble's first goroutine, but
// for the trap.
type nemesis struct {
	r    *run
	undo []func() // of what has begun
	made int

	mu        sync.Mutex               // guards what follows
	crashed   []bool                   // replicas
	gone      map[election.Member]bool // incarnations that have crashed, which the store may list for a while
	holding   bool                     // a transaction
	truth     *truth                   // nil: the store is the group's
	suspected []span                   // when it wasn't
	trap      *trap
}

// trap kills a replica at the k-th message on a link from now on.
type trap struct {
	victim int
	link   simnet.Link
	left   int
	before bool
	sprung chan struct{}
}

type event struct {
	at time.Duration
	do func()
}

// rage makes all faults, and ends each, until heal.
func (n *nemesis) rage() {
	var events []event
	add := func(at time.Duration, do func()) {
		i, _ := slices.BinarySearchFunc(events, at, func(e event, at time.Duration) int {
			if e.at <= at {
				return -1
			}
			return 1
		})
		events = slices.Insert(events, i, event{at, do})
	}
	for _, f := range n.r.plan.Faults {
		var old *backup
		if f.Kind == "store restored" {
			add(f.At-f.Extra, func() { old = n.backup() })
		}
		add(f.At, func() {
			undo := n.begin(f, old)
			if undo == nil {
				return
			}
			n.made++
			once := sync.OnceFunc(undo)
			n.undo = append(n.undo, once)
			add(f.At+f.For, func() {
				n.r.trace("end    %s %v", f.Kind, f.Hosts)
				once()
			})
		})
	}
	for len(events) > 0 {
		e := events[0]
		if e.at >= n.r.plan.Heal {
			break
		}
		events = events[1:]
		time.Sleep(e.at - n.r.elapsed())
		e.do()
	}
	time.Sleep(n.r.plan.Heal - n.r.elapsed())
}

// heal ends all faults, and starts who has crashed.
func (n *nemesis) heal() {
	n.r.trace("heal")
	n.setTrap(nil)
	n.putBack() // before anybody is started
	for _, undo := range slices.Backward(n.undo) {
		undo()
	}
}

// begin returns how the fault ends; nil if it can't be made now.
func (n *nemesis) begin(f Fault, old *backup) (undo func()) {
	hosts := make([]string, len(f.Hosts))
	for i, role := range f.Hosts {
		hosts[i] = n.host(role)
	}
	n.r.trace("fault  %v: %v", f, hosts)
	c := n.r.cluster
	switch f.Kind {
	case "crash":
		return n.crash(number(hosts[0]))
	case "crash at":
		return n.crashAt(f, simnet.Link{From: hosts[0], To: hosts[1]}, n.host("primary"))
	case "pause":
		c.Network().Pause(hosts[0])
		cutStore, mendStore := n.store(hosts[:1])
		cutStore()
		return func() {
			c.Network().Resume(hosts[0])
			mendStore()
		}
	case "partition":
		return n.partition(f, hosts)
	case "cut":
		return n.cut(f.Way, hosts[:1], hosts[1:])
	case "slow":
		link := simnet.Link{From: hosts[0], To: hosts[1]}
		c.Network().Slow(link, f.Extra)
		return func() { c.Network().Slow(link, 0) }
	case "reset":
		c.Network().Reset(hosts[0], hosts[1])
		return func() {}
	case "store down":
		c.Store().SetDown(true)
		return func() { c.Store().SetDown(false) }
	case "store cut":
		cutStore, mendStore := n.store(hosts)
		cutStore()
		return mendStore
	case "store hold":
		return n.hold(number(hosts[0]))
	case "store emptied", "store restored", "store keys":
		return n.suspect(f, old)
	case "store slow", "store hangs", "clock":
		return n.disturb(f, hosts)
	case "client crash", "client close":
		return n.r.clients[number(f.Hosts[0])].leave(f.Kind == "client close")
	default:
		panic("simulation: unknown fault " + f.Kind)
	}
}

// host is who has a role now.
func (n *nemesis) host(role string) string {
	primary := n.view().Primary.Name
	switch {
	case role == "primary":
		return primary
	case strings.HasPrefix(role, "client"):
		return n.r.clients[number(role)].host()
	}
	k := number(role)
	for i := range n.r.plan.Replicas {
		name := fmt.Sprintf("replica%d", i)
		if name == primary {
			continue
		}
		if k == 0 {
			return name
		}
		k--
	}
	return primary
}

// number is that at the end of a host's name, or of a role's.
func number(name string) (i int) {
	_, _ = fmt.Sscanf(strings.TrimLeft(name, "abcdefghijklmnopqrstuvwxyz"), "%d", &i)
	return i
}

// mayDie says whether an in-sync replica that is alive would be left. A replica counts whose
// incarnation is in-sync and registered; while a transaction is held up, nobody knows who will be
// in-sync. Called with mu held.
func (n *nemesis) mayDie(i int) bool {
	if n.crashed[i] || n.holding {
		return false
	}
	view := n.lockedView()
	return slices.ContainsFunc(view.InSync, func(m election.Member) bool {
		k := number(m.Name)
		r, ok := view.Replica(m.Name)
		return k != i && !n.crashed[k] && !n.gone[m] && ok && r.Member == m
	})
}

// dies notes a crash. Called with mu held.
func (n *nemesis) dies(i int) {
	n.crashed[i] = true
	view := n.lockedView()
	name := fmt.Sprintf("replica%d", i)
	for _, m := range view.InSync {
		if m.Name == name {
			n.gone[m] = true
		}
	}
	if r, ok := view.Replica(name); ok {
		n.gone[r.Member] = true
	}
}

func (n *nemesis) crash(i int) func() {
	n.mu.Lock()
	may := n.mayDie(i)
	if may {
		n.dies(i)
	}
	n.mu.Unlock()
	if !may {
		n.r.trace("       not made: it is dead, or no in-sync replica would be left")
		return nil
	}
	n.r.cluster.Crash(i)
	n.dissolve(i)
	return func() { n.restart(i) }
}

// dissolve ends the goroutines of a crashed replica: it takes a while, and nobody is to wait for
// it.
func (n *nemesis) dissolve(i int) {
	r := n.r.cluster.Replica(i)
	n.r.group.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_ = r.Stop(ctx)
	})
}

func (n *nemesis) isCrashed(i int) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.crashed[i]
}

func (n *nemesis) restart(i int) {
	n.putBackFirst()
	n.r.cluster.Kill(i)
	n.r.coverage.replica(n.r.cluster.Replica(i).Status())
	n.r.cluster.Start(i)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.crashed[i] = false
}

// crashAt arms the trap, unless one is armed.
func (n *nemesis) crashAt(f Fault, link simnet.Link, primary string) func() {
	t := &trap{victim: number(primary), link: link, left: f.K, before: f.Before, sprung: make(chan struct{})}
	n.mu.Lock()
	armed := n.trap != nil
	n.mu.Unlock()
	if armed {
		return nil
	}
	n.setTrap(t)
	return func() {
		n.setTrap(nil)
		select {
		case <-t.sprung:
			n.dissolve(t.victim)
			n.restart(t.victim)
		default:
		}
	}
}

func (n *nemesis) setTrap(t *trap) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.trap = t
}

// onWrite is the network's trigger.
func (n *nemesis) onWrite(l simnet.Link, _ int) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	t := n.trap
	if t == nil || l != t.link {
		return false
	}
	if t.left--; t.left > 0 {
		return false
	}
	n.trap = nil
	if !n.mayDie(t.victim) {
		return false
	}
	n.dies(t.victim)
	n.r.trace("sprung  %s dies at a message %v, before it: %v", fmt.Sprintf("replica%d", t.victim), l, t.before)
	close(t.sprung)
	if t.before {
		n.r.cluster.Crash(t.victim)
		return true
	}
	go n.r.cluster.Crash(t.victim)
	return false
}

// partition parts hosts from all others.
func (n *nemesis) partition(f Fault, side []string) func() {
	var rest []string
	for _, h := range n.r.hosts() {
		if !slices.Contains(side, h) {
			rest = append(rest, h)
		}
	}
	mend := n.cut(f.Way, side, rest)
	if !f.Store {
		return mend
	}
	cutStore, mendStore := n.store(side)
	cutStore()
	return func() {
		mend()
		mendStore()
	}
}

// cut discards what one side sends to the other; "in" what it is sent.
func (n *nemesis) cut(way string, side, rest []string) func() {
	var links []simnet.Link
	for _, a := range side {
		for _, b := range rest {
			if way != "in" {
				links = append(links, simnet.Link{From: a, To: b})
			}
			if way != "out" {
				links = append(links, simnet.Link{From: b, To: a})
			}
		}
	}
	for _, l := range links {
		n.r.cluster.Network().Cut(l)
	}
	return func() {
		for _, l := range links {
			n.r.cluster.Network().Mend(l)
		}
	}
}

// store is how replicas lose and find the election's store. A dead one stays cut off.
func (n *nemesis) store(hosts []string) (cut, mend func()) {
	each := func(do func(i int)) func() {
		return func() {
			for _, h := range hosts {
				if i := number(h); strings.HasPrefix(h, "replica") && !n.isCrashed(i) {
					do(i)
				}
			}
		}
	}
	return each(func(i int) { n.r.cluster.Link(i).Cut() }), each(func(i int) { n.r.cluster.Link(i).Mend() })
}

// hold holds up the next transaction of a replica, whose outcome that replica doesn't learn.
func (n *nemesis) hold(i int) func() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.holding || n.crashed[i] {
		return nil
	}
	n.holding = true
	release := n.r.cluster.Link(i).HoldNext()
	return func() {
		release()
		n.mu.Lock()
		defer n.mu.Unlock()
		n.holding = false
	}
}
