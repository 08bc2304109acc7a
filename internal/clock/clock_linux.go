package clock

import (
	"time"

	"golang.org/x/sys/unix"
)

// System is CLOCK_BOOTTIME on Linux: it counts suspend.
func System() Clock {
	fallback := Monotonic()
	return func() time.Duration {
		var ts unix.Timespec
		if unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) != nil { // kernels before 2.6.39
			return fallback()
		}
		return time.Duration(ts.Nano())
	}
}
