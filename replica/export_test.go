package replica

// Sessions is how many sessions this replica knows.
func (r *Replica) Sessions() int {
	in := r.current()
	in.mu.Lock()
	defer in.mu.Unlock()
	return len(in.history().Sessions())
}
