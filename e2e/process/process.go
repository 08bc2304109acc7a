//go:build unix

// Package process runs the processes of the end-to-end tests: it speaks with them over pipes,
// kills, stops and continues them, and sees to it that none outlives who started it.
package process

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/understudy-rpc/understudy/e2e/journal"
)

// A Process is one at the other end of a pipe. Its methods may run concurrently, but for Stop.
type Process struct {
	Name  string
	cmd   *exec.Cmd
	stdin io.WriteCloser

	mu      sync.Mutex // guards what follows, and writing to stdin
	pending map[int]chan<- journal.Event
	lastID  int

	// Begun is closed when the process has said its first word.
	Begun <-chan struct{}
	// Done is closed when it has ended. Then Err says how.
	Done <-chan struct{}
	Err  error

	begun, done chan struct{}
}

// A Starter starts processes from one thread, which lives until Close, as Linux demands of who
// starts a process that shall die with it.
type Starter struct{ starts chan func() }

// NewStarter returns a starter, to be closed when all its processes have ended.
func NewStarter() *Starter {
	s := &Starter{make(chan func())}
	go func() {
		runtime.LockOSThread()
		for start := range s.starts {
			start()
		}
	}()
	return s
}

// Close kills what still runs.
func (s *Starter) Close() { close(s.starts) }

func (s *Starter) start(cmd *exec.Cmd) error {
	err := make(chan error)
	s.starts <- func() { err <- cmd.Start() }
	return <-err
}

// Start starts a process of the journal, with its arguments, that logs to log. unasked is called,
// from one goroutine, with each event that isn't an answer.
func Start(s *Starter, name string, argv []string, log *os.File, unasked func(journal.Event)) (*Process, error) {
	return start(s, name, argv, log, func(p *Process, stdout io.Reader) { p.converse(stdout, unasked) })
}

// StartPlain starts a process that takes no commands: it has begun when it has printed a line, and
// ends when its stdin does.
func StartPlain(s *Starter, name string, argv []string, log *os.File) (*Process, error) {
	return start(s, name, argv, log, func(p *Process, stdout io.Reader) {
		lines := bufio.NewScanner(stdout)
		if lines.Scan() {
			close(p.begun)
		}
		for lines.Scan() {
		}
	})
}

func start(s *Starter, name string, argv []string, log *os.File, read func(*Process, io.Reader)) (*Process, error) {
	p := &Process{
		Name: name, cmd: exec.Command(argv[0], argv[1:]...), pending: map[int]chan<- journal.Event{},
		begun: make(chan struct{}), done: make(chan struct{}),
	}
	p.Begun, p.Done = p.begun, p.done
	p.cmd.Stderr = log
	dieWithStarter(p.cmd)
	var err error
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := s.start(p.cmd); err != nil {
		return nil, err
	}
	go func() {
		read(p, stdout)
		_ = p.cmd.Process.Kill() // who can't be understood is of no use
		p.Err = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// converse delivers the events of the process until it ends.
func (p *Process) converse(stdout io.Reader, unasked func(journal.Event)) {
	events := json.NewDecoder(stdout)
	for {
		var e journal.Event
		if err := events.Decode(&e); err != nil { // it ended, or was killed in the middle of a line
			return
		}
		switch {
		case e.Begun:
			close(p.begun)
			continue
		case e.ID == 0:
			unasked(e)
			continue
		}
		p.mu.Lock()
		answer := p.pending[e.ID]
		delete(p.pending, e.ID)
		p.mu.Unlock()
		if answer != nil {
			answer <- e
		}
	}
}

var errEnded = errors.New("the process has ended")

// Ask sends a command and waits for its answer, until ctx or the process ends. An answer that is an
// error is returned as one.
func (p *Process) Ask(ctx context.Context, c journal.Command) (journal.Event, error) {
	answer := make(chan journal.Event, 1)
	p.mu.Lock()
	p.lastID++
	c.ID = p.lastID
	p.pending[c.ID] = answer
	err := json.NewEncoder(p.stdin).Encode(c)
	p.mu.Unlock()
	if err != nil {
		return journal.Event{}, fmt.Errorf("%s: %s: %w", p.Name, c.Do, err)
	}
	select {
	case e := <-answer:
		if e.Error != "" {
			return e, fmt.Errorf("%s: %s: %s", p.Name, c.Do, e.Error)
		}
		return e, nil
	case <-p.done:
		return journal.Event{}, fmt.Errorf("%s: %s: %w", p.Name, c.Do, errEnded)
	case <-ctx.Done():
		return journal.Event{}, fmt.Errorf("%s: %s: %w", p.Name, c.Do, context.Cause(ctx))
	}
}

// Kill is kill -9, in whatever state the process is. It returns when the process is gone.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill() // it fails only when the process has ended
	<-p.done
	p.stdin.Close()
}

// Terminate is SIGTERM: the process is asked to end in order.
func (p *Process) Terminate() error { return p.cmd.Process.Signal(syscall.SIGTERM) }

// State is what the kernel says of the process, where it does.
func (p *Process) State() string {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return err.Error()
	}
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	for line := range strings.Lines(string(status)) {
		if strings.HasPrefix(line, "State:") {
			return strings.TrimSpace(line) + ", " + string(stat)
		}
	}
	return "unknown"
}

// Quit is SIGQUIT: the process ends, and logs what its goroutines were doing.
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

// Proceed is SIGCONT.
func (p *Process) Proceed() error { return p.cmd.Process.Signal(syscall.SIGCONT) }

// Ended reports whether the process has ended.
func (p *Process) Ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}
