package quickstart

import (
	"testing"
	"testing/synctest"

	"google.golang.org/grpc"

	"github.com/understudy-rpc/understudy/examples/greeter/helloworld"
	"github.com/understudy-rpc/understudy/replica"
	"github.com/understudy-rpc/understudy/understudytest"
)

// TestGreeterSurvives kills the primary between two calls: the second one still counts as second.
func TestGreeterSurvives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := understudytest.New(t, 3, func(s grpc.ServiceRegistrar) replica.Snapshotter {
			g := NewGreeter()
			helloworld.RegisterGreeterServer(s, g)
			return g
		})
		client := helloworld.NewGreeterClient(c.Dial("client"))
		for n, want := range []string{"Hello Ada, number 1", "Hello Ada, number 2"} {
			reply, err := client.SayHello(t.Context(), &helloworld.HelloRequest{Name: "Ada"})
			if err != nil || reply.GetMessage() != want {
				t.Errorf("call %d: %q, %v", n, reply.GetMessage(), err)
			}
			c.Kill(c.Primary())
		}
	})
}
