package replica_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/grpc-ecosystem/go-grpc-middleware/v2/testing/testpb"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/understudy-rpc/understudy"
	"github.com/understudy-rpc/understudy/election/memory"
	"github.com/understudy-rpc/understudy/interceptor"
	"github.com/understudy-rpc/understudy/internal/clock"
	"github.com/understudy-rpc/understudy/internal/turn"
	"github.com/understudy-rpc/understudy/replica"
	"github.com/understudy-rpc/understudy/transport"
	"github.com/understudy-rpc/understudy/understudytest"
	"github.com/understudy-rpc/understudy/understudytest/simnet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// ping is the middleware's own test service, with a state: the turns that it has taken, in their
// order.
type ping struct {
	testpb.TestPingService
	within within

	mu    sync.Mutex // guards turns: tests read them, too
	turns []pinged
}

// within is what a test does in each turn, on every replica.
type within func(ctx context.Context, value string) error

// pinged is one turn.
type pinged struct {
	Value    string
	OrderNum uint64
	Now      time.Time
	Rand     uint64
}

func (p pinged) String() string { return fmt.Sprintf("%d:%s", p.OrderNum, p.Value) }

// theirs guards a variable of package testpb that every Ping writes.
var theirs sync.Mutex

func (p *ping) take(ctx context.Context, value string) (int, error) {
	t := pinged{Value: value, Now: understudy.Now(ctx), Rand: understudy.Rand(ctx).Uint64()}
	if turn := turn.FromContext(ctx); turn != nil {
		t.OrderNum = uint64(turn.OrderNum())
	}
	p.mu.Lock()
	p.turns = append(p.turns, t)
	n := len(p.turns)
	p.mu.Unlock()
	if p.within == nil {
		return n, nil
	}
	return n, p.within(ctx, value)
}

func (p *ping) Ping(ctx context.Context, req *testpb.PingRequest) (*testpb.PingResponse, error) {
	n, err := p.take(ctx, req.Value)
	if err != nil {
		return nil, err
	}
	theirs.Lock()
	defer theirs.Unlock()
	resp, err := p.TestPingService.Ping(ctx, req)
	if err == nil {
		resp.Counter = int32(n)
	}
	return resp, err
}

// PingError returns the error asked for, with a detail.
func (p *ping) PingError(ctx context.Context, req *testpb.PingErrorRequest) (*testpb.PingErrorResponse, error) {
	if _, err := p.take(ctx, req.Value); err != nil {
		return nil, err
	}
	_, err := p.TestPingService.PingError(ctx, req)
	st, detailErr := status.Convert(err).WithDetails(durationpb.New(42 * time.Second))
	if detailErr != nil {
		return nil, detailErr
	}
	return nil, st.Err()
}

func (p *ping) Snapshot() (func(io.Writer) error, error) {
	b, err := json.Marshal(p.took())
	return func(w io.Writer) error {
		_, err := w.Write(b)
		return err
	}, err
}

func (p *ping) Restore(r io.Reader) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return json.NewDecoder(r).Decode(&p.turns)
}

func (p *ping) took() []pinged {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.turns)
}

// group starts three replicas of ping.
func group(t *testing.T, w within, opts ...understudytest.Option) *understudytest.Cluster {
	t.Helper()
	return understudytest.New(t, 3, func(s grpc.ServiceRegistrar) replica.Snapshotter {
		p := &ping{within: w}
		testpb.RegisterTestServiceServer(s, p)
		return p
	}, append([]understudytest.Option{understudytest.Logger(verbose)}, opts...)...)
}

// agreed waits until the replicas named have executed the same, says so if they haven't (I1), and
// returns their turns.
func agreed(t *testing.T, c *understudytest.Cluster, replicas ...int) []pinged {
	t.Helper()
	c.AwaitExecuted()
	var first []pinged
	for n, i := range replicas {
		turns := c.State(i).(*ping).took()
		if n == 0 {
			first = turns
		} else if !slices.EqualFunc(first, turns, same) {
			t.Errorf("replica %d took the turns\n%v\nreplica %d\n%v", replicas[0], first, i, turns)
		}
	}
	return first
}

func same(a, b pinged) bool {
	return a.Value == b.Value && a.OrderNum == b.OrderNum && a.Now.Equal(b.Now) && a.Rand == b.Rand
}

// executed says how many turns each value had.
func executed(turns []pinged) map[string]int {
	n := map[string]int{}
	for _, t := range turns {
		n[t.Value]++
	}
	return n
}

// once checks that each value had one turn, and that there are no others (I4).
func once(t *testing.T, turns []pinged, values ...string) {
	t.Helper()
	n := executed(turns)
	for _, v := range values {
		if n[v] != 1 {
			t.Errorf("%q was executed %d times", v, n[v])
		}
		delete(n, v)
	}
	if len(n) > 0 {
		t.Errorf("these were executed, too: %v", n)
	}
}

// send makes one call.
func send(
	ctx context.Context, conn grpc.ClientConnInterface, value string, opts ...grpc.CallOption,
) (*testpb.PingResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	return testpb.NewTestServiceClient(conn).Ping(ctx, &testpb.PingRequest{Value: value}, opts...)
}

// mustSend makes one call that must succeed.
func mustSend(t *testing.T, conn grpc.ClientConnInterface, value string) {
	t.Helper()
	if resp, err := send(t.Context(), conn, value); err != nil || resp.GetValue() != value {
		t.Errorf("Ping(%q): %v, %v", value, resp, err)
	}
}

// plain connects to one replica as a client without the middleware does.
func plain(t *testing.T, network *simnet.Network, addr string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(network.Dialer("plain")))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// lab is what a test needs to start replicas with servers of its own making. It is used inside a
// synctest bubble.
type lab struct {
	t     *testing.T
	net   *simnet.Network
	store *memory.Store
	clock clock.Clock
}

func newLab(t *testing.T) *lab {
	return &lab{t, simnet.New(), memory.NewStore(memory.Latency(100 * time.Microsecond)), clock.Monotonic()}
}

// join prepares a replica, and its listener.
func (l *lab) join(host string, s replica.Snapshotter, opts ...replica.Option) (*replica.Replica, net.Listener) {
	l.t.Helper()
	lis, err := l.net.Listen(host)
	if err != nil {
		l.t.Fatal(err)
	}
	peers, err := l.net.Listen(host)
	if err != nil {
		l.t.Fatal(err)
	}
	r, err := replica.Join(l.t.Context(), "etcd:///lab", replica.State(s), append([]replica.Option{
		replica.Name(host), replica.Store(l.store.Client("lab")), replica.Clock(l.clock),
		replica.Peers(peers, nil, nil), replica.InsecurePeers(),
		replica.PeerDialer(l.net.Dialer(host)), replica.Logger(verbose),
	}, opts...)...)
	if err != nil {
		l.t.Fatal(err)
	}
	return r, lis
}

// serve serves until the test ends, and waits until the replica has a role.
func (l *lab) serve(r *replica.Replica, s *grpc.Server, lis net.Listener) {
	l.t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- r.Serve(context.Background(), s, lis) }()
	l.t.Cleanup(func() {
		if err := r.Stop(context.Background()); err != nil && !errors.Is(err, replica.ErrLastInSync) {
			l.t.Error(err)
		}
		if err := <-ended; err != nil {
			l.t.Errorf("Serve: %v", err)
		}
	})
	for range 10_000 {
		st := r.Status()
		if st.Role == replica.Leading || st.Role == replica.Following && slices.Contains(st.InSync, st.Name) {
			return
		}
		time.Sleep(time.Millisecond) // fake
	}
	l.t.Fatalf("no role within 10 s: %+v", r.Status())
}

// dial connects a client of the group.
func (l *lab) dial(host string, opts ...grpc.DialOption) *grpc.ClientConn {
	l.t.Helper()
	ours := interceptor.DialOptions(
		transport.WithStore(l.store.Client("lab")), transport.WithClock(l.clock), transport.WithLogger(verbose),
	)
	conn, err := grpc.NewClient("replicated://store:1/lab", append(append(ours,
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithContextDialer(l.net.Dialer(host))),
		opts...)...)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// loss loses the reply to a value's first turn: from that turn on nothing that replica 0 sends
// reaches the client, until 50 ms later the connection is reset, or the replica killed.
type loss struct {
	value string
	kill  bool
	c     *understudytest.Cluster
	once  sync.Once
	dead  sync.WaitGroup
}

func (l *loss) within(_ context.Context, value string) error {
	if value == l.value {
		l.once.Do(func() {
			link := simnet.Link{From: "replica0", To: "client"}
			l.c.Network().Cut(link)
			l.dead.Go(func() {
				time.Sleep(50 * time.Millisecond) // fake
				if l.kill {
					l.c.Kill(0)
				}
				l.c.Network().Mend(link)
			})
		})
	}
	return nil
}
