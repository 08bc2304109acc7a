package e2e

import (
	"context"
	"fmt"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/understudy-rpc/understudy"
	"github.com/understudy-rpc/understudy/e2e/etcdproc"
	"github.com/understudy-rpc/understudy/e2e/journal"
	"github.com/understudy-rpc/understudy/interceptor"
	"github.com/understudy-rpc/understudy/replica"
)

// What follows tries replicas and clients in this process: what they leave in it is seen.

// blackhole accepts connections and never says anything.
func blackhole(t *testing.T) (addr string) {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lis.Close() })
	go func() {
		var kept []net.Conn
		for {
			conn, err := lis.Accept()
			if err != nil {
				for _, conn := range kept {
					conn.Close()
				}
				return
			}
			kept = append(kept, conn)
		}
	}()
	return lis.Addr().String()
}

// serveHere serves a replica in this process until ctx ends; ended has what Serve returned.
func serveHere(t *testing.T, ctx context.Context, etcd, name string) (r *replica.Replica, ended chan error) {
	t.Helper()
	j := journal.New(0)
	r, err := replica.Join(ctx, "etcd://"+etcd+"/journal", replica.State(j), replica.Name(name),
		replica.Level(understudy.Stable))
	if err != nil {
		t.Fatal(err)
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(interceptor.ServerOptions(r)...)
	j.Register(r.Registrar(s))
	ended = make(chan error, 1)
	go func() { ended <- r.Serve(ctx, s, lis) }()
	return r, ended
}

func dialHere(t *testing.T, etcd string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("replicated://"+etcd+"/journal",
		append(interceptor.DialOptions(), grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func appendHere(ctx context.Context, conn *grpc.ClientConn, call uint64, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	_, err := journal.NewClient(conn).Append(ctx, journal.Entry{Client: "here", Call: call}, "")
	return err
}

// awaitHere asks again and again until there is no error.
func awaitHere(t *testing.T, ask func() error) {
	t.Helper()
	for end := time.Now().Add(10*time.Second + busy); ; time.Sleep(5 * time.Millisecond) {
		err := ask()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("in vain: %v", err)
		}
	}
}

// nothingIsLeft waits until no goroutine of the library is left in this process.
func nothingIsLeft(t *testing.T) {
	t.Helper()
	awaitHere(t, func() error {
		stacks := make([]byte, 4<<20)
		for g := range strings.SplitSeq(string(stacks[:runtime.Stack(stacks, true)]), "\n\n") {
			for _, of := range []string{"replica", "transport", "election", "interceptor"} {
				if strings.Contains(g, "github.com/understudy-rpc/understudy/"+of) {
					return fmt.Errorf("a goroutine is left:\n%.1500s", g)
				}
			}
		}
		return nil
	})
}

// soon fails the test if f takes long.
func soon(t *testing.T, what string, f func()) {
	t.Helper()
	began := time.Now()
	f()
	took := time.Since(began).Round(time.Millisecond)
	t.Logf("%s takes %v", what, took)
	if took > 2*time.Second+busy/4 {
		t.Errorf("%s takes %v", what, took)
	}
}

// A client whose etcd never answers closes at once; a replica whose etcd never answers ends with
// its context. Neither leaves anything.
func TestCloseWithoutEtcd(t *testing.T) {
	hole := blackhole(t)
	conn := dialHere(t, hole)
	if err := appendHere(t.Context(), conn, 1, 300*time.Millisecond); err == nil {
		t.Error("a call was answered")
	}
	soon(t, "Close", func() { conn.Close() })

	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	_, ended := serveHere(t, ctx, hole, "a")
	soon(t, "Serve, with a context of 500 ms,", func() { <-ended })
	soon(t, "the end of every goroutine", func() { nothingIsLeft(t) })
}

// While etcd hangs, a primary stops soon, and so do those that stand for election in its place; a
// client closes at once. They leave nothing.
func TestStopWhileEtcdHangs(t *testing.T) {
	etcd := etcdproc.Start(t)
	link := etcdproc.NewLink(t, etcd.Addr())
	type served struct {
		r     *replica.Replica
		ended chan error
	}
	replicas := map[string]served{}
	lead := func(inSync int) func() error {
		return func() error {
			for _, s := range replicas {
				if now := s.r.Status(); now.Role == replica.Leading && len(now.InSync) == inSync {
					return nil
				}
			}
			return fmt.Errorf("no primary has %d in-sync", inSync)
		}
	}
	for i, name := range []string{"a", "b", "c"} {
		r, ended := serveHere(t, context.WithoutCancel(t.Context()), link.Addr(), name)
		replicas[name] = served{r, ended}
		awaitHere(t, lead(i+1))
	}
	conn := dialHere(t, link.Addr())
	if err := appendHere(t.Context(), conn, 1, 10*time.Second+busy); err != nil {
		t.Fatal(err)
	}
	link.Stall()
	time.Sleep(1500 * time.Millisecond) // for which etcd hangs: nobody has authority any more
	stop := func(name string, s served) {
		soon(t, fmt.Sprintf("Stop of %s, which is %s,", name, s.r.Status().Role), func() {
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			if err := s.r.Stop(ctx); err != nil {
				t.Error(err)
			}
			<-s.ended
		})
		delete(replicas, name)
	}
	for name, s := range replicas {
		if s.r.Status().Role == replica.Leading {
			stop(name, s)
		}
	}
	time.Sleep(700 * time.Millisecond) // for which the others know that they have no primary
	for name, s := range replicas {
		stop(name, s)
	}
	soon(t, "Close", func() { conn.Close() })
	link.Resume()
	soon(t, "the end of every goroutine", func() { nothingIsLeft(t) })
}
