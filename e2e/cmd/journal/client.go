package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/understudy-rpc/understudy/e2e/journal"
	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/interceptor"
	"github.com/understudy-rpc/understudy/internal/process"
	"github.com/understudy-rpc/understudy/transport"
)

// client is a client's process: a stock gRPC client with another target, and callers.
type client struct {
	name    string
	conn    *grpc.ClientConn
	monitor transport.Monitor
	link    *journal.Link
	direct  dialer
	dialled strands
	callers sync.WaitGroup

	mu       sync.Mutex // guards what follows
	routes   map[string]string
	begun    uint64
	accepted uint64
	resting  chan struct{} // closed when callers shall make no more calls
	news     chan struct{} // closed, and made anew, when a call was accepted
}

func newClient(etcd, group, name, relay string, link *journal.Link, log *slog.Logger) (*client, error) {
	c := &client{name: name, link: link, direct: dialTCP, resting: make(chan struct{}), news: make(chan struct{})}
	own := []transport.Option{transport.WithMonitor(&c.monitor), transport.WithLogger(log)}
	if relay != "" {
		c.direct = via(relay)
		client, err := c.direct.etcd(strings.Split(etcd, ",")) // open until the process ends
		if err != nil {
			return nil, err
		}
		own = append(own, transport.WithStore(election.NewEtcd(client, group)))
	}
	options := append(interceptor.DialOptions(own...),
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithContextDialer(c.dial))
	var err error
	c.conn, err = grpc.NewClient("replicated://"+etcd+"/"+group, options...)
	return c, err
}

// dial goes another way, if the test said so.
func (c *client) dial(ctx context.Context, addr string) (net.Conn, error) {
	c.mu.Lock()
	to, routed := c.routes[addr]
	c.mu.Unlock()
	if !routed {
		to = addr
	}
	if to == "" {
		return nil, fmt.Errorf("the test allows no way to %s", addr)
	}
	return c.dialled.dialer(c.direct)(ctx, to)
}

func (c *client) answer(ctx context.Context, cmd journal.Command) (journal.Event, error) {
	switch cmd.Do {
	case journal.DoLoad:
		c.mu.Lock()
		defer c.mu.Unlock()
		select {
		case <-c.resting: // callers have rested, and new ones begin
			c.resting = make(chan struct{})
		default:
		}
		resting := c.resting
		for range cmd.Load.Callers {
			c.callers.Go(func() { c.caller(*cmd.Load, resting) })
		}
		return journal.Event{}, nil
	case journal.DoAccepted:
		return c.awaitAccepted(ctx, cmd.Count)
	case journal.DoRest:
		c.mu.Lock()
		select {
		case <-c.resting:
		default:
			close(c.resting)
		}
		c.mu.Unlock()
		c.callers.Wait()
		c.mu.Lock()
		defer c.mu.Unlock()
		return journal.Event{Calls: c.begun}, nil
	case journal.DoRoute:
		c.mu.Lock()
		defer c.mu.Unlock()
		c.routes = cmd.Routes
		return journal.Event{}, nil
	case journal.DoStrand:
		c.dialled.strand()
		return journal.Event{}, nil
	case journal.DoStats:
		s := c.monitor.Stats()
		return journal.Event{Stats: &s}, nil
	}
	if cmd.Do == journal.DoClock {
		return answerClock(cmd)
	}
	return journal.Event{}, process.Unknown(cmd)
}

func (c *client) awaitAccepted(ctx context.Context, count uint64) (journal.Event, error) {
	for {
		c.mu.Lock()
		accepted, news := c.accepted, c.news
		c.mu.Unlock()
		if accepted >= count {
			return journal.Event{}, nil
		}
		select {
		case <-news:
		case <-ctx.Done():
			return journal.Event{}, fmt.Errorf("%d calls were accepted, not %d", accepted, count)
		}
	}
}

// caller makes one call after the other.
func (c *client) caller(load journal.Load, resting <-chan struct{}) {
	calls, padding := journal.NewClient(c.conn), strings.Repeat("x", load.Padding)
	for made := 0; load.Calls == 0 || made < load.Calls; made++ {
		select {
		case <-resting:
			return
		case <-time.After(load.Pause):
		}
		c.mu.Lock()
		c.begun++
		call := journal.Call{Call: c.begun}
		c.mu.Unlock()

		ctx, cancel := context.WithTimeout(context.Background(), load.Deadline)
		var err error
		call.Start = now()
		call.Place, err = calls.Append(ctx, journal.Entry{Client: c.name, Call: call.Call}, padding)
		call.End = now()
		cancel()
		if err != nil {
			call.Code, call.Text = status.Code(err), err.Error()
		}
		// The test knows of it before the caller goes on: it counts, even if this process is killed
		// now.
		c.link.Tell(journal.Event{Call: &call})
		if call.Code == codes.OK {
			c.mu.Lock()
			c.accepted++
			close(c.news)
			c.news = make(chan struct{})
			c.mu.Unlock()
		}
	}
}

// now is the machine's monotonic clock, the same in all its processes.
func now() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err)
	}
	return time.Duration(ts.Nano())
}
