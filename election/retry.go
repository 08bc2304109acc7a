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
	timer := time.NewTimer(jitter(r.last))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// jitter draws a pause of d ± 20 %, so that those who were held up together don't come back
// together.
func jitter(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (0.8 + 0.4*rand.Float64()))
}
