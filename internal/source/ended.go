package source

import "time"

// This file has how replicas learn which calls have ended, whose replies they needn't keep. The
// next request tells them, by its mark; what is here is for sources that make none, and for replies
// above a mark that a slow call holds back.

const (
	// A source tells replicas which calls have ended when they may keep so many bytes of replies
	// for it: at once, or lazily.
	promptEnded = 1 << 20
	lazyEnded   = 4 << 10
	// tellEnded is how long lazily is: by then the next request has mostly told it.
	tellEnded = time.Second
)

// tellOfEnds is called when a call has ended.
func (s *session) tellOfEnds() {
	t := &s.telling
	switch {
	case s.frames.unsaid >= promptEnded:
		s.tellEnded()
	case s.frames.unsaid < lazyEnded || t.due || s.over != nil:
	case t.timer == nil:
		t.due = true
		t.timer = time.AfterFunc(tellEnded, s.tellLazily)
	default:
		t.due = true
		t.timer.Reset(tellEnded)
	}
}

// tellLazily is what the timer calls.
func (s *session) tellLazily() {
	s.of.mu.Lock()
	defer s.of.mu.Unlock()
	s.telling.due = false
	if s.frames.unsaid >= lazyEnded {
		s.tellEnded()
	}
}

// tellEnded tells every replica which calls have ended, so that it needn't keep their replies.
func (s *session) tellEnded() {
	s.telling.last = s.frames.ended()
	for _, l := range s.of.links {
		if l.session == s && l.up {
			l.sender.tell(s.telling.last)
		}
	}
}
