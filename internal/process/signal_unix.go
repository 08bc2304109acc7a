//go:build unix

package process

import (
	"errors"
	"fmt"
	"syscall"
	"time"
)

// Terminate is SIGTERM: the process is asked to end in order.
func (p *Process) Terminate() error { return p.cmd.Process.Signal(syscall.SIGTERM) }

// Quit is SIGQUIT: a process in Go ends, and logs what its goroutines were doing. It returns when
// that is done, or takes too long.
func (p *Process) Quit() {
	_ = p.cmd.Process.Signal(syscall.SIGQUIT) // it fails only when the process has ended
	select {
	case <-p.done:
	case <-time.After(5 * time.Second):
	}
}

// Stop is SIGSTOP; it returns when the process stands still.
func (p *Process) Stop() error {
	if err := p.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	// A stopped child is reported once to whoever waits for it so; it isn't reaped by that.
	var status syscall.WaitStatus
	for {
		pid, err := syscall.Wait4(p.cmd.Process.Pid, &status, syscall.WUNTRACED, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil || pid != p.cmd.Process.Pid || !status.Stopped() {
			return fmt.Errorf("%s did not stop: %w, status %v", p.Name, err, status)
		}
		return nil
	}
}

// Continue is SIGCONT.
func (p *Process) Continue() error { return p.cmd.Process.Signal(syscall.SIGCONT) }
