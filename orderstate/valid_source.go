package orderstate

import "errors"

// Valid checks S1-S4. What a source accepted is Accept's to say: S1 is checked by its callers.
func (s *Source) Valid() error {
	errs := []error{s.epochs.valid()}
	add := func(ok bool, invariant, format string, args ...any) {
		errs = append(errs, check(ok, invariant, format, args...))
	}
	add(s.epochs.newest() <= s.epoch, "S1", "acknowledged %d, and knows where %d starts", s.epoch, s.epochs.newest())
	list := s.pendingRemoteOrder.all()
	held := OrderNum(0)
	if s.started {
		held = s.stable
	}
	newest := uint64(0)
	for i, r := range list {
		errs = append(errs, r.check())
		add(r.Last() > s.stable, "S3", "%v is stable: %d", r, s.stable)
		add(!s.epochs.void(r.Epoch, max(r.First, s.stable+1)), "S3", "%v is void", r)
		add(r.Epoch <= s.epoch, "S1", "%v in epoch %d", r, s.epoch)
		add(i == 0 || byEpochAndFirst(list[i-1], r.Envelope) < 0, "S3", "%v isn't in order", list)
		add(!s.covered(i), "S3", "%v is covered: %v, stable %d", r, list, s.stable)
		if r.Epoch == s.epoch && r.First <= held+1 {
			held = max(held, r.Last())
		}
		newest = max(newest, r.arrival)
		add(r.newest >= newest && r.arrival <= s.arrivals, "S2", "%v arrived as %d, after %d; %d say", r, r.arrival,
			newest, r.newest)
	}
	add(s.held == held, "S1", "held up to %d, not %d", held, s.held)
	for a, k := range s.accepted {
		add(a <= s.epoch && (k > s.stable || !s.told), "S4", "accepted %d in %d: stable %d, epoch %d", k, a, s.stable,
			s.epoch)
	}
	return errors.Join(errs...)
}

// covered says, one orderNum at a time, whether the run at i is covered by the others of its epoch
// and what is stable.
func (s *Source) covered(i int) bool {
	list := s.pendingRemoteOrder.all()
	k := max(list[i].First, s.stable+1)
next:
	for k <= list[i].Last() {
		for j, o := range list {
			if j != i && o.Epoch == list[i].Epoch && o.First <= k && k <= o.Last() {
				k = o.Last() + 1
				continue next
			}
		}
		return false
	}
	return true
}
