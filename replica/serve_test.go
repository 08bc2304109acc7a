package replica_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/understudy-rpc/understudy"
	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/election/memory"
	"github.com/understudy-rpc/understudy/interceptor"
	"github.com/understudy-rpc/understudy/internal/clock"
	"github.com/understudy-rpc/understudy/replica"
	"github.com/understudy-rpc/understudy/transport"
	"github.com/understudy-rpc/understudy/understudytest/simnet"
)

// TestWrongTargetsAreRefused: what isn't a target is refused by Join, and by the first call of a
// client, with what a target is.
func TestWrongTargetsAreRefused(t *testing.T) {
	t.Parallel()
	for target, words := range map[string]string{
		"":                                    "etcd://host:port[,host:port]/group",
		"greeter":                             "etcd://host:port[,host:port]/group",
		"127.0.0.1:2379/greeter":              "etcd://host:port[,host:port]/group",
		"http://127.0.0.1:2379/greeter":       "etcd://host:port[,host:port]/group",
		"replicated://127.0.0.1:2379/greeter": "etcd://host:port[,host:port]/group",
		"etcd://127.0.0.1:2379":               "names no group",
		"etcd://127.0.0.1:2379/":              "names no group",
		"etcd://127.0.0.1:2379/a/b":           "names no group",
		"etcd://127.0.0.1:2379/greeter?v=2":   "contains '?'",
		"etcd://127.0.0.1:2379/greeter#blue":  "contains '#'",
		"etcd://127.0.0.1:2379/a%20b":         "contains '%'",
		"etcd:///greeter":                     "names no etcd",
		"etcd://,/greeter":                    "isn't host:port",
		"etcd://127.0.0.1/greeter":            `"127.0.0.1" isn't host:port`,
		"etcd://127.0.0.1:2379,other/greeter": `"other" isn't host:port`,
		"etcd://127.0.0.1:/greeter":           "isn't host:port",
	} {
		_, err := replica.Join(t.Context(), target, replica.Stateless(), replica.Name("a"))
		mentions(t, fmt.Sprintf("Join(%q)", target), err, words)
	}
	for target, words := range map[string]string{
		"replicated://127.0.0.1:2379":     "the group",
		"replicated://127.0.0.1:2379/":    "the group",
		"replicated://127.0.0.1/greeter":  `"127.0.0.1" isn't host:port`,
		"replicated://,/greeter":          "isn't host:port",
		"replicated:///greeter":           "no endpoint",
		"etcd://127.0.0.1:2379/greeter":   "replicated://host:port[,host:port]/group",
		"127.0.0.1:2379":                  "replicated://host:port[,host:port]/group",
		"passthrough:///127.0.0.1:2379":   "replicated://host:port[,host:port]/group",
		"replicated://127.0.0.1:2379/a/b": "the group",
		"replicated://127.0.0.1:1/g?v=2":  "contains '?'",
		"replicated://127.0.0.1:1/g#blue": "contains '#'",
		"replicated://127.0.0.1:1/a%20b":  "contains '%'",
	} {
		conn, err := grpc.NewClient(target,
			append(interceptor.DialOptions(), grpc.WithTransportCredentials(insecure.NewCredentials()))...)
		if err == nil {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			err = conn.Invoke(ctx, write, nil, nil)
			cancel()
			_ = conn.Close()
		}
		mentions(t, fmt.Sprintf("NewClient(%q)", target), err, words)
	}
}

// place is where tests start replicas with options that a cluster wouldn't give them.
type place struct {
	t     *testing.T
	net   *simnet.Network
	store *memory.Store
	clock clock.Clock

	servers map[*replica.Replica]*grpc.Server
	before  func(*grpc.Server) // Serve
}

func newPlace(t *testing.T) *place {
	return &place{t, simnet.New(), memory.NewStore(memory.Latency(100 * time.Microsecond)), clock.Monotonic(),
		map[*replica.Replica]*grpc.Server{}, nil}
}

// start starts a replica, whose end comes on the channel.
func (p *place) start(host string, s replica.Snapshotter, opts ...replica.Option) (*replica.Replica, <-chan error) {
	p.t.Helper()
	r, ended, _ := p.linked(host, s, opts...)
	return r, ended
}

func (p *place) linked(
	host string, s replica.Snapshotter, opts ...replica.Option,
) (*replica.Replica, <-chan error, *memory.Client) {
	p.t.Helper()
	p.net.Revive(host)
	lis, err := p.net.Listen(host)
	if err != nil {
		p.t.Fatal(err)
	}
	peers, err := p.net.Listen(host)
	if err != nil {
		p.t.Fatal(err)
	}
	link := p.store.Client("test")
	r, err := replica.Join(p.t.Context(), "etcd:///test", replica.State(s), append([]replica.Option{
		replica.Name(host), replica.Store(link), replica.Clock(p.clock), replica.Peers(peers, nil, nil),
		replica.InsecurePeers(),
		replica.PeerDialer(p.net.Dialer(host)), replica.Logger(verbose),
	}, opts...)...)
	if err != nil {
		p.t.Fatal(err)
	}
	server := grpc.NewServer(interceptor.ServerOptions(r)...)
	r.Registrar(server).RegisterService(&journalDesc, s)
	p.servers[r] = server
	if p.before != nil {
		p.before(server)
	}
	ended := make(chan error, 1)
	go func() { ended <- r.Serve(context.Background(), server, lis) }()
	p.t.Cleanup(func() {
		if err := r.Stop(context.Background()); err != nil && !errors.Is(err, replica.ErrLastInSync) {
			p.t.Error(err)
		}
	})
	return r, ended, link
}

// until waits, in fake time.
func until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for range 60_000 {
		if cond() {
			return
		}
		time.Sleep(time.Millisecond) // fake
	}
	t.Fatalf("no %s within a minute", what)
}

func inSync(r *replica.Replica) bool {
	s := r.Status()
	return s.Role == replica.Leading || s.Role == replica.Following && slices.Contains(s.InSync, s.Name)
}

// TestANameHasOneLiveReplica: a second replica of a name is refused while the first one lives,
// and has the name at once when that is dead, whatever its lease says.
func TestANameHasOneLiveReplica(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPlace(t)
		first, _, link := p.linked("a", &journal{})
		until(t, "primary", func() bool { return inSync(first) })
		other, _ := p.start("b", &journal{})
		until(t, "backup", func() bool { return inSync(other) })
		for _, host := range []string{"c", "d"} {
			_, ended := p.start(host, &journal{}, replica.Name("a"))
			err := <-ended
			var taken *election.NameTakenError
			if !errors.As(err, &taken) || taken.Holder.Name != "a" {
				t.Errorf("a second one got %v", err)
			}
			mentions(t, "a second one", err, `"a"`)
		}
		if first.Status().Role != replica.Leading {
			t.Errorf("the first one is now %+v", first.Status())
		}
		link.Cut()
		p.net.Kill("a")
		began := time.Now()
		again, ended := p.start("a", &journal{})
		until(t, "replica of the dead one's name", func() bool { return inSync(again) })
		if took := time.Since(began); took > election.DefaultTTL/2 {
			t.Errorf("it took %v to have the name", took)
		}
		select {
		case err := <-ended:
			t.Errorf("it ended: %v", err)
		default:
		}
	})
}

// TestServeGivesUpWithoutAStore: Serve gives up after 10 s, and says on whom.
func TestServeGivesUpWithoutAStore(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPlace(t)
		p.store.SetDown(true)
		began := time.Now()
		_, ended := p.start("a", &journal{})
		err := <-ended
		mentions(t, "no store", err, "the election store doesn't answer")
		if took := time.Since(began); took != 10*time.Second {
			t.Errorf("it took %v", took)
		}
	})
}

// TestMismatchedReplicasAreRefused: a replica of another level, or of another version, is
// refused with what the group has and what it was started with.
func TestMismatchedReplicasAreRefused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPlace(t)
		first, _ := p.start("a", &journal{}, replica.Version("1"))
		until(t, "primary", func() bool { return inSync(first) })
		for field, opts := range map[string][]replica.Option{
			"level":   {replica.Level(understudy.Stable), replica.Version("1")},
			"version": {replica.Version("2")},
		} {
			_, ended := p.start(field, &journal{}, opts...)
			err := <-ended
			var mismatch *replica.MismatchError
			if !errors.As(err, &mismatch) || mismatch.Field != field {
				t.Errorf("another %s: %v", field, err)
			}
			mentions(t, field, err, "the group's "+field, mismatch.Group, mismatch.Mine)
		}
		good, _ := p.start("b", &journal{}, replica.Version("1"))
		until(t, "backup", func() bool { return inSync(good) })
		if view, err := p.store.Client("test").Read(t.Context()); err != nil || len(view.Replicas) != 2 {
			t.Errorf("registered are %v, %v", view.Replicas, err)
		}
	})
}

// TestGroupOfAnotherProtocolIsRefused: a replica refuses a group that speaks another protocol,
// by name.
func TestGroupOfAnotherProtocolIsRefused(t *testing.T) {
	t.Parallel()
	for _, protocol := range []uint32{0, 2} {
		synctest.Test(t, func(t *testing.T) {
			p := newPlace(t)
			etcd := p.store.Client("test")
			old, err := etcd.Register(t.Context(), election.Replica{
				Member: election.Member{Name: "old", Incarnation: 1}, Addr: "old:1", PeerAddr: "old:2",
			}, election.Member{})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = old.Close(context.Background()) }()
			_, err = etcd.Create(t.Context(),
				election.Group{ID: 1, Protocol: protocol, Level: understudy.Reflected.String()}, old)
			if err != nil {
				t.Fatal(err)
			}
			_, ended := p.start("a", &journal{})
			err = <-ended
			if mismatch := new(replica.MismatchError); !errors.As(err, &mismatch) || mismatch.Field != "protocol" {
				t.Errorf("got %v", err)
			}
			mentions(t, "protocol", err, "the group's protocol", strconv.FormatUint(uint64(protocol), 10), `"1"`)
		})
	}
}

// TestPeersInPlaintextStayOnThisHost: the replicas' own listener in plaintext, where others can
// reach it.
func TestPeersInPlaintextStayOnThisHost(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		network := simnet.New()
		lis, err := network.Listen("a")
		if err != nil {
			t.Fatal(err)
		}
		peers, err := network.Listen("a")
		if err != nil {
			t.Fatal(err)
		}
		r, err := replica.Join(t.Context(), "etcd:///test", replica.Stateless(), replica.Name("a"),
			replica.Store(memory.NewStore().Client("test")), replica.Peers(peers, nil, nil))
		if err != nil {
			t.Fatal(err)
		}
		err = r.Serve(t.Context(), grpc.NewServer(interceptor.ServerOptions(r)...), lis)
		mentions(t, "a listener", err, "a:2", "mutual TLS", "replica.Peers", "replica.InsecurePeers")
		mentions(t, "a second Serve", r.Serve(t.Context(), grpc.NewServer(), lis), "Serve was called before")
	})
}

// tooMuch is more than a snapshot may have.
var tooMuch = sync.OnceValue(func() []byte { return make([]byte, 64<<20+1) })

// moody is a state that fails in one way, for as long as it is told to.
type moody struct {
	journal
	how   atomic.Pointer[string]
	tries atomic.Int64
}

func (m *moody) is(how string) bool {
	h := m.how.Load()
	return h != nil && *h == how
}

func (m *moody) Snapshot() (func(io.Writer) error, error) {
	switch {
	case m.is("Snapshot fails"):
		m.tries.Add(1)
		return nil, errors.New("no snapshot today")
	case m.is("Snapshot panics"):
		m.tries.Add(1)
		panic("no snapshot today")
	case m.is("Snapshot exits"):
		m.tries.Add(1)
		runtime.Goexit()
	case m.is("Snapshot returns nothing"):
		m.tries.Add(1)
		return nil, nil
	}
	f, err := m.journal.Snapshot()
	return func(w io.Writer) error {
		switch {
		case m.is("write fails"):
			m.tries.Add(1)
			_, _ = w.Write(make([]byte, 1<<20))
			return errors.New("no write today")
		case m.is("write panics"):
			m.tries.Add(1)
			panic("no write today")
		case m.is("write exits"):
			m.tries.Add(1)
			runtime.Goexit()
		case m.is("write writes too much"):
			m.tries.Add(1)
			_, err := w.Write(tooMuch())
			return err
		case m.is("write writes too much, and ignores it"):
			m.tries.Add(1)
			_, _ = w.Write(tooMuch())
			return nil
		}
		return f(w)
	}, err
}

func (m *moody) Restore(r io.Reader) error {
	switch {
	case m.is("Restore fails"):
		m.tries.Add(1)
		return errors.New("no restore today")
	case m.is("Restore panics"):
		m.tries.Add(1)
		panic("no restore today")
	case m.is("Restore exits"):
		m.tries.Add(1)
		runtime.Goexit()
	}
	return m.journal.Restore(r)
}

// TestAStateThatFailsForAWhileDelaysJoinersOnly: a state that can't be written or read, for a
// while. Nobody joins meanwhile, the log says why, the group goes on, and then the joiner is
// there.
func TestAStateThatFailsForAWhileDelaysJoinersOnly(t *testing.T) {
	t.Parallel()
	for how, words := range map[string]string{
		"Snapshot fails":                        "no snapshot today",
		"Snapshot panics":                       "no snapshot today",
		"Snapshot exits":                        "it has ended its goroutine",
		"Snapshot returns nothing":              "no function, and no error",
		"write exits":                           "it has ended its goroutine",
		"Restore exits":                         "it has ended its goroutine",
		"write fails":                           "no write today",
		"write panics":                          "no write today",
		"write writes too much":                 "more than 67108864 bytes",
		"write writes too much, and ignores it": "more than 67108864 bytes",
		"Restore fails":                         "no restore today",
		"Restore panics":                        "no restore today",
	} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				p := newPlace(t)
				logged := &lines{}
				log := replica.Logger(slog.New(slog.NewTextHandler(io.MultiWriter(logged, echo), nil)))
				var states []*moody
				var replicas []*replica.Replica
				for i := range 2 {
					m := &moody{}
					r, _ := p.start(fmt.Sprint("replica", i), m, log)
					until(t, "replica", func() bool { return inSync(r) })
					states, replicas = append(states, m), append(replicas, r)
				}
				conn := p.dial("client")
				mustWrite(t, conn, "first")
				joiner := &moody{}
				for _, m := range append(states, joiner) {
					m.how.Store(&how)
				}
				tries := func() (n int64) {
					for _, m := range append(states, joiner) {
						n += m.tries.Load()
					}
					return n
				}
				late, ended := p.start("late", joiner, log)
				until(t, "try to take the state", func() bool { return tries() > 2 })
				mustWrite(t, conn, "second")
				time.Sleep(300 * time.Millisecond)
				if s := late.Status(); s.Role != replica.Joining && s.Role != replica.Ended ||
					len(replicas[0].Status().InSync) != 2 {
					t.Errorf("the joiner is %+v", s)
				}
				if !logged.have(words) {
					t.Errorf("nobody has logged %q", words)
				}
				if n := tries(); n > 40 {
					t.Errorf("it was tried %d times within half a second", n)
				}
				for _, m := range append(states, joiner) {
					m.how.Store(nil)
				}
				until(t, "third replica", func() bool { return inSync(late) })
				mustWrite(t, conn, "third")
				until(t, "agreement", func() bool {
					return slices.Equal(joiner.read(), []string{"first", "second", "third"}) &&
						slices.Equal(states[0].read(), joiner.read()) && slices.Equal(states[1].read(), joiner.read())
				})
				select {
				case err := <-ended:
					t.Errorf("the joiner ended: %v", err)
				default:
				}
			})
		})
	}
}

// lines is a log that can be asked.
type lines struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lines) have(words string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.b.String(), words)
}

// echo shows what is logged.
var echo = io.Discard

func init() {
	if os.Getenv("UNDERSTUDY_LOG") != "" {
		echo = os.Stderr
	}
}

// dial connects a client of the group.
func (p *place) dial(host string, opts ...transport.Option) *grpc.ClientConn {
	p.t.Helper()
	return p.dialWith(append([]transport.Option{transport.WithClock(p.clock)}, opts...),
		grpc.WithContextDialer(p.net.Dialer(host)))
}

// dialTCP connects one to replicas that are on no network of the test's own.
func (p *place) dialTCP() *grpc.ClientConn {
	p.t.Helper()
	return p.dialWith(nil)
}

func (p *place) dialWith(opts []transport.Option, more ...grpc.DialOption) *grpc.ClientConn {
	p.t.Helper()
	conn, err := grpc.NewClient("replicated://store:1/test",
		append(append(interceptor.DialOptions(append([]transport.Option{
			transport.WithStore(p.store.Client("test")), transport.WithLogger(verbose),
		}, opts...)...), grpc.WithTransportCredentials(insecure.NewCredentials())), more...)...)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func mustWrite(t *testing.T, conn *grpc.ClientConn, value string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := conn.Invoke(ctx, write, wrapperspb.String(value), new(wrapperspb.Int64Value)); err != nil {
		t.Fatalf("write: %v", err)
	}
}
