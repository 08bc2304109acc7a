// Package quickstart is the code of the README, so that what it shows compiles: TestReadme of
// internal/archtest compares the two. serve.go is what replication asks of a server and of a
// client, greeter.go what it asks of a service.
package quickstart

import (
	"context"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/understudy-rpc/understudy/examples/greeter/helloworld"
	"github.com/understudy-rpc/understudy/interceptor"
	"github.com/understudy-rpc/understudy/replica"
)

// Serve is one replica: a stock grpc-go server, and four lines.
func Serve(ctx context.Context, lis net.Listener, greeter *Greeter) error {
	r, err := replica.Join(ctx, "etcd://127.0.0.1:2379/greeter", replica.State(greeter))
	if err != nil {
		return err
	}
	s := grpc.NewServer(interceptor.ServerOptions(r)...)
	helloworld.RegisterGreeterServer(r.Registrar(s), greeter)
	return r.Serve(ctx, s, lis)
}

// Dial is a stock client with another target.
func Dial() (*grpc.ClientConn, error) {
	return grpc.NewClient("replicated://127.0.0.1:2379/greeter", append(interceptor.DialOptions(),
		grpc.WithTransportCredentials(insecure.NewCredentials()))...)
}
