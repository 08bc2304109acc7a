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
)

const (
	keys       = 1024
	maxDelta   = 100
	minRequest = 32 // bytes: key, delta, and the padding's own tag and length
)

// clientMain is the subcommand client: callers of one system, until stdin ends.
func clientMain(cfg clientConfig, in io.Reader, out io.Writer) error {
	signal.Ignore(os.Interrupt) // it is meant for the parent, whose terminal this is
	s, _ := findSystem(cfg.system)
	m := newMeter(cfg.delay)
	conn, err := s.dial(cfg, m)
	if err != nil {
		return err
	}
	defer conn.Close()
	l := newLoad(counter.NewCounterClient(conn), cfg)
	return newChild(out, m, l.answer).serve(context.Background(), in)
}

// A load is callers, each with one call in flight at a time. Its windows must not overlap.
type load struct {
	client   counter.CounterClient
	deadline time.Duration
	padding  []byte
	callers  []*caller // of every window so far: they keep room for their latencies
}

type caller struct {
	random    *rand.Rand
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

func newLoad(c counter.CounterClient, cfg clientConfig) *load {
	l := &load{client: c, deadline: cfg.deadline}
	l.padding = make([]byte, max(0, cfg.request-proto.Size(&counter.AddRequest{Key: key(0), Delta: 1})-2))
	return l
}

func key(n int) string { return fmt.Sprintf("account-%04d", n) }

func (l *load) answer(ctx context.Context, c command) event {
	if c.Do != doLoad {
		return unknownCommand(c)
	}
	r, err := l.run(ctx, c.Callers, c.For)
	if err != nil {
		return event{Error: err.Error()}
	}
	return event{Load: &r}
}

// run lets the callers call for a while. The first call that fails ends it: here nothing is done that should fail one.
func (l *load) run(ctx context.Context, callers int, for_ time.Duration) (loadReport, error) {
	for len(l.callers) < callers {
		l.callers = append(l.callers, &caller{random: rand.New(rand.NewPCG(1, uint64(len(l.callers))))})
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	begun := time.Now()
	end := begun.Add(for_)
	var calling sync.WaitGroup
	for _, c := range l.callers[:callers] {
		calling.Go(func() {
			if err := l.call(ctx, c, end); err != nil {
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

// call is one caller's closed loop.
func (l *load) call(ctx context.Context, c *caller, end time.Time) error {
	c.latencies, c.sum = c.latencies[:0], 0
	for c.last = time.Now(); c.last.Before(end); {
		r := &counter.AddRequest{Key: keyNames[c.random.IntN(keys)], Delta: 1 + c.random.Int64N(maxDelta), Padding: l.padding}
		if err := l.add(ctx, r); err != nil {
			return err
		}
		c.sum += r.GetDelta()
		now := time.Now()
		c.latencies = append(c.latencies, now.Sub(c.last))
		c.last = now
	}
	return nil
}

var keyNames = func() (names [keys]string) {
	for i := range names {
		names[i] = key(i)
	}
	return names
}()

func (l *load) add(ctx context.Context, r *counter.AddRequest) error {
	if l.deadline > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, l.deadline)
		defer cancel()
	}
	_, err := l.client.Add(ctx, r)
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
