package replica

import "sync"

// joins is how a replica's attempts to join its group have gone since it was in-sync. Its methods
// may be called concurrently.
type joins struct {
	mu     sync.Mutex // guards what follows
	failed int
	cause  string
	avoid  string // who gave the last snapshot that didn't arrive
}

// ended notes how a life has ended, and says how many have failed to join since one was a member.
func (j *joins) ended(member bool, because error) int {
	j.mu.Lock()
	defer j.mu.Unlock()
	if member {
		j.failed, j.cause, j.avoid = 0, "", ""
		return 0
	}
	j.failed++
	j.cause = because.Error()
	return j.failed
}

// failure is why the last attempt to join has failed.
func (j *joins) failure() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.cause
}

// avoids sets, or returns, the donor that the next transfer shall not come from.
func (j *joins) avoids(donor string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.avoid = donor
}

func (j *joins) avoided() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.avoid
}
