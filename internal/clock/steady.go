package clock

import (
	"context"
	"time"
)

// Steady is a wall clock that never goes back. While what it follows is behind what was told, it
// goes on at half the speed of elapsed time, until the other has caught up: a clock that was an
// hour ahead, and was set right, is right here after two hours at the latest. It may not be used
// concurrently.
type Steady struct {
	wall    func() time.Time
	elapsed Clock
	last    int64 // told last

	behind bool          // what it follows is, since this one told from, at a reading of elapsed
	from   int64         // in microseconds, as all that is told
	since  time.Duration // that reading
}

// NewSteady returns one that follows a wall clock.
func NewSteady(wall func() time.Time, elapsed Clock) *Steady {
	return &Steady{wall: wall, elapsed: elapsed}
}

// Next tells the time in microseconds since 1970: nothing below what it told before, nor below what
// another has.
func (s *Steady) Next(told int64) int64 {
	s.last = max(s.last, told)
	wall := s.wall().UnixMicro()
	if wall >= s.last {
		s.last, s.behind = wall, false
		return wall
	}
	now := s.elapsed()
	if !s.behind {
		s.behind, s.from, s.since = true, s.last, now
	}
	s.last = max(s.last, s.from+(now-s.since).Microseconds()/2)
	return s.last
}

type wallKey struct{}

// WithWall gives a replica that is joined with this context another wall clock than time.Now: a
// test lets it leap.
func WithWall(ctx context.Context, wall func() time.Time) context.Context {
	return context.WithValue(ctx, wallKey{}, wall)
}

// Wall is a context's wall clock.
func Wall(ctx context.Context) func() time.Time {
	if wall, ok := ctx.Value(wallKey{}).(func() time.Time); ok {
		return wall
	}
	return time.Now
}
