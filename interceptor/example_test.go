package interceptor_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"

	"github.com/grpc-ecosystem/go-grpc-middleware/v2/testing/testpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/understudy-rpc/understudy/election/memory"
	"github.com/understudy-rpc/understudy/interceptor"
	"github.com/understudy-rpc/understudy/replica"
	"github.com/understudy-rpc/understudy/transport"
)

// visits counts pings: a service with a state.
type visits struct {
	testpb.UnimplementedTestServiceServer
	count int32
}

func (v *visits) Ping(_ context.Context, req *testpb.PingRequest) (*testpb.PingResponse, error) {
	v.count++ // turns are serial: no mutex
	return &testpb.PingResponse{Value: "hello " + req.GetValue(), Counter: v.count}, nil
}

func (v *visits) Snapshot() (write func(io.Writer) error, err error) {
	count := v.count
	return func(w io.Writer) error { return json.NewEncoder(w).Encode(count) }, nil
}

func (v *visits) Restore(r io.Reader) error { return json.NewDecoder(r).Decode(&v.count) }

// A group of one replica and its client, on an election in memory; with etcd, the two options that
// name it go, and the targets are etcd://127.0.0.1:2379/visits and
// replicated://127.0.0.1:2379/visits.
func Example() {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	etcd := memory.NewStore()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}

	// The server: a stock grpc-go service, and four lines.
	service := &visits{}
	r, err := replica.Join(ctx, "etcd:///visits", replica.State(service), replica.Store(etcd.Client("visits")))
	if err != nil {
		fmt.Println(err)
		return
	}
	s := grpc.NewServer(interceptor.ServerOptions(r)...)
	testpb.RegisterTestServiceServer(r.Registrar(s), service)
	served := make(chan error, 1)
	go func() { served <- r.Serve(ctx, s, lis) }()

	// The client: a stock client, another target.
	opts := append(interceptor.DialOptions(transport.WithStore(etcd.Client("visits"))),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	conn, err := grpc.NewClient("replicated:///visits", opts...)
	if err != nil {
		fmt.Println(err)
		return
	}
	client := testpb.NewTestServiceClient(conn)
	for range 2 {
		reply, err := client.Ping(ctx, &testpb.PingRequest{Value: "Ada"})
		fmt.Println(reply.GetValue(), reply.GetCounter(), err)
	}

	_ = conn.Close()
	_ = r.Stop(ctx)
	fmt.Println("served:", <-served)
	// Output:
	// hello Ada 1 <nil>
	// hello Ada 2 <nil>
	// served: <nil>
}
