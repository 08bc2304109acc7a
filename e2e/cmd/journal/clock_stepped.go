//go:build steppedclock

package main

import "time"

func init() {
	stepClock = func(d time.Duration) error {
		time.Step(d)
		return nil
	}
}
