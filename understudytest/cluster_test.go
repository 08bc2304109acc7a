package understudytest_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/understudy-rpc/understudy"
	"github.com/understudy-rpc/understudy/internal/testservice"
	"github.com/understudy-rpc/understudy/replica"
	"github.com/understudy-rpc/understudy/understudytest"
)

// counter counts per name.
type counter struct {
	mu    sync.Mutex // the test reads it, too
	count map[string]int64
}

type counterServer interface {
	add(ctx context.Context, name string) (int64, error)
	get(ctx context.Context) int64
}

func (c *counter) add(_ context.Context, name string) (int64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.count[name]++
	return c.count[name], nil
}

func (c *counter) Snapshot() (func(io.Writer) error, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b, err := json.Marshal(c.count)
	return func(w io.Writer) error {
		_, err := w.Write(b)
		return err
	}, err
}

func (c *counter) Restore(r io.Reader) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.count = map[string]int64{}
	return json.NewDecoder(r).Decode(&c.count)
}

func (c *counter) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return fmt.Sprint(c.count)
}

// get returns how often all names together were counted.
func (c *counter) get(context.Context) (sum int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range c.count {
		sum += n
	}
	return sum
}

// counterDesc has a method that counts, and one that is read-only, as its descriptor says.
var counterDesc = testservice.Describe("test.Counter",
	testservice.Unary("Add",
		func(c counterServer, ctx context.Context, name *wrapperspb.StringValue) (*wrapperspb.Int64Value, error) {
			n, err := c.add(ctx, name.GetValue())
			return wrapperspb.Int64(n), err
		}),
	testservice.Unary("Get",
		func(c counterServer, ctx context.Context, _ *wrapperspb.StringValue) (*wrapperspb.Int64Value, error) {
			return wrapperspb.Int64(c.get(ctx)), nil
		}).ReadOnly())

func registerCounter(s grpc.ServiceRegistrar) replica.Snapshotter {
	c := &counter{count: map[string]int64{}}
	s.RegisterService(&counterDesc, c)
	return c
}

func add(ctx context.Context, conn grpc.ClientConnInterface, name string) (int64, error) {
	return invoke(ctx, conn, "Add", name)
}

func get(ctx context.Context, conn grpc.ClientConnInterface) (int64, error) {
	return invoke(ctx, conn, "Get", "")
}

func invoke(ctx context.Context, conn grpc.ClientConnInterface, method, name string) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	out := new(wrapperspb.Int64Value)
	err := conn.Invoke(ctx, "/test.Counter/"+method, wrapperspb.String(name), out)
	return out.GetValue(), err
}

var verbose = slog.New(slog.DiscardHandler)

func init() {
	if os.Getenv("UNDERSTUDY_LOG") != "" {
		verbose = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
}

func TestCallsGoOnThroughAFailover(t *testing.T) {
	for _, level := range []understudy.Level{understudy.Reflected, understudy.Direct, understudy.Stable} {
		t.Run(level.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := understudytest.New(t, 3, registerCounter, understudytest.Level(level),
					understudytest.Logger(verbose))
				conn := c.Dial("client")
				for i := int64(1); i <= 10; i++ {
					if n, err := add(t.Context(), conn, "x"); n != i || err != nil {
						t.Fatalf("call %d: got %d, %v", i, n, err)
					}
				}
				c.Kill(c.Primary())
				began := time.Now()
				for i := int64(11); i <= 20; i++ {
					if n, err := add(t.Context(), conn, "x"); n != i || err != nil {
						t.Fatalf("call %d: got %d, %v", i, n, err)
					}
				}
				t.Logf("10 calls after the kill took %v", time.Since(began))
				c.AwaitExecuted()
				c.AwaitInSync(2)
			})
		})
	}
}
