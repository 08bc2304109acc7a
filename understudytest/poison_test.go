package understudytest_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/understudy-rpc/understudy/replica"
	"github.com/understudy-rpc/understudy/understudytest"
)

// deadly is a counter whose process dies of some names.
type deadly struct {
	counter
	dies func(name string)
}

func (d *deadly) add(ctx context.Context, name string) (int64, error) {
	d.dies(name)
	return d.counter.add(ctx, name)
}

// TestRequestThatEndsProcesses: one request that ends the process which executes it. It ends two
// primaries, and a third one alone; then its caller is told which, and the group goes on, with
// everybody else's calls.
func TestRequestThatEndsProcesses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var c *understudytest.Cluster
		over := make(chan struct{})
		t.Cleanup(func() { close(over) })
		var mu sync.Mutex
		var died []int
		started := 0
		c = understudytest.New(t, 5, func(s grpc.ServiceRegistrar) replica.Snapshotter {
			i := started
			started++
			d := &deadly{counter: counter{count: map[string]int64{}}}
			d.dies = func(name string) {
				if name == "poison" {
					mu.Lock()
					died = append(died, i)
					mu.Unlock()
					c.Crash(i)
					<-over // the process is gone
				}
			}
			s.RegisterService(&counterDesc, d)
			return d
		})
		conn, other := c.Dial("client"), c.Dial("other")
		call := func(conn *grpc.ClientConn, name string) error {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			return conn.Invoke(ctx, "/test.Counter/Add", wrapperspb.String(name), new(wrapperspb.Int64Value))
		}
		if err := call(other, "first"); err != nil {
			t.Fatal(err)
		}
		var calls sync.WaitGroup
		for i := range 10 { // of the same session, while the poison is there
			calls.Go(func() {
				time.Sleep(time.Duration(i) * 100 * time.Microsecond)
				if err := call(conn, fmt.Sprint("innocent", i)); err != nil {
					t.Errorf("an innocent call: %v", err)
				}
			})
		}
		time.Sleep(500 * time.Microsecond)
		began := time.Now()
		err := call(conn, "poison")
		calls.Wait()
		if status.Code(err) != codes.Unknown {
			t.Errorf("the poison's caller got %v", err)
		}
		for _, i := range died {
			if name := fmt.Sprint("replica", i); err == nil || !strings.Contains(err.Error(), name) {
				t.Errorf("the error doesn't name %s: %v", name, err)
			}
		}
		if len(died) != 3 {
			t.Errorf("these died: %v", died)
		}
		t.Logf("after %v: %v", time.Since(began), err)
		if err := call(conn, "last"); err != nil {
			t.Errorf("the next call: %v", err)
		}
		if err := call(other, "last"); err != nil {
			t.Errorf("another client's: %v", err)
		}
		for _, i := range died {
			c.Bury(i)
		}
	})
}

// TestStopsAreNoDeaths: a handler that takes longer than a replica waits when it is stopped. Its
// connection breaks at each stop, but nobody has died of it.
func TestStopsAreNoDeaths(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := understudytest.New(t, 5, func(s grpc.ServiceRegistrar) replica.Snapshotter {
			d := &deadly{counter: counter{count: map[string]int64{}}}
			d.dies = func(name string) {
				if name == "slow" {
					time.Sleep(2 * time.Second)
				}
			}
			s.RegisterService(&counterDesc, d)
			return d
		})
		conn := c.Dial("client")
		done := make(chan error, 1)
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			done <- conn.Invoke(ctx, "/test.Counter/Add", wrapperspb.String("slow"), new(wrapperspb.Int64Value))
		}()
		for range 4 {
			p := c.Primary()
			time.Sleep(200 * time.Millisecond)
			c.Store().SetDown(true) // nobody is elected before the connection breaks
			_ = c.Replica(p).Stop(t.Context())
			c.Kill(p) // its process ends
			c.Store().SetDown(false)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
		time.Sleep(3 * time.Second) // fake: until the handlers of those that were stopped have returned
	})
}
