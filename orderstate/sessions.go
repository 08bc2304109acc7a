package orderstate

import (
	"fmt"
	"maps"
	"slices"
)

// sessionTable is the table of the sessions that are open, or whose end isn't cut yet.
type sessionTable struct {
	known   map[Session]*session
	byNonce map[Nonce]Session // of the open ones
}

// session is what is known of one session.
type session struct {
	number   Session
	nonce    Nonce
	answered SeqNum   // the low-water mark that ordered messages have declared
	atCut    SeqNum   // the same, as of the cut
	expired  OrderNum // where it ended; 0 while it is open
	// calls holds the orderNums of its messages above atCut, 0 for one that is held and not
	// ordered, which is above answered.
	calls map[SeqNum]OrderNum
	// Of calls: those that nobody has ordered; how many are ordered, and above answered; and the
	// bytes of those that are ordered above the cut.
	waiting load
	ordered int
	logged  int
}

// SessionState is a session as a snapshot carries it, as of its turn.
type SessionState struct {
	Session      Session
	Nonce        Nonce
	AnsweredUpTo SeqNum
	// Ordered holds the orderNums of its messages above AnsweredUpTo.
	Ordered map[SeqNum]OrderNum
}

// learn adds a session as it is in a state of that many turns.
func (t *sessionTable) learn(s SessionState, executed OrderNum) error {
	_, opened := t.byNonce[s.Nonce]
	if s.Session == 0 || OrderNum(s.Session) > executed || opened || t.known[s.Session] != nil {
		return fmt.Errorf("orderstate: session %d can't be in a state of %d turns, or is in it twice", s.Session,
			executed)
	}
	known := &session{number: s.Session, nonce: s.Nonce, answered: s.AnsweredUpTo, atCut: s.AnsweredUpTo,
		calls: make(map[SeqNum]OrderNum, len(s.Ordered))}
	for q, k := range s.Ordered {
		if k <= OrderNum(s.Session) || k > executed || q <= s.AnsweredUpTo {
			return fmt.Errorf("orderstate: message %d/%d at %d can't be in a state of %d turns", s.Session, q, k,
				executed)
		}
		known.calls[q] = k
		known.ordered++
	}
	t.known[s.Session] = known
	t.byNonce[s.Nonce] = s.Session
	return nil
}

// open returns a session that is open, or nil.
func (t *sessionTable) open(n Session) *session {
	if s := t.known[n]; s != nil && s.expired == 0 {
		return s
	}
	return nil
}

// numbers returns the open sessions, sorted.
func (t *sessionTable) numbers() []Session {
	var open []Session
	for n, s := range t.known {
		if s.expired == 0 {
			open = append(open, n)
		}
	}
	slices.Sort(open)
	return open
}

// begin opens a session.
func (t *sessionTable) begin(n Session, nonce Nonce) {
	t.known[n] = &session{number: n, nonce: nonce, calls: map[SeqNum]OrderNum{}}
	t.byNonce[nonce] = n
}

// end ends a session at k, and forgets its messages that nobody ordered. What is left goes with the
// cut.
func (t *sessionTable) end(n Session, k OrderNum, log *messageLog) {
	s := t.known[n]
	for q, at := range s.calls {
		if at == 0 {
			log.drop(s, MessageID{n, q})
			delete(s.calls, q)
		}
	}
	s.expired = k
	if t.byNonce[s.nonce] == n {
		delete(t.byNonce, s.nonce)
	}
}

// answer moves the low-water mark, and forgets what is at or below it and nobody ordered.
func (s *session) answer(mark SeqNum, log *messageLog) {
	if mark <= s.answered {
		return
	}
	s.between(s.answered, mark, func(q SeqNum, k OrderNum) {
		if k == 0 {
			log.drop(s, MessageID{s.number, q})
			delete(s.calls, q)
		} else {
			s.ordered--
		}
	})
	s.answered = mark
}

// cut moves the low-water mark as of the cut, and forgets what is at or below it.
func (s *session) cut(mark SeqNum) {
	if mark <= s.atCut {
		return
	}
	s.between(s.atCut, mark, func(q SeqNum, _ OrderNum) { delete(s.calls, q) })
	s.atCut = mark
}

// between calls f with each of a session's messages in (low, high]. It takes no more steps than
// that are numbers, or messages.
func (s *session) between(low, high SeqNum, f func(q SeqNum, k OrderNum)) {
	if high-low > SeqNum(len(s.calls)) {
		for q, k := range s.calls {
			if low < q && q <= high {
				f(q, k)
			}
		}
		return
	}
	for q := low; q < high; {
		q++
		if k, ok := s.calls[q]; ok {
			f(q, k)
		}
	}
}

func (t *sessionTable) clone() sessionTable {
	c := sessionTable{make(map[Session]*session, len(t.known)), maps.Clone(t.byNonce)}
	for n, s := range t.known {
		copied := *s
		copied.calls = maps.Clone(s.calls)
		c.known[n] = &copied
	}
	return c
}
