package main

import (
	"context"
	"io"
	"sync"
	"time"
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
	now    *process   // nil while there is none
	killed bool       // now was killed on purpose
}

// supervise keeps the member running until ctx ends; then it stops the process and returns.
func (m *member) supervise(ctx context.Context) {
	for first := true; ctx.Err() == nil; first = false {
		p, err := startProcess(m.name, m.args, m.logs, m.event)
		if err != nil {
			m.say("%s can't be started: %v", m.name, err)
		} else {
			if !first {
				m.say("%s is started again", m.name)
			}
			m.set(p)
			select {
			case <-p.done:
			case <-ctx.Done():
				p.stop(2 * time.Second)
				m.set(nil)
				return
			}
			if !m.set(nil) {
				m.say("%v", p.ended())
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(m.rest):
		}
	}
}

// set says whether the process until now was killed on purpose.
func (m *member) set(p *process) (killed bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	killed, m.killed, m.now = m.killed, false, p
	return killed
}

// process returns the process that there is now, or nil.
func (m *member) process() *process {
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
	m.now.kill()
	return at, true
}

// ask asks the process that there is now.
func (m *member) ask(ctx context.Context, c command) (event, error) {
	p := m.process()
	if p == nil {
		return event{}, errEnded
	}
	return p.ask(ctx, c)
}
