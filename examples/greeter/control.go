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

// The parent and its children talk in JSON, a value a line: commands to a child's stdin, events
// from its stdout. A child ends when its stdin does, so none outlives the parent.

// A command asks a child for something. It is answered by one event of the same ID.
type command struct {
	ID    int         `json:"id"`
	Do    string      `json:"do"`
	Marks []time.Time `json:"marks,omitempty"` // of doGaps
}

// What a command can ask for.
const (
	doStatus = "status" // a replica's status
	doDump   = "dump"   // a replica's state
	doStart  = "start"  // the client's callers begin
	doStats  = "stats"  // the client's calls so far
	doStop   = "stop"   // the client's callers end their last calls; answered with its tally
	doGaps   = "gaps"   // the longest call at each of Marks
)

// An event answers the command ID, or is what a child says unasked, with ID 0. One field at most is
// set besides.
type event struct {
	ID       int               `json:"id,omitempty"`
	Error    string            `json:"error,omitempty"`
	Status   *replicaStatus    `json:"status,omitempty"`
	Failover *failover         `json:"failover,omitempty"`
	Dump     map[string]uint64 `json:"dump,omitempty"`
	Stats    *stats            `json:"stats,omitempty"`
	Tally    *tally            `json:"tally,omitempty"`
	Gaps     []heldCall        `json:"gaps,omitempty"`
}

// replicaStatus is what a replica says of itself.
type replicaStatus struct {
	Role     string   `json:"role"` // one of the roles below
	Primary  string   `json:"primary"`
	Epoch    uint64   `json:"epoch"`
	InSync   []string `json:"in_sync"`
	Executed uint64   `json:"executed"`
	Stable   uint64   `json:"stable"`
}

// Roles, in the library's words.
const (
	roleJoining   = "joining"
	roleFollowing = "following"
	roleLeading   = "leading"
)

// failover is what a new primary says of the takeover, in wall-clock time.
type failover struct {
	From      string    `json:"from"`
	To        string    `json:"to"`
	Epoch     uint64    `json:"epoch"`
	Suspected time.Time `json:"suspected"` // the former primary was
	Elected   time.Time `json:"elected"`   // the election was won
	Opened    time.Time `json:"opened"`    // calls are served again
}

// stats are the client's calls up to At.
type stats struct {
	At     time.Time `json:"at"`
	Calls  int       `json:"calls"`
	Failed int       `json:"failed"`
}

// maxLine bounds a line of either direction. A tally of hundreds of callers has some ten KB.
const maxLine = 16 << 20

// link is a child's end of the pipe to its parent. Its methods may run concurrently.
type link struct {
	mu  sync.Mutex // guards out
	out *json.Encoder
}

func newLink(out io.Writer) *link { return &link{out: json.NewEncoder(out)} }

// tell writes one event. When the parent is gone nobody is left to be told, and serve is about to
// end.
func (l *link) tell(e event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_ = l.out.Encode(e)
}

// serve answers commands, each in a goroutine of its own, until in ends; then it cancels what it
// started, waits for it and returns. The answer's ID is set here.
func (l *link) serve(ctx context.Context, in io.Reader, answer func(context.Context, command) event) error {
	ctx, cancel := context.WithCancel(ctx)
	var answering sync.WaitGroup
	defer answering.Wait()
	defer cancel()
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		var c command
		if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
			return fmt.Errorf("control: %w", err)
		}
		answering.Go(func() {
			e := answer(ctx, c)
			e.ID = c.ID
			l.tell(e)
		})
	}
	return lines.Err()
}

// unknownCommand is the answer to a command that isn't for this child.
func unknownCommand(c command) event { return event{Error: fmt.Sprintf("unknown command %q", c.Do)} }
