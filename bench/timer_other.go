//go:build !linux

package main

import "time"

// timer: see timer_linux.go.
type timer struct{}

func newTimer() timer { return timer{} }

func (timer) wait(d time.Duration) { time.Sleep(d) }

func (timer) stop() {}
