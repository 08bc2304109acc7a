package replica_test

import (
	"context"
	"fmt"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/understudy-rpc/understudy/internal/wire"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
	"github.com/understudy-rpc/understudy/replica"
	"github.com/understudy-rpc/understudy/understudytest"
)

// empty is a state of nothing.
type empty struct{}

func (empty) Snapshot() (func(io.Writer) error, error) {
	return func(io.Writer) error { return nil }, nil
}

func (empty) Restore(io.Reader) error { return nil }

// A source that has its session opened, and dies before it is welcomed, leaves nothing behind for
// ever (R11).
func TestSessionWhoseSourceWasNeverWelcomed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := understudytest.New(t, 2, func(grpc.ServiceRegistrar) replica.Snapshotter { return empty{} })
		conn, err := grpc.NewClient("passthrough:///replica0:1", grpc.WithContextDialer(c.Network().Dialer("client")),
			grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.Connect()
		time.Sleep(5 * time.Millisecond)
		for i := range 20 {
			ctx, cancel := context.WithCancel(t.Context())
			stream, err := pb.NewConnectionClient(conn).Attach(ctx)
			if err != nil {
				t.Fatal(err)
			}
			hello := &pb.Hello{Protocol: wire.Protocol, Nonce: append(make([]byte, 15), byte(i))}
			if err := stream.Send(&pb.AttachRequest{Hello: hello}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Duration(10*i) * time.Microsecond)
			cancel()
			time.Sleep(time.Millisecond)
		}
		opened := c.Replica(0).Sessions()
		if opened == 0 {
			t.Fatal("no session was opened: the test shows nothing")
		}
		time.Sleep(40 * time.Second)
		if left := c.Replica(0).Sessions(); left != 0 {
			t.Errorf("of %d sessions %d are left", opened, left)
		}
		if left := c.Replica(1).Sessions(); left != 0 {
			t.Errorf("of %d sessions %d are left at the backup", opened, left)
		}
	})
}

// crowd is a group of two with a primary at the first, and streams that any client may open.
type crowd struct {
	t *testing.T
	c *understudytest.Cluster
}

func newCrowd(t *testing.T) *crowd {
	return &crowd{t, understudytest.New(t, 2, registerJournal, understudytest.Logger(verbose))}
}

// attach opens a stream to a replica, and doesn't wait for its welcome.
func (c *crowd) attach(i int, hello *pb.Hello) (st stream, leave func()) {
	c.t.Helper()
	conn, err := grpc.NewClient(fmt.Sprintf("passthrough:///replica%d:1", i),
		grpc.WithContextDialer(c.c.Network().Dialer("crowd")), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = conn.Close() })
	ctx, cancel := context.WithCancel(c.t.Context())
	c.t.Cleanup(cancel)
	if st, err = pb.NewConnectionClient(conn).Attach(ctx); err != nil {
		c.t.Fatal(err)
	}
	say(c.t, st, &pb.AttachRequest{Hello: hello})
	return st, cancel
}

// A stream that names a session to come waits at a backup, whose order may lag, for 3 s, and is
// woken by its opening only; who leads knows all sessions.
func TestABackupWaitsForASessionToCome(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t)
		st, _ := c.attach(0, &pb.Hello{Protocol: wire.Protocol, Nonce: []byte("never opened ..."), Session: 1 << 40})
		ends(t, "at the primary", st, codes.NotFound, "is unknown")

		mine := []byte("opened later ...")
		waits, _ := c.attach(1, &pb.Hello{Protocol: wire.Protocol, Nonce: mine})
		other, _ := c.attach(1, &pb.Hello{Protocol: wire.Protocol, Nonce: []byte("never opened ..."), Session: 1 << 40})
		time.Sleep(time.Second)
		if n := c.c.Replica(1).Waiting(); n != 2 {
			t.Errorf("%d streams wait, want 2", n)
		}
		opens, _ := c.attach(0, &pb.Hello{Protocol: wire.Protocol, Nonce: mine})
		if _, err := opens.Recv(); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if resp, err := waits.Recv(); err != nil || resp.GetWelcome() == nil ||
			time.Since(began) > 10*time.Millisecond {
			t.Errorf("after %v: %v, %v", time.Since(began), resp, err)
		}
		time.Sleep(5 * time.Second)
		ends(t, "at a backup, for long", other, codes.Unavailable, "attach again")
		if n := c.c.Replica(1).Waiting(); n != 0 {
			t.Errorf("%d streams wait, want none", n)
		}
	})
}

// A session without a stream ends 30 s after that, by the clocks of those who are left when
// primaries come and go; and not sooner than 10 s after a takeover, since it may have been heard
// elsewhere.
func TestSessionExpiresAcrossFailovers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t)
		st, leave := c.attach(0, &pb.Hello{Protocol: wire.Protocol, Nonce: []byte("soon without any")})
		if _, err := st.Recv(); err != nil {
			t.Fatal(err)
		}
		leave()
		for i := range 3 {
			time.Sleep(9 * time.Second)
			c.c.Kill(i % 2)
			time.Sleep(time.Second)
			c.c.Start(i % 2)
			c.c.AwaitInSync(2)
		}
		if n := c.c.Replica(c.c.Primary()).Sessions(); n != 1 {
			t.Fatalf("%d sessions are left after 30 s and a takeover just now", n)
		}
		time.Sleep(11 * time.Second)
		if n := c.c.Replica(c.c.Primary()).Sessions(); n != 0 {
			t.Errorf("%d sessions are left", n)
		}
	})
}
