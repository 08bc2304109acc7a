package clock

import (
	"testing"
	"time"
)

// TestSteadyNeverGoesBack: a wall clock that was ahead, and was set right, is caught up with at
// half speed; one that leaps ahead is followed.
func TestSteadyNeverGoesBack(t *testing.T) {
	t.Parallel()
	var elapsed, leap time.Duration
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	s := NewSteady(func() time.Time { return start.Add(elapsed + leap) }, func() time.Duration { return elapsed })
	tell := func(told, want time.Duration) {
		t.Helper()
		if got := s.Next(start.Add(told).UnixMicro()); got != start.Add(want).UnixMicro() {
			t.Errorf("%v after the start it tells %v, want %v", elapsed, time.UnixMicro(got).Sub(start), want)
		}
	}
	tell(0, 0)
	leap = time.Hour
	tell(0, time.Hour)
	leap = 0
	tell(0, time.Hour)
	for range 100 { // steps that are half a microsecond each aren't lost
		elapsed += time.Microsecond
		s.Next(0)
	}
	tell(0, time.Hour+50*time.Microsecond)
	elapsed = time.Hour
	tell(0, 90*time.Minute)
	elapsed = 95 * time.Minute // the other has caught up with what was told last
	tell(0, 95*time.Minute)
	elapsed = 2*time.Hour + time.Second
	tell(0, 2*time.Hour+time.Second)
	// What another has told, whose clock was ahead: a primary that takes over.
	tell(3*time.Hour, 3*time.Hour)
	elapsed += time.Minute
	tell(3*time.Hour, 3*time.Hour+30*time.Second)
}
