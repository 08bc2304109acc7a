package orderstate

import "maps"

// messageLog holds messages, and counts them, for each session too: those that wait, which nobody
// has ordered, and those that are ordered above the cut. Its methods are told the session; nil for
// a message that opens one, or while it isn't known here.
type messageLog struct {
	held    map[MessageID]Message
	waiting load
	logged  int // bytes of the others
}

// load is a number of messages, and their bytes.
type load struct{ messages, bytes int }

func (l *load) add(messages, bytes int) {
	l.messages += messages
	l.bytes += bytes
}

// bytes is the sum of the sizes of what is held.
func (l *messageLog) bytes() int { return l.waiting.bytes + l.logged }

// keep takes a message that waits, in place of one of its name.
func (l *messageLog) keep(s *session, m Message) {
	old, held := l.held[m.MessageID]
	n := 1
	if held {
		n = 0
	}
	l.waits(s, n, m.Size-old.Size)
	l.held[m.MessageID] = m
}

// drop forgets a message that waits.
func (l *messageLog) drop(s *session, id MessageID) {
	m, held := l.held[id]
	if !held {
		return
	}
	l.waits(s, -1, -m.Size)
	delete(l.held, id)
}

// order says that a message that waited is ordered, and returns it.
func (l *messageLog) order(s *session, id MessageID) Message {
	m := l.held[id]
	l.waits(s, -1, -m.Size)
	l.logged += m.Size
	if s != nil {
		s.logged += m.Size
	}
	return m
}

// cut forgets a message that is ordered, and returns it.
func (l *messageLog) cut(s *session, id MessageID) Message {
	m := l.held[id]
	l.logged -= m.Size
	if s != nil {
		s.logged -= m.Size
	}
	delete(l.held, id)
	return m
}

// waits counts what begins to wait, or less than nothing for what doesn't any more.
func (l *messageLog) waits(s *session, messages, bytes int) {
	l.waiting.add(messages, bytes)
	if s != nil {
		s.waiting.add(messages, bytes)
	}
}

func (l *messageLog) clone() messageLog {
	return messageLog{maps.Clone(l.held), l.waiting, l.logged}
}
