package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/understudy-rpc/understudy/bench/counter"
	"github.com/understudy-rpc/understudy/internal/process"
)

const (
	keys       = 1024
	maxDelta   = 100
	minRequest = 16 // bytes: key and delta
)

// clientMain is the subcommand client: callers of one system, until stdin ends.
func clientMain(cfg clientConfig, in io.Reader, out io.Writer) error {
	signal.Ignore(os.Interrupt) // it is meant for the parent, whose terminal this is
	s, _ := findSystem(cfg.system)
	m := newMeter(cfg.delay)
	var clients []counter.CounterClient
	for i := range cfg.sessions * cfg.groups {
		of := cfg
		of.group = groupName(cfg.group, i%cfg.groups)
		var asks []counter.CounterClient // one, or one for each server
		for j := range cfg.servers {
			if j > 0 && (!s.joins || cfg.attempt == 0) {
				break
			}
			of.servers = cfg.servers[j:]
			conn, err := s.dial(of, m)
			if err != nil {
				return err
			}
			defer conn.Close()
			asks = append(asks, counter.NewCounterClient(conn))
		}
		if len(asks) > 1 {
			asks[0] = &redirected{servers: slices.Clone(asks), attempt: cfg.attempt}
		}
		clients = append(clients, asks[0])
	}
	l := newLoad(clients, cfg)
	return serve(context.Background(), in, out, m, l.answer)
}

// A load is callers, each with one call in flight at a time, who take the clients in turn. Its
// windows must not overlap.
type load struct {
	clients  []counter.CounterClient
	deadline time.Duration
	think    time.Duration // after each call
	padding  []byte
	callers  []*caller // of every window so far: they keep room for their latencies
	gaps     gaps
}

type caller struct {
	random    *rand.Rand
	next      int // the place of the client that it calls next
	latencies []time.Duration
	sum       int64
	last      time.Time
}

// loadReport is what the callers of one window have seen.
type loadReport struct {
	Calls   int           `json:"calls"`
	Sum     int64         `json:"sum"` // of the deltas of these calls
	Elapsed time.Duration `json:"elapsed"`
	P50     time.Duration `json:"p50"`
	P99     time.Duration `json:"p99"`
	Max     time.Duration `json:"max"`
}

func newLoad(clients []counter.CounterClient, cfg clientConfig) *load {
	l := &load{clients: clients, deadline: cfg.deadline, think: cfg.think}
	l.padding = make([]byte, max(0, cfg.request-proto.Size(&counter.AddRequest{Key: key(0), Delta: 1})-2))
	return l
}

func key(n int) string { return fmt.Sprintf("account-%04d", n) }

func (l *load) answer(ctx context.Context, c command) (event, error) {
	switch c.Do {
	case doLoad:
	case doGap:
		r := l.gap(ctx, c.Callers, c.For)
		return event{Gap: &r}, nil
	case doMark:
		l.gaps.mark.Store(&c.At)
		return event{}, nil
	case doProgress:
		return event{Calls: int(l.gaps.calls.Load())}, nil
	default:
		return event{}, process.Unknown(c)
	}
	r, err := l.run(ctx, c.Callers, c.For)
	return event{Load: &r}, err
}

// run lets the callers call for a while. The first call that fails ends it: here nothing is done
// that should fail one.
func (l *load) run(ctx context.Context, callers int, for_ time.Duration) (loadReport, error) {
	l.grow(callers)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	begun := time.Now()
	end := begun.Add(for_)
	var calling sync.WaitGroup
	for _, c := range l.callers[:callers] {
		calling.Go(func() {
			if err := l.call(ctx, c, callers, end); err != nil {
				cancel(err)
			}
		})
	}
	calling.Wait()
	if err := context.Cause(ctx); err != nil {
		return loadReport{}, err
	}
	return summary(begun, l.callers[:callers]), nil
}

// grow makes more callers, if there are less.
func (l *load) grow(callers int) {
	for len(l.callers) < callers {
		l.callers = append(l.callers,
			&caller{random: rand.New(rand.NewPCG(1, uint64(len(l.callers)))), next: len(l.callers)})
	}
}

// next returns what a caller asks whom; the callers together go through all clients.
func (l *load) next(c *caller, callers int) (counter.CounterClient, *counter.AddRequest) {
	client := l.clients[c.next%len(l.clients)]
	c.next += callers
	return client, &counter.AddRequest{Key: keyNames[c.random.IntN(keys)], Delta: 1 + c.random.Int64N(maxDelta),
		Padding: l.padding}
}

// call is one caller's closed loop. It goes on beyond the end until every connection has made two
// calls since the process began, so that what opens a connection isn't in any window but the first,
// which warms up.
func (l *load) call(ctx context.Context, c *caller, callers int, end time.Time) error {
	c.latencies, c.sum = c.latencies[:0], 0
	for c.last = time.Now(); c.last.Add(l.think).Before(end) || c.next < 2*len(l.clients); {
		client, r := l.next(c, callers)
		begun := time.Now()
		if err := l.add(ctx, client, r); err != nil {
			return err
		}
		c.sum += r.GetDelta()
		c.last = time.Now()
		c.latencies = append(c.latencies, c.last.Sub(begun))
		if l.think > 0 {
			if err := pause(ctx, l.think); err != nil {
				return err
			}
		}
	}
	return nil
}

var keyNames = func() (names [keys]string) {
	for i := range names {
		names[i] = key(i)
	}
	return names
}()

// pause returns an error when ctx ends first.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (l *load) add(ctx context.Context, client counter.CounterClient, r *counter.AddRequest) error {
	if l.deadline > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, l.deadline)
		defer cancel()
	}
	_, err := client.Add(ctx, r)
	return err
}

// summary sorts all latencies: exact, and cheaper than it sounds at a window's end.
func summary(begun time.Time, callers []*caller) loadReport {
	var all []time.Duration
	var r loadReport
	last := begun
	for _, c := range callers {
		all = append(all, c.latencies...)
		r.Sum += c.sum
		if c.last.After(last) {
			last = c.last
		}
	}
	slices.Sort(all)
	r.Calls, r.Elapsed = len(all), last.Sub(begun)
	r.P50, r.P99, r.Max = quantile(all, 0.50), quantile(all, 0.99), quantile(all, 1)
	return r
}

// quantile takes sorted values: the lowest that q of them don't exceed.
func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	i := int(q*float64(len(sorted))+0.999999) - 1
	return sorted[min(max(i, 0), len(sorted)-1)]
}
