package replica

import "github.com/understudy-rpc/understudy/replica/internal/machine"

// Sessions is how many sessions this replica knows.
func (r *Replica) Sessions() int {
	in := r.current()
	in.mu.Lock()
	defer in.mu.Unlock()
	return len(in.history().Sessions())
}

// ReplyBytes is what the replies count that this replica keeps.
func (r *Replica) ReplyBytes() int {
	return r.current().machine.ReplyBytes()
}

// MaxReplyBytes bounds ReplyBytes.
const MaxReplyBytes = machine.MaxReplyBytes

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
