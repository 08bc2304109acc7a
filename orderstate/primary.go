package orderstate

import (
	"fmt"
	"maps"
	"slices"
)

// Primary is the state of a group's primary in one epoch: FIG. 7, 8 and 9.
//
// The patent's pendingSourceOrder list is the part of the order above the stable point (R3):
// PendingSourceOrder.
//
// Invariants, besides H1-H6:
//
//	P1  stable is never beyond the order, nor moves beyond what a member of the required set has
//	    acknowledged in this epoch
//	P2  nothing above the stable point is forgotten (R3)
//	P3  the order above first-1 was first ordered in this epoch
type Primary struct {
	h       *History
	epoch   Epoch
	first   OrderNum
	members map[Replica]acknowledgement // the required set (R13), with what each has acknowledged in this epoch
	number  uint64                      // of the required set
	stable  OrderNum
	pushed  OrderNum // null messages have carried the order up to here
	max     int      // pendingSourceOrderMax
	// reflected is up to where each session has reflected announcements (FIG. 9).
	reflected map[Session]OrderNum
	// held is up to where each session has said that it holds every announcement, in this epoch
	// (R2).
	held map[Session]OrderNum
	// declared is the low-water mark of a session as a request that wasn't ordered has declared it.
	declared map[Session]SeqNum
	// attached holds, by follower, the sessions that it hears (R11); all others are detached there.
	attached map[Replica]map[Session]bool
}

// acknowledgement is up to where a member holds order and messages; any says that it knows where
// the epoch starts (R12.1), joined that it wasn't a peer then.
type acknowledgement struct {
	upTo        OrderNum
	any, joined bool
}

// Verdict is what becomes of a message at the primary.
type Verdict uint8

const (
	// Fresh: it was ordered just now; execute it.
	Fresh Verdict = iota
	// Duplicate: it was ordered before; its reply is, or will be, in the reply log.
	Duplicate
	// Answered: it is at or below its session's low-water mark, so its source has the reply, or
	// gave up.
	Answered
	// Unknown: its session was never opened, or expired (R11).
	Unknown
)

func (v Verdict) String() string { return [...]string{"fresh", "duplicate", "answered", "unknown"}[v] }

// NewPrimary starts an epoch: the members are the other in-sync replicas, who must acknowledge in
// it, and stable is where the order was known stable before (a value beyond Last counts as Last).
// pendingSourceOrderMax is FIG. 7's: how many entries may wait for a ride before a null message
// takes them; 0 asks for one with every entry. The primary owns h from now on.
func NewPrimary(
	h *History, epoch Epoch, stable OrderNum, members []Replica, pendingSourceOrderMax int,
) (*Primary, error) {
	first := h.Last() + 1
	if newest := h.epochs.newest(); newest > epoch {
		return nil, &FencedError{Epoch: epoch, Acknowledged: newest}
	}
	if err := h.epochs.learn(Start{epoch, first}); err != nil {
		return nil, err
	}
	h.prune()
	p := &Primary{
		h: h, epoch: epoch, first: first, stable: min(stable, h.Last()), max: pendingSourceOrderMax,
		members: map[Replica]acknowledgement{}, number: 1, reflected: map[Session]OrderNum{},
		held: map[Session]OrderNum{}, declared: map[Session]SeqNum{},
		attached: map[Replica]map[Session]bool{},
	}
	if without(r123Pending) {
		p.stable = h.Last()
	}
	p.pushed = max(p.stable, h.cut)
	for _, m := range members {
		p.members[m] = acknowledgement{}
		if without(r11Epoch) {
			for _, n := range h.Sessions() {
				p.attach(m, n)
			}
		}
	}
	p.stabilise()
	return p, nil
}

// History is what this primary holds, to be read.
func (p *Primary) History() *History { return p.h }

// Last is the orderNum up to which messages are ordered.
func (p *Primary) Last() OrderNum { return p.h.Last() }

// Epoch is the epoch of this primary.
func (p *Primary) Epoch() Epoch { return p.epoch }

// First is the epoch's first orderNum.
func (p *Primary) First() OrderNum { return p.first }

// Stable is up to where every member of the required set holds order and messages, in this epoch.
func (p *Primary) Stable() OrderNum { return p.stable }

// Judge says what Order would do with a message of a session. It notes the mark that the message
// declares.
func (p *Primary) Judge(id MessageID, answeredUpTo SeqNum) Verdict {
	v := p.judge(id, answeredUpTo)
	if v != Unknown && answeredUpTo > max(p.h.sessions.known[id.Session].answered, p.declared[id.Session]) {
		p.declared[id.Session] = answeredUpTo
	}
	return v
}

func (p *Primary) judge(id MessageID, answeredUpTo SeqNum) Verdict {
	s := p.h.sessions.open(id.Session)
	switch {
	case s == nil:
		return Unknown
	case id.SeqNum <= max(s.answered, answeredUpTo), len(p.declared) > 0 && id.SeqNum <= p.declared[id.Session]:
		return Answered
	case s.calls[id.SeqNum] != 0:
		return Duplicate
	}
	return Fresh
}

// Order gives a message the next orderNum: FIG. 7. A null message is due (Push) when too many
// entries wait for a ride (R4), and always for a session that is detached at a member: its replies
// wait for that. The caller executes the message itself; without members it is stable at once. now
// is in microseconds since 1970. A message that isn't Fresh isn't ordered, but the mark that it
// declares is noted.
func (p *Primary) Order(m Message, now int64) (o OrderInfo, v Verdict, moved Moved) {
	if v = p.judge(m.MessageID, m.AnsweredUpTo); v != Fresh {
		return OrderInfo{}, p.Judge(m.MessageID, m.AnsweredUpTo), Moved{}
	}
	p.h.messages.keep(p.h.sessions.known[m.Session], m) // the bytes that are executed, whatever a frame brought
	o, moved = p.place(OrderInfo{SeqNum: m.SeqNum, Session: m.Session, Kind: Request, Digest: m.Digest}, now)
	return o, Fresh, moved
}

// Open orders the opening of a session (R11). A nonce opens one session only: while that is open, o
// names it, with nothing of its entry but the orderNum, and the verdict is Duplicate.
func (p *Primary) Open(n Nonce, digest uint64, body any, now int64) (o OrderInfo, v Verdict, moved Moved) {
	if known, ok := p.h.sessions.byNonce[n]; ok {
		return OrderInfo{OrderNum: OrderNum(known), Session: known, Kind: Open}, Duplicate, Moved{}
	}
	number := Session(p.Last() + 1)
	id := MessageID{number, 0}
	p.h.messages.keep(nil, Message{MessageID: id, Digest: digest, Nonce: n, Body: body})
	o, moved = p.place(OrderInfo{Session: number, Kind: Open, Digest: digest}, now)
	if without(r11Session) {
		for r := range p.members {
			p.attach(r, number)
		}
	}
	return o, Fresh, moved
}

// Expire orders the end of a session; one that isn't open is Unknown.
func (p *Primary) Expire(n Session, now int64) (o OrderInfo, v Verdict, moved Moved) {
	if p.h.sessions.open(n) == nil {
		return OrderInfo{}, Unknown, Moved{}
	}
	o, moved = p.place(OrderInfo{Session: n, Kind: Expire}, now)
	delete(p.reflected, n)
	delete(p.held, n)
	delete(p.declared, n)
	for r := range p.attached {
		p.detach(r, n)
	}
	return o, Fresh, moved
}

// place is the box of FIG. 7: increment orderNum, form orderInfo, append it to pendingSourceOrder,
// and see whether the list is too long.
func (p *Primary) place(o OrderInfo, now int64) (OrderInfo, Moved) {
	o.OrderNum = p.Last() + 1
	o.First = p.epoch
	o.Time = max(now, p.h.lastTime)
	p.h.append(Ordered{o, p.epoch})
	if len(p.members) == 0 {
		p.stable = o.OrderNum
	}
	long := o.OrderNum-p.carried() > OrderNum(max(p.max, 0))
	return o, Moved{Push: long && !without(r4) || !p.Attached(o.Session)}
}

// carried is up to where a null message has carried the order, or none needs to.
func (p *Primary) carried() OrderNum { return max(p.pushed, p.stable) }

// PendingSourceOrder is the patent's list: ordered, not yet known to be held by every in-sync
// backup (R3). The caller must not change it, nor keep it past the next call.
func (p *Primary) PendingSourceOrder() []Ordered { return p.h.Above(p.stable) }

// Multicast is the first loop of FIG. 8: the announcement that a reply carries as its
// sourceOrderInfo, everything above what its source holds that isn't known stable, up to the
// reply's own orderNum (R2). The source holds what its request said, and what any other request has
// said that came before the reply leaves, since what it holds only grows in an epoch. The run is
// the caller's; its entries are appended to into, which may be nil.
func (p *Primary) Multicast(n Session, heldUpTo, orderNum OrderNum, into []OrderInfo) Run {
	return p.run(max(heldUpTo, p.held[n], p.stable), orderNum, into)
}

// Null is the null message's announcement (FIG. 7, R4): what none has carried yet. Calling it marks
// it as pushed.
func (p *Primary) Null() Run {
	r := p.run(p.carried(), p.Last(), nil)
	p.pushed = p.Last()
	return r
}

// Push is what a stream to a backup must carry that has carried the order up to sent: on a new one
// everything above the stable point (R4); for a joiner, what is kept for it.
func (p *Primary) Push(sent OrderNum) Run { return p.run(sent, p.Last(), nil) }

// Unpushed is the oldest entry that no null message has carried, and that isn't stable.
func (p *Primary) Unpushed() (Ordered, bool) { return p.h.at(p.carried() + 1) }

// run is the part of the order in (above, upTo], or what there is of it; an empty one has a Count
// of 0.
func (p *Primary) run(above, upTo OrderNum, into []OrderInfo) Run {
	above = min(max(above, p.h.cut), p.Last())
	r := Run{Envelope: Envelope{Epoch: p.epoch, EpochFirst: p.first, First: above + 1}}
	if upTo = min(upTo, p.Last()); upTo <= above {
		return r
	}
	ordered := p.h.Above(above)[:upTo-above]
	r.Count = len(ordered)
	r.Entries = slices.Grow(into[:0], len(ordered))[:len(ordered)]
	for i, o := range ordered {
		r.Entries[i] = o.OrderInfo
		if without(r7FirstEpoch) {
			r.Entries[i].First = p.epoch
		}
	}
	return r
}

// Receive is the first loop of FIG. 9: a session has reflected these announcements, and holds all
// up to heldUpTo. The primary records it; the entries leave pendingSourceOrder only by R3, since
// what one source has reflected may still die with that source. What can't be is passed over. The
// message must name this epoch (R9), or say that it holds nothing.
func (p *Primary) Receive(n Session, heldUpTo OrderNum, destOrderInfo []Envelope) {
	if p.h.sessions.open(n) == nil {
		return
	}
	if heldUpTo > p.held[n] {
		p.held[n] = heldUpTo
	}
	for _, e := range destOrderInfo {
		if e.Epoch == p.epoch && e.check() == nil && e.Last() <= p.Last() && e.Last() > p.reflected[n] {
			p.reflected[n] = e.Last()
			if without(r3OneReflection) { // FIG. 9 as printed
				p.stable = max(p.stable, e.Last())
			}
		}
	}
}

// Acknowledge records that a member holds order and messages up to k in an epoch; acknowledgements
// count only in their epoch (R1b), and cumulatively. Stable or Held may change, or, while a session
// is detached at that member, what MayLeave says. It is an error to acknowledge what isn't ordered:
// that member has diverged.
func (p *Primary) Acknowledge(r Replica, epoch Epoch, k OrderNum) (Moved, error) {
	before, member := p.members[r]
	if !member || epoch != p.epoch && !without(r3InEpoch) {
		return Moved{}, nil
	}
	if k > p.Last() {
		return Moved{}, fmt.Errorf("orderstate: %s acknowledges %d, but the order ends at %d", r, k, p.Last())
	}
	if before.any && k <= before.upTo {
		return Moved{}, nil
	}
	p.members[r] = acknowledgement{k, true, before.joined}
	moved := Moved{Leave: p.deaf(r)}
	if before.any && before.upTo > p.stable {
		return moved, nil // the stable point waits for another
	}
	moved.Stable = p.stabilise()
	moved.Gate = !before.any && p.Held()
	return moved, nil
}

// stabilise is R3: the stable point is what every member has acknowledged.
func (p *Primary) stabilise() bool {
	stable := p.Last()
	for _, a := range p.members {
		if !without(r3EveryBackup) {
			stable = min(stable, a.upTo)
		}
	}
	if stable <= p.stable {
		return false
	}
	p.stable = stable
	return true
}

// Require counts a replica in the required set and in R3 (R13, grow: first). It may be put in-sync
// when it has acknowledged all that was ordered by then, and the stable point has reached the turn
// of its snapshot: before that it couldn't tell the order between the two, if it were the one that
// is left.
func (p *Primary) Require(r Replica) Moved {
	if _, ok := p.members[r]; ok {
		return Moved{}
	}
	p.members[r] = acknowledgement{joined: true}
	p.number++
	return Moved{Required: true}
}

// Release takes a replica out of the required set: after etcd has it out of in-sync (R13, shrink),
// or a joiner that failed. Stable, Held and what MayLeave says may change.
func (p *Primary) Release(r Replica) Moved {
	if _, ok := p.members[r]; !ok {
		return Moved{}
	}
	held := p.Held()
	moved := Moved{Required: true, Leave: p.deaf(r)}
	delete(p.members, r)
	delete(p.attached, r)
	p.number++
	moved.Stable = p.stabilise()
	moved.Gate = held != p.Held()
	return moved
}

// Required returns the required set and its number, which grows with every change in the epoch.
func (p *Primary) Required() (number uint64, members []Replica) {
	return p.number, sorted(maps.Keys(p.members))
}

// Number is that of the required set.
func (p *Primary) Number() uint64 { return p.number }

// Acknowledged is what a member of the required set has acknowledged in this epoch.
func (p *Primary) Acknowledged(r Replica) (OrderNum, bool) {
	a, ok := p.members[r]
	return a.upTo, ok
}

// Held says whether every in-sync peer knows where the epoch starts, and holds everything up to
// there, so that the gate may open (R12.4). Who joins later doesn't count.
func (p *Primary) Held() bool {
	for _, a := range p.members {
		if without(r124) {
			return true
		}
		if !a.joined && (!a.any || a.upTo < p.first-1) {
			return false
		}
	}
	return true
}

// Executed says that the application has executed the order up to k; what is executed and stable is
// forgotten.
func (p *Primary) Executed(k OrderNum) { p.h.forget(min(k, p.stable)) }

// Clone returns an independent copy.
func (p *Primary) Clone() *Primary {
	c := *p
	c.h = p.h.clone()
	c.members, c.reflected, c.declared = maps.Clone(p.members), maps.Clone(p.reflected), maps.Clone(p.declared)
	c.held = maps.Clone(p.held)
	c.attached = make(map[Replica]map[Session]bool, len(p.attached))
	for r, sessions := range p.attached {
		c.attached[r] = maps.Clone(sessions)
	}
	return &c
}
