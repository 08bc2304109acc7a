package understudytest_test

import (
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"

	"github.com/understudy-rpc/understudy/replica"
	"github.com/understudy-rpc/understudy/understudytest"
)

// floods makes calls that together are larger than the log may be.
func floods(t *testing.T, conn grpc.ClientConnInterface) {
	t.Helper()
	large := strings.Repeat("x", 3<<20)
	for n := range 95 {
		began := time.Now()
		if _, err := add(t.Context(), conn, large); err != nil {
			t.Fatalf("call %d, after %v: %v", n, time.Since(began), err)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("call %d took %v", n, took)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// awaitStatus waits until a replica says so of itself.
func awaitStatus(t *testing.T, c *understudytest.Cluster, i int, within time.Duration, so func(replica.Status) bool) {
	t.Helper()
	for range within / (10 * time.Millisecond) {
		if so(c.Replica(i).Status()) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("after %v replica %d is %+v", within, i, c.Replica(i).Status())
}

func joined(s replica.Status) bool { return s.Role == replica.Following && s.JoinFailure == "" }

// A replica that joins doesn't come out of its Restore. The log isn't kept for it beyond half of
// its bound, the group goes on, and the replica says why it can't join.
func TestRestoreThatHangsHarmsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, hangs := &logged{}, make(chan struct{})
		c := understudytest.New(t, 2, registerHooked(func(h *hooked) {
			if h.host == 2 {
				h.restore = func(r io.Reader) error {
					<-hangs
					return h.ledger.Restore(r)
				}
			}
		}), log.to())
		release := sync.OnceFunc(func() { close(hangs) })
		t.Cleanup(release) // before the cluster stops
		conn := c.Dial("client")
		c.Start(c.Grow())
		time.Sleep(time.Second)
		floods(t, conn)
		log.wants(t, "level=WARN", "cut a joiner's stream", "half of its bound")
		awaitStatus(t, c, 2, time.Second, func(s replica.Status) bool {
			return strings.Contains(s.JoinFailure, "half of its bound")
		})
		log.wants(t, "level=WARN", "can't join the group", "half of its bound")
		release()
		awaitStatus(t, c, 2, time.Minute, joined)
	})
}

// The same, with nothing to be done meanwhile: the join ends by itself.
func TestRestoreThatHangsIsSaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hangs := make(chan struct{})
		release := sync.OnceFunc(func() { close(hangs) })
		var tries atomic.Int32
		c := understudytest.New(t, 2, registerHooked(func(h *hooked) {
			if h.host == 2 {
				h.restore = func(r io.Reader) error {
					if tries.Add(1) == 1 {
						<-hangs
					}
					return h.ledger.Restore(r)
				}
			}
		}))
		c.Start(c.Grow())
		awaitStatus(t, c, 2, time.Minute, func(s replica.Status) bool {
			return strings.Contains(s.JoinFailure, "Restore has neither read nor returned")
		})
		release()
		awaitStatus(t, c, 2, time.Minute, joined)
		if n := tries.Load(); n != 2 {
			t.Errorf("it restored %d times", n)
		}
	})
}

// A Restore that takes a minute, and reads on and on, is none that hangs.
func TestSlowRestoreThatMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := understudytest.New(t, 2, registerHooked(func(h *hooked) {
			if h.host == 2 {
				h.restore = func(r io.Reader) error {
					return h.ledger.Restore(readerFunc(func(b []byte) (int, error) {
						time.Sleep(10 * time.Second)
						return r.Read(b[:1])
					}))
				}
			}
		}))
		if _, err := add(t.Context(), c.Dial("client"), "x"); err != nil {
			t.Fatal(err)
		}
		c.Start(c.Grow())
		awaitStatus(t, c, 2, 20*time.Minute, joined)
	})
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

// The network between a joiner and the backup that gives it its snapshot goes dark in the middle.
// The joiner gives up, and gets its snapshot from another replica.
func TestDarkDonorIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c *understudytest.Cluster
		var given sync.WaitGroup
		given.Add(1)
		log := &logged{}
		c = understudytest.New(t, 2, registerHooked(func(h *hooked) {
			if h.host == 1 {
				h.snapshot = func() (func(io.Writer) error, error) {
					write, err := h.ledger.Snapshot()
					return func(w io.Writer) error {
						defer given.Done()
						partition(c, "replica1", "replica2")
						_ = write(w)
						for { // until nobody takes it any more
							if _, err := w.Write(make([]byte, 1<<10)); err != nil {
								return err
							}
							time.Sleep(time.Millisecond)
						}
					}, err
				}
			}
		}), log.to())
		if _, err := add(t.Context(), c.Dial("client"), "x"); err != nil {
			t.Fatal(err)
		}
		c.Start(c.Grow())
		awaitStatus(t, c, 2, 20*time.Second, joined)
		given.Wait() // the donor has given up, too
		log.wants(t, "can't join the group", "nothing of the snapshot has moved")
	})
}

// A state is too large for a snapshot. The joiner tries less and less often, says why it can't
// join, and the primary says that nobody can; when the state has shrunk it joins.
func TestFailingJoinsBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var size, snapshots atomic.Int64
		size.Store(65 << 20)
		log := &logged{}
		c := understudytest.New(t, 1, registerHooked(func(h *hooked) {
			h.restore = func(io.Reader) error { return nil }
			h.snapshot = func() (func(io.Writer) error, error) {
				snapshots.Add(1)
				return func(w io.Writer) error {
					for n := size.Load(); n > 0; n -= 1 << 20 {
						if _, err := w.Write(make([]byte, 1<<20)); err != nil {
							return err
						}
					}
					return nil
				}, nil
			}
		}), log.to())
		c.Start(c.Grow())
		time.Sleep(30 * time.Second)
		if n := snapshots.Load(); n < 5 || n > 12 {
			t.Errorf("%d snapshots were made in 30 s", n)
		}
		before := snapshots.Load()
		time.Sleep(30 * time.Second)
		if n := snapshots.Load() - before; n < 1 || n > 3 {
			t.Errorf("%d snapshots were made in another 30 s", n)
		}
		if s := c.Replica(1).Status(); !strings.Contains(s.JoinFailure, "the state has more than") {
			t.Errorf("the joiner is %+v", s)
		}
		log.wants(t, "level=WARN", "can't join the group", "failures=1 ")
		log.wants(t, "level=ERROR", "can't join the group", "failures=7 ")
		log.wants(t, "level=ERROR", "replica=replica0", "no replica can join")
		size.Store(40 << 20)
		awaitStatus(t, c, 1, time.Minute, joined)
		time.Sleep(2 * time.Minute)
		c.Start(c.Grow()) // whose donor is a backup
		awaitStatus(t, c, 2, time.Minute, joined)
		time.Sleep(time.Second)
		log.wants(t, "level=WARN", "replica=replica0", "half of what a snapshot may have", "from=replica1")
	})
}
