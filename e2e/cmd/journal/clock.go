package main

import (
	"errors"
	"time"

	"github.com/understudy-rpc/understudy/e2e/journal"
)

// stepClock sets by how much this process's wall clock is off. A build with the tag steppedclock
// sets it; it needs a changed package time, which package chaos makes.
var stepClock = func(time.Duration) error { return errors.New("this process has the machine's clock") }

func answerClock(c journal.Command) journal.Event {
	if err := stepClock(c.Off); err != nil {
		return journal.Event{Error: err.Error()}
	}
	return journal.Event{}
}
