package election

import (
	"context"
	"math/rand/v2"
	"time"
)

// A retry spaces attempts: 50 ms, doubled up to 1 s, each ± 20 %.
type retry struct {
	last time.Duration
}

func (r *retry) reset() { r.last = 0 }

// wait waits for the next attempt, or until ctx ends.
func (r *retry) wait(ctx context.Context) {
	r.last = min(max(2*r.last, 50*time.Millisecond), time.Second)
	timer := time.NewTimer(time.Duration(float64(r.last) * (0.8 + 0.4*rand.Float64())))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
