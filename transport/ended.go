package transport

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

// ends is called when a call has ended. mu is held.
func (c *Client) ends(s *session) {
	switch {
	case s.frames.unsaid >= promptEnded:
		c.tellEnded(s)
	case s.frames.unsaid < lazyEnded || s.sayDue || s.over != nil:
	case s.sayLazily == nil:
		s.sayDue = true
		s.sayLazily = time.AfterFunc(tellEnded, func() { c.tellLazily(s) })
	default:
		s.sayDue = true
		s.sayLazily.Reset(tellEnded)
	}
}

func (c *Client) tellLazily(s *session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s.sayDue = false
	if s.frames.unsaid >= lazyEnded {
		c.tellEnded(s)
	}
}

// tellEnded tells every replica which calls have ended, so that it needn't keep their replies. mu
// is held.
func (c *Client) tellEnded(s *session) {
	s.said = s.frames.ended()
	for _, l := range c.links {
		if l.session == s && l.up {
			l.ended = s.said
			l.notify()
		}
	}
}
