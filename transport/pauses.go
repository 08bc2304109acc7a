package transport

import (
	"encoding/binary"
	"hash/fnv"
	"math/rand/v2"
	"time"

	"github.com/understudy-rpc/understudy/orderstate"
)

// pauses spaces attempts: base, doubled up to max, each ± 20 %. What they are spread by is drawn
// from spread, so that clients don't come together, and a simulated run, whose nonces repeat, does;
// 0 is anything.
type pauses struct {
	base, max, last time.Duration
	spread          uint64
}

// spread is for pauses of one session's: of a call by its seqNum, of a link by its replica's name.
func spread(nonce orderstate.Nonce, name string, seqNum uint64) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(name))
	return binary.LittleEndian.Uint64(nonce[:]) ^ h.Sum64() ^ seqNum<<32
}

func (b *pauses) reset() { b.last = 0 }

func (b *pauses) next() time.Duration {
	b.last = min(max(2*b.last, b.base), b.max)
	if b.spread == 0 {
		b.spread = rand.Uint64()
	}
	b.spread = b.spread*6364136223846793005 + 1442695040888963407 // Knuth's MMIX; its high bits are good
	return time.Duration(float64(b.last) * (0.8 + 0.4*float64(b.spread>>32)/(1<<32)))
}
