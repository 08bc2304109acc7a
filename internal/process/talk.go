package process

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
)

// Two processes talk in JSON, a value a line: commands to a child's stdin, events from its stdout.
// A child ends when its stdin does. What is said is an object, whose fields id and error are this
// package's: an event answers the command of its id, or has none, and is said unasked. The bench
// talks so with the programs of other revisions: this may be added to, but keeps its meaning.

// head is what this package says.
type head struct {
	ID    int    `json:"id,omitempty"`
	Error string `json:"error,omitempty"`
}

// encode returns an object's line, with h's fields before its own.
func encode(h head, object any) ([]byte, error) {
	line, err := json.Marshal(h)
	if err != nil {
		return nil, err
	}
	own, err := json.Marshal(object)
	if err != nil {
		return nil, err
	}
	const empty = len("{}")
	switch {
	case len(line) == empty:
		line = own
	case len(own) > empty:
		line = append(append(line[:len(line)-1], ','), own[1:]...)
	}
	return append(line, '\n'), nil
}

// A Partner is a process that answers commands C, and says events E. A command's String is what it
// asks for, in errors.
type Partner[C fmt.Stringer, E any] struct {
	*Process
	unasked func(E)

	mu      sync.Mutex              // guards pending and lastID
	pending map[int]chan<- reply[E] // by the ID of the command
	lastID  int
}

type reply[E any] struct {
	event E
	err   string
}

// Talk starts a process that is talked with. unasked is called, from one goroutine, with each event
// that isn't an answer.
func Talk[C fmt.Stringer, E any](s Spec, unasked func(E)) (*Partner[C, E], error) {
	process, stdout, err := start(s)
	if err != nil {
		return nil, err
	}
	p := &Partner[C, E]{Process: process, unasked: unasked, pending: map[int]chan<- reply[E]{}}
	go p.read(stdout, p.hear)
	return p, nil
}

// hear delivers an event.
func (p *Partner[C, E]) hear(line []byte) {
	var h head
	var r reply[E]
	if err := errors.Join(json.Unmarshal(line, &h), json.Unmarshal(line, &r.event)); err != nil {
		fmt.Fprintf(p.notes, "%s said what is no event: %.200q\n", p.Name, line)
		return
	}
	if h.ID == 0 {
		p.unasked(r.event)
		return
	}
	p.mu.Lock()
	answer := p.pending[h.ID]
	delete(p.pending, h.ID)
	p.mu.Unlock()
	if answer != nil {
		r.err = h.Error
		answer <- r
	}
}

// Ask sends a command and waits for its answer, until ctx or the process ends. An answer that is an
// error is returned as one.
func (p *Partner[C, E]) Ask(ctx context.Context, c C) (E, error) {
	answer := make(chan reply[E], 1)
	p.mu.Lock()
	p.lastID++
	id := p.lastID
	p.pending[id] = answer
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.pending, id)
	}()
	var r reply[E]
	err := p.send(id, c)
	if err == nil {
		select {
		case r = <-answer:
			if r.err == "" {
				return r.event, nil
			}
			err = errors.New(r.err)
		case <-p.done:
			err = ErrEnded
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
	}
	return r.event, fmt.Errorf("%s: %v: %w", p.Name, c, err)
}

// send writes one line. Commands are short and few, so a pipe always has room for them.
func (p *Partner[C, E]) send(id int, c C) error {
	line, err := encode(head{ID: id}, c)
	if err != nil {
		return err
	}
	p.writing.Lock()
	defer p.writing.Unlock()
	_, err = p.stdin.Write(line)
	return err
}

// A Link is a child's end of the pipes. Its methods may run concurrently.
type Link[C fmt.Stringer, E any] struct {
	mu  sync.Mutex // held while a line is written
	out io.Writer
}

// NewLink returns a link that writes to out: os.Stdout.
func NewLink[C fmt.Stringer, E any](out io.Writer) *Link[C, E] { return &Link[C, E]{out: out} }

// Tell says an event unasked. When who started this process is gone nobody is left to be told, and
// Serve is about to end.
func (l *Link[C, E]) Tell(e E) { l.say(head{}, e) }

func (l *Link[C, E]) say(h head, e E) {
	line, err := encode(h, e)
	if err != nil {
		line, _ = encode(head{ID: h.ID, Error: err.Error()}, struct{}{}) // these two can be encoded
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	_, _ = l.out.Write(line)
}

// Serve answers commands, each in a goroutine of its own, until in ends: os.Stdin. Then it cancels
// what it started, waits for it and returns.
func (l *Link[C, E]) Serve(ctx context.Context, in io.Reader, answer func(context.Context, C) (E, error)) error {
	ctx, cancel := context.WithCancel(ctx)
	var answering sync.WaitGroup
	defer answering.Wait()
	defer cancel()
	for lines := bufio.NewReader(in); ; {
		line, err := lines.ReadBytes('\n')
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		var h head
		var c C
		if err := errors.Join(json.Unmarshal(line, &h), json.Unmarshal(line, &c)); err != nil {
			return fmt.Errorf("what was asked is no command: %w", err)
		}
		answering.Go(func() {
			e, err := answer(ctx, c)
			h := head{ID: h.ID}
			if err != nil {
				h.Error = err.Error()
			}
			l.say(h, e)
		})
	}
}

// Unknown is the answer to a command that isn't for this process.
func Unknown(c fmt.Stringer) error { return fmt.Errorf("unknown command %q", c) }
