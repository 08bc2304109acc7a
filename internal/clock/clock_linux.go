package clock

import (
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// System is CLOCK_BOOTTIME on Linux: it counts suspend.
//
// To read that is a system call, some ten times as dear as time.Now, which isn't one. So it is read
// only when the machine may have been suspended since the last time: suspending moves the wall
// clock against the monotonic one, by as much as it moves CLOCK_BOOTTIME. Who sets the wall clock,
// or corrects it, does that too, and costs a system call. A suspend that is missed is shorter than
// tolerance, far less than the margin that R10 has for clocks.
func System() Clock {
	start := time.Now()
	c := &suspending{
		monotonic: func() (elapsed, wall time.Duration) {
			now := time.Now()
			return now.Sub(start), now.Round(0).Sub(start.Round(0))
		},
		boottime: func() (time.Duration, error) {
			var ts unix.Timespec
			err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts)
			return time.Duration(ts.Nano()), err
		},
	}
	if _, err := c.boottime(); err != nil { // kernels before 2.6.39
		return Monotonic()
	}
	c.last.Store(c.measure())
	return c.elapsed
}

const tolerance = time.Millisecond

// suspending is the monotonic clock, and how far CLOCK_BOOTTIME was ahead of it when that was last
// read.
type suspending struct {
	monotonic func() (elapsed, wall time.Duration) // since one moment; only the first never jumps
	boottime  func() (time.Duration, error)
	last      atomic.Pointer[reading]
}

// reading is how far two clocks were ahead of the monotonic one, at some moment.
type reading struct{ boottime, wall time.Duration }

func (c *suspending) elapsed() time.Duration {
	elapsed, wall := c.monotonic()
	last := c.last.Load()
	if moved := wall - elapsed - last.wall; moved > tolerance || moved < -tolerance {
		last = c.measure()
		c.last.Store(last)
	}
	return elapsed + last.boottime
}

// measure reads CLOCK_BOOTTIME between two readings of the others, which tell how wrong it may be;
// who was preempted there reads again.
func (c *suspending) measure() *reading {
	var best *reading
	var least time.Duration
	for range 10 {
		before, _ := c.monotonic()
		b, err := c.boottime()
		elapsed, wall := c.monotonic()
		if took := elapsed - before; err == nil && (best == nil || took < least) { // it fails never, or always
			best, least = &reading{boottime: b - elapsed, wall: wall - elapsed}, took
		}
		if least < tolerance/10 {
			break
		}
	}
	return best
}
