package clock

import (
	"testing"
	"time"
)

// TestSuspendCounts: what the machine sleeps through has elapsed at the first reading after it, and
// to set the wall clock is no sleep.
func TestSuspendCounts(t *testing.T) {
	t.Parallel()
	var mono, wall, suspended time.Duration
	reads := 0
	c := &suspending{
		monotonic: func() (time.Duration, time.Duration) { return mono, wall },
		boottime: func() (time.Duration, error) {
			reads++
			return 5*time.Hour + mono + suspended, nil // the machine was up for 5 hours before
		},
	}
	c.last.Store(c.measure())
	first := c.elapsed()
	check := func(what string, wantReads int) {
		t.Helper()
		if got := c.elapsed() - first; got != mono+suspended {
			t.Errorf("%s: %v have elapsed, the clock says %v", what, mono+suspended, got)
		}
		if reads != wantReads {
			t.Errorf("%s: CLOCK_BOOTTIME was read %d times, not %d", what, reads, wantReads)
		}
	}
	check("at once", 1)
	mono, wall = time.Second, time.Second+500*time.Microsecond // slewed as fast as Linux does
	check("a second", 1)
	suspended += 90 * time.Second
	wall += suspended
	check("a suspend", 2)
	check("the same moment", 2)
	wall -= 24 * time.Hour
	check("the wall clock set back", 3)
	mono, wall, suspended = mono+time.Second, wall+time.Hour+time.Second, suspended+time.Hour
	check("another suspend", 4)
}

// TestPreempted: a reading that took long is taken again, so that the clock doesn't run ahead.
func TestPreempted(t *testing.T) {
	t.Parallel()
	var mono time.Duration
	delays := []time.Duration{time.Second, 20 * time.Millisecond, 0}
	c := &suspending{
		monotonic: func() (time.Duration, time.Duration) { return mono, mono },
		boottime: func() (time.Duration, error) {
			b := mono
			if len(delays) > 0 {
				mono, delays = mono+delays[0], delays[1:]
			}
			return b, nil
		},
	}
	c.last.Store(c.measure())
	if got := c.elapsed(); got != mono {
		t.Errorf("%v have elapsed, the clock says %v", mono, got)
	}
}

// TestSystem: the real clock goes on with the real time, and not back.
func TestSystem(t *testing.T) {
	t.Parallel()
	system, start := System(), time.Now()
	before := system()
	last := before
	for time.Since(start) < 20*time.Millisecond {
		now := system()
		if now < last {
			t.Fatalf("%v after %v", now, last)
		}
		last = now
	}
	if d := last - before; d < 15*time.Millisecond || d > time.Second {
		t.Errorf("it says %v of 20 ms", d)
	}
}

func BenchmarkSystem(b *testing.B) {
	system := System()
	for b.Loop() {
		system()
	}
}
