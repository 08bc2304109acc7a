package understudytest_test

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/understudy-rpc/understudy"
	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/internal/turn"
	"github.com/understudy-rpc/understudy/replica"
	"github.com/understudy-rpc/understudy/understudytest"
	"github.com/understudy-rpc/understudy/understudytest/simnet"
)

// ledger is a service whose state is all that it has executed, so that a replica that joined late
// can be held against the others, too.
type ledger struct {
	mu      sync.Mutex // the test reads it, too
	entries []entry
}

type entry struct {
	OrderNum uint64
	Name     string
	At       int64
}

// add returns the call's place among all.
func (l *ledger) add(ctx context.Context, name string) (int64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := entry{Name: name, At: understudy.Now(ctx).UnixMicro()}
	if t := turn.FromContext(ctx); t != nil {
		e.OrderNum = uint64(t.OrderNum())
	}
	if len(e.Name) > 64 { // a large message
		e.Name = e.Name[:64]
	}
	l.entries = append(l.entries, e)
	return int64(len(l.entries)), nil
}

func (l *ledger) get(context.Context) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return int64(len(l.entries))
}

func (l *ledger) Snapshot() (func(io.Writer) error, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	b, err := json.Marshal(l.entries)
	return func(w io.Writer) error {
		_, err := w.Write(b)
		return err
	}, err
}

func (l *ledger) Restore(r io.Reader) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.entries = nil
	return json.NewDecoder(r).Decode(&l.entries)
}

func (l *ledger) all() []entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.entries)
}

func registerLedger(s grpc.ServiceRegistrar) replica.Snapshotter {
	l := &ledger{}
	s.RegisterService(&counterDesc, l)
	return l
}

// load is clients that call, and what they were told.
type load struct {
	t     *testing.T
	c     *understudytest.Cluster
	conns []*grpc.ClientConn
	wg    sync.WaitGroup
	stop  chan struct{}
	pause atomic.Int64 // between two calls of a client

	mu    sync.Mutex
	calls []madeCall
}

type madeCall struct {
	name       string
	given      int64
	err        error
	began, end time.Duration
	reads      bool
}

// startLoad lets clients call, each again and again after a pause, until finish.
func startLoad(
	t *testing.T, c *understudytest.Cluster, clients int, pause time.Duration, opts ...grpc.CallOption,
) *load {
	l := &load{t: t, c: c, stop: make(chan struct{})}
	l.every(pause)
	for i := range clients {
		l.conns = append(l.conns, c.Dial(fmt.Sprintf("client%d", i)))
	}
	for i, conn := range l.conns {
		l.wg.Go(func() {
			time.Sleep(time.Duration(i) * 37 * time.Microsecond) // fake; staggered
			for k := 0; ; k++ {
				l.call(conn, fmt.Sprintf("client%d call%d", i, k))
				select {
				case <-time.After(time.Duration(l.pause.Load()) + time.Duration(i)*time.Microsecond):
				case <-l.stop:
					return
				}
			}
		})
	}
	return l
}

// every changes the pause, from the next one of each client on: where nothing happens, less load
// does, and the race detector has less to watch.
func (l *load) every(pause time.Duration) { l.pause.Store(int64(pause)) }

var zero = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) // where fake time begins

func (l *load) call(conn *grpc.ClientConn, name string) madeCall {
	m := madeCall{name: name, began: time.Since(zero)}
	m.given, m.err = add(context.Background(), conn, name)
	m.end = time.Since(zero)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.calls = append(l.calls, m)
	return m
}

// read reads how many entries there are.
func (l *load) read(conn *grpc.ClientConn) madeCall {
	m := madeCall{name: "read", reads: true, began: time.Since(zero)}
	m.given, m.err = get(context.Background(), conn)
	m.end = time.Since(zero)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.calls = append(l.calls, m)
	return m
}

func (l *load) finish() {
	close(l.stop)
	l.wg.Wait()
}

// check holds the replicas that live against what the callers were told; the calls have ended, and
// the replicas have executed all. may are the codes with which calls may have failed.
func (l *load) check(alive []int, may ...codes.Code) {
	t := &brief{TB: l.t}
	t.Helper()
	if len(l.calls) == 0 {
		t.Error("nobody called")
	}
	reference := l.c.State(alive[0]).(*ledger).all()
	for _, i := range alive[1:] {
		if other := l.c.State(i).(*ledger).all(); !slices.Equal(other, reference) {
			at := 0
			for at < min(len(other), len(reference)) && other[at] == reference[at] {
				at++
			}
			t.Errorf("I1: replica %d has %d entries, replica %d has %d; they differ from place %d on", i, len(other),
				alive[0], len(reference), at)
		}
	}
	place := map[string]int64{}
	last := entry{}
	for k, e := range reference {
		if place[e.Name] != 0 {
			t.Errorf("I4: %q was executed twice", e.Name)
		}
		place[e.Name] = int64(k + 1)
		if e.OrderNum <= last.OrderNum || e.At < last.At {
			t.Errorf("I2, R7: %v was executed after %v", e, last)
		}
		last = e
	}
	for _, m := range l.calls {
		name := m.name[:min(len(m.name), 64)]
		switch code := status.Code(m.err); {
		case m.err == nil && !m.reads && place[name] != m.given:
			t.Errorf("I5: %q was given %d, and is at %d", name, m.given, place[name])
		case m.err != nil && !slices.Contains(may, code):
			t.Errorf("%q (%v to %v): %v", name, m.began, m.end, m.err)
		case (code == codes.Unavailable || code == codes.ResourceExhausted) && place[name] != 0:
			t.Errorf("%q failed with %v, and was executed", name, code)
		}
	}
	// What ended before another began was executed before it.
	byBegin := slices.Clone(l.calls)
	byEnd := slices.Clone(l.calls)
	slices.SortFunc(byBegin, func(a, b madeCall) int { return cmp.Compare(a.began, b.began) })
	slices.SortFunc(byEnd, func(a, b madeCall) int { return cmp.Compare(a.end, b.end) })
	highest := int64(0)
	for _, m := range byBegin {
		for len(byEnd) > 0 && byEnd[0].end < m.began {
			if byEnd[0].err == nil {
				highest = max(highest, byEnd[0].given)
			}
			byEnd = byEnd[1:]
		}
		if m.err == nil && (m.given < highest || m.given == highest && !m.reads) { // a read sees it
			t.Errorf("%q was given %d, after a call that had been given %d had ended", m.name[:min(len(m.name), 64)],
				m.given, highest)
		}
	}
}

// brief says the first errors only.
type brief struct {
	testing.TB
	said int
}

func (b *brief) Errorf(format string, args ...any) {
	b.Helper()
	if b.said++; b.said <= 5 {
		b.TB.Errorf(format, args...)
	} else {
		b.Fail()
	}
}

// settle waits until the replicas that live are in-sync and have executed all, and checks.
func (l *load) settle(alive []int, may ...codes.Code) {
	l.t.Helper()
	l.finish()
	l.c.AwaitInSync(len(alive))
	l.c.AwaitExecuted()
	l.check(alive, may...)
}

var levels = []understudy.Level{understudy.Reflected, understudy.Direct, understudy.Stable}

// steps is how finely a test varies the moment of a fault: UNDERSTUDY_SEEDS makes it finer.
func steps(n int) int {
	if testing.Short() {
		n = max(1, n/4)
	}
	if s := os.Getenv("UNDERSTUDY_SEEDS"); s != "" {
		k, _ := strconv.Atoi(s)
		return k
	}
	return n
}

// alternatives runs a test in fake time at each level, and for each of n moments.
func alternatives(t *testing.T, n int, test func(t *testing.T, level understudy.Level, k int)) {
	for _, level := range levels {
		for k := range steps(n) {
			t.Run(fmt.Sprintf("%v/%d", level, k), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) { test(t, level, k) })
			})
		}
	}
}

func others(n int, but ...int) (rest []int) {
	for i := range n {
		if !slices.Contains(but, i) {
			rest = append(rest, i)
		}
	}
	return rest
}

// spy tells who wins an election.
type spy struct {
	election.Election
	host string
	won  func(host string)
}

func (s spy) Elect(ctx context.Context, self election.Registration, seen uint64) (uint64, error) {
	epoch, err := s.Election.Elect(ctx, self, seen)
	if err == nil {
		s.won(s.host)
	}
	return epoch, err
}

// doubleFailure kills the primary under load and then its successor, at the k-th message from or to
// it since its election: before that is sent, or after. It returns how many messages there were
// until the gate had opened.
func doubleFailure(t *testing.T, level understudy.Level, n, k int, before bool) int {
	var mu sync.Mutex
	var second string
	count, over := 0, false // over: nobody dies any more
	c := understudytest.New(t, n, registerLedger, understudytest.Level(level), understudytest.Logger(verbose),
		understudytest.Between(func(host string, e election.Election) election.Election {
			return spy{e, host, func(host string) {
				mu.Lock()
				defer mu.Unlock()
				if second == "" {
					second = host
				}
			}}
		}))
	number := func() int {
		var i int
		_, _ = fmt.Sscanf(second, "replica%d", &i)
		return i
	}
	l := startLoad(t, c, 2, 200*time.Microsecond)
	time.Sleep(3 * time.Millisecond)
	c.Network().OnWrite(func(link simnet.Link, _ int) bool {
		mu.Lock()
		defer mu.Unlock()
		if over || second == "" || link.From != second && link.To != second {
			return false
		}
		if count++; count != k {
			return false
		}
		i := number()
		if before {
			c.Crash(i)
			return true
		}
		go c.Crash(i)
		return false
	})
	c.Crash(0)
	for range 1000 { // until the gate is open, or the second one is dead
		time.Sleep(20 * time.Microsecond)
		mu.Lock()
		done := second != "" && (c.Replica(number()).Status().Role == replica.Leading || k > 0 && count >= k)
		mu.Unlock()
		if done {
			break
		}
	}
	time.Sleep(400 * time.Microsecond)
	mu.Lock()
	seen := count
	over = true
	mu.Unlock()
	l.finish()
	c.Bury(0)
	dead := []int{0}
	if k > 0 && seen >= k {
		c.Bury(number())
		dead = append(dead, number())
	}
	c.AwaitInSync(n - len(dead))
	c.AwaitExecuted()
	l.check(others(n, dead...))
	return seen
}

// TestNewPrimaryDiesToo kills the primary, and then the one that was elected in its place, before
// and after each message of its takeover.
func TestNewPrimaryDiesToo(t *testing.T) {
	every := 7
	if testing.Short() {
		every = 31
	}
	if s := os.Getenv("UNDERSTUDY_EVERY"); s != "" {
		every, _ = strconv.Atoi(s)
	}
	for _, level := range levels {
		for _, n := range []int{3, 5} {
			name := fmt.Sprintf("%v/%d replicas", level, n)
			count := 0
			t.Run(name+"/no more", func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { count = doubleFailure(t, level, n, 0, false) })
			})
			for k := 1; k <= count; k += every {
				for _, before := range []bool{true, false} {
					t.Run(fmt.Sprintf("%s/%d before %v", name, k, before), func(t *testing.T) {
						t.Parallel()
						synctest.Test(t, func(t *testing.T) { doubleFailure(t, level, n, k, before) })
					})
				}
			}
		}
	}
}
