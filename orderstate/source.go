package orderstate

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
)

// Source is the state of one session at its source: FIG. 9's second loop, where replies bring
// announcements, and FIG. 8's second, where they are reflected.
//
// Invariants:
//
//	S1  a reply is accepted only when every announcement up to it is held or known stable, in the
//	    epoch that the source has acknowledged (R1, R9)
//	S2  an announcement stays until it is known stable, or void (R3)
//	S3  no announcement in pendingRemoteOrder is covered by others of its epoch, and what is
//	    stable
//	S4  nothing is accepted in an epoch before all that was accepted in earlier ones, or known
//	    stable, is known to be in it (I5)
type Source struct {
	epoch   Epoch
	started bool // the epoch's first orderNum is known
	first   OrderNum
	// told: what was accepted in earlier epochs is known to be in this one.
	told   bool
	stable OrderNum // in any epoch: what is stable stays
	// stableIn is the epoch in which stable was learned: no later one may begin at or below it.
	stableIn Epoch
	// untold is what was said of the stable point in this epoch before told.
	untold OrderNum
	held   OrderNum // HeldUpTo
	epochs epochTable
	// pendingRemoteOrder holds announcements not known stable, by epoch, then by first orderNum,
	// and so, in an epoch, by last orderNum.
	pendingRemoteOrder window[pendingRun]
	arrivals           uint64
	// accepted is the highest orderNum of a reply accepted in each epoch, while it isn't known
	// stable (I5).
	accepted map[Epoch]OrderNum
	number   uint64 // of the required set
	required []Replica
	acked    map[Replica]OrderNum // in epoch
}

// pendingRun is an announcement with the number of its arrival, by which each stream to a replica
// knows what it has reflected already.
type pendingRun struct {
	Announcement
	arrival uint64
	// newest is at least the arrival of this one and of all before it in the list.
	newest uint64
}

// NewSource returns the state of a source that has acknowledged no epoch yet.
func NewSource() *Source {
	return &Source{accepted: map[Epoch]OrderNum{}, acked: map[Replica]OrderNum{}}
}

// Epoch is the highest epoch that the source has acknowledged.
func (s *Source) Epoch() Epoch { return s.epoch }

// Stable is up to where the order is known stable.
func (s *Source) Stable() OrderNum { return s.stable }

// NewEpoch acknowledges an epoch (R9): from now on nothing from below it is accepted. It says
// whether the epoch is news: then replies not yet accepted are dropped, and their calls issued
// again.
func (s *Source) NewEpoch(e Epoch) bool {
	if e <= s.epoch {
		return false
	}
	s.epoch, s.started, s.first = e, false, 0
	if !without(r2HeldFromZero) {
		s.held = 0
	}
	s.told = len(s.accepted) == 0 && s.stable == 0
	s.untold = 0
	s.number, s.required = 0, nil
	if !without(r1bInEpoch) {
		clear(s.acked)
	}
	return true
}

// Start learns where the acknowledged epoch starts, where earlier ones did (those that the primary
// knows), and up to where the order is stable. Void announcements are dropped. A LostError says
// that a reply that was accepted, or what was known stable, isn't in the epoch (I5): the session
// ends; until it does, nothing more is accepted, and Start says the same again. Any other error
// changes nothing.
func (s *Source) Start(e Epoch, first, stable OrderNum, earlier []Start) error {
	if e != s.epoch {
		return &FencedError{Epoch: e, Acknowledged: s.epoch}
	}
	starts := slices.DeleteFunc(slices.Clone(earlier), func(st Start) bool {
		return st.Epoch > e || without(i5AnyEpoch)
	})
	if err := s.learn(first, append(starts, Start{e, first})...); err != nil {
		return err
	}
	if err := s.lost(); err != nil {
		return err
	}
	s.told = true
	s.LearnStable(e, max(stable, s.untold))
	s.forgetStable()
	return nil
}

// learn takes starts of epochs, the acknowledged one's among them.
func (s *Source) learn(first OrderNum, starts ...Start) error {
	table, err := s.epochs.with(starts...)
	if err != nil {
		return err
	}
	s.epochs = table
	s.pendingRemoteOrder.filter(s.done)
	if !s.started {
		s.started, s.first = true, first
		if !without(r2HeldFromZero) {
			s.held = s.stable
		}
	}
	return nil
}

// lost is a LostError if an accepted reply is known not to be in the order any more.
func (s *Source) lost() error {
	var lost *LostError
	for a, k := range s.accepted {
		if s.epochs.void(a, k) && (lost == nil || k > lost.OrderNum) {
			lost = &LostError{OrderNum: k, Epoch: a}
		}
	}
	if s.epochs.void(s.stableIn, s.stable) && s.stable > 0 && !without(i5Stable) {
		lost = &LostError{OrderNum: s.stable, Epoch: s.stableIn, Stable: true}
	}
	if lost == nil {
		return nil
	}
	return lost
}

// Receive is FIG. 9's second loop: an announcement from the remote primary goes to
// pendingRemoteOrder, if it isn't there. It is called whether or not the reply that brought it will
// be accepted. One of another epoch than the acknowledged one, or an empty one, is passed over
// (R9). The first of an epoch can overtake Start. An error changes nothing.
func (s *Source) Receive(a Announcement) error {
	if a.Epoch != s.epoch || a.Count == 0 {
		return nil
	}
	if err := a.check(); err != nil {
		return err
	}
	if s.started {
		if a.EpochFirst != s.first {
			return fmt.Errorf("orderstate: a run says that epoch %d starts at %d, it starts at %d", a.Epoch,
				a.EpochFirst, s.first)
		}
		s.insert(a)
		return nil
	}
	if err := s.learn(a.EpochFirst, Start{a.Epoch, a.EpochFirst}); err != nil {
		return err
	}
	s.insert(a)
	return nil
}

// LearnStable takes the primary's word for the stable point; announcements up to there are done
// with. It counts once Start has told that the epoch has all that was stable before.
func (s *Source) LearnStable(e Epoch, stable OrderNum) {
	if e != s.epoch || e == 0 || stable <= s.stable {
		return
	}
	if !s.told {
		s.untold = max(s.untold, stable)
		return
	}
	s.stable, s.stableIn = stable, e
	s.forgetStable()
	list, n := s.pendingRemoteOrder.all(), 0
	for n < len(list) && s.done(n, list[n]) {
		n++
	}
	s.pendingRemoteOrder.drop(n)
	if n < len(list) && list[n].Epoch != s.epoch { // those of earlier epochs come first
		s.pendingRemoteOrder.filter(s.done)
	}
	if s.started && stable > s.held {
		s.held = stable
		s.extend(s.base())
	}
}

// forgetStable forgets what stability makes sure of, once the losses are known.
func (s *Source) forgetStable() {
	if !s.told {
		return
	}
	for a, k := range s.accepted {
		if k <= s.stable {
			delete(s.accepted, a)
		}
	}
	s.epochs.prune(s.stable)
}

// done says whether the run at place i, above the stable point, is void (R12.3), or covered by that
// point and the next run.
func (s *Source) done(i int, r pendingRun) bool {
	if r.Last() <= s.stable || s.epochs.void(r.Epoch, max(r.First, s.stable+1)) {
		return true
	}
	list := s.pendingRemoteOrder.all()
	return i+1 < len(list) && list[i+1].Epoch == r.Epoch && list[i+1].First-1 <= s.stable
}

// insert keeps the fewest announcements that cover (S3): in one epoch no announcement lies within
// another, or within the union of its neighbours and what is stable.
func (s *Source) insert(a Announcement) {
	list := s.pendingRemoteOrder.all()
	base := s.base()
	at, _ := slices.BinarySearchFunc(list, a.Envelope, byEpochAndFirst)

	last := func(i int) OrderNum { // up to where what lies before i covers
		if i == base {
			return s.stable
		}
		return max(s.stable, list[i-1].Last())
	}
	if last(at) >= a.Last() || at < len(list) && list[at].First == a.First && list[at].Last() >= a.Last() {
		return
	}
	end := at
	for end < len(list) && list[end].Last() <= a.Last() { // within a
		end++
	}
	if end == at && at < len(list) && list[at].First-1 <= last(at) {
		return // within the union of its neighbours
	}
	if at > base && a.First-1 <= last(at-1) { // the one before is within the union of the one before it and a
		at--
	}
	if end+1 < len(list) && list[end+1].First-1 <= a.Last() { // as is the one behind
		end++
	}
	s.arrivals++
	s.pendingRemoteOrder.replace(at, end, pendingRun{a, s.arrivals, s.arrivals})
	list = s.pendingRemoteOrder.all()
	for i := at + 1; i < len(list); i++ {
		list[i].newest = s.arrivals
	}
	s.extend(at)
}

// extend moves HeldUpTo over the runs of the acknowledged epoch, from place i on, that leave no
// gap.
func (s *Source) extend(i int) {
	list := s.pendingRemoteOrder.all()
	for ; i < len(list) && list[i].First-1 <= s.held; i++ {
		s.held = max(s.held, list[i].Last())
	}
}

// base is where the runs of the acknowledged epoch begin.
func (s *Source) base() int {
	base, _ := slices.BinarySearchFunc(s.pendingRemoteOrder.all(), Envelope{Epoch: s.epoch}, byEpochAndFirst)
	return base
}

func byEpochAndFirst(r pendingRun, e Envelope) int {
	return cmp.Or(cmp.Compare(r.Epoch, e.Epoch), cmp.Compare(r.First, e.First))
}

// HeldUpTo is up to where this source holds, or knows stable, every announcement valid in the
// acknowledged epoch (R2); 0 in an epoch whose start it doesn't know. What was transmitted doesn't
// count as held.
func (s *Source) HeldUpTo() OrderNum { return s.held }

// PendingRemoteOrder returns the patent's list (¶100): every announcement received and not known
// stable, by epoch and orderNum.
func (s *Source) PendingRemoteOrder() []Announcement {
	list := make([]Announcement, s.pendingRemoteOrder.len())
	for i, r := range s.pendingRemoteOrder.all() {
		list[i] = r.Announcement
	}
	return list
}

// Multicast is the second loop of FIG. 8: what a message to one replica carries as destOrderInfo,
// given what earlier ones to it carried (reflected, as returned by the call before; 0 at first, and
// on a new stream). The figure's deletion marks an entry as reflected, per replica; it leaves the
// list when it is known stable (R3).
func (s *Source) Multicast(reflected uint64) (destOrderInfo []Announcement, now uint64) {
	list := s.pendingRemoteOrder.all()
	from, n := len(list), 0
	for from > 0 && list[from-1].newest > reflected { // what came late is at the end, mostly
		from--
		if list[from].arrival > reflected {
			n++
		}
	}
	if n == 0 {
		return nil, s.arrivals
	}
	destOrderInfo = make([]Announcement, 0, n)
	for _, r := range list[from:] {
		if r.arrival > reflected {
			destOrderInfo = append(destOrderInfo, r.Announcement)
		}
	}
	return destOrderInfo, s.arrivals
}

// Reply is what a source judges a reply by.
type Reply struct {
	Epoch    Epoch
	OrderNum OrderNum // 0: not ordered
	Number   uint64   // of the required set
	Stable   bool     // R1b applies
}

// Decision is what becomes of a reply.
type Decision uint8

const (
	// Wait: not yet.
	Wait Decision = iota
	// Accept: hand it over; it counts as accepted now.
	Accept
	// Drop: it is from an epoch that is over, or that this source hasn't acknowledged; issue the
	// call again.
	Drop
)

func (d Decision) String() string { return [...]string{"wait", "accept", "drop"}[d] }

// Accept is R1 and R1b: what becomes of a reply now. One that waits is asked about again after any
// call that changes the source; one that depends on no order (OrderNum 0) never waits.
func (s *Source) Accept(r Reply) Decision {
	switch {
	case r.Epoch != s.epoch && !without(r9Source), r.Epoch == 0:
		return Drop
	case r.OrderNum == 0:
		return Accept
	case s.held < r.OrderNum && !without(r1) || !s.told:
		return Wait
	case r.Stable && s.stable < r.OrderNum && !s.acknowledged(r) && !without(r1b):
		return Wait
	}
	if r.OrderNum > s.stable {
		s.accepted[r.Epoch] = max(s.accepted[r.Epoch], r.OrderNum)
	}
	return Accept
}

// acknowledged is R1b: every member of the reply's required set, or of a later one, has
// acknowledged it.
func (s *Source) acknowledged(r Reply) bool {
	if s.number == 0 || s.number < r.Number {
		return false
	}
	for _, m := range s.required {
		if s.acked[m] < r.OrderNum {
			return false
		}
	}
	return true
}

// Acknowledge records that a replica holds order and messages up to k, in an epoch; it counts in
// its epoch only (R1b).
func (s *Source) Acknowledge(m Replica, e Epoch, k OrderNum) {
	if (e == s.epoch || without(r1bInEpoch)) && k > s.acked[m] {
		s.acked[m] = k
	}
}

// Require learns a required set of the acknowledged epoch; a set with a lower number than the known
// one is old news.
func (s *Source) Require(e Epoch, number uint64, members []Replica) {
	if e == s.epoch && number > s.number {
		s.number, s.required = number, slices.Clone(members)
	}
}

// Required returns the required set, as last learned; 0 and nothing in a new epoch. The caller must
// not change it.
func (s *Source) Required() (number uint64, members []Replica) { return s.number, s.required }

// LostError says that a reply which the source has accepted isn't in the order any more (two faults
// at once): its caller must be told (I5). With Stable, that what every in-sync replica held isn't:
// then the group was taken over by a replica that wasn't in-sync, as after a restored store.
type LostError struct {
	OrderNum OrderNum
	Epoch    Epoch
	Stable   bool
}

func (e *LostError) Error() string {
	if e.Stable {
		return fmt.Sprintf(
			"orderstate: orderNum %d was stable in epoch %d, and a later epoch begins below: the group was taken "+
				"over by a replica that wasn't in-sync", e.OrderNum, e.Epoch,
		)
	}
	return fmt.Sprintf("orderstate: the reply at orderNum %d of epoch %d was accepted, and is lost", e.OrderNum,
		e.Epoch)
}

// Clone returns an independent copy.
func (s *Source) Clone() *Source {
	c := *s
	c.epochs = s.epochs.clone()
	c.pendingRemoteOrder = s.pendingRemoteOrder.clone()
	c.accepted, c.acked, c.required = maps.Clone(s.accepted), maps.Clone(s.acked), slices.Clone(s.required)
	return &c
}
