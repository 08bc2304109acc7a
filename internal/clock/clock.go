// Package clock is the one clock by which elapsed time is told where a lease's safety depends on it
// (R10): it never stops while the machine is suspended, and never jumps.
package clock

import "time"

// Clock tells the time since some fixed moment. Two readings of one Clock may be subtracted,
// nothing else. It may be used concurrently.
type Clock func() time.Duration

// Monotonic is time.Now's monotonic reading. It is right in fake time, and stops while the machine
// is suspended on systems where System doesn't.
func Monotonic() Clock {
	start := time.Now()
	return func() time.Duration { return time.Since(start) }
}
