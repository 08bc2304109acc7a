package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/understudy-rpc/understudy/internal/process"
)

// child is a process that runs this program, or that of another revision, with a subcommand.
type child struct {
	*process.Partner[command, event]
}

// startChild runs program with args; an empty program is this one.
func startChild(program, name string, args ...string) (*child, error) {
	p, err := process.Talk[command](process.Spec{Name: name, Program: program, Args: args}, func(event) {})
	return &child{p}, err
}

// ask sends a command and waits for its answer, for timeout at most. An answer that is an error is
// returned as one.
func (c *child) ask(ctx context.Context, cmd command, timeout time.Duration) (event, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("no answer within %v", timeout))
	defer cancel()
	e, err := c.Ask(ctx, cmd)
	if errors.Is(err, process.ErrEnded) {
		err = fmt.Errorf("%w: %w", err, c.Why())
	}
	return e, err
}

// A command asks a child for something.
type command struct {
	Do      string        `json:"do"`
	Callers int           `json:"callers,omitempty"` // of doLoad
	For     time.Duration `json:"for,omitempty"`     // of doLoad
	Path    string        `json:"path,omitempty"`    // of doProfile: what the files' names begin with
	Peers   []peer        `json:"peers,omitempty"`   // of doJoin
	At      time.Time     `json:"at,omitzero"`       // of doMark
}

func (c command) String() string { return c.Do }

// What a command can ask for.
const (
	doUsage    = "usage"
	doProfile  = "profile"  // begin profiles
	doProfiled = "profiled" // end and write them
	doStanding = "standing" // a server's, with its address and state
	doJoin     = "join"     // a server that is a joiner begins
	doLoad     = "load"     // the client's callers call; answered when they have ended
	doGap      = "gap"      // the same, until some time after doMark; For bounds it
	doMark     = "mark"     // what is looked for has happened at At
	doProgress = "progress" // how many calls of a doGap have ended
)

// An event answers a command. One field at most is set.
type event struct {
	Usage  *usage        `json:"usage,omitempty"`
	Server *serverReport `json:"server,omitempty"`
	Load   *loadReport   `json:"load,omitempty"`
	Gap    *gapReport    `json:"gap,omitempty"`
	Calls  int           `json:"calls,omitempty"` // of doProgress
}

// serverReport is what a server says of itself.
type serverReport struct {
	Addr     string   `json:"addr"`
	PeerAddr string   `json:"peer_addr,omitempty"` // of a joiner
	Standing standing `json:"standing"`
	State    state    `json:"state"`
	// Failover is the last one by which this server has taken over, as far as it says.
	Failover *failover `json:"failover,omitempty"`
}

// failover says when a server that took over did what.
type failover struct {
	Epoch     uint64    `json:"epoch"`
	Suspected time.Time `json:"suspected"`
	Elected   time.Time `json:"elected"`
	Opened    time.Time `json:"opened"`
}

// An answering one is this process's end of the pipes, as a child.
type answering struct {
	meter   *meter
	profile profiles
	// answer answers what is this kind of child's own.
	answer func(context.Context, command) (event, error)
}

// serve answers commands until in ends.
func serve(
	ctx context.Context, in io.Reader, out io.Writer, m *meter, answer func(context.Context, command) (event, error),
) error {
	a := &answering{meter: m, answer: answer}
	return process.NewLink[command, event](out).Serve(ctx, in, a.do)
}

func (a *answering) do(ctx context.Context, c command) (event, error) {
	switch c.Do {
	case doUsage:
		u, err := readUsage(a.meter)
		return event{Usage: &u}, err
	case doProfile:
		return event{}, a.profile.begin(c.Path)
	case doProfiled:
		return event{}, a.profile.end()
	default:
		return a.answer(ctx, c)
	}
}
