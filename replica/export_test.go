package replica

// Sessions is how many sessions this replica knows.
func (r *Replica) Sessions() int {
	in := r.current()
	in.mu.Lock()
	defer in.mu.Unlock()
	return len(in.history().Sessions())
}

// ReplyBytes is what the replies count that this replica keeps.
func (r *Replica) ReplyBytes() int {
	in := r.current()
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.replies.bytes
}

// MaxReplyBytes bounds ReplyBytes.
const MaxReplyBytes = maxReplyBytes

// Waiting is how many streams wait for their sessions.
func (r *Replica) Waiting() int {
	in := r.current()
	in.mu.Lock()
	defer in.mu.Unlock()
	n := 0
	for _, c := range in.coming {
		n += c.streams
	}
	return n
}
