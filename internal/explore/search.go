package explore

import (
	"fmt"
	"strings"
	"time"
)

// Limits bounds a search.
type Limits struct {
	// States is how many may be visited; 0 is no bound.
	States int
}

// Within returns limits for so much memory, in MiB, and at most so many states (0: no bound). A state takes 24 to 56 bytes among those visited, and 128 while it waits to be visited itself, which
// up to half of them do; the parts of states are few.
func Within(mem, states int) Limits {
	most := mem << 20 / 120
	if states > 0 {
		most = min(most, states)
	}
	return Limits{most}
}

// Result is what a search has found.
type Result struct {
	Scope  string
	States int
	Depth  int // of the deepest state
	// Complete: every state within the scope was visited.
	Complete bool
	// Broken is the first rule that was found broken, and Trace a shortest way to it.
	Broken error
	Trace  string
	Time   time.Duration
}

// String is a line.
func (r Result) String() string {
	extent := "bounded"
	if r.Complete {
		extent = "complete"
	}
	line := fmt.Sprintf("%-10s %9d states  depth %2d  %7s  %-8s", r.Scope, r.States, r.Depth, r.Time.Round(100*time.Millisecond), extent)
	if r.Broken != nil {
		line += fmt.Sprintf("\n%v, after\n%s", r.Broken, r.Trace)
	}
	return line
}

// step is how a state was reached first.
type step struct {
	parent uint32
	action uint16
}

// search is one run of Search.
type search struct {
	*universe
	seen  *table
	steps []step
}

type queued struct {
	state vector
	index uint32
}

// Search visits the states of a scope, breadth first, until a rule is broken, all are visited, or the limits are reached.
func Search(scope Scope, limits Limits) Result {
	begun := time.Now()
	s := &search{universe: newUniverse(&scope), seen: newTable()}
	result := s.run(limits)
	result.Scope, result.States, result.Time = scope.Name, len(s.steps), time.Since(begun)
	return result
}

func (s *search) run(limits Limits) (r Result) {
	root := s.founded()
	first := root.vector()
	s.seen.add(first)
	s.steps = append(s.steps, step{})
	level, next := []queued{{first, 0}}, []queued(nil)
	var as []action
	for ; len(level) > 0; r.Depth++ {
		for _, q := range level {
			w := s.at(q.state)
			as = w.enabled(as[:0])
			quiet := true
			for n, a := range as {
				to := w.apply(a)
				v := to.vector()
				if v == q.state && to.broken == nil {
					continue
				}
				quiet = quiet && a.disturbs
				if to.broken == nil && s.seen.add(v) {
					s.steps = append(s.steps, step{q.index, uint16(n)})
					next = append(next, queued{v, uint32(len(s.steps) - 1)})
					to.check()
				}
				if to.broken != nil {
					r.Broken, r.Trace = to.broken, s.trace(q.index, a)
					return r
				}
			}
			if quiet {
				if waits := w.unrest(); waits != "" {
					r.Broken, r.Trace = fmt.Errorf("for ever: %s", waits), s.trace(q.index)
					return r
				}
			}
			if limits.States > 0 && len(s.steps) >= limits.States {
				return r
			}
		}
		level, next = next, level[:0]
	}
	r.Complete = true
	return r
}

// trace tells how a state was reached, and what came then.
func (s *search) trace(index uint32, then ...action) string {
	var path []uint16
	for ; index != 0; index = s.steps[index].parent {
		path = append(path, s.steps[index].action)
	}
	var out strings.Builder
	w := s.founded()
	w.vector()
	n := 0
	do := func(a action) {
		n++
		fmt.Fprintf(&out, "%3d %v\n", n, a)
		w.said = &out
		w = w.apply(a)
		w.vector()
	}
	for i := len(path) - 1; i >= 0; i-- {
		do(w.enabled(nil)[path[i]])
	}
	for _, a := range then {
		do(a)
	}
	return out.String()
}

// table is the set of states visited, by 128 bits of a hash of each: of 10^7 states two are taken for one with a probability of 10^-25.
type table struct {
	slots [][2]uint64
	count int
}

func newTable() *table { return &table{slots: make([][2]uint64, 1<<12)} }

// add says whether a state is new.
func (t *table) add(v vector) bool {
	if 4*t.count > 3*len(t.slots) {
		old := t.slots
		t.slots = make([][2]uint64, 2*len(old))
		for _, h := range old {
			if h != [2]uint64{} {
				*t.slot(h) = h
			}
		}
	}
	h := hash(v)
	slot := t.slot(h)
	if *slot == h {
		return false
	}
	*slot = h
	t.count++
	return true
}

func (t *table) slot(h [2]uint64) *[2]uint64 {
	for i := h[0]; ; i++ {
		slot := &t.slots[i&uint64(len(t.slots)-1)]
		if *slot == h || *slot == [2]uint64{} {
			return slot
		}
	}
}

// hash is two independent multiply-and-fold hashes of a state's parts, the same in every run.
func hash(v vector) [2]uint64 {
	a, b := uint64(0x9e3779b97f4a7c15), uint64(0xc2b2ae3d27d4eb4f)
	for _, x := range v {
		a = mix(a^uint64(x), 0xff51afd7ed558ccd)
		b = mix(b+uint64(x), 0xc4ceb9fe1a85ec53)
	}
	return [2]uint64{mix(a, 0x94d049bb133111eb) | 1, b} // never zero: that is an empty slot
}

func mix(x, by uint64) uint64 {
	x ^= x >> 32
	x *= by
	x ^= x >> 29
	x *= by
	return x ^ x>>32
}
