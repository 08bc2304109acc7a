package replica

import (
	"github.com/understudy-rpc/understudy/orderstate"
)

// This file bounds the RPCs that wait at a replica: for its gate, for room, for their turns, or for
// their replies to leave.

const (
	maxRPCs          = 10_000
	maxRPCsOfSession = 1_000
	maxRPCBytes      = 256 << 20 // of their requests: a few of the greatest size leave room for others
)

// waits counts an RPC of a session, or refuses it.
func (ss *sources) waits(c *call, n orderstate.Session) error {
	size := len(c.request.b)
	of := ss.known[n]
	var own rpcs
	if of != nil {
		own = of.rpcs
	}
	if ss.rpcs.n >= maxRPCs || own.n >= maxRPCsOfSession || size > 0 &&
		!fits(maxRPCBytes, ss.rpcs.bytes, own.bytes, size) {
		return errShare("%d RPCs of %d bytes wait for the session, and %d of %d bytes for all; a session may have "+
			"%d and a sixteenth of the bytes, or less while others have much, of %d and %d for all",
			own.n, own.bytes, ss.rpcs.n, ss.rpcs.bytes, maxRPCsOfSession, maxRPCs, maxRPCBytes)
	}
	c.of = of
	ss.waitsOn(c)
	return nil
}

// waitsOn counts an RPC that can't be refused any more.
func (ss *sources) waitsOn(c *call) {
	if c.counts {
		return
	}
	c.counts = true
	ss.rpcs.add(1, len(c.request.b))
	if c.of != nil {
		c.of.rpcs.add(1, len(c.request.b))
	}
}

// goesOn: an RPC doesn't wait any more.
func (ss *sources) goesOn(c *call) {
	if !c.counts {
		return
	}
	c.counts = false
	ss.rpcs.add(-1, -len(c.request.b))
	if c.of != nil {
		c.of.rpcs.add(-1, -len(c.request.b))
	}
}
