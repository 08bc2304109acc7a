package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"sync"
	"time"
)

// The parent and its children talk in JSON, a value a line: commands to a child's stdin, each
// answered by one event on its stdout. A child ends when its stdin does, so none outlives the
// parent.

// A command asks a child for something.
type command struct {
	ID      int           `json:"id"`
	Do      string        `json:"do"`
	Callers int           `json:"callers,omitempty"` // of doLoad
	For     time.Duration `json:"for,omitempty"`     // of doLoad
	Path    string        `json:"path,omitempty"`    // of doProfile: what the files' names begin with
	Peers   []peer        `json:"peers,omitempty"`   // of doJoin
	At      time.Time     `json:"at,omitzero"`       // of doMark
}

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

// An event answers the command of its ID. One field at most is set besides.
type event struct {
	ID     int           `json:"id"`
	Error  string        `json:"error,omitempty"`
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

// maxLine bounds a line of either direction.
const maxLine = 1 << 20

// A child is this process's end of the pipe.
type child struct {
	meter   *meter
	profile profiles
	// answer answers what is this kind of child's own.
	answer func(context.Context, command) event

	mu  sync.Mutex // guards out
	out *json.Encoder
}

func newChild(out io.Writer, m *meter, answer func(context.Context, command) event) *child {
	return &child{meter: m, answer: answer, out: json.NewEncoder(out)}
}

// serve answers commands, each in a goroutine of its own, until in ends; then it cancels what it
// started, waits for it and returns.
func (c *child) serve(ctx context.Context, in io.Reader) error {
	ctx, cancel := context.WithCancel(ctx)
	var answering sync.WaitGroup
	defer answering.Wait()
	defer cancel()
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		var cmd command
		if err := json.Unmarshal(lines.Bytes(), &cmd); err != nil {
			return fmt.Errorf("control: %w", err)
		}
		answering.Go(func() {
			e := c.do(ctx, cmd)
			e.ID = cmd.ID
			c.mu.Lock()
			defer c.mu.Unlock()
			_ = c.out.Encode(e) // when the parent is gone nobody is left to be told, and serve is about to end
		})
	}
	return lines.Err()
}

func (c *child) do(ctx context.Context, cmd command) event {
	switch cmd.Do {
	case doUsage:
		u, err := readUsage(c.meter)
		if err != nil {
			return event{Error: err.Error()}
		}
		return event{Usage: &u}
	case doProfile:
		return failed(c.profile.begin(cmd.Path))
	case doProfiled:
		return failed(c.profile.end())
	default:
		return c.answer(ctx, cmd)
	}
}

func failed(err error) event {
	if err == nil {
		return event{}
	}
	return event{Error: err.Error()}
}

// unknownCommand is the answer to a command that isn't for this child.
func unknownCommand(c command) event { return event{Error: fmt.Sprintf("unknown command %q", c.Do)} }
