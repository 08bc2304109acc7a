package explore

import (
	"fmt"
	"math/rand/v2"
	"strings"
)

// walks goes at random where not all states can be visited: to the end, which is deeper than
// breadth first gets. The same scope has the same walks.
func (s *search) walks(r *Result, n int) {
	var path []action
	for r.Walks < n && r.Broken == nil {
		random := rand.New(rand.NewPCG(uint64(r.Walks), 0))
		r.Walks++
		if path, r.Broken = s.walk(random, path[:0]); r.Broken != nil {
			r.Trace = s.retrace(path)
		}
	}
}

// walk goes from the beginning until nothing but faults is left, or a rule is broken. Faults, and
// what needn't happen, are rarer than the rest.
func (s *search) walk(random *rand.Rand, path []action) ([]action, error) {
	v, err := s.begin(nil)
	if err != nil {
		return path, err
	}
	var as []action
	for {
		w := s.at(v)
		as = w.enabled(as[:0])
		var to *world
		quiet := true
		for len(as) > 0 {
			i := random.IntN(len(as))
			if as[i].disturbs && random.IntN(3) > 0 {
				i = random.IntN(len(as))
			}
			a := as[i]
			as[i] = as[len(as)-1]
			as = as[:len(as)-1]
			next := w.apply(a)
			if nv := next.vector(); nv != v || next.broken != nil {
				to, v, quiet = next, nv, false
				path = append(path, a)
				break
			}
		}
		switch {
		case quiet:
			return path, nil
		case to.broken == nil && s.seen.add(v):
			to.check()
		}
		if to.broken != nil {
			return path, to.broken
		}
		if waits := s.at(v).waits(); waits != "" {
			return path, fmt.Errorf("for ever: %s", waits)
		}
	}
}

// waits says what waits for ever in a state; "" if it isn't the end.
func (w *world) waits() string {
	if w.unrest() == "" {
		return ""
	}
	v := w.vector()
	for _, a := range w.enabled(nil) {
		if a.disturbs {
			continue
		}
		if to := w.apply(a); to.vector() != v {
			return ""
		}
	}
	return w.unrest()
}

// retrace tells a walk.
func (s *search) retrace(path []action) string {
	var out strings.Builder
	first, _ := s.begin(&out)
	w := s.at(first)
	for i, a := range path {
		fmt.Fprintf(&out, "%3d %v\n", len(s.scope.Begin)+i+1, a)
		w.said = &out
		w = w.apply(a)
		w.vector()
	}
	return out.String()
}
