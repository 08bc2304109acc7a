package replica_test

import (
	"context"
	"net"
	"os"
	"os/exec"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/understudy-rpc/understudy"
	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/election/memory"
	"github.com/understudy-rpc/understudy/interceptor"
	"github.com/understudy-rpc/understudy/internal/wire"
	"github.com/understudy-rpc/understudy/replica"
)

// proxied marks the process in which TestProxyIsNotFollowed dials: the environment is read once in
// a process.
const proxied = "UNDERSTUDY_TEST_PROXIED"

// TestProxyIsNotFollowed: HTTPS_PROXY, as it is set on many hosts, catches neither what goes
// between replicas nor what goes to etcd. (Nothing goes through a proxy to loopback addresses, so
// that this takes one for documentation.)
func TestProxyIsNotFollowed(t *testing.T) {
	t.Parallel()
	const nobody = "192.0.2.1:2379"
	if os.Getenv(proxied) != "" {
		dialNobody(t, nobody)
		return
	}
	proxy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	asked := make(chan string, 100)
	go func() {
		defer close(asked)
		for {
			conn, err := proxy.Accept()
			if err != nil {
				return
			}
			line := make([]byte, 100)
			n, _ := conn.Read(line)
			asked <- string(line[:n])
			_ = conn.Close()
		}
	}()
	child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestProxyIsNotFollowed$", "-test.v")
	child.Env = append(os.Environ(), proxied+"=1", "HTTPS_PROXY=http://"+proxy.Addr().String(), "NO_PROXY=")
	out, err := child.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	_ = proxy.Close()
	for line := range asked {
		t.Fatalf("the proxy was asked for %q", line)
	}
}

// dialNobody lets a replica and an etcd client dial an address at which nobody is.
func dialNobody(t *testing.T, addr string) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	client, err := election.Dial([]string{addr})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := election.NewEtcd(client, "test").Read(ctx); err == nil {
		t.Error("somebody was there")
	}

	store := memory.NewStore()
	primary := election.Replica{Member: election.Member{Name: "a", Incarnation: 1}, Addr: addr, PeerAddr: addr}
	registration, err := store.Client("test").Register(t.Context(), primary, election.Member{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = registration.Close(context.Background()) }()
	group := election.Group{ID: 1, Protocol: wire.Protocol, Level: understudy.Reflected.String()}
	if _, err := store.Client("test").Create(t.Context(), group, registration); err != nil {
		t.Fatal(err)
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r, err := replica.Join(t.Context(), "etcd:///test", replica.Stateless(), replica.Name("b"),
		replica.Store(store.Client("test")))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := r.Serve(ctx, grpc.NewServer(interceptor.ServerOptions(r)...), lis); err != nil {
		t.Error(err)
	}
}
