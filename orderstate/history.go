package orderstate

import (
	"fmt"
	"maps"
)

// History is what one replica holds of its group's past, whatever its role: the messages, their
// order without a gap, the sessions, and the epoch table. The order is kept from the cut on; what
// is below is in the application's state and held by every in-sync replica.
//
// Invariants:
//
//	H1  the order has no gap, and every entry's message is held (I2)
//	H2  a message is ordered at most once (I4)
//	H3  recorded times don't go back
//	H4  every request's session was opened before it, and hasn't expired; a nonce opens one
//	    session at a time
//	H5  a message that is held is ordered, or its session may still have it ordered: nothing stays
//	    that is answered, expired or cut
//	H6  the sessions are known as of every turn from the cut on
type History struct {
	epochs   epochTable
	messages messageLog
	cut      OrderNum
	cutTime  int64           // the recorded time at the cut
	order    window[Ordered] // cut+1, cut+2, …
	sessions sessionTable
	lastTime int64
}

// NewHistory returns the history of a replica whose state holds every turn up to executed: nothing
// (0, 0, nil, nil), or a snapshot, with its recorded time (TimeAt), epoch table and sessions
// (SessionStates). The history begins there: a snapshot that is ahead of the stable point leaves
// this replica unable to tell others the order between the two, so whoever counts on it (R13) must
// wait until that is stable, or give it the donor's order from the donor's cut, and the sessions as
// of that.
func NewHistory(executed OrderNum, lastTime int64, starts []Start, sessions []SessionState) (*History, error) {
	h := &History{
		cut: executed, cutTime: lastTime, lastTime: lastTime,
		messages: messageLog{held: map[MessageID]Message{}},
		sessions: sessionTable{map[Session]*session{}, map[Nonce]Session{}},
	}
	for _, s := range starts {
		if err := h.epochs.learn(s); err != nil {
			return nil, err
		}
	}
	if executed > lastOrderNum {
		return nil, fmt.Errorf("orderstate: no state holds %d turns", executed)
	}
	for _, s := range sessions {
		if err := h.sessions.learn(s, executed); err != nil {
			return nil, err
		}
	}
	return h, nil
}

// Last is the orderNum up to which order and messages are held without a gap.
func (h *History) Last() OrderNum { return h.cut + OrderNum(h.order.len()) }

// LastTime is the recorded time of the last entry, in microseconds since 1970.
func (h *History) LastTime() int64 { return h.lastTime }

// TimeAt is the recorded time of the turn k, in microseconds since 1970, for a snapshot; k is from
// CutAt to Last, and others count as the nearer of these.
func (h *History) TimeAt(k OrderNum) int64 {
	if o, ok := h.at(min(k, h.Last())); ok {
		return o.Time
	}
	return h.cutTime
}

// Starts returns the table of epoch starts, by growing epoch. The caller must not change it.
func (h *History) Starts() []Start { return h.epochs.starts }

// StartOf returns where an epoch starts, while that decides anything about what is held.
func (h *History) StartOf(e Epoch) (OrderNum, bool) { return h.epochs.first(e) }

// Known says whether a session is open.
func (h *History) Known(s Session) bool { return h.sessions.open(s) != nil }

// Opened returns the open session that a nonce opened.
func (h *History) Opened(n Nonce) (Session, bool) {
	s, ok := h.sessions.byNonce[n]
	return s, ok
}

// Nonce returns the nonce that opened a session; false if it isn't open.
func (h *History) Nonce(s Session) (Nonce, bool) {
	if known := h.sessions.open(s); known != nil {
		return known.nonce, true
	}
	return Nonce{}, false
}

// AnsweredUpTo is an open session's low-water mark, as its ordered messages have declared it; 0 if
// it isn't open.
func (h *History) AnsweredUpTo(s Session) SeqNum {
	if known := h.sessions.open(s); known != nil {
		return known.answered
	}
	return 0
}

// Sessions returns the open sessions, sorted.
func (h *History) Sessions() []Session { return h.sessions.numbers() }

// SessionStates returns the sessions as of the turn executed, sorted, for a snapshot: whatever was
// ordered after it doesn't count. executed is from CutAt to Last; others count as the nearer of
// these.
func (h *History) SessionStates(executed OrderNum) []SessionState {
	executed = min(max(executed, h.cut), h.Last())
	marks := map[Session]SeqNum{} // declared after the cut
	for _, o := range h.order.all()[:executed-h.cut] {
		if o.Kind == Request {
			marks[o.Session] = max(marks[o.Session], h.messages.held[o.Message()].AnsweredUpTo)
		}
	}
	var states []SessionState
	for _, n := range sorted(maps.Keys(h.sessions.known)) {
		s := h.sessions.known[n]
		if OrderNum(n) > executed || s.expired != 0 && s.expired <= executed {
			continue
		}
		state := SessionState{Session: n, Nonce: s.nonce, AnsweredUpTo: max(s.atCut, marks[n]),
			Ordered: map[SeqNum]OrderNum{}}
		for q, k := range s.calls {
			if k != 0 && k <= executed && q > state.AnsweredUpTo {
				state.Ordered[q] = k
			}
		}
		states = append(states, state)
	}
	return states
}

// Has returns a message that is held: ordered above the cut, or waiting for its order.
func (h *History) Has(id MessageID) (Message, bool) {
	m, ok := h.messages.held[id]
	return m, ok
}

// Bytes is the sum of the sizes of the messages that are held.
func (h *History) Bytes() int { return h.messages.bytes() }

// Logged is the sum of the sizes of the messages that are ordered, above the cut.
func (h *History) Logged() int { return h.messages.logged }

// Of is what one session has in this history. The zero value is of a session that isn't open.
type Of struct {
	Waiting, WaitingBytes int // messages that are held, and that nobody has ordered
	Outstanding           int // messages that are ordered, above the session's low-water mark
	Logged                int // bytes of its messages that are ordered, above the cut
}

// Of returns what an open session has in this history.
func (h *History) Of(n Session) Of {
	s := h.sessions.open(n)
	if s == nil {
		return Of{}
	}
	return Of{s.waiting.messages, s.waiting.bytes, s.ordered, s.logged}
}

// OpenSessions is how many sessions are open.
func (h *History) OpenSessions() int { return len(h.sessions.byNonce) }

// Held is how many messages are held.
func (h *History) Held() int { return len(h.messages.held) }

// at returns the entry for an orderNum above the cut.
func (h *History) at(k OrderNum) (Ordered, bool) {
	if k <= h.cut || k > h.Last() {
		return Ordered{}, false
	}
	return h.order.all()[k-h.cut-1], true
}

// Above returns the order above k, or above the cut if that is higher. The caller must not change
// it, nor keep it past the next call.
func (h *History) Above(k OrderNum) []Ordered {
	if k >= h.Last() {
		return nil
	}
	return h.order.all()[max(k, h.cut)-h.cut:]
}

// Newest returns the last n entries of the order, or what there is of them above the cut. The
// caller must not change them, nor keep them past the next call.
func (h *History) Newest(n int) []Ordered {
	list := h.order.all()
	return list[len(list)-min(n, len(list)):]
}

// log takes a session's message, and says whether it is held now. One that is ordered keeps its
// place and its bytes; one that is answered gets none.
func (h *History) log(m Message) bool {
	s := h.sessions.open(m.Session)
	if s == nil || m.SeqNum <= s.answered {
		return false
	}
	if s.calls[m.SeqNum] == 0 {
		s.calls[m.SeqNum] = 0
		h.messages.keep(s, m)
	}
	return true
}

// fits says whether an entry may be the next of the order, as far as can be said without its
// message: H2, H3, H4.
func (h *History) fits(o OrderInfo) bool {
	if last, ok := h.at(h.Last()); ok && o.Time < last.Time {
		return false
	}
	switch s := h.sessions.open(o.Session); o.Kind {
	case Open:
		m, held := h.messages.held[o.Message()]
		_, opened := h.sessions.byNonce[m.Nonce]
		return s == nil && !(held && opened)
	case Expire:
		return s != nil
	default:
		return s != nil && o.SeqNum > s.answered && s.calls[o.SeqNum] == 0
	}
}

// append puts an entry that fits at the end of the order: its message is held, or it has none.
func (h *History) append(o Ordered) {
	h.order.push(o)
	h.lastTime = max(h.lastTime, o.Time)
	switch o.Kind {
	case Open:
		h.sessions.begin(o.Session, h.messages.order(nil, o.Message()).Nonce)
	case Expire:
		h.sessions.end(o.Session, o.OrderNum, &h.messages)
	default:
		s := h.sessions.known[o.Session]
		m := h.messages.order(s, o.Message())
		s.calls[o.SeqNum] = o.OrderNum
		s.ordered++
		s.answer(m.AnsweredUpTo, &h.messages)
	}
}

// forget cuts the order up to k, with its messages: they are executed here, and held by every
// in-sync replica. A k above Last counts as Last.
func (h *History) forget(k OrderNum) {
	if k <= h.cut {
		return
	}
	n := min(k, h.Last()) - h.cut
	for _, o := range h.order.all()[:n] {
		h.cutTime = o.Time
		switch o.Kind {
		case Open:
			h.messages.cut(nil, o.Message())
		case Expire:
			delete(h.sessions.known, o.Session)
		default:
			s := h.sessions.known[o.Session]
			s.cut(h.messages.cut(s, o.Message()).AnsweredUpTo)
		}
	}
	h.order.drop(int(n))
	h.cut += n
}

// CutAt is the orderNum up to which the order was forgotten.
func (h *History) CutAt() OrderNum { return h.cut }

// prune forgets epoch starts that tell neither entries above the cut apart, nor what an open
// session can have accepted, however long it was away (I5): nothing below its opening. It is called
// once an epoch.
func (h *History) prune() {
	below := h.cut
	for n, s := range h.sessions.known {
		if s.expired == 0 {
			below = min(below, OrderNum(n)-1)
		}
	}
	h.epochs.prune(below)
}

func (h *History) clone() *History {
	c := *h
	c.epochs = h.epochs.clone()
	c.messages = h.messages.clone()
	c.order = h.order.clone()
	c.sessions = h.sessions.clone()
	return &c
}
