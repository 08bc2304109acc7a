package replica_test

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/understudy-rpc/understudy/election/memory"
	"github.com/understudy-rpc/understudy/interceptor"
	"github.com/understudy-rpc/understudy/replica"
)

// slow is a journal that takes its time over some values.
type slow struct {
	journal
	block chan struct{} // for "blocks"
}

func (s *slow) add(value string) int64 {
	switch value {
	case "takes 3 s":
		time.Sleep(3 * time.Second)
	case "blocks":
		<-s.block
	}
	return s.journal.add(value)
}

// three starts three replicas; the first leads.
func (p *place) three(s func() replica.Snapshotter) (all []*replica.Replica, ended []<-chan error) {
	p.t.Helper()
	for _, host := range []string{"a", "b", "c"} {
		r, end := p.start(host, s())
		until(p.t, "replica", func() bool { return inSync(r) })
		all, ended = append(all, r), append(ended, end)
	}
	return all, ended
}

func newSlow() replica.Snapshotter { return &slow{} }

// TestStoppingTheServerEndsTheReplicaInOrder: the usual ways to stop a stock server are orderly
// ends of the replica. Others take over at once, and clients go on.
func TestStoppingTheServerEndsTheReplicaInOrder(t *testing.T) {
	t.Parallel()
	for name, stop := range map[string]func(*grpc.Server){"GracefulStop": (*grpc.Server).GracefulStop,
		"Stop": (*grpc.Server).Stop} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				p := newPlace(t)
				all, ended := p.three(newSlow)
				conn := p.dial("client")
				mustWrite(t, conn, "first")
				for i, r := range all[:2] {
					began := time.Now()
					stop(p.servers[r])
					if took := time.Since(began); took > time.Second {
						t.Errorf("it took %v", took)
					}
					if err := <-ended[i]; err != nil {
						t.Errorf("Serve: %v", err)
					}
					began = time.Now()
					mustWrite(t, conn, "known")
					mustWrite(t, p.dial("a new client"), "new")
					if took := time.Since(began); took > time.Second {
						t.Errorf("two calls took %v", took)
					}
				}
			})
		})
	}
}

// TestGracefulStopWaitsForRPCs: as gRPC's does, and for nothing else.
func TestGracefulStopWaitsForRPCs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPlace(t)
		all, ended := p.three(newSlow)
		conn := p.dial("client")
		done := make(chan error, 1)
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			done <- conn.Invoke(ctx, write, wrapperspb.String("takes 3 s"), new(wrapperspb.Int64Value))
		}()
		time.Sleep(time.Second)
		began := time.Now()
		p.servers[all[0]].GracefulStop()
		if took := time.Since(began); took < 2*time.Second || took > 3*time.Second {
			t.Errorf("it took %v, the RPC 2 s more", took)
		}
		if err := <-ended[0]; err != nil {
			t.Errorf("Serve: %v", err)
		}
		if err := <-done; err != nil {
			t.Errorf("the call: %v", err)
		}
	})
}

// TestServeEndsThoughAHandlerHangs: and names it, at the primary and at a backup.
func TestServeEndsThoughAHandlerHangs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPlace(t)
		block := make(chan struct{})
		all, ended := p.three(func() replica.Snapshotter { return &slow{block: block} })
		t.Cleanup(func() { close(block) })
		conn := p.dial("client")
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			_ = conn.Invoke(ctx, write, wrapperspb.String("blocks"), new(wrapperspb.Int64Value))
		}()
		time.Sleep(time.Second)
		for _, i := range []int{2, 0} {
			began := time.Now()
			_ = all[i].Stop(context.Background())
			if took := time.Since(began); took > 2*time.Second {
				t.Errorf("%d: Stop took %v", i, took)
			}
			mentions(t, "Serve", <-ended[i], "while "+write+" didn't return")
		}
	})
}

// TestStopBeforeServe: a signal while the program starts.
func TestStopBeforeServe(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPlace(t)
		lis, err := p.net.Listen("a")
		if err != nil {
			t.Fatal(err)
		}
		r, err := replica.Join(t.Context(), "etcd:///test", replica.Stateless(), replica.Name("a"),
			replica.Store(memory.NewStore().Client("test")))
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := r.Stop(t.Context()); err != nil {
				t.Error(err)
			}
		}
		began := time.Now()
		if err := r.Serve(t.Context(), grpc.NewServer(interceptor.ServerOptions(r)...), lis); err != nil ||
			time.Since(began) > 0 {
			t.Errorf("Serve ended after %v with %v", time.Since(began), err)
		}
		if _, err := lis.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("the listener: %v", err)
		}
	})
}

// TestJoinWithoutServe: Stop releases what Join has made. TestMain looks for its goroutines.
func TestJoinWithoutServe(t *testing.T) {
	t.Parallel()
	peers, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r, err := replica.Join(t.Context(), "etcd://127.0.0.1:1/test", replica.Stateless(), replica.Name("a"),
		replica.Peers(peers, nil, nil))
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	if err := peers.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the listener of Peers was left open: %v", err)
	}
}

// TestServerMayServeOtherListeners: a server that serves another listener, before Serve or after
// it, is served by both.
func TestServerMayServeOtherListeners(t *testing.T) {
	t.Parallel()
	for _, before := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			p := newPlace(t)
			other, err := p.net.Listen("a")
			if err != nil {
				t.Fatal(err)
			}
			var r *replica.Replica
			var ended <-chan error
			serveOther := func(s *grpc.Server) { go func() { _ = s.Serve(other) }(); synctest.Wait() }
			if before {
				p.before = serveOther
			}
			r, ended = p.start("a", &journal{})
			until(t, "replica", func() bool { return inSync(r) })
			if !before {
				serveOther(p.servers[r])
			}
			conn := p.dial("client")
			mustWrite(t, conn, "first")
			if c, err := p.net.Dialer("client")(t.Context(), other.Addr().String()); err != nil {
				t.Errorf("the other listener: %v", err)
			} else {
				_ = c.Close()
			}
			p.servers[r].GracefulStop()
			if err := <-ended; err != nil {
				t.Errorf("Serve: %v", err)
			}
		})
	}
}

// TestServeSaysWhatIsWrongWithItsServer: Serve says what to change, and the process lives.
func TestServeSaysWhatIsWrongWithItsServer(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		register func(r, other *replica.Replica, s *grpc.Server)
		words    []string
	}{
		"another replica's": {func(r, other *replica.Replica, s *grpc.Server) {
			other.Registrar(s).RegisterService(&journalDesc, &journal{})
			r.Registrar(s).RegisterService(&journalDesc, &journal{})
		}, []string{"test.Journal", "a grpc.Server of its own"}},
		"twice": {func(r, _ *replica.Replica, s *grpc.Server) {
			r.Registrar(s).RegisterService(&journalDesc, &journal{})
			r.Registrar(s).RegisterService(&journalDesc, &journal{})
		}, []string{"test.Journal", "registered twice"}},
		"registered elsewhere": {func(r, _ *replica.Replica, s *grpc.Server) {
			r.Registrar(grpc.NewServer(interceptor.ServerOptions(r)...)).RegisterService(&journalDesc, &journal{})
		}, []string{"registered on another server"}},
		"stopped": {func(r, _ *replica.Replica, s *grpc.Server) {
			r.Registrar(s).RegisterService(&journalDesc, &journal{})
			s.Stop()
		}, []string{grpc.ErrServerStopped.Error()}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				p := newPlace(t)
				r, s, lis := p.join("a")
				other, _, _ := p.join("b")
				tt.register(r, other, s)
				mentions(t, "Serve", r.Serve(t.Context(), s, lis), tt.words...)
				_ = other.Stop(t.Context())
			})
		})
	}
}

// TestServiceRegisteredLateEndsServe: gRPC would end the process; Serve ends.
func TestServiceRegisteredLateEndsServe(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPlace(t)
		r, s, lis := p.join("a")
		registrar := r.Registrar(s)
		ended := make(chan error, 1)
		go func() { ended <- r.Serve(context.Background(), s, lis) }()
		until(t, "replica", func() bool { return inSync(r) })
		registrar.RegisterService(&journalDesc, &journal{})
		mentions(t, "Serve", <-ended, "test.Journal was registered after Serve", "register all services before")
	})
}

// join prepares a replica, its server, and a listener.
func (p *place) join(host string) (*replica.Replica, *grpc.Server, net.Listener) {
	p.t.Helper()
	lis, err := p.net.Listen(host)
	if err != nil {
		p.t.Fatal(err)
	}
	peers, err := p.net.Listen(host)
	if err != nil {
		p.t.Fatal(err)
	}
	r, err := replica.Join(p.t.Context(), "etcd:///test", replica.Stateless(), replica.Name(host),
		replica.Store(p.store.Client("test")),
		replica.Clock(p.clock), replica.Peers(peers, nil,
			nil), replica.InsecurePeers(), replica.PeerDialer(p.net.Dialer(host)))
	if err != nil {
		p.t.Fatal(err)
	}
	return r, grpc.NewServer(interceptor.ServerOptions(r)...), lis
}

// lazy is a journal whose Restore takes its time.
type lazy struct {
	journal
	takes time.Duration
}

func (l *lazy) Restore(r io.Reader) error {
	time.Sleep(l.takes)
	return l.journal.Restore(r)
}

// TestLastInSyncReplicaWaitsForAnHeir: its error says that the state goes. It waits for a
// replica that is joining, which then has the state; not for ever.
func TestLastInSyncReplicaWaitsForAnHeir(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		t.Cleanup(func() { time.Sleep(5 * time.Second) }) // fake: until Restore has returned, which is left behind
		p := newPlace(t)
		first, _ := p.start("a", &journal{})
		until(t, "primary", func() bool { return inSync(first) })
		conn := p.dial("client")
		mustWrite(t, conn, "first")
		heir, _ := p.start("b", &lazy{takes: 2 * time.Second})
		time.Sleep(time.Second) // fake: it is joining
		if err := first.Stop(t.Context()); err != nil {
			t.Errorf("with somebody who joins: %v", err)
		}
		mustWrite(t, conn, "second")
		if got := heir.Status(); got.Role != replica.Leading {
			t.Errorf("the heir is %+v", got)
		}
		p.start("c", &lazy{takes: 4 * time.Second})
		time.Sleep(time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := heir.Stop(ctx); !errors.Is(err, replica.ErrLastInSync) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("with somebody who is too slow: %v", err)
		}
		began := time.Now()
		alone := newPlace(t)
		last, ended := alone.start("a", &journal{})
		until(t, "primary", func() bool { return inSync(last) })
		if err := last.Stop(t.Context()); !errors.Is(err, replica.ErrLastInSync) || time.Since(began) > time.Second {
			t.Errorf("with nobody: %v, after %v", err, time.Since(began))
		}
		if err := <-ended; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
}
