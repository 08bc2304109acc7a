package transport_test

import (
	"context"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/internal/wire"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
	"github.com/understudy-rpc/understudy/transport"
)

// listed is an election that lists replicas at some addresses.
type listed struct {
	election.Election
	replicas []election.Replica
}

func (l listed) Read(context.Context) (election.State, error) {
	primary := l.replicas[0].Member
	return election.State{
		Revision: 1, Group: election.Group{ID: groupID, Protocol: wire.Protocol}, Primary: primary, Epoch: 1,
		InSync: []election.Member{primary}, Replicas: l.replicas,
	}, nil
}

func (l listed) Watch(ctx context.Context) <-chan election.State {
	out := make(chan election.State, 1)
	view, _ := l.Read(ctx)
	out <- view
	context.AfterFunc(ctx, func() { close(out) })
	return out
}

// TestErrorsSayWhyEachReplicaWasNotReached: over TCP, whose errors are the point.
func TestErrorsSayWhyEachReplicaWasNotReached(t *testing.T) {
	t.Parallel()
	tls := httptest.NewUnstartedServer(http.NotFoundHandler()) // of nobody whom this client trusts
	tls.EnableHTTP2, tls.Config.ErrorLog = true, log.New(io.Discard, "", 0)
	tls.StartTLS()
	t.Cleanup(tls.Close)
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = closed.Close()
	for name, tt := range map[string]struct {
		creds credentials.TransportCredentials
		addrs map[string]string // to what is said of it
	}{
		"TLS": {credentials.NewTLS(nil),
			map[string]string{tls.Listener.Addr().String(): "x509", closed.Addr().String(): "connection refused"}},
		"plaintext": {insecure.NewCredentials(),
			map[string]string{closed.Addr().String(): "connection refused", "nobody.invalid:1": "no such host"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var l listed
			for addr := range tt.addrs {
				l.replicas = append(l.replicas,
					election.Replica{Member: election.Member{Name: strings.ReplaceAll(addr, ".", "-"), Incarnation: 1},
						Addr: addr})
			}
			conn, err := grpc.NewClient(target, append(transport.DialOptions(transport.WithStore(l)),
				grpc.WithTransportCredentials(tt.creds))...)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			var missing []string
			for range 10 { // a try may take longer than a call waits
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				_, err = say(ctx, conn, "hello")
				cancel()
				missing = nil
				for addr, words := range tt.addrs {
					parts := strings.Split(status.Convert(err).Message(), "; ")
					if !slices.ContainsFunc(parts, func(part string) bool {
						return strings.Contains(part, addr) && strings.Contains(part, words)
					}) {
						missing = append(missing, addr+": "+words)
					}
				}
				if missing == nil {
					break
				}
			}
			fails(t, err, codes.DeadlineExceeded, "nothing was sent")
			if missing != nil {
				t.Errorf("%v doesn't say %q", err, missing)
			}
		})
	}
}

// TestRefusedByAll: a call ends at once when every replica refuses the client, and goes on when one
// of them may not.
func TestRefusedByAll(t *testing.T) {
	t.Parallel()
	within(t, func(t *testing.T, ctx context.Context) {
		refuse := map[string]error{
			"a": status.Error(codes.PermissionDenied, "not you"),
			"b": status.Error(codes.Unauthenticated, "who are you?"),
		}
		c := newCluster(t, "a", "b")
		c.hello = func(s *stream, _ *pb.Hello) bool {
			var err error
			c.set(func() { err = refuse[s.replica.member.Name] })
			if err != nil {
				s.kill(err)
			}
			return err != nil
		}
		conn := c.dial()
		began := time.Now()
		for range 3 {
			_, err := say(ctx, conn, "hello")
			if code := status.Code(err); code != codes.PermissionDenied && code != codes.Unauthenticated ||
				!strings.Contains(err.Error(), "every replica refuses this client; nothing was sent") {
				t.Errorf("got %v", err)
			}
		}
		if took := time.Since(began); took > 100*time.Millisecond {
			t.Errorf("it took %v", took)
		}
		c.set(func() { refuse["a"] = status.Error(codes.Unavailable, "later, perhaps") })
		time.Sleep(2 * time.Second) // fake: the links try again
		short, cancel := context.WithTimeout(ctx, time.Second)
		_, err := say(short, conn, "hello")
		cancel()
		fails(t, err, codes.DeadlineExceeded, "later, perhaps", "who are you?")
		c.set(func() { clear(refuse) })
		must(t, "hello from a", <-sayLater(ctx, conn, "hello"))
	})
}

// TestNoDialOptions: a target of ours in a ClientConn without our options.
func TestNoDialOptions(t *testing.T) {
	t.Parallel()
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err == nil {
		defer conn.Close()
		_, err = say(t.Context(), conn, "hello")
	}
	if err == nil || !strings.Contains(err.Error(), "interceptor.DialOptions()") {
		t.Errorf("got %v", err)
	}
}

// TestNoEtcdIsSaidWithItsCause: where it is looked for, and what becomes of that.
func TestNoEtcdIsSaidWithItsCause(t *testing.T) {
	t.Parallel()
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = closed.Close()
	conn, err := grpc.NewClient("replicated://"+closed.Addr().String()+"/greeter",
		append(transport.DialOptions(), grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err = say(ctx, conn, "hello")
	fails(t, err, codes.DeadlineExceeded, "nothing was sent", "etcd at "+closed.Addr().String(), "connection refused")
}
