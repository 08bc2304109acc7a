// Package process runs programs at the other end of pipes: it talks with them, ends, kills, stops
// and continues them, and sees to it that none outlives who started it.
//
//	p, err := process.Talk[command, event](process.Spec{Name: "a", Args: []string{"replica"}}, heard)
//	e, err := p.Ask(ctx, command{Do: "status"})
//	p.Kill()
//
// and in the other process
//
//	link := process.NewLink[command, event](os.Stdout)
//	err := link.Serve(ctx, os.Stdin, answer)
//
// It is for examples, measurements and end-to-end tests, in modules of their own.
package process

import (
	"bufio"
	"cmp"
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

// Spec says what runs, and where its log goes.
type Spec struct {
	Name    string   // in errors
	Program string   // a path; empty: this process's own program
	Args    []string // of the program

	// Stderr is what the process logs to by itself, so that nothing is lost when this process dies.
	// It is closed when the process has ended. Without it the end of the log is kept (Process.Log).
	Stderr *os.File
	// Copy, if it isn't nil, gets all that is logged too, without Stderr.
	Copy io.Writer
}

// A Process is a program that runs, or has run. Its methods may run concurrently, but for Stop. Who
// starts it awaits Done.
type Process struct {
	Name string

	// Begun is closed when the process has written its first line, which FirstLine then returns.
	Begun <-chan struct{}
	// Done is closed when it has ended. Then Err says how, as exec.Cmd.Wait.
	Done <-chan struct{}
	Err  error

	cmd   *exec.Cmd
	notes io.Writer // where it logs to
	log   tail

	writing sync.Mutex // held while a line is written to its stdin
	stdin   io.WriteCloser

	first       string
	begun, done chan struct{}
}

// Start starts a process that isn't talked with: what it writes after its first line is dropped. It
// is to end when its stdin does.
func Start(s Spec) (*Process, error) {
	p, stdout, err := start(s)
	if err == nil {
		go p.read(stdout, func([]byte) {})
	}
	return p, err
}

// start starts a process, which is to be read.
func start(s Spec) (p *Process, stdout io.Reader, err error) {
	p = &Process{Name: s.Name, begun: make(chan struct{}), done: make(chan struct{})}
	p.Begun, p.Done = p.begun, p.done
	defer func() {
		if err != nil && s.Stderr != nil {
			s.Stderr.Close()
		}
	}()
	if s.Program == "" {
		if s.Program, err = os.Executable(); err != nil {
			return nil, nil, err
		}
	}
	p.cmd = exec.Command(s.Program, s.Args...)
	switch {
	case s.Stderr != nil:
		p.cmd.Stderr, p.notes = s.Stderr, s.Stderr
	case s.Copy != nil:
		p.cmd.Stderr, p.notes = io.MultiWriter(&p.log, s.Copy), &p.log
	default:
		p.cmd.Stderr, p.notes = &p.log, &p.log
	}
	p.cmd.WaitDelay = time.Second
	dieWithStarter(p.cmd)
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		return nil, nil, err
	}
	if stdout, err = p.cmd.StdoutPipe(); err != nil {
		return nil, nil, err
	}
	started := make(chan error)
	starter() <- func() { started <- p.cmd.Start() }
	if err := <-started; err != nil {
		return nil, nil, err
	}
	return p, stdout, nil
}

// starter is the one thread that starts processes. It never ends before this process does, as Linux
// demands of who starts a process that shall die with it (dieWithStarter).
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

// read hands out the lines that the process writes, until it ends, and then says so.
func (p *Process) read(stdout io.Reader, line func([]byte)) {
	for lines, begun := bufio.NewReader(stdout), false; ; begun = true {
		text, err := lines.ReadBytes('\n')
		if err != nil { // it has ended, or was killed in the middle of a line
			break
		}
		if !begun {
			p.first = strings.TrimRight(string(text), "\r\n")
			close(p.begun)
		}
		line(text)
	}
	p.Err = p.cmd.Wait()
	if file, ok := p.notes.(*os.File); ok {
		file.Close()
	}
	close(p.done)
}

// FirstLine is what the process has written first, when Begun is closed.
func (p *Process) FirstLine() string { return p.first }

// Log is the end of what the process has logged until now. It is empty if that goes to Spec.Stderr.
func (p *Process) Log() string { return p.log.String() }

// ErrEnded is why a process that has ended doesn't answer.
var ErrEnded = errors.New("the process has ended")

// Ended reports whether the process has ended.
func (p *Process) Ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// Why says how the process has ended by itself, and what it logged last. Done must be closed.
func (p *Process) Why() error {
	err := fmt.Errorf("%s ended by itself: %w", p.Name, cmp.Or(p.Err, ErrEnded))
	if log := p.Log(); log != "" {
		err = fmt.Errorf("%w\n%s", err, log)
	}
	return err
}

// Kill is kill -9, in whatever state the process is. It returns at once.
func (p *Process) Kill() { _ = p.cmd.Process.Kill() } // it fails only when the process has ended

// KillAndWait is Kill; it returns when the process is gone.
func (p *Process) KillAndWait() {
	p.Kill()
	<-p.done
}

// End asks the process to end, by the end of its stdin, kills it after grace, and waits for its
// end.
func (p *Process) End(grace time.Duration) {
	p.stdin.Close()
	select {
	case <-p.done:
		return
	case <-time.After(grace):
	}
	p.KillAndWait()
}

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
