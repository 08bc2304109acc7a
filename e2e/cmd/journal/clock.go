package main

import (
	"errors"
	"time"

	"github.com/understudy-rpc/understudy/e2e/journal"
)

// stepClock sets by how much this process's wall clock is off. A build with the tag steppedclock
// sets it; it needs a changed package time, which package chaos makes.
var stepClock = func(time.Duration) error { return errors.New("this process has the machine's clock") }

func answerClock(c journal.Command) (journal.Event, error) { return journal.Event{}, stepClock(c.Off) }
