package main

import (
	"bufio"
	"cmp"
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
	"time"
)

// A process is this program, or that of another revision, running with a subcommand at the other
// end of a pipe. Its methods may run concurrently.
type process struct {
	name string
	cmd  *exec.Cmd
	log  *tail // the end of its stderr

	writing sync.Mutex // held while a line is written to its stdin
	stdin   io.WriteCloser

	mu      sync.Mutex           // guards pending and lastID
	pending map[int]chan<- event // by the ID of the command
	lastID  int

	done chan struct{} // closed when the process has ended; then err says how
	err  error
}

// starter is the one thread that starts processes. It never ends before this process does, as Linux
// demands of who starts a process that shall die with it (dieWithParent).
var starter = sync.OnceValue(func() chan<- func() {
	starts := make(chan func())
	go startAll(starts)
	return starts
})

func startAll(starts <-chan func()) {
	runtime.LockOSThread()
	for start := range starts {
		start()
	}
}

// startProcess runs program with args; an empty program is this one.
func startProcess(program, name string, args ...string) (*process, error) {
	if program == "" {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		program = self
	}
	p := &process{name: name, cmd: exec.Command(program, args...), log: &tail{}, pending: map[int]chan<- event{},
		done: make(chan struct{})}
	p.cmd.Stderr = p.log
	p.cmd.WaitDelay = time.Second
	dieWithParent(p.cmd)
	var err error
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	started := make(chan error)
	starter() <- func() { started <- p.cmd.Start() }
	if err := <-started; err != nil {
		return nil, err
	}
	go p.read(stdout)
	return p, nil
}

// read delivers the answers of the process until it ends.
func (p *process) read(stdout io.Reader) {
	lines := bufio.NewScanner(stdout)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			fmt.Fprintf(p.log, "%s said what is no event: %.200q\n", p.name, lines.Text())
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
	if err := lines.Err(); err != nil { // too long a line: nothing more can be understood
		fmt.Fprintf(p.log, "%s: %v\n", p.name, err)
		p.kill()
	}
	p.err = p.cmd.Wait()
	close(p.done)
}

var errEnded = errors.New("the process has ended")

// ask sends a command and waits for its answer, for timeout at most. An answer that is an error is
// returned as one.
func (p *process) ask(ctx context.Context, c command, timeout time.Duration) (event, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("no answer within %v", timeout))
	defer cancel()
	answer := make(chan event, 1)
	p.mu.Lock()
	p.lastID++
	c.ID = p.lastID
	p.pending[c.ID] = answer
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.pending, c.ID)
	}()
	err := p.send(c)
	if err == nil {
		select {
		case e := <-answer:
			if e.Error == "" {
				return e, nil
			}
			err = errors.New(e.Error)
		case <-p.done:
			err = p.ended()
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
	}
	return event{}, fmt.Errorf("%s: %s: %w", p.name, c.Do, err)
}

// send writes one line. Commands are short and few, so a pipe always has room for them.
func (p *process) send(c command) error {
	p.writing.Lock()
	defer p.writing.Unlock()
	return json.NewEncoder(p.stdin).Encode(c)
}

// ended says how the process has ended, and what it logged last. It is called after done is closed.
func (p *process) ended() error {
	err := fmt.Errorf("it ended by itself: %w", cmp.Or(p.err, errEnded))
	if log := p.log.String(); log != "" {
		err = fmt.Errorf("%w\n%s", err, log)
	}
	return err
}

func (p *process) kill() { _ = p.cmd.Process.Kill() } // it fails only when the process has ended

// stop asks the process to end, kills it after grace, and waits for its end.
func (p *process) stop(grace time.Duration) {
	p.stdin.Close()
	select {
	case <-p.done:
		return
	case <-time.After(grace):
	}
	p.kill()
	<-p.done
}

// tail keeps the end of what is written to it.
type tail struct {
	mu  sync.Mutex // guards end
	end []byte
}

const tailLength = 4 << 10

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.end = append(t.end, b...)
	if over := len(t.end) - tailLength; over > 0 {
		t.end = append(t.end[:0], t.end[over:]...)
	}
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimRight(string(t.end), "\n")
}
