package replica_test

import (
	"context"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

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

// A source that has its session opened, and dies before it is welcomed, leaves nothing behind for ever (R11).
func TestSessionWhoseSourceWasNeverWelcomed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := understudytest.New(t, 2, func(grpc.ServiceRegistrar) replica.Snapshotter { return empty{} })
		conn, err := grpc.NewClient("passthrough:///replica0:1", grpc.WithContextDialer(c.Network().Dialer("client")), grpc.WithTransportCredentials(insecure.NewCredentials()))
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
			if err := stream.Send(&pb.AttachRequest{Hello: &pb.Hello{Nonce: append(make([]byte, 15), byte(i))}}); err != nil {
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
