package orderstate

import (
	"fmt"
	"maps"
	"slices"
)

// Backup is the state of a backup: FIG. 10.
//
// Invariants, besides H1-H6:
//
//	B1  nothing is accepted from below the acknowledged epoch (R9, I6)
//	B2  an entry that is known void isn't pending (R12.3), nor is one whose orderNum is taken
//	B3  what may be executed is a prefix of the order; between an answer and the epoch's start it
//	    doesn't grow, and nothing is (R12.1)
//	B4  what is stable here is held here, and what is cut was executed
//	B5  who has diverged neither executes, nor acknowledges, nor is elected
type Backup struct {
	h            *History
	acknowledged Epoch
	// started: the first orderNum of the acknowledged epoch is known (R12.1).
	started bool
	stable  OrderNum
	// stableIn is the epoch in which stable was learned: no later one may begin at or below it.
	stableIn Epoch
	// pendingDestOrder holds announcements that wait for lower orderNums, or for their messages.
	pendingDestOrder map[OrderNum]Ordered
	// named finds pending entries by their messages: nil until somebody asks, and again when
	// nothing is pending.
	named map[MessageID]OrderNum
	// early holds, by session, the messages whose session isn't known yet: its opening, or what
	// follows an opening that is pending.
	early map[Session][]SeqNum
	// validIn is the latest epoch in whose order all that is below the cut is known to be; 0 if
	// that is nothing.
	validIn Epoch
	// executed is up to where Next has handed out messageOrder.
	executed OrderNum
	// diverged is where this replica has, or was told, what isn't in the order; 0 if it hasn't.
	diverged OrderNum
	// attached holds the sessions that a takeover waits for, until the next epoch starts (R11),
	// once all up to base is held; detachings numbers what was asked.
	attached   map[Session]attachment
	base       OrderNum
	detachings uint64
}

// NewBackup returns a backup whose application state holds what h says was executed (its cut), and
// which follows epoch; start is where that epoch starts, 0 if not known yet. What the state holds
// isn't taken for stable. A DivergedError says that the state is from before that epoch, and has
// what isn't in it.
func NewBackup(h *History, epoch Epoch, start OrderNum) (*Backup, error) {
	b := &Backup{
		h: h, acknowledged: epoch, pendingDestOrder: map[OrderNum]Ordered{}, early: map[Session][]SeqNum{},
		validIn: h.epochs.newest(), executed: h.cut,
		attached: map[Session]attachment{}, base: unknownBase,
	}
	if start != 0 {
		table, err := h.epochs.with(Start{epoch, start})
		if err != nil {
			return nil, err
		}
		if err := b.adopt(table); err != nil {
			return nil, err
		}
		b.started, b.validIn, b.base = true, epoch, start-1
	}
	return b, nil
}

// History is what this backup holds, to be read.
func (b *Backup) History() *History { return b.h }

// Last is the orderNum up to which order and messages are held without a gap.
func (b *Backup) Last() OrderNum { return b.h.Last() }

// Epoch is the highest epoch that this backup has acknowledged.
func (b *Backup) Epoch() Epoch { return b.acknowledged }

// Started says whether the acknowledged epoch's first orderNum is known.
func (b *Backup) Started() bool { return b.started }

// Stable is up to where the primary has said that the order is stable.
func (b *Backup) Stable() OrderNum { return b.stable }

// Message logs a message that a source, or a peer, has sent, and says whether the backup holds it
// now: false for one that its session has answered, or of a session not known here. Bytes that fit
// what is announced are never given up for others.
func (b *Backup) Message(m Message) (held bool, moved Moved) {
	if old, ok := b.h.messages.held[m.MessageID]; ok && (old.Digest == m.Digest || b.Announces(old)) {
		return true, Moved{}
	}
	if !b.h.log(m) && !b.logEarly(m) {
		return false, Moved{}
	}
	last := b.Last()
	// Should what is released now not fit, then Receive will say it.
	_ = b.advance()
	if b.Last() == last {
		return true, Moved{}
	}
	return true, b.moved(last)
}

// moved is what has moved since the order ended at last.
func (b *Backup) moved(last OrderNum) Moved {
	return Moved{Grown: int(b.Last() - last), Lacks: b.lacks()}
}

// Announces says whether a message is the one that a pending entry orders: with it the order may go
// on.
func (b *Backup) Announces(m Message) bool {
	if len(b.pendingDestOrder) == 0 {
		return false
	}
	if b.named == nil {
		b.named = make(map[MessageID]OrderNum, len(b.pendingDestOrder))
		for k, o := range b.pendingDestOrder {
			b.name(k, o)
		}
	}
	o, ok := b.pendingDestOrder[b.named[m.MessageID]]
	return ok && o.Kind.HasMessage() && o.Message() == m.MessageID && o.Digest == m.Digest
}

func (b *Backup) name(k OrderNum, o Ordered) {
	if o.Kind.HasMessage() {
		b.named[o.Message()] = k
	}
}

// pend and unpend change pendingDestOrder.
func (b *Backup) pend(o Ordered) {
	b.pendingDestOrder[o.OrderNum] = o
	if b.named != nil {
		b.name(o.OrderNum, o)
	}
}

func (b *Backup) unpend(o Ordered) {
	delete(b.pendingDestOrder, o.OrderNum)
	switch {
	case b.named == nil:
	case len(b.pendingDestOrder) == 0:
		b.named = nil
	case b.named[o.Message()] == o.OrderNum:
		delete(b.named, o.Message())
	}
}

// logEarly takes a message whose session is still to be opened here.
func (b *Backup) logEarly(m Message) bool {
	at := OrderNum(m.Session)
	if at <= b.Last() {
		return m.SeqNum == 0 && b.h.Known(m.Session) // the opening is in the order, or in the state
	}
	if o, ok := b.pendingDestOrder[at]; m.SeqNum != 0 && (!ok || o.Kind != Open) {
		return false
	}
	if _, ok := b.h.messages.held[m.MessageID]; !ok {
		b.early[m.Session] = append(b.early[m.Session], m.SeqNum)
	}
	b.h.messages.keep(nil, m)
	return true
}

// Receive is FIG. 10: the entries of a reflected announcement, or of a null message, go to
// pendingDestOrder, and from there, while there is no gap, to messageOrder. An announcement of
// another epoch than the acknowledged one is refused (R9), silently: an older one's primary is
// deposed, a newer one isn't acknowledged yet. One of the acknowledged epoch that comes before
// Start waits for it. A malformed one is an error, and changes nothing. A DivergedError says that
// what is held here, or may come next, isn't what the group ordered.
func (b *Backup) Receive(r Run) (Moved, error) {
	if r.Epoch != b.acknowledged && !without(r9Backup) || r.Count == 0 {
		return Moved{}, nil
	}
	if err := r.check(); err != nil {
		return Moved{}, err
	}
	if err := b.learn(Start{r.Epoch, r.EpochFirst}); err != nil {
		return Moved{}, err
	}
	if err := b.insert(r); err != nil {
		return Moved{}, err
	}
	last := b.Last()
	err := b.advance()
	return b.moved(last), err
}

// insert is FIG. 10's outer loop.
func (b *Backup) insert(r Run) error {
	for _, o := range r.Entries {
		if b.h.epochs.void(r.Epoch, o.OrderNum) {
			continue
		}
		if mine, ok := b.h.at(o.OrderNum); ok {
			// Held already. In the epoch that both follow the two can't differ, unless this replica
			// has diverged.
			if r.Epoch >= b.acknowledged && mine.OrderInfo != o {
				return b.diverge(o.OrderNum)
			}
			continue
		}
		if o.OrderNum <= b.Last() {
			continue
		}
		if old, ok := b.pendingDestOrder[o.OrderNum]; ok &&
			(old.Epoch >= r.Epoch || without(r123Highest)) {
			continue
		}
		b.pend(Ordered{o, r.Epoch})
	}
	return nil
}

// advance is FIG. 10's inner loop; nextOrderNum is the replica's state (as printed, reset at each
// call, it would stall). Nothing advances before the epoch has started (R12.1).
func (b *Backup) advance() error {
	if !b.started && !without(r121Executed) {
		return nil
	}
	return b.release()
}

func (b *Backup) diverge(k OrderNum) error {
	if b.diverged == 0 {
		b.diverged = k
	}
	return &DivergedError{b.diverged}
}

func (b *Backup) release() error {
	if b.diverged != 0 {
		return &DivergedError{b.diverged}
	}
	for {
		nextOrderNum := b.Last() + 1
		o, ok := b.pendingDestOrder[nextOrderNum]
		if !ok {
			return nil
		}
		if !b.h.fits(o.OrderInfo) {
			return b.diverge(nextOrderNum)
		}
		if !b.present(o.OrderInfo) {
			return nil
		}
		b.unpend(o)
		b.h.append(o)
		if o.Kind == Expire {
			delete(b.attached, o.Session)
		}
		b.endEarly(Session(nextOrderNum))
	}
}

// endEarly ends the wait of the messages of a session that would have been opened where the order
// has got to: it was, or their session isn't one.
func (b *Backup) endEarly(n Session) {
	early, ok := b.early[n]
	if !ok {
		return
	}
	delete(b.early, n)
	s := b.h.sessions.open(n)
	for _, q := range early {
		switch {
		case s == nil:
			b.h.messages.drop(nil, MessageID{n, q})
		case q != 0:
			s.calls[q] = 0
			s.waiting.add(1, b.h.messages.held[MessageID{n, q}].Size)
		}
	}
}

// dropEarly forgets the messages of sessions whose opening isn't pending any more. An opening
// itself may still be announced.
func (b *Backup) dropEarly() {
	for n, early := range b.early {
		if o, ok := b.pendingDestOrder[OrderNum(n)]; ok && o.Kind == Open {
			continue
		}
		b.early[n] = slices.DeleteFunc(early, func(q SeqNum) bool {
			if q != 0 {
				b.h.messages.drop(nil, MessageID{n, q})
			}
			return q != 0
		})
		if len(b.early[n]) == 0 {
			delete(b.early, n)
		}
	}
}

// present says whether an entry's message is held, with the bytes that were ordered.
func (b *Backup) present(o OrderInfo) bool {
	if !o.Kind.HasMessage() {
		return true
	}
	m, ok := b.h.messages.held[o.Message()]
	return ok && m.Digest == o.Digest
}

// Lacks returns up to limit messages that are ordered and not held (¶47), lowest orderNum first.
// What lies beyond a gap in orderNum can wait.
func (b *Backup) Lacks(limit int) []MessageID {
	var ids []MessageID
	for k := b.Last() + 1; len(ids) < limit; k++ {
		o, ok := b.pendingDestOrder[k]
		if !ok {
			break
		}
		if !b.present(o.OrderInfo) {
			ids = append(ids, o.Message())
		}
	}
	return ids
}

// lacks says whether Lacks has something to name.
func (b *Backup) lacks() bool {
	if len(b.pendingDestOrder) == 0 {
		return false
	}
	for k := b.Last() + 1; ; k++ {
		if o, ok := b.pendingDestOrder[k]; !ok || !b.present(o.OrderInfo) {
			return ok
		}
	}
}

// Next takes the next entry of messageOrder, ready to be executed, with its message, if it has one.
func (b *Backup) Next() (Ordered, Message, bool) {
	o, ok := b.h.at(b.executed + 1)
	// R12.1: nothing is executed between the answer and the epoch's start
	if !ok || !b.started && !without(r121Executed) || b.diverged != 0 {
		return Ordered{}, Message{}, false
	}
	b.executed++
	if !o.Kind.HasMessage() {
		return o, Message{}, true
	}
	return o, b.h.messages.held[o.Message()], true
}

// Executed says that the application has executed the order up to k; what is executed and stable is
// forgotten. A k above what Next has handed out counts as that.
func (b *Backup) Executed(k OrderNum) { b.h.forget(min(k, b.stable, b.executed)) }

// LearnStable takes the primary's word for the stable point, in an epoch.
func (b *Backup) LearnStable(epoch Epoch, stable OrderNum) Moved {
	if stable = min(stable, b.Last()); epoch != b.acknowledged || !b.started || stable <= b.stable {
		return Moved{}
	}
	b.stable, b.stableIn = stable, epoch
	return Moved{Stable: true}
}

// Acknowledgement is what this backup may tell: it holds order and messages up to here, in this
// epoch. It says so only when it knows where the epoch starts (R1b, R12.1).
func (b *Backup) Acknowledgement() (Epoch, OrderNum, bool) {
	if without(r3WithMessage) {
		return b.acknowledged, b.Last() + OrderNum(len(b.pendingDestOrder)), b.started
	}
	if without(r121Acknowledged) {
		return b.acknowledged, b.Last(), true
	}
	return b.acknowledged, b.Last(), b.started && b.diverged == 0
}

// Answer acknowledges a new epoch (R9, R12.1): from now on nothing from below it is accepted, and
// nothing is executed or acknowledged until Start. It returns what this backup knows of the order
// above the stable point, by orderNum; its messages are for the asking. An older epoch is refused
// (FencedError); who has diverged has nothing to tell (DivergedError).
func (b *Backup) Answer(e Epoch) ([]Ordered, error) {
	if e < b.acknowledged {
		return nil, &FencedError{Epoch: e, Acknowledged: b.acknowledged}
	}
	if e > b.acknowledged {
		b.acknowledged, b.started = e, false
	}
	if b.diverged != 0 {
		return nil, &DivergedError{b.diverged}
	}
	known := slices.Clone(b.h.Above(b.stable))
	for _, k := range sorted(maps.Keys(b.pendingDestOrder)) {
		known = append(known, b.pendingDestOrder[k])
	}
	return known, nil
}

// Start learns where the acknowledged epoch starts, and where those before it did; void entries are
// dropped (R9). A backup that holds an entry from there on has diverged: it must join again as a
// new incarnation, and till then neither executes nor acknowledges. Any other error changes
// nothing: an UnstableError says that what is stable isn't in the epoch.
func (b *Backup) Start(e Epoch, first OrderNum, earlier []Start) (Moved, error) {
	if e < b.acknowledged {
		return Moved{}, &FencedError{Epoch: e, Acknowledged: b.acknowledged}
	}
	table, err := b.h.epochs.with(append(slices.Clone(earlier), Start{e, first})...)
	if err != nil {
		return Moved{}, err
	}
	if newest := table.newest(); newest > e {
		return Moved{}, fmt.Errorf("orderstate: epoch %d can't know that epoch %d starts", e, newest)
	}
	if e == b.acknowledged && b.started {
		return Moved{}, nil
	}
	if err := b.keepsStable(table); err != nil {
		return Moved{}, err
	}
	b.acknowledged, b.started = e, false
	if err := b.adopt(table); err != nil {
		return Moved{}, err
	}
	b.h.prune()
	b.started, b.validIn, b.base = true, e, first-1
	clear(b.attached)
	last := b.Last()
	err = b.advance()
	return b.moved(last), err
}

// learn adds starts of epochs, and looks for what is void by them.
func (b *Backup) learn(starts ...Start) error {
	if !slices.ContainsFunc(starts, b.h.epochs.isNews) {
		return nil
	}
	table, err := b.h.epochs.with(starts...)
	if err != nil {
		return err
	}
	if err := b.keepsStable(table); err != nil {
		return err
	}
	return b.adopt(table)
}

// keepsStable refuses an epoch that begins at or below what was stable before: every in-sync
// replica holds that, so whoever has begun the epoch wasn't one.
func (b *Backup) keepsStable(table epochTable) error {
	if b.stable == 0 || !table.void(b.stableIn, b.stable) ||
		without(i5BackupRefuses) {
		return nil
	}
	return &UnstableError{b.stable, b.stableIn}
}

// adopt takes a larger table of epoch starts: what is void by it doesn't stay pending, and mustn't
// be held. What is below the cut needn't be stable, if it came as a snapshot.
func (b *Backup) adopt(table epochTable) error {
	b.h.epochs = table
	for k, o := range b.pendingDestOrder {
		if table.void(o.Epoch, k) && !without(r9DropsVoid) {
			b.unpend(o)
		}
	}
	b.dropEarly()
	for _, s := range table.starts {
		if b.validIn != 0 && s.Epoch > b.validIn && s.First <= b.h.cut {
			return b.diverge(s.First)
		}
	}
	for _, o := range b.h.Above(b.h.cut) {
		if table.void(o.Epoch, o.OrderNum) {
			return b.diverge(o.OrderNum)
		}
	}
	return nil
}

// Clone returns an independent copy.
func (b *Backup) Clone() *Backup {
	c := *b
	c.h = b.h.clone()
	c.pendingDestOrder, c.named = maps.Clone(b.pendingDestOrder), nil
	c.early = make(map[Session][]SeqNum, len(b.early))
	for n, early := range b.early {
		c.early[n] = slices.Clone(early)
	}
	c.attached = maps.Clone(b.attached)
	return &c
}
