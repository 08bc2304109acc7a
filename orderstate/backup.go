package orderstate

import (
	"fmt"
	"maps"
)

// Backup is the state of a backup: FIG. 10.
//
// Invariants, besides H1-H4:
//
//	B1  nothing is accepted from below the acknowledged epoch (R9, I6)
//	B2  an entry that is known void isn't pending (R12.3)
//	B3  what may be executed is a prefix of the order, and doesn't grow between an answer and the epoch's start (R12.1)
type Backup struct {
	*History
	acknowledged Epoch
	// started: the first orderNum of the acknowledged epoch is known (R12.1).
	started bool
	stable  OrderNum
	// pendingDestOrder holds announcements that wait for lower orderNums, or for their messages.
	pendingDestOrder map[OrderNum]Ordered
	// executed is up to where Next has handed out messageOrder.
	executed OrderNum
}

// NewBackup returns a backup whose application state holds what h says was executed, and which follows epoch; start is where that epoch starts, 0 if not known yet.
func NewBackup(h *History, epoch Epoch, start OrderNum) (*Backup, error) {
	b := &Backup{History: h, acknowledged: epoch, pendingDestOrder: map[OrderNum]Ordered{}, executed: h.Last(), stable: h.cut}
	if start != 0 {
		if err := h.epochs.Learn(Start{epoch, start}); err != nil {
			return nil, err
		}
		b.started = true
	}
	return b, nil
}

// Epoch is the highest epoch that this backup has acknowledged.
func (b *Backup) Epoch() Epoch { return b.acknowledged }

// Started says whether the acknowledged epoch's first orderNum is known.
func (b *Backup) Started() bool { return b.started }

// Stable is up to where the primary has said that the order is stable.
func (b *Backup) Stable() OrderNum { return b.stable }

// Message logs a message that a source, or a peer, has sent, and says whether the backup holds it now: false for one that its session has
// answered, or of a session not known here.
func (b *Backup) Message(m Message) bool {
	held := b.log(m)
	if held {
		b.advance()
	}
	return held
}

// Receive is FIG. 10: the entries of a reflected announcement, or of a null message, go to pendingDestOrder, and from there, while there is no gap, to messageOrder.
// An announcement of another epoch than the acknowledged one is refused (R9): an older one's primary is deposed, a newer one's start isn't known yet.
func (b *Backup) Receive(r Run) error {
	if r.Epoch != b.acknowledged || !b.started {
		return nil
	}
	if first, _ := b.epochs.First(r.Epoch); first != r.EpochFirst {
		return fmt.Errorf("orderstate: a run says that epoch %d starts at %d, it starts at %d", r.Epoch, r.EpochFirst, first)
	}
	if err := b.insert(r); err != nil {
		return err
	}
	b.advance()
	return nil
}

// insert is FIG. 10's outer loop.
func (b *Backup) insert(r Run) error {
	if r.Count != len(r.Entries) {
		return fmt.Errorf("orderstate: run %v has %d entries", r.Envelope, len(r.Entries))
	}
	for i, o := range r.Entries {
		if o.OrderNum != r.First+OrderNum(i) {
			return fmt.Errorf("orderstate: run %v has entry %v at place %d", r.Envelope, o, i)
		}
		if b.epochs.Void(r.Epoch, o.OrderNum) {
			continue
		}
		if mine, ok := b.At(o.OrderNum); ok {
			// Held already. In the epoch that both follow the two can't differ, unless this replica has diverged.
			if r.Epoch >= b.acknowledged && !same(mine.OrderInfo, o) {
				return &DivergedError{o.OrderNum}
			}
			continue
		}
		if o.OrderNum <= b.Last() {
			continue
		}
		if old, ok := b.pendingDestOrder[o.OrderNum]; ok && old.Epoch >= r.Epoch {
			continue
		}
		b.pendingDestOrder[o.OrderNum] = Ordered{o, r.Epoch}
	}
	return nil
}

// advance is FIG. 10's inner loop; nextOrderNum is the replica's state (as printed, reset at each call, it would stall).
func (b *Backup) advance() {
	if !b.started {
		return
	}
	b.release()
}

func (b *Backup) release() {
	for {
		nextOrderNum := b.Last() + 1
		o, ok := b.pendingDestOrder[nextOrderNum]
		if !ok || !b.present(o.OrderInfo) {
			return
		}
		delete(b.pendingDestOrder, nextOrderNum)
		b.append(o)
	}
}

// present says whether an entry's message is held, with the bytes that were ordered.
func (b *Backup) present(o OrderInfo) bool {
	if o.Kind == Expire {
		return true
	}
	m, ok := b.messages[o.Message()]
	return ok && m.Digest == o.Digest
}

// Lacks returns up to limit messages that are ordered and not held (¶47), lowest orderNum first.
func (b *Backup) Lacks(limit int) []MessageID {
	var ids []MessageID
	left := len(b.pendingDestOrder)
	for k := b.Last() + 1; left > 0 && len(ids) < limit; k++ {
		o, ok := b.pendingDestOrder[k]
		if !ok {
			// A gap in orderNum: what lies beyond it can wait.
			break
		}
		left--
		if !b.present(o.OrderInfo) {
			ids = append(ids, o.Message())
		}
	}
	return ids
}

// Gap says whether announcements are pending beyond a gap in orderNum.
func (b *Backup) Gap() bool {
	if len(b.pendingDestOrder) == 0 {
		return false
	}
	_, ok := b.pendingDestOrder[b.Last()+1]
	return !ok
}

// Next takes the next entry of messageOrder, ready to be executed, with its message.
func (b *Backup) Next() (Ordered, Message, bool) {
	if !b.started { // R12.1: nothing is executed between the answer and the epoch's start
		return Ordered{}, Message{}, false
	}
	o, ok := b.At(b.executed + 1)
	if !ok {
		return Ordered{}, Message{}, false
	}
	b.executed++
	return o, b.messages[o.Message()], true
}

// Taken is up to where Next has handed out messageOrder.
func (b *Backup) Taken() OrderNum { return b.executed }

// Executed says that the application has executed the order up to k; what is executed and stable is forgotten.
func (b *Backup) Executed(k OrderNum) { b.Cut(min(k, b.stable)) }

// LearnStable takes the primary's word for the stable point, in an epoch.
func (b *Backup) LearnStable(epoch Epoch, stable OrderNum) {
	if epoch == b.acknowledged && b.started && stable > b.stable {
		b.stable = min(stable, b.Last())
	}
}

// Acknowledgement is what this backup may tell: it holds order and messages up to here, in this epoch. It says so only when it knows where the epoch starts (R1b, R12.1).
func (b *Backup) Acknowledgement() (Epoch, OrderNum, bool) {
	return b.acknowledged, b.Last(), b.started
}

// Answer acknowledges a new epoch (R9, R12.1): from now on nothing from below it is accepted, and nothing is executed or acknowledged until Start. It returns
// what this backup knows of the order above the stable point; its messages are for the asking. An older epoch is refused.
func (b *Backup) Answer(e Epoch) ([]Ordered, error) {
	if e < b.acknowledged {
		return nil, &FencedError{Epoch: e, Acknowledged: b.acknowledged}
	}
	if e > b.acknowledged {
		b.acknowledged, b.started = e, false
	}
	known := append([]Ordered(nil), b.Above(b.stable)...)
	for _, k := range sorted(maps.Keys(b.pendingDestOrder)) {
		known = append(known, b.pendingDestOrder[k])
	}
	return known, nil
}

// Start learns where the acknowledged epoch starts, and where those before it did; void entries are dropped (R9). A backup that holds an entry from there on has diverged: it must join again as
// a new incarnation.
func (b *Backup) Start(e Epoch, first OrderNum, earlier []Start) error {
	if e < b.acknowledged {
		return &FencedError{Epoch: e, Acknowledged: b.acknowledged}
	}
	if e == b.acknowledged && b.started {
		return b.epochs.Learn(Start{e, first})
	}
	for _, s := range append(append([]Start(nil), earlier...), Start{e, first}) {
		if err := b.epochs.Learn(s); err != nil {
			return err
		}
	}
	for k, o := range b.pendingDestOrder {
		if b.epochs.Void(o.Epoch, k) {
			delete(b.pendingDestOrder, k)
		}
	}
	for _, o := range b.Above(b.cut) {
		if b.epochs.Void(o.Epoch, o.OrderNum) {
			return &DivergedError{o.OrderNum}
		}
	}
	b.acknowledged, b.started = e, true
	b.advance()
	return nil
}

// Clone returns an independent copy.
func (b *Backup) Clone() *Backup {
	c := *b
	h := b.History.clone()
	c.History = &h
	c.pendingDestOrder = maps.Clone(b.pendingDestOrder)
	return &c
}

// same compares what an order means, not when it was announced.
func same(a, b OrderInfo) bool {
	return a.OrderNum == b.OrderNum && a.Message() == b.Message() && a.Kind == b.Kind && a.Digest == b.Digest && a.Time == b.Time && a.First == b.First
}
