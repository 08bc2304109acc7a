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

// A process is this program, running again with a subcommand, at the other end of a pipe. Its
// methods may run concurrently.
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

// startProcess runs this program with args. unasked is called, from one goroutine, with each event
// that isn't an answer. What the process writes to stderr goes to logs too, unless that is nil.
func startProcess(name string, args []string, logs io.Writer, unasked func(event)) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := &process{name: name, cmd: exec.Command(self, args...), log: &tail{}, pending: map[int]chan<- event{},
		done: make(chan struct{})}
	p.cmd.Stderr = p.log
	if logs != nil {
		p.cmd.Stderr = io.MultiWriter(p.log, logs)
	}
	p.cmd.WaitDelay = time.Second
	dieWithParent(p.cmd)
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
	go p.read(stdout, unasked)
	return p, nil
}

// read delivers the events of the process until it ends, and then says so.
func (p *process) read(stdout io.Reader, unasked func(event)) {
	lines := bufio.NewScanner(stdout)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			fmt.Fprintf(p.log, "%s said what is no event: %.200q\n", p.name, lines.Text())
			continue
		}
		if e.ID == 0 {
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
	if err := lines.Err(); err != nil { // too long a line: nothing more can be understood
		fmt.Fprintf(p.log, "%s: %v\n", p.name, err)
		p.kill()
	}
	p.err = p.cmd.Wait()
	close(p.done)
}

// errEnded is why a process that has ended doesn't answer.
var errEnded = errors.New("the process has ended")

// ask sends a command and waits for its answer, until ctx or the process ends. An answer that is an
// error is returned as one.
func (p *process) ask(ctx context.Context, c command) (event, error) {
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
	if err := p.send(c); err != nil {
		return event{}, fmt.Errorf("%s: %s: %w", p.name, c.Do, err)
	}
	select {
	case e := <-answer:
		if e.Error != "" {
			return event{}, fmt.Errorf("%s: %s: %s", p.name, c.Do, e.Error)
		}
		return e, nil
	case <-p.done:
		return event{}, fmt.Errorf("%s: %s: %w", p.name, c.Do, errEnded)
	case <-ctx.Done():
		return event{}, fmt.Errorf("%s: %s: %w", p.name, c.Do, context.Cause(ctx))
	}
}

// send writes one line. Commands are short and few, so a pipe always has room for them.
func (p *process) send(c command) error {
	p.writing.Lock()
	defer p.writing.Unlock()
	return json.NewEncoder(p.stdin).Encode(c)
}

// ended says how the process has ended, and what it logged last. It is called after done is closed.
func (p *process) ended() error {
	err := fmt.Errorf("%s ended by itself: %w", p.name, cmp.Or(p.err, errEnded))
	if log := p.log.String(); log != "" {
		err = fmt.Errorf("%w\n%s", err, log)
	}
	return err
}

// kill is kill -9. It returns at once; done says when the process has ended.
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
