package explore

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Limits bounds a search.
type Limits struct {
	// States is how many may be visited; 0 is no bound.
	States int
	// Walks is how many random walks go on from the beginning, each until nothing but faults is
	// left, where not all could be visited.
	Walks int
}

// Within returns limits for so much memory, in MiB, and at most so many states (0: no bound). A
// state takes 24 to 56 bytes among those visited, and 128 while it waits to be visited itself,
// which up to half of them do; the parts of states are few.
func Within(mem, states int) Limits {
	most := mem << 20 / 120
	if states > 0 {
		most = min(most, states)
	}
	return Limits{States: most}
}

// Result is what a search has found.
type Result struct {
	Scope  string
	States int
	Depth  int // up to where all were visited
	Walks  int // beyond that, at random
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
	} else if r.Walks > 0 {
		extent = fmt.Sprintf("bounded, %d walks", r.Walks)
	}
	line := fmt.Sprintf("%-11s %8d states  depth %2d  %7s  %-21s", r.Scope, r.States, r.Depth,
		r.Time.Round(100*time.Millisecond), extent)
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

// Search visits the states of a scope, breadth first, until a rule is broken, all are visited, or
// the limits are reached.
func Search(scope Scope, limits Limits) Result {
	begun := time.Now()
	s := &search{universe: newUniverse(&scope), seen: newTable()}
	result := s.run(limits)
	if !result.Complete && result.Broken == nil {
		s.walks(&result, limits.Walks)
	}
	result.Scope, result.States, result.Time = scope.Name, s.seen.count, time.Since(begun)
	return result
}

func (s *search) run(limits Limits) (r Result) {
	first, err := s.begin(nil)
	if err != nil {
		r.Broken = err
		return r
	}
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

// begin does what has happened already.
func (s *search) begin(said *strings.Builder) (vector, error) {
	w := s.founded()
	v := w.vector()
	for i, words := range s.scope.Begin {
		as := w.enabled(nil)
		n := slices.IndexFunc(as, func(a action) bool { return a.String() == words })
		if n < 0 {
			return v, fmt.Errorf("%q can't happen: only %v can", words, as)
		}
		if w.said = said; said != nil {
			fmt.Fprintf(said, "%3d %s\n", i+1, words)
		}
		w = w.apply(as[n])
		v = w.vector()
	}
	return v, nil
}

// trace tells how a state was reached, and what came then.
func (s *search) trace(index uint32, then ...action) string {
	var path []uint16
	for ; index != 0; index = s.steps[index].parent {
		path = append(path, s.steps[index].action)
	}
	first, _ := s.begin(nil)
	w := s.at(first)
	as := make([]action, 0, len(path)+len(then))
	for i := len(path) - 1; i >= 0; i-- {
		a := w.enabled(nil)[path[i]]
		as = append(as, a)
		w = w.apply(a)
		w.vector()
	}
	return s.retrace(append(as, then...))
}
