package orderstate

import (
	"fmt"
	"maps"
	"slices"
)

// Source is the state of one session at its source: FIG. 9's second loop, where replies bring announcements, and FIG. 8's second, where they are reflected.
//
// Invariants:
//
//	S1  a reply is accepted only when every announcement up to it is held or known stable, in the epoch that the source has acknowledged (R1, R9)
//	S2  an announcement stays until it is known stable, or void (R3)
//	S3  no announcement in pendingRemoteOrder is covered by others of its epoch
type Source struct {
	epoch   Epoch
	started bool // the epoch's first orderNum is known
	first   OrderNum
	stable  OrderNum // in any epoch: what is stable stays
	epochs  Epochs
	// pendingRemoteOrder holds announcements not known stable, by epoch, then by first orderNum.
	pendingRemoteOrder []pendingRun
	arrivals           uint64
	// accepted is the highest orderNum of a reply accepted in each epoch, while it isn't known stable (I5).
	accepted map[Epoch]OrderNum
	number   uint64 // of the required set
	required []Replica
	acked    map[Replica]OrderNum // in epoch
}

// pendingRun is an announcement with the number of its arrival, by which each stream to a replica knows what it has reflected already.
type pendingRun struct {
	Announcement
	arrival uint64
}

// NewSource returns the state of a source that has acknowledged no epoch yet.
func NewSource() *Source {
	return &Source{accepted: map[Epoch]OrderNum{}, acked: map[Replica]OrderNum{}}
}

// Epoch is the highest epoch that the source has acknowledged.
func (s *Source) Epoch() Epoch { return s.epoch }

// Stable is up to where the order is known stable.
func (s *Source) Stable() OrderNum { return s.stable }

// NewEpoch acknowledges an epoch (R9): from now on nothing from below it is accepted. It says whether the epoch is news: then replies not yet accepted are dropped, and their calls issued again.
func (s *Source) NewEpoch(e Epoch) bool {
	if e <= s.epoch {
		return false
	}
	s.epoch, s.started, s.first = e, false, 0
	s.number, s.required = 0, nil
	clear(s.acked)
	return true
}

// Start learns where the acknowledged epoch starts, where earlier ones did, and up to where the order is stable. Void announcements are dropped. A LostError says that a reply that was accepted isn't in the epoch (I5): the session ends.
func (s *Source) Start(e Epoch, first, stable OrderNum, earlier []Start) error {
	if e != s.epoch {
		return &FencedError{Epoch: e, Acknowledged: s.epoch}
	}
	for _, st := range append(slices.Clone(earlier), Start{e, first}) {
		if st.Epoch > e {
			continue
		}
		if err := s.epochs.Learn(st); err != nil {
			return err
		}
	}
	s.started, s.first = true, first
	var lost *LostError
	for a, k := range s.accepted {
		if s.epochs.Void(a, k) && (lost == nil || k > lost.OrderNum) {
			lost = &LostError{OrderNum: k, Epoch: a}
		}
	}
	if lost != nil {
		return lost
	}
	s.LearnStable(e, stable)
	s.drop()
	return nil
}

// Receive is FIG. 9's second loop: an announcement from the remote primary goes to pendingRemoteOrder, if it isn't there. It is called whether or not the reply that brought it will be accepted.
func (s *Source) Receive(a Announcement) error {
	if a.Epoch != s.epoch || a.Count == 0 {
		return nil // R9: valid in the acknowledged epoch only
	}
	if s.started && a.EpochFirst != s.first {
		return fmt.Errorf("orderstate: a run says that epoch %d starts at %d, it starts at %d", a.Epoch, a.EpochFirst, s.first)
	}
	if !s.started { // a reply can overtake the stream
		if err := s.epochs.Learn(Start{a.Epoch, a.EpochFirst}); err != nil {
			return err
		}
		s.started, s.first = true, a.EpochFirst
	}
	s.insert(a)
	return nil
}

// LearnStable takes the primary's word for the stable point; announcements up to there are done with.
func (s *Source) LearnStable(e Epoch, stable OrderNum) {
	if e != s.epoch || stable <= s.stable {
		return
	}
	s.stable = stable
	for a, k := range s.accepted {
		if k <= stable {
			delete(s.accepted, a)
		}
	}
	s.drop()
	s.epochs.Prune(stable)
}

func (s *Source) drop() {
	s.pendingRemoteOrder = slices.DeleteFunc(s.pendingRemoteOrder, func(r pendingRun) bool {
		return r.Last() <= s.stable || s.epochs.Void(r.Epoch, r.First)
	})
}

// insert keeps the fewest announcements that cover (S3): in one epoch no announcement lies within another, or within the union of its neighbours and what is stable.
func (s *Source) insert(a Announcement) {
	current, _ := slices.BinarySearchFunc(s.pendingRemoteOrder, pendingRun{Announcement: Announcement{Envelope: Envelope{Epoch: s.epoch}}}, byEpochAndFirst)
	older, list := s.pendingRemoteOrder[:current], s.pendingRemoteOrder[current:]

	at := 0
	for at < len(list) && list[at].First < a.First {
		at++
	}
	last := func(i int) OrderNum { // up to where what lies before i covers
		if i == 0 {
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
	if end == at && at < len(list) && last(at)+1 >= list[at].First {
		return // within the union of its neighbours
	}
	for at > 0 && last(at-1)+1 >= a.First { // the one before is within the union of the one before it and a
		at--
	}
	for end+1 < len(list) && a.Last()+1 >= list[end+1].First {
		end++
	}
	s.arrivals++
	s.pendingRemoteOrder = append(older, slices.Replace(list, at, end, pendingRun{a, s.arrivals})...)
}

func byEpochAndFirst(a, b pendingRun) int {
	if c := compare(a.Epoch, b.Epoch); c != 0 {
		return c
	}
	return compare(a.First, b.First)
}

// HeldUpTo is up to where this source holds, or knows stable, every announcement valid in the acknowledged epoch (R2); 0 in an epoch whose start it doesn't know. What was transmitted doesn't count as held.
func (s *Source) HeldUpTo() OrderNum {
	if !s.started {
		return 0
	}
	held := s.stable
	for _, r := range s.pendingRemoteOrder {
		if r.Epoch == s.epoch && r.First <= held+1 {
			held = max(held, r.Last())
		}
	}
	return held
}

// PendingRemoteOrder returns the patent's list (¶100): every announcement received and not known stable.
func (s *Source) PendingRemoteOrder() []Announcement {
	list := make([]Announcement, len(s.pendingRemoteOrder))
	for i, r := range s.pendingRemoteOrder {
		list[i] = r.Announcement
	}
	return list
}

// Multicast is the second loop of FIG. 8: what a message to one replica carries as destOrderInfo, given what earlier ones to it carried (reflected, as returned by the call before; 0 at first).
// The figure's deletion marks an entry as reflected, per replica; it leaves the list when it is known stable (R3).
func (s *Source) Multicast(reflected uint64) (destOrderInfo []Announcement, now uint64) {
	for _, r := range s.pendingRemoteOrder {
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
	// Drop: it is from an epoch that is over, or that this source hasn't acknowledged; issue the call again.
	Drop
)

func (d Decision) String() string { return [...]string{"wait", "accept", "drop"}[d] }

// Accept is R1 and R1b.
func (s *Source) Accept(r Reply) Decision {
	switch {
	case r.Epoch != s.epoch:
		return Drop
	case r.OrderNum == 0:
		return Accept
	case s.HeldUpTo() < r.OrderNum:
		return Wait
	case r.Stable && s.stable < r.OrderNum && !s.acknowledged(r):
		return Wait
	}
	if r.OrderNum > s.stable {
		s.accepted[r.Epoch] = max(s.accepted[r.Epoch], r.OrderNum)
	}
	return Accept
}

// acknowledged is R1b: every member of the reply's required set, or of a later one, has acknowledged it.
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

// Acknowledge records that a replica holds order and messages up to k, in an epoch; it counts in its epoch only (R1b).
func (s *Source) Acknowledge(m Replica, e Epoch, k OrderNum) {
	if e == s.epoch && k > s.acked[m] {
		s.acked[m] = k
	}
}

// Require learns a required set of the acknowledged epoch; a set with a lower number than the known one is old news.
func (s *Source) Require(e Epoch, number uint64, members []Replica) {
	if e == s.epoch && number > s.number {
		s.number, s.required = number, slices.Clone(members)
	}
}

// Required returns the required set.
func (s *Source) Required() (number uint64, members []Replica) { return s.number, s.required }

// LostError says that a reply which the source has accepted isn't in the order any more (two faults at once): its caller must be told (I5).
type LostError struct {
	OrderNum OrderNum
	Epoch    Epoch
}

func (e *LostError) Error() string {
	return fmt.Sprintf("orderstate: the reply at orderNum %d of epoch %d was accepted, and is lost", e.OrderNum, e.Epoch)
}

// Clone returns an independent copy.
func (s *Source) Clone() *Source {
	c := *s
	c.epochs = s.epochs.Clone()
	c.pendingRemoteOrder = slices.Clone(s.pendingRemoteOrder)
	c.accepted, c.acked, c.required = maps.Clone(s.accepted), maps.Clone(s.acked), slices.Clone(s.required)
	return &c
}
