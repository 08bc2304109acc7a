package understudytest_test

import (
	"context"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"

	"github.com/understudy-rpc/understudy"
	"github.com/understudy-rpc/understudy/replica"
	"github.com/understudy-rpc/understudy/understudytest"
	"github.com/understudy-rpc/understudy/understudytest/simnet"
)

// startReads lets a client on a host read again and again until the returned function is called.
func (l *load) startReads(host string, pause time.Duration) (stop func()) {
	conn := l.c.Dial(host)
	stopped := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			l.read(conn)
			select {
			case <-time.After(pause):
			case <-stopped:
				return
			}
		}
	})
	return func() {
		close(stopped)
		wg.Wait()
	}
}

// Reads are executed by the primary alone: nothing is ordered, sent to backups, or logged.
func TestReadsAreNotOrdered(t *testing.T) {
	alternatives(t, 1, func(t *testing.T, level understudy.Level, _ int) {
		c := understudytest.New(t, 3, registerLedger, understudytest.Level(level), understudytest.Logger(verbose))
		conn := c.Dial("client")
		if n, err := add(t.Context(), conn, "x"); n != 1 || err != nil {
			t.Fatalf("%d, %v", n, err)
		}
		c.AwaitExecuted()
		time.Sleep(time.Second)
		executed, writes := c.Replica(0).Status().Executed, c.Network().Writes()
		for range 20 {
			began := time.Now()
			if n, err := get(t.Context(), conn); n != 1 || err != nil {
				t.Errorf("%d, %v", n, err)
			}
			if took := time.Since(began); took > 2*time.Millisecond {
				t.Errorf("a read took %v", took)
			}
		}
		if now := c.Replica(0).Status().Executed; now != executed {
			t.Errorf("%d turns were taken", now-executed)
		}
		for _, link := range []simnet.Link{{From: "client", To: "replica1"}, {From: "client", To: "replica2"}} {
			if n := c.Network().Writes()[link] - writes[link]; n > 0 {
				t.Errorf("%d writes on %v", n, link)
			}
		}
	})
}

// Reads and calls of several clients, while the primary dies at many of its messages: what is read
// is linearizable.
func TestReadsAreLinearizableThroughFailovers(t *testing.T) {
	alternatives(t, 8, func(t *testing.T, level understudy.Level, k int) {
		c := understudytest.New(t, 3, registerLedger, understudytest.Level(level), understudytest.Logger(verbose))
		l := startLoad(t, c, 2, 300*time.Microsecond)
		stop := []func(){l.startReads("client0", 210*time.Microsecond), l.startReads("reader", 190*time.Microsecond)}
		time.Sleep(10 * time.Millisecond)
		c.KillWhen(0, simnet.Link{From: "replica0", To: "reader"},
			c.Network().Writes()[simnet.Link{From: "replica0", To: "reader"}]+1+k, k%2 == 0)
		time.Sleep(30 * time.Millisecond)
		c.Bury(0)
		for _, stop := range stop {
			stop()
		}
		l.settle(others(3, 0))
	})
}

// onOldSide leaves the primary and a reader alone: nobody else reaches either, and the primary
// can't ask who is primary. Its authority runs out after A.
func onOldSide(c *understudytest.Cluster, reader string, n int) {
	c.Link(0).Cut()
	for i := 1; i < n; i++ {
		host := others(n)[i]
		partition(c, "replica0", hostOf(host))
		partition(c, reader, hostOf(host))
	}
	for _, client := range []string{"client0", "client1"} {
		partition(c, "replica0", client)
	}
}

func hostOf(i int) string { return [...]string{"replica0", "replica1", "replica2"}[i] }

// A reader reaches only the old primary, which has lost everyone else, and doesn't know: as long as
// its reads are accepted nobody else's calls are answered by the new one (R10, R12.2). Otherwise it
// would read the past.
func TestReadsOfTheOldPrimary(t *testing.T) {
	alternatives(t, 4, func(t *testing.T, level understudy.Level, k int) {
		c := understudytest.New(t, 3, registerLedger, understudytest.Level(level), understudytest.Logger(verbose))
		l := startLoad(t, c, 2, 7*time.Millisecond)
		stop := l.startReads("reader", 3*time.Millisecond)
		time.Sleep(50*time.Millisecond + time.Duration(k)*170*time.Microsecond)
		if k%2 == 1 { // its streams to the others end, so that the takeover gives it up before it reads no more
			mend(c, "reader", hostOf(1))
			mend(c, "reader", hostOf(2))
		}
		onOldSide(c, "reader", 3)
		time.Sleep(3500 * time.Millisecond)
		for i := range 3 {
			mend(c, "reader", hostOf(i))
		}
		stop()
		c.Kill(0)
		l.settle(others(3, 0))
	})
}

// The same, and the backup that takes over doesn't wait for the reader, which is detached: so the
// old primary must not have read for it without having ordered that (R11).
func TestReadsOfADetachedSession(t *testing.T) {
	alternatives(t, 4, func(t *testing.T, level understudy.Level, k int) {
		c := understudytest.New(t, 2, registerLedger, understudytest.Level(level), understudytest.Logger(verbose))
		l := startLoad(t, c, 2, 7*time.Millisecond)
		stop := l.startReads("reader", 3*time.Millisecond)
		time.Sleep(20 * time.Millisecond)
		mend(c, "reader", "replica1") // resets their connections
		partition(c, "reader", "replica1")
		time.Sleep(300*time.Millisecond + time.Duration(k)*170*time.Microsecond)
		if d := c.Replica(0).Status().Detached; d != 1 {
			t.Errorf("%d detached sessions", d)
		}
		onOldSide(c, "reader", 2)
		time.Sleep(3500 * time.Millisecond)
		mend(c, "reader", "replica0")
		mend(c, "reader", "replica1")
		stop()
		c.Kill(0)
		l.settle([]int{1})
	})
}

// torn is a state that is whole between turns only.
type torn struct{ a, b int64 }

func (s *torn) add(context.Context, string) (int64, error) {
	s.a++
	time.Sleep(time.Millisecond) // fake; others may run
	s.b++
	return s.b, nil
}

func (s *torn) get(context.Context) int64 {
	before := s.a
	time.Sleep(100 * time.Microsecond)
	return s.a - before + s.a - s.b
}

func (s *torn) Snapshot() (func(io.Writer) error, error) {
	return func(io.Writer) error { return nil }, nil
}

func (s *torn) Restore(io.Reader) error { return nil }

// A read-only method runs between turns: it sees no turn half done.
func TestReadsSeeWholeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := understudytest.New(t, 1, func(s grpc.ServiceRegistrar) replica.Snapshotter {
			state := &torn{}
			s.RegisterService(&counterDesc, state)
			return state
		})
		l := startLoad(t, c, 2, 100*time.Microsecond)
		conn := c.Dial("reader")
		for range 100 {
			if n, err := get(t.Context(), conn); n != 0 || err != nil {
				t.Fatalf("%d turns are half done, %v", n, err)
			}
			time.Sleep(130 * time.Microsecond)
		}
		l.finish()
	})
}
