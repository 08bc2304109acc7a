package main

import (
	"context"
	"io"
	"sync"
	"time"

	"github.com/understudy-rpc/understudy/internal/process"
)

// A member is a replica's name, and the processes that bear it one after the other: whichever way
// one ends, the next starts after rest. Its methods may run concurrently.
type member struct {
	name  string
	args  []string
	logs  io.Writer   // of all its processes; may be nil
	event func(event) // called with what they say unasked
	say   func(string, ...any)
	rest  time.Duration // how long the name is without a process

	mu     sync.Mutex // guards what follows
	now    *child     // nil while there is none
	killed bool       // now was killed on purpose
}

// supervise keeps the member running until ctx ends; then it stops the process and returns.
func (m *member) supervise(ctx context.Context) {
	for first := true; ctx.Err() == nil; first = false {
		p, err := process.Talk[command](process.Spec{Name: m.name, Args: m.args, Copy: m.logs}, m.event)
		if err != nil {
			m.say("%s can't be started: %v", m.name, err)
		} else {
			if !first {
				m.say("%s is started again", m.name)
			}
			m.set(p)
			select {
			case <-p.Done:
			case <-ctx.Done():
				p.End(2 * time.Second)
				m.set(nil)
				return
			}
			if !m.set(nil) {
				m.say("%v", p.Why())
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(m.rest):
		}
	}
}

// set says whether the process until now was killed on purpose.
func (m *member) set(p *child) (killed bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	killed, m.killed, m.now = m.killed, false, p
	return killed
}

// process returns the process that there is now, or nil.
func (m *member) process() *child {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.now
}

// kill is kill -9 of the process, and says when. It is false when there is none.
func (m *member) kill() (time.Time, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.now == nil {
		return time.Time{}, false
	}
	m.killed = true
	at := time.Now()
	m.now.Kill()
	return at, true
}

// ask asks the process that there is now.
func (m *member) ask(ctx context.Context, c command) (event, error) {
	p := m.process()
	if p == nil {
		return event{}, process.ErrEnded
	}
	return p.Ask(ctx, c)
}
