package journal

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/understudy-rpc/understudy/replica"
	"github.com/understudy-rpc/understudy/transport"
)

// A test and its processes talk in JSON, a value a line: commands to a process's stdin, events from
// its stdout. A process ends when its stdin does.

// A Command asks a process for something. It is answered by one event of the same ID.
type Command struct {
	ID     int               `json:"id"`
	Do     string            `json:"do"`
	Count  uint64            `json:"count,omitempty"`
	Load   *Load             `json:"load,omitempty"`
	Routes map[string]string `json:"routes,omitempty"`
	Off    time.Duration     `json:"off,omitempty"`
}

// What a command can ask for.
const (
	DoClock  = "clock"  // the process's wall clock is off by Off, if it was built for that
	DoStrand = "strand" // the connections that the process has dialled to replicas are half-open from now on

	// Of a replica:
	DoDump     = "dump"     // its state
	DoDigest   = "digest"   // its state without the entries
	DoExecuted = "executed" // is answered, with the status, when it has executed Count turns
	// Of a client:
	DoLoad     = "load"     // callers begin, also after a rest
	DoAccepted = "accepted" // is answered when Count calls were accepted, all in all
	DoRest     = "rest"     // callers make no more calls; answered when the last one has ended
	DoRoute    = "route"    // addresses are dialled as Routes says, or not at all if that is empty
	DoStats    = "stats"
)

// Load is what a client's callers do.
type Load struct {
	Callers  int           `json:"callers"`
	Pause    time.Duration `json:"pause"`    // of each caller after a call
	Deadline time.Duration `json:"deadline"` // of each call
	Padding  int           `json:"padding"`  // bytes by which requests are larger
	Calls    int           `json:"calls"`    // of each caller; 0: until DoRest
}

// An Event answers the command of its ID, or is what a process says unasked, with ID 0.
type Event struct {
	ID       int               `json:"id,omitempty"`
	Error    string            `json:"error,omitempty"`
	Begun    bool              `json:"begun,omitempty"`    // the process's first word
	Addr     string            `json:"addr,omitempty"`     // a replica listens
	Status   *replica.Status   `json:"status,omitempty"`   // a replica's, when it changes
	Failover *replica.Failover `json:"failover,omitempty"` // a replica has taken over
	Dump     *Dump             `json:"dump,omitempty"`
	Call     *Call             `json:"call,omitempty"`  // a client's call has ended
	Calls    uint64            `json:"calls,omitempty"` // that a client has begun
	Stats    *transport.Stats  `json:"stats,omitempty"`
}

// A Call is one call that has ended. Times are of the machine's monotonic clock, the same in all
// its processes.
type Call struct {
	Call  uint64        `json:"n"`
	Start time.Duration `json:"s"`
	End   time.Duration `json:"e"`
	Place uint64        `json:"p,omitempty"`
	Code  codes.Code    `json:"c,omitempty"`
	Text  string        `json:"t,omitempty"`
}

// Link is a process's end of the conversation. Its methods may run concurrently.
type Link struct {
	mu  sync.Mutex // guards out
	out *json.Encoder
}

// NewLink returns a link that writes to out.
func NewLink(out io.Writer) *Link { return &Link{out: json.NewEncoder(out)} }

// Tell writes one event. When the test is gone nobody is left to be told, and Serve is about to
// end.
func (l *Link) Tell(e Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_ = l.out.Encode(e)
}

// Serve answers commands, each in a goroutine of its own, until in ends; then it ends the answers'
// context, waits for them and returns. The answers' ID is set here.
func (l *Link) Serve(ctx context.Context, in io.Reader, answer func(context.Context, Command) Event) error {
	ctx, cancel := context.WithCancel(ctx)
	var answering sync.WaitGroup
	defer answering.Wait()
	defer cancel()
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		var c Command
		if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
			return fmt.Errorf("journal: control: %w", err)
		}
		answering.Go(func() {
			e := answer(ctx, c)
			e.ID = c.ID
			l.Tell(e)
		})
	}
	return lines.Err()
}

// Unknown is the answer to a command that isn't for this process.
func Unknown(c Command) Event { return Event{Error: fmt.Sprintf("unknown command %q", c.Do)} }
