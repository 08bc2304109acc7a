package main

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// timer waits more exactly than Go's own, which are good to a millisecond in a process that has
// nothing else to do: the network poller takes its time-out in milliseconds. A file descriptor
// wakes it in time.
type timer struct {
	fd   int
	file *os.File // nil: it couldn't be made
}

func newTimer() timer {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return timer{}
	}
	return timer{fd, os.NewFile(uintptr(fd), "timer")}
}

func (t timer) wait(d time.Duration) {
	if d <= 0 {
		return
	}
	if t.file != nil {
		var expirations [8]byte
		spec := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(d))}
		if err := unix.TimerfdSettime(t.fd, 0, &spec, nil); err == nil {
			if _, err := t.file.Read(expirations[:]); err == nil {
				return
			}
		}
	}
	time.Sleep(d)
}

func (t timer) stop() {
	if t.file != nil {
		t.file.Close()
	}
}
