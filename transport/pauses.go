package transport

import (
	"math/rand/v2"
	"time"
)

// pauses spaces attempts: base, doubled up to max, each ± 20 %.
type pauses struct {
	base, max, last time.Duration
}

func (b *pauses) reset() { b.last = 0 }

func (b *pauses) next() time.Duration {
	b.last = min(max(2*b.last, b.base), b.max)
	return time.Duration(float64(b.last) * (0.8 + 0.4*rand.Float64()))
}
