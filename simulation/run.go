package simulation

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/internal/clock"
	"github.com/understudy-rpc/understudy/replica"
	"github.com/understudy-rpc/understudy/understudytest"
)

// Record is what a run has brought, to be judged outside of the bubble.
type Record struct {
	Plan      Plan
	Began     time.Time // the zero of all times in it
	Calls     []Call
	Gone      map[string]bool // clients that have crashed, or left
	Replicas  []image
	Failovers []replica.Failover
	Faults    int
	Suspect   []span // when the store wasn't the group's
	Virtual   time.Duration
	Problems  []string // of the cluster's: what didn't come about
	Trace     []Moment
	Coverage  Coverage
}

// Moment is something that happened. Within one moment the order is nobody's.
type Moment struct {
	At   time.Duration
	What string
}

func (m Moment) String() string { return fmt.Sprintf("%-12v %s", m.At, m.What) }

// run is a plan that is being played.
type run struct {
	plan     Plan
	cluster  *understudytest.Cluster
	clients  []*client
	nemesis  *nemesis
	began    time.Time
	ctx      context.Context
	group    sync.WaitGroup // what must have ended before the bubble does
	coverage Coverage       // locks itself
	weather  map[string]*weather

	mu        sync.Mutex // guards what follows
	calls     []Call
	left      map[string]bool
	failovers []replica.Failover
	moments   []Moment
}

const (
	// after all faults have ended, a call may take so long: a lease, an election, the reconcile
	// timeout, and rejoining
	recovery  = 20 * time.Second
	lastCalls = 3 // of each worker, when all faults have ended
)

// Play runs a plan. It must be called in a bubble; log may be nil.
func Play(t testing.TB, p Plan, log io.Writer) (rec Record) {
	ctx, cancel := context.WithCancel(context.Background())
	r := &run{plan: p, ctx: ctx, left: map[string]bool{}, coverage: newCoverage()}
	judge := &problems{TB: t}
	defer func() {
		cancel()
		gaveUp := recover()
		if gaveUp != nil && gaveUp != any(judge) {
			panic(gaveUp)
		}
		if gaveUp != nil {
			for _, c := range r.clients {
				c.leave(false)
			}
		}
		r.group.Wait()
		rec = r.record(judge)
	}()
	r.start(judge, log)
	stop := make(chan struct{})
	var workers sync.WaitGroup
	for i, c := range r.clients[:p.Clients] {
		for k := range p.Workers {
			workers.Go(func() { c.work(i*p.Workers+k, stop) })
		}
	}
	if p.Reader {
		workers.Go(func() { r.clients[p.Clients].readAlone(p.Clients*p.Workers, stop) })
	}
	if p.Hostile {
		r.group.Go(r.harass)
	}
	r.nemesis.rage()
	if p.Heal < p.Load { // liveness: calls go on
		r.nemesis.heal()
		time.Sleep(max(0, p.Load-r.elapsed()))
		close(stop)
	} else {
		close(stop)
		r.nemesis.heal()
	}
	healed := r.elapsed()
	workers.Wait()
	if p.MinInSync > 1 {
		r.cluster.AwaitInSync(p.Replicas)
	}
	r.last(healed)
	r.cluster.AwaitInSync(p.Replicas)
	r.cluster.AwaitExecuted()
	return rec
}

// start makes the cluster and its clients.
func (r *run) start(t testing.TB, log io.Writer) {
	p := r.plan
	handler := slog.Handler(slog.DiscardHandler)
	if log != nil {
		handler = slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})
	}
	r.began = time.Now()
	r.weather = map[string]*weather{}
	for i := range p.Replicas {
		r.weather[fmt.Sprintf("replica%d", i)] = new(weather)
	}
	r.cluster = understudytest.New(t, p.Replicas, Register(p),
		understudytest.Level(p.Level), understudytest.Logger(slog.New(r.coverage.handler(handler))),
		understudytest.Clocks(r.clock),
		understudytest.WallClocks(r.wall), understudytest.Between(r.between),
		understudytest.ReplicaOptions(replica.OnFailover(r.failover),
			replica.MinInSync(p.MinInSync)), understudytest.ClientOptions(p.carrier()...))
	clients := p.Clients
	if p.Reader {
		clients++
	}
	for i := range clients {
		c := &client{r: r, i: i}
		r.clients = append(r.clients, c)
		c.dial()
	}
	r.began = time.Now() // the plan's zero
	r.nemesis = &nemesis{r: r, crashed: make([]bool, p.Replicas), gone: map[election.Member]bool{}}
	r.cluster.Network().OnWrite(r.nemesis.onWrite)
}

// clock is a host's: it runs too fast or too slow.
func (r *run) clock(host string) func() time.Duration {
	elapsed := clock.Monotonic()
	rate := 1 + r.plan.Drift[strings.TrimRight(host, "x")]
	return func() time.Duration { return time.Duration(float64(elapsed()) * rate) }
}

// dialOptions: connections come back after the same time in each run, and headers are measured
// (R5).
func (r *run) dialOptions() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.6, MaxDelay: time.Second},
			MinConnectTimeout: time.Second,
		}),
		grpc.WithStatsHandler(&r.coverage.headers),
	}
}

// last lets every worker call again: all faults have ended, so these must be answered. A session
// that was lost while nobody called is told so now (I5).
func (r *run) last(healed time.Duration) {
	time.Sleep(r.plan.Linger)
	r.awaitAlive(healed + recovery)
	var calls sync.WaitGroup
	for i, c := range r.clients {
		calls.Go(func() {
			time.Sleep(time.Duration(i)*1237*time.Microsecond + 211)
			d := newDice(r.plan.Seed, uint64(10_000+i))
			conn, host, _ := c.current(nil)
			call := func(request Request) {
				r.call(conn, Call{Worker: -1 - i, Host: host, Last: true, Request: request},
					healed+recovery+r.plan.Linger-r.elapsed())
			}
			for k := range lastCalls {
				call(r.plan.request(d, fmt.Sprintf("last%d.%d", i, k), 0))
			}
			if r.plan.Reads > 0 {
				call(r.plan.read(d, fmt.Sprintf("last%d.read", i)))
			}
		})
	}
	calls.Wait()
}

// awaitAlive waits until the group isn't down, and clients know: its in-sync replicas may all have
// been cut off from the store for longer than their leases. Calls are refused at once until then.
func (r *run) awaitAlive(until time.Duration) {
	for down := true; down && r.elapsed() < until; {
		down = r.cluster.View().IsDown()
		time.Sleep(10 * time.Millisecond)
	}
}

// failover is a replica's report.
func (r *run) failover(f replica.Failover) {
	r.trace("epoch  %d: %s takes over from %s at %d; %d peers, %d sessions, %d given up", f.Epoch, f.To, f.From,
		f.FirstOrderNum, f.PeersAnswered, f.SessionsAwaited, f.SessionsGivenUp)
	r.coverage.failover(f)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failovers = append(r.failovers, f)
}

func (r *run) elapsed() time.Duration { return time.Since(r.began) }

func (r *run) gone(host string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.left[host] = true
}

// hosts are those that there are now.
func (r *run) hosts() []string {
	var hosts []string
	for i := range r.plan.Replicas {
		hosts = append(hosts, fmt.Sprintf("replica%d", i))
	}
	for _, c := range r.clients {
		hosts = append(hosts, c.host())
	}
	return hosts
}

func (r *run) trace(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.moments = append(r.moments, Moment{r.elapsed(), fmt.Sprintf(format, args...)})
}

// record takes down what there is.
func (r *run) record(judge *problems) Record {
	rec := Record{Plan: r.plan, Began: r.began, Problems: judge.all()}
	if r.nemesis != nil {
		rec.Faults, rec.Suspect = r.nemesis.made, r.nemesis.suspected
	}
	if r.cluster != nil && len(rec.Problems) == 0 {
		for i := range r.plan.Replicas {
			rec.Replicas = append(rec.Replicas, r.cluster.State(i).(*Service).image())
			r.coverage.replica(r.cluster.Replica(i).Status())
		}
		r.coverage.add("a session ended in the order",
			int(r.cluster.Replica(0).Status().Executed)-len(rec.Replicas[0].Ledger)-
				r.coverage.Counts()["a session is open"]-r.coverage.Counts()[orderIt])
		for _, c := range r.clients {
			r.coverage.client(r.cluster.Monitor(c.host()).Stats())
		}
	}
	r.coverage.unheard()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.calls {
		r.moments = append(r.moments, Moment{c.Ended, "call   " + c.String()})
	}
	slices.SortFunc(r.moments, func(a, b Moment) int {
		return cmp.Or(cmp.Compare(a.At, b.At), cmp.Compare(a.What, b.What))
	})
	rec.Calls, rec.Gone, rec.Failovers, rec.Trace = r.calls, r.left, r.failovers, r.moments
	rec.Virtual, rec.Coverage = r.elapsed(), r.coverage
	return rec
}

// problems is a testing.TB that notes failures instead.
type problems struct {
	testing.TB
	mu  sync.Mutex
	met []string
}

func (p *problems) Errorf(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.met = append(p.met, fmt.Sprintf(format, args...))
}

// Fatalf ends the run: Play recovers.
func (p *problems) Fatalf(format string, args ...any) {
	p.Errorf(format, args...)
	panic(p)
}

func (p *problems) Fatal(args ...any) { p.Fatalf("%s", fmt.Sprint(args...)) }

func (p *problems) Logf(format string, args ...any) { p.Errorf(format, args...) }

func (p *problems) all() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.met)
}
