package source

import (
	"encoding/binary"
	"math/rand/v2"
	"time"

	"github.com/understudy-rpc/understudy/orderstate"
)

// Pauses spaces attempts: Base, doubled up to Max, each ± 20 %.
type Pauses struct {
	Base, Max, last time.Duration
	spread          uint64 // by which they differ from others; 0: to be drawn
}

// spread is for the pauses of one call, so that clients don't come together, and a simulated run,
// whose nonces repeat, does.
func spread(nonce orderstate.Nonce, seqNum uint64) uint64 {
	return binary.LittleEndian.Uint64(nonce[:]) ^ seqNum<<32
}

// Reset makes the next one the first.
func (b *Pauses) Reset() { b.last = 0 }

// Next is the next one.
func (b *Pauses) Next() time.Duration {
	b.last = min(max(2*b.last, b.Base), b.Max)
	if b.spread == 0 {
		b.spread = rand.Uint64()
	}
	b.spread = b.spread*6364136223846793005 + 1442695040888963407 // Knuth's MMIX; its high bits are good
	return time.Duration(float64(b.last) * (0.8 + 0.4*float64(b.spread>>32)/(1<<32)))
}
