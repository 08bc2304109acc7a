package orderstate

import (
	"fmt"
	"maps"
	"slices"
)

// History is what one replica holds of its group's past, whatever its role: the messages, their order without a gap, the sessions, and the epoch
// table. The order is kept from the cut on; what is below is in the application's state and held by every in-sync replica.
//
// Invariants:
//
//	H1  the order has no gap, and every entry's message is held (I2)
//	H2  a message is ordered at most once (I4)
//	H3  recorded times don't go back
//	H4  every request's session was opened before it, and hasn't expired
type History struct {
	epochs   Epochs
	messages map[MessageID]Message
	bytes    int // of messages, as their Size says
	cut      OrderNum
	order    []Ordered // cut+1, cut+2, …
	sessions map[Session]*session
	byNonce  map[Nonce]Session
	lastTime int64
}

type session struct {
	nonce    Nonce
	answered SeqNum              // the low-water mark that ordered messages have declared
	ordered  map[SeqNum]OrderNum // above answered
}

// SessionState is a session as a snapshot carries it.
type SessionState struct {
	Session      Session
	Nonce        Nonce
	AnsweredUpTo SeqNum
	Ordered      map[SeqNum]OrderNum
}

// NewHistory returns the history of a replica whose state holds every turn up to executed: nothing, or a snapshot.
func NewHistory(executed OrderNum, lastTime int64, starts []Start, sessions []SessionState) (*History, error) {
	h := &History{
		cut: executed, lastTime: lastTime,
		messages: map[MessageID]Message{}, sessions: map[Session]*session{}, byNonce: map[Nonce]Session{},
	}
	for _, s := range starts {
		if err := h.epochs.Learn(s); err != nil {
			return nil, err
		}
	}
	for _, s := range sessions {
		if s.Session == 0 || OrderNum(s.Session) > executed {
			return nil, fmt.Errorf("orderstate: session %d can't be in a state of %d turns", s.Session, executed)
		}
		for q, k := range s.Ordered {
			if k > executed || q <= s.AnsweredUpTo {
				return nil, fmt.Errorf("orderstate: message %d/%d at %d can't be in a state of %d turns", s.Session, q, k, executed)
			}
		}
		ordered := maps.Clone(s.Ordered)
		if ordered == nil {
			ordered = map[SeqNum]OrderNum{}
		}
		h.sessions[s.Session] = &session{nonce: s.Nonce, answered: s.AnsweredUpTo, ordered: ordered}
		h.byNonce[s.Nonce] = s.Session
	}
	return h, nil
}

// Last is the orderNum up to which order and messages are held without a gap.
func (h *History) Last() OrderNum { return h.cut + OrderNum(len(h.order)) }

// LastTime is the recorded time of the last entry, in microseconds since 1970.
func (h *History) LastTime() int64 { return h.lastTime }

// Epochs returns the table of epoch starts.
func (h *History) Epochs() *Epochs { return &h.epochs }

// Known says whether a session is open.
func (h *History) Known(s Session) bool { return h.sessions[s] != nil }

// Opened returns the session that a nonce opened.
func (h *History) Opened(n Nonce) (Session, bool) {
	s, ok := h.byNonce[n]
	return s, ok
}

// Nonce returns the nonce that opened a session.
func (h *History) Nonce(s Session) (Nonce, bool) {
	if known := h.sessions[s]; known != nil {
		return known.nonce, true
	}
	return Nonce{}, false
}

// AnsweredUpTo is a session's low-water mark, as its ordered messages have declared it.
func (h *History) AnsweredUpTo(s Session) SeqNum {
	if known := h.sessions[s]; known != nil {
		return known.answered
	}
	return 0
}

// Sessions returns the open sessions, sorted.
func (h *History) Sessions() []Session { return slices.Sorted(maps.Keys(h.sessions)) }

// SessionStates returns the sessions as of the turn executed, for a snapshot.
func (h *History) SessionStates(executed OrderNum) []SessionState {
	var states []SessionState
	for _, n := range h.Sessions() {
		if OrderNum(n) > executed {
			continue
		}
		s := h.sessions[n]
		state := SessionState{Session: n, Nonce: s.nonce, AnsweredUpTo: s.answered, Ordered: map[SeqNum]OrderNum{}}
		for q, k := range s.ordered {
			if k <= executed {
				state.Ordered[q] = k
			}
		}
		states = append(states, state)
	}
	return states
}

// Has returns a message that is held: ordered above the cut, or waiting for its order.
func (h *History) Has(id MessageID) (Message, bool) {
	m, ok := h.messages[id]
	return m, ok
}

// Bytes is the sum of the sizes of the messages that are held.
func (h *History) Bytes() int { return h.bytes }

// Held is how many messages are held.
func (h *History) Held() int { return len(h.messages) }

// At returns the entry for an orderNum above the cut.
func (h *History) At(k OrderNum) (Ordered, bool) {
	if k <= h.cut || k > h.Last() {
		return Ordered{}, false
	}
	return h.order[k-h.cut-1], true
}

// Above returns the order above k. The caller must not change it, nor keep it past the next call.
func (h *History) Above(k OrderNum) []Ordered {
	if k >= h.Last() {
		return nil
	}
	return h.order[max(k, h.cut)-h.cut:]
}

// log takes a message that isn't ordered yet, and says whether it is held now. A message that was ordered, or answered, needs no place again.
func (h *History) log(m Message) bool {
	if old, ok := h.messages[m.MessageID]; ok && old.Digest == m.Digest {
		return true
	}
	if m.SeqNum == 0 { // an opening: its session is its orderNum
		if OrderNum(m.Session) <= h.Last() {
			return true
		}
	} else {
		s := h.sessions[m.Session]
		if s == nil || m.SeqNum <= s.answered {
			return false
		}
		if _, ok := s.ordered[m.SeqNum]; ok {
			return true
		}
	}
	h.keep(m)
	return true
}

// keep and drop hold h.bytes to the messages that are held.
func (h *History) keep(m Message) {
	h.bytes += m.Size - h.messages[m.MessageID].Size
	h.messages[m.MessageID] = m
}

func (h *History) drop(id MessageID) {
	h.bytes -= h.messages[id].Size
	delete(h.messages, id)
}

// append puts an entry at the end of the order: its message is held, or it has none.
func (h *History) append(o Ordered) {
	m := h.messages[o.Message()]
	h.order = append(h.order, o)
	h.lastTime = max(h.lastTime, o.Time)
	switch o.Kind {
	case Open:
		h.sessions[o.Session] = &session{nonce: m.Nonce, ordered: map[SeqNum]OrderNum{}}
		h.byNonce[m.Nonce] = o.Session
	case Expire:
		h.expire(o.Session)
	default:
		s := h.sessions[o.Session]
		if s == nil {
			return
		}
		s.ordered[o.SeqNum] = o.OrderNum
		if m.AnsweredUpTo > s.answered {
			h.answer(o.Session, s, m.AnsweredUpTo)
		}
	}
}

// answer moves a session's low-water mark, and forgets what is at or below it and not in the order that is kept.
func (h *History) answer(n Session, s *session, mark SeqNum) {
	if mark-s.answered <= SeqNum(len(h.messages)+len(s.ordered)) {
		for q := s.answered + 1; q <= mark; q++ {
			h.answerOne(s, MessageID{n, q})
		}
	} else { // a mark that leaps: by what is there, so that the cost is bounded
		for id := range h.messages {
			if id.Session == n && id.SeqNum != 0 && id.SeqNum <= mark {
				h.answerOne(s, id)
			}
		}
		maps.DeleteFunc(s.ordered, func(q SeqNum, _ OrderNum) bool { return q <= mark })
	}
	s.answered = mark
}

func (h *History) answerOne(s *session, id MessageID) {
	if k, ok := s.ordered[id.SeqNum]; !ok || k <= h.cut {
		h.drop(id)
	}
	delete(s.ordered, id.SeqNum)
}

// expire forgets a session, and its messages that nobody ordered.
func (h *History) expire(n Session) {
	s := h.sessions[n]
	if s == nil {
		return
	}
	for id := range h.messages {
		if id.Session == n {
			if k, ok := s.ordered[id.SeqNum]; id.SeqNum > s.answered && (!ok || k <= h.cut) {
				h.drop(id)
			}
		}
	}
	delete(h.byNonce, s.nonce)
	delete(h.sessions, n)
}

// Cut forgets the order up to k, with its messages: they are executed here, and held by every in-sync replica.
func (h *History) Cut(k OrderNum) {
	if k <= h.cut {
		return
	}
	n := min(k, h.Last()) - h.cut
	for _, o := range h.order[:n] {
		h.drop(o.Message())
	}
	h.order = h.order[n:]
	h.cut += n
	h.epochs.Prune(h.cut)
}

// CutAt is the orderNum up to which the order was forgotten.
func (h *History) CutAt() OrderNum { return h.cut }

func (h *History) clone() History {
	c := *h
	c.epochs = h.epochs.Clone()
	c.messages = maps.Clone(h.messages)
	c.order = slices.Clone(h.order)
	c.byNonce = maps.Clone(h.byNonce)
	c.sessions = make(map[Session]*session, len(h.sessions))
	for n, s := range h.sessions {
		c.sessions[n] = &session{s.nonce, s.answered, maps.Clone(s.ordered)}
	}
	return c
}
