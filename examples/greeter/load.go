package main

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/understudy-rpc/understudy/examples/greeter/helloworld"
	"github.com/understudy-rpc/understudy/internal/process"
)

const (
	callTimeout = 10 * time.Second
	afterFailed = 100 * time.Millisecond // callers don't spin on errors
	ownNames    = 4                      // of each caller
	sharedNames = 4
)

// A load is callers, each with one call in flight at a time. Its methods may run concurrently, but
// for start and stop: first start, once, then stop.
type load struct {
	ctx     context.Context // of every call
	greeter helloworld.GreeterClient
	callers int
	run     string // begins every name, so that each run's names are new
	ledger  *ledger
	holdups *holdups

	mu       sync.Mutex // guards calls, failed and failures
	calls    int
	failed   int
	failures map[string]failure

	stopping chan struct{}
	calling  sync.WaitGroup
}

// A failure is what calls that failed have in common.
type failure struct {
	Count int    `json:"count"`
	First string `json:"first"` // what the first of them said
}

// A tally is all that the callers know in the end.
type tally struct {
	Calls    int                `json:"calls"`
	Failed   int                `json:"failed"`
	Failures map[string]failure `json:"failures"` // by status code
	Accounts map[string]account `json:"accounts"`
}

func newLoad(ctx context.Context, g helloworld.GreeterClient, callers int) *load {
	return &load{
		ctx: ctx, greeter: g, callers: callers, run: fmt.Sprintf("%04x", rand.N(1<<16)),
		ledger: newLedger(), holdups: &holdups{}, failures: map[string]failure{}, stopping: make(chan struct{}),
	}
}

// answer answers the parent's commands.
func (l *load) answer(_ context.Context, c command) (event, error) {
	switch c.Do {
	case doStart:
		l.start()
		return event{}, nil
	case doStats:
		s := l.stats()
		return event{Stats: &s}, nil
	case doStop:
		l.stop()
		t := l.tally()
		return event{Tally: &t}, nil
	case doGaps:
		return event{Gaps: l.holdups.gaps(c.Marks)}, nil
	}
	return event{}, process.Unknown(c)
}

func (l *load) start() {
	for caller := range l.callers {
		l.calling.Go(func() { l.caller(caller) })
	}
}

// stop lets every caller end its call, which takes callTimeout at most.
func (l *load) stop() {
	close(l.stopping)
	l.calling.Wait()
}

// caller greets names of its own and names that all share, by turns.
func (l *load) caller(caller int) {
	for n := 0; ; n++ {
		select {
		case <-l.stopping:
			return
		default:
		}
		name := fmt.Sprintf("%s/caller-%d/%d", l.run, caller, n/2%ownNames)
		if n%2 == 1 {
			name = fmt.Sprintf("%s/shared/%d", l.run, rand.N(sharedNames))
		}
		if l.call(name) {
			continue
		}
		select {
		case <-l.stopping:
			return
		case <-time.After(afterFailed):
		}
	}
}

// call makes one call, and books its outcome. It is false when the call failed.
func (l *load) call(name string) bool {
	floor := l.ledger.begin(name)
	ctx, cancel := context.WithTimeout(l.ctx, callTimeout)
	defer cancel()
	start := time.Now()
	reply, err := l.greeter.SayHello(ctx, &helloworld.HelloRequest{Name: name})
	l.holdups.add(start, time.Now())
	var n uint64
	if err == nil {
		n, err = parseGreeting(name, reply.GetMessage())
	}
	switch {
	case err == nil:
		l.ledger.given(name, n)
	case !notExecuted(err):
		l.ledger.unknown(name, floor)
	}
	l.count(err)
	return err == nil
}

// notExecuted says whether a call failed without being executed, now or ever: the library promises
// it for these two codes. Of all other errors the outcome is unknown. (A library that breaks the
// promise shows in the ledger, as a number that nobody was given.)
func notExecuted(err error) bool {
	code := status.Code(err)
	return code == codes.Unavailable || code == codes.ResourceExhausted
}

func (l *load) count(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.calls++
	if err == nil {
		return
	}
	l.failed++
	code := "unreadable reply"
	if s, ok := status.FromError(err); ok {
		code = s.Code().String()
	}
	f := l.failures[code]
	if f.Count++; f.Count == 1 {
		f.First = err.Error()
	}
	l.failures[code] = f
}

func (l *load) stats() stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	return stats{At: time.Now(), Calls: l.calls, Failed: l.failed}
}

func (l *load) tally() tally {
	accounts := l.ledger.copy()
	l.mu.Lock()
	defer l.mu.Unlock()
	return tally{Calls: l.calls, Failed: l.failed, Failures: maps.Clone(l.failures), Accounts: accounts}
}
