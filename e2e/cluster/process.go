//go:build unix

package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/understudy-rpc/understudy/e2e/journal"
)

// process is a journal process at the other end of a pipe. Its methods may run concurrently, but for signal.
type process struct {
	name  string
	cmd   *exec.Cmd
	stdin io.WriteCloser

	mu      sync.Mutex // guards what follows, and writing to stdin
	pending map[int]chan<- journal.Event
	lastID  int

	begun chan struct{} // closed when the process has said its first word
	done  chan struct{} // closed when it has ended; then err says how
	err   error
}

// starter starts processes from one thread, which lives until they have ended, as Linux demands of who starts a process
// that shall die with it.
type starter struct{ starts chan func() }

func newStarter() *starter {
	s := &starter{make(chan func())}
	go func() {
		runtime.LockOSThread()
		for start := range s.starts {
			start()
		}
	}()
	return s
}

func (s *starter) start(cmd *exec.Cmd) error {
	err := make(chan error)
	s.starts <- func() { err <- cmd.Start() }
	return <-err
}

// startProcess starts a process that logs to log. unasked is called, from one goroutine, with each event that isn't an
// answer.
func startProcess(s *starter, name, binary string, args []string, log *os.File, unasked func(journal.Event)) (*process, error) {
	p := &process{name: name, cmd: exec.Command(binary, args...), pending: map[int]chan<- journal.Event{}, begun: make(chan struct{}), done: make(chan struct{})}
	p.cmd.Stderr = log
	dieWithTest(p.cmd)
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
	go p.read(stdout, unasked)
	return p, nil
}

// beginLimit is how long a process may take to its first word. Busy machines were seen that let a new process wait for a
// minute without a single tick of a processor: then another one is started.
const beginLimit = 15 * time.Second

// launch starts a process, and waits for its first word, which comes before it does anything.
func (c *Cluster) launch(name string, args []string, unasked func(journal.Event)) *process {
	c.t.Helper()
	log, err := os.OpenFile(c.logPath(name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		c.t.Fatal(err)
	}
	defer log.Close()
	for {
		p, err := startProcess(c.starter, name, c.binary, args, log, unasked)
		if err != nil {
			c.t.Fatal(err)
		}
		select {
		case <-p.begun:
			return p
		case <-p.done:
			return p
		case <-time.After(beginLimit):
			c.t.Logf("%s is started again: it hasn't begun, and is %s", name, p.state())
			p.kill()
		case <-c.ctx.Done():
			p.kill()
			c.vain(name + " begins")
		}
	}
}

// logPath is where processes of this name log to.
func (c *Cluster) logPath(name string) string { return filepath.Join(c.logs, name+".log") }

// read delivers the events of the process until it ends, and then says so.
func (p *process) read(stdout io.Reader, unasked func(journal.Event)) {
	events := json.NewDecoder(stdout)
	for {
		var e journal.Event
		if err := events.Decode(&e); err != nil { // it ended, or was killed in the middle of a line
			break
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
	_ = p.cmd.Process.Kill() // who can't be understood is of no use
	p.err = p.cmd.Wait()
	close(p.done)
}

var errEnded = errors.New("the process has ended")

// ask sends a command and waits for its answer, until ctx or the process ends. An answer that is an error is returned
// as one.
func (p *process) ask(ctx context.Context, c journal.Command) (journal.Event, error) {
	answer := make(chan journal.Event, 1)
	p.mu.Lock()
	p.lastID++
	c.ID = p.lastID
	p.pending[c.ID] = answer
	err := json.NewEncoder(p.stdin).Encode(c)
	p.mu.Unlock()
	if err != nil {
		return journal.Event{}, fmt.Errorf("%s: %s: %w", p.name, c.Do, err)
	}
	select {
	case e := <-answer:
		if e.Error != "" {
			return e, fmt.Errorf("%s: %s: %s", p.name, c.Do, e.Error)
		}
		return e, nil
	case <-p.done:
		return journal.Event{}, fmt.Errorf("%s: %s: %w", p.name, c.Do, errEnded)
	case <-ctx.Done():
		return journal.Event{}, fmt.Errorf("%s: %s: %w", p.name, c.Do, context.Cause(ctx))
	}
}

// kill is kill -9, in whatever state the process is. It returns when the process is gone.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it fails only when the process has ended
	<-p.done
	p.stdin.Close()
}

// state is what the kernel says of the process, where it does.
func (p *process) state() string {
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

// quit is SIGQUIT: the process ends, and logs what its goroutines were doing.
func (p *process) quit() {
	_ = p.cmd.Process.Signal(syscall.SIGQUIT) // it fails only when the process has ended
	select {
	case <-p.done:
	case <-time.After(5 * time.Second):
	}
}

// stop is SIGSTOP; it returns when the process stands still.
func (p *process) stop() error {
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
			return fmt.Errorf("%s did not stop: %w, status %v", p.name, err, status)
		}
		return nil
	}
}

// proceed is SIGCONT.
func (p *process) proceed() error { return p.cmd.Process.Signal(syscall.SIGCONT) }
