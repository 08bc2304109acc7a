package explore

import (
	"strings"
	"testing"
)

// TestAShareOfEachScopeHolds visits a share of each scope; make explore visits the rest.
func TestAShareOfEachScopeHolds(t *testing.T) {
	t.Parallel()
	for _, scope := range Scopes {
		t.Run(scope.Name, func(t *testing.T) {
			t.Parallel()
			if r := Search(scope, Limits{States: 3000}); r.Broken != nil || r.States < 3000 {
				t.Error(r)
			}
		})
	}
}

// TestCompleteSearchesVisitTheSameStates visits a scope to its end: the same states, however often.
func TestCompleteSearchesVisitTheSameStates(t *testing.T) {
	t.Parallel()
	scope := Scope{Name: "small", Level: Reflected, Replicas: 2, Sources: 2, Calls: [2]int{1, 1}, Outstanding: 1,
		Max: 8, Epochs: 2, Faults: Faults{Crashes: 1}}
	first := Search(scope, Limits{})
	if first.Broken != nil || !first.Complete || first.States < 5000 {
		t.Error(first)
	}
	if again := Search(scope, Limits{}); again.States != first.States || again.Depth != first.Depth {
		t.Errorf("%v\n%v", first, again)
	}
}

// TestTraceTellsHowARuleWasBroken breaks a promise that nobody gave, and reads how.
func TestTraceTellsHowARuleWasBroken(t *testing.T) {
	t.Parallel()
	scope := Scope{Name: "hopeless", Level: Reflected, Replicas: 2, Sources: 1, Calls: [2]int{1}, Outstanding: 1,
		Max: 8, Epochs: 2, Faults: Faults{Deaths: 1}}
	r := search{universe: newUniverse(&scope), seen: newTable()}
	r.run(Limits{})
	root := r.founded()
	root.vector()
	w := root
	for _, a := range []action{{do: issue}, {do: arrive}, {do: arrive}} {
		w = w.apply(a)
		v := w.vector()
		if r.seen.add(v) {
			t.Fatalf("%v wasn't visited", a)
		}
	}
	if !w.sources[0].calls[0].done || root.sources[0].calls != nil {
		t.Error("the call isn't done, or the state before it has changed")
	}
	var longest uint32
	for i := range r.steps {
		longest = uint32(i)
	}
	trace := r.trace(longest)
	for _, want := range []string{"C1 calls", "S1 orders c1.1 as 2, and executes it"} {
		if !strings.Contains(trace, want) {
			t.Errorf("no %q in\n%s", want, trace)
		}
	}
}
