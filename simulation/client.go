package simulation

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/understudy-rpc/understudy"
	"github.com/understudy-rpc/understudy/transport"
)

// Outcome is what a caller knows of its call.
type Outcome int

// The outcomes.
const (
	Accepted Outcome = iota // the service's reply
	Refused                 // Unavailable, ResourceExhausted: not executed, and never will be
	Unknown                 // Canceled, DeadlineExceeded, Unknown, DataLoss
	Foreign                 // another code, which the library has no reason for
)

// Call is one call as its caller saw it.
type Call struct {
	Worker       int
	Host         string // the client, in one life
	Request      Request
	Stable       bool // its reply was Stable's
	Opens        bool // it was begun while the client may not have had its session
	Last         bool // made when all faults had ended
	Began, Ended time.Duration
	Outcome      Outcome
	Code         codes.Code
	Err          error
	Reply        *Reply
}

func (c Call) String() string {
	s := fmt.Sprintf("%s %s cell=%d %d %d stable=%v [%v, %v]", c.Request.ID, c.Request.Op, c.Request.Cell, c.Request.A,
		c.Request.B, c.Stable, c.Began, c.Ended)
	if c.Request.Read {
		s = "read-only " + s
	}
	if c.Outcome == Accepted {
		return s + fmt.Sprintf(" → %d. at %d, %+v", c.Reply.OrderNum, c.Reply.Place, c.Reply.Result)
	}
	return s + fmt.Sprintf(" → %v", c.Err)
}

func outcomeOf(code codes.Code) Outcome {
	switch code {
	case codes.Unavailable, codes.ResourceExhausted:
		return Refused
	case codes.Canceled, codes.DeadlineExceeded, codes.Unknown, codes.DataLoss:
		return Unknown
	default:
		return Foreign
	}
}

// client is one client's place: its process may die, and another one takes its place, under another
// name.
type client struct {
	r *run
	i int

	mu     sync.Mutex // guards what follows
	life   int
	conn   *grpc.ClientConn // nil while there is none
	called bool             // some call has ended well
	back   chan struct{}    // closed when there is one again
}

func (c *client) host() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.name()
}

func (c *client) name() string { return fmt.Sprintf("client%d%s", c.i, strings.Repeat("x", c.life)) }

func (c *client) dial() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conn = c.r.cluster.Dial(c.name(), c.r.dialOptions()...)
	c.called = false
	if c.back != nil {
		close(c.back)
		c.back = nil
	}
}

// leave ends the client's process: as it should, or by a crash. It returns what starts another one.
func (c *client) leave(orderly bool) func() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn == nil {
		return nil
	}
	conn, host := c.conn, c.name()
	if !orderly {
		c.r.cluster.Network().Kill(host)
	}
	stats := c.r.cluster.Monitor(host).Stats()
	c.r.gone(host)
	c.r.coverage.client(stats)
	c.r.coverage.left(stats.Session)
	c.r.group.Go(func() { _ = conn.Close() })
	c.conn, c.back = nil, make(chan struct{})
	c.life++
	return c.dial
}

// current waits for a connection.
func (c *client) current(stop <-chan struct{}) (conn *grpc.ClientConn, host string, called bool) {
	for {
		c.mu.Lock()
		conn, host, called, back := c.conn, c.name(), c.called, c.back
		c.mu.Unlock()
		if conn != nil {
			return conn, host, called
		}
		select {
		case <-back:
		case <-stop:
			return nil, "", false
		}
	}
}

// work is one worker: calls with pauses between them, drawn from a generator of its own, until
// stop. Reads come between these, so that what is ordered is the same with and without them.
func (c *client) work(worker int, stop <-chan struct{}) {
	p := c.r.plan
	d, reads := newDice(p.Seed, uint64(100+worker)), newDice(p.Seed, uint64(1000+worker))
	time.Sleep(time.Duration(worker)*1237*time.Microsecond + 503) // no two begin at once
	last := int64(0)
	for k := 0; ; k++ {
		r := p.request(d, fmt.Sprintf("w%d.%d", worker, k), last)
		stable := d.percent(p.Raise)
		m, ok := c.call(Call{Worker: worker, Request: r, Stable: stable}, p.deadline(d), stop)
		if !ok {
			return
		}
		if m.Outcome == Accepted {
			last = m.Reply.Result.Value
		}
		for i := 0; reads.percent(p.Reads); i++ {
			if _, ok := c.call(Call{Worker: worker, Request: p.read(reads, fmt.Sprintf("w%d.%d.%d", worker, k, i)),
				Stable: reads.percent(p.Raise)}, p.deadline(reads), stop); !ok {
				return
			}
		}
		if !c.pause(p.rest(d, c.r.elapsed(), c.i, k), stop) {
			return
		}
	}
}

// readAlone is a worker that does nothing but read.
func (c *client) readAlone(worker int, stop <-chan struct{}) {
	p := c.r.plan
	d := newDice(p.Seed, uint64(1000+worker))
	time.Sleep(time.Duration(worker)*1237*time.Microsecond + 503)
	for k := 0; ; k++ {
		_, ok := c.call(Call{Worker: worker, Request: p.read(d, fmt.Sprintf("w%d.%d", worker, k)),
			Stable: d.percent(p.Raise)}, p.deadline(d), stop)
		if !ok || !c.pause(p.rest(d, c.r.elapsed(), c.i, k), stop) {
			return
		}
	}
}

// call makes a call when there is a connection; false says that it is time to stop.
func (c *client) call(m Call, deadline time.Duration, stop <-chan struct{}) (Call, bool) {
	conn, host, called := c.current(stop)
	if conn == nil {
		return m, false
	}
	m.Host, m.Opens = host, !called
	m = c.r.call(conn, m, deadline)
	if m.Outcome == Accepted {
		c.mu.Lock()
		c.called = c.called || c.name() == host
		c.mu.Unlock()
	}
	return m, true
}

func (c *client) pause(d time.Duration, stop <-chan struct{}) bool {
	select {
	case <-time.After(d):
		return true
	case <-stop:
		return false
	}
}

// deadline draws a call's.
func (p Plan) deadline(d dice) time.Duration {
	if d.percent(p.Hurry) {
		return d.between(time.Millisecond, 800*time.Millisecond)
	}
	return time.Minute
}

// read draws a call that is read-only.
func (p Plan) read(d dice, id string) Request {
	if p.Workload == "bank" {
		return Request{ID: id, Read: true, Op: "audit"}
	}
	return Request{ID: id, Read: true, Op: "read", Cell: d.IntN(len(Cells{}))}
}

// request draws a worker's next call that is ordered. last is what the worker has last read.
func (p Plan) request(d dice, id string, last int64) Request {
	r := Request{ID: id, Cell: d.IntN(len(Cells{}))}
	unique := d.Int64N(1 << 40)
	switch p.Workload {
	case "counter":
		r.Op, r.A = oneOf(d, "add", "add", "add", "read"), 1+unique%7
	case "register":
		switch r.Op = oneOf(d, "write", "read", "read", "cas"); r.Op {
		case "write":
			r.A = unique
		case "cas":
			r.A, r.B = last, unique
		}
	case "bank":
		if r.Op = oneOf(d, "transfer", "transfer", "transfer", "audit"); r.Op == "transfer" {
			r.A, r.B = int64((r.Cell+1+int(unique)%(len(Cells{})-1))%len(Cells{})), 1+unique%80
		}
	}
	if d.percent(p.Large) {
		r.Pad = strings.Repeat("x", 50_000+int(unique%300_000))
	}
	return r
}

// call makes one call, and records it.
func (r *run) call(conn *grpc.ClientConn, m Call, deadline time.Duration) Call {
	ctx, cancel := context.WithTimeout(r.ctx, deadline)
	defer cancel()
	var opts []grpc.CallOption
	if m.Stable {
		opts = append(opts, transport.AtLeast(understudy.Stable))
	}
	m.Stable = m.Stable || r.plan.Level == understudy.Stable
	m.Began = r.elapsed()
	request := m.Request
	m.Request.Pad = ""
	m.Reply, m.Err = Invoke(ctx, conn, request, opts...)
	m.Ended = r.elapsed()
	if m.Code = status.Code(m.Err); m.Err != nil {
		m.Outcome = outcomeOf(m.Code)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls = append(r.calls, m)
	return m
}
