package orderstate

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// externalised checks I3 and I6 where a reply is handed over: one announcement after the other.
func (w *world) externalised(s *source, r Reply) {
	if r.Epoch != s.state.Epoch() || s.told != nil {
		panic("I6: a reply of another epoch is accepted")
	}
	for k := s.state.Stable() + 1; k <= r.OrderNum; k++ {
		if !slices.ContainsFunc(s.state.PendingRemoteOrder(), func(a Announcement) bool {
			return a.Epoch == r.Epoch && a.First <= k && k <= a.Last()
		}) {
			panic(fmt.Sprintf("I3: %s accepts %d without the announcement of %d", s.name, r.OrderNum, k))
		}
	}
}

// check is what holds after every event.
func (w *world) check() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	for _, name := range sorted(maps.Keys(w.replicas)) {
		r := w.replicas[name]
		if r.dead {
			continue
		}
		var role encoded = r.backup
		switch {
		case r.primary != nil:
			role = r.primary
		case r.takeover != nil:
			role = r.takeover
		}
		if state := role.AppendTo(nil); !bytes.Equal(state, r.state) { // else it is as valid as it was
			if r.clone != nil && !bytes.Equal(r.clone.AppendTo(nil), r.state) {
				bad("%s: a clone has changed with what it was cloned from", name)
			}
			r.state, r.clone = state, clone(role)
			errs = append(errs, wrap(name, role.Valid()))
		}
		if !w.inSync[name] {
			continue
		}
		seen := map[string]int{}
		for i, e := range r.executed {
			if j, ok := seen[e.what]; ok {
				bad("I4: %s executes %s as %d and as %d", name, e.what, j+1, i+1)
			}
			seen[e.what] = i
		}
		for other := range w.inSync {
			o := w.replicas[other]
			for i := range min(len(r.executed), len(o.executed)) {
				if !o.dead && r.executed[i] != o.executed[i] {
					bad("I1: as %d, %s executes %v and %s %v", i+1, name, r.executed[i], other, o.executed[i])
				}
			}
		}
		if h := r.history(); OrderNum(len(r.executed)) > h.Last() || r.joining == 0 &&
			OrderNum(len(r.executed)) < h.CutAt() {
			bad("I2: %s has executed %d, and holds the order from %d to %d", name, len(r.executed), h.CutAt(), h.Last())
		}
		for _, p := range w.replicas { // what is called stable is held (R3)
			if p.primary != nil && !p.dead && r.history().Last() < p.primary.Stable() {
				bad("R3: %s says that %d is stable, %s holds %d", p.name, p.primary.Stable(), name, r.history().Last())
			}
		}
		for _, s := range w.sources {
			if r.history().Last() < s.state.Stable() && !w.oldStored {
				bad("R3: to %s %d is stable, %s holds %d", s.name, s.state.Stable(), name, r.history().Last())
			}
		}
	}
	for _, name := range sorted(maps.Keys(w.sources)) {
		s := w.sources[name]
		if s.dead {
			continue
		}
		errs = append(errs, wrap(name, s.state.Valid()))
		if s.told != nil && !w.excused {
			bad("I5: %s is told %v, and there was one fault at a time", name, s.told)
		}
		p := w.replicas[w.primary]
		if s.told != nil || p.dead || p.primary == nil || !s.state.started || !s.state.told ||
			s.state.Epoch() != p.primary.Epoch() {
			continue
		}
		for _, a := range s.accepted {
			if k := int(a.orderNum); k > len(p.executed) || p.executed[k-1].what != a.id.String() {
				bad("I5: %s accepted %v as %d in epoch %d; in epoch %d it isn't there, and nobody said so", name, a.id,
					k, a.epoch, p.primary.Epoch())
			}
		}
	}
	return errors.Join(errs...)
}

func wrap[T ~string](name T, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", name, err)
}
