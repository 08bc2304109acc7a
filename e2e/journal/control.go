package journal

import (
	"time"

	"google.golang.org/grpc/codes"

	"github.com/understudy-rpc/understudy/internal/process"
	"github.com/understudy-rpc/understudy/replica"
	"github.com/understudy-rpc/understudy/transport"
)

// The test's end of the pipes to a process that runs the journal, and the process's own. The first
// event that it says is empty: it comes before the process does anything.
type (
	Process = process.Partner[Command, Event]
	Link    = process.Link[Command, Event]
)

// A Command asks a process for something. It is answered by one event.
type Command struct {
	Do     string            `json:"do"`
	Count  uint64            `json:"count,omitempty"`
	Load   *Load             `json:"load,omitempty"`
	Routes map[string]string `json:"routes,omitempty"`
	Off    time.Duration     `json:"off,omitempty"`
}

func (c Command) String() string { return c.Do }

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

// An Event answers a command, or is what a process says unasked.
type Event struct {
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
