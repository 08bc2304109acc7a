package replica_test

import (
	"context"
	"fmt"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/understudy-rpc/understudy/election/memory"
	"github.com/understudy-rpc/understudy/interceptor"
	"github.com/understudy-rpc/understudy/replica"
)

// A replica that answers probes on a port of their own, which needs no certificate, and a process
// that waits until it is ready. (The election is in memory; with etcd, replica.Store goes, and the
// target is etcd://127.0.0.1:2379/journal.)
func ExampleHealth() {
	ctx := context.Background()
	statuses := health.NewServer()
	state := &journal{}
	r, err := replica.Join(ctx, "etcd:///journal", replica.State(state), replica.Health(statuses),
		replica.Store(memory.NewStore().Client("journal")))
	if err != nil {
		fmt.Println(err)
		return
	}
	s := grpc.NewServer(interceptor.ServerOptions(r)...)
	r.Registrar(s).RegisterService(&journalDesc, state) // generated: pb.RegisterJournalServer(r.Registrar(s), state)

	probes := grpc.NewServer()
	healthpb.RegisterHealthServer(probes, statuses)
	lis, probed := listen(), listen()
	go func() { _ = probes.Serve(probed) }()
	defer probes.Stop()
	served := make(chan error, 1)
	go func() { served <- r.Serve(ctx, s, lis) }()

	err = r.Ready(ctx)
	fmt.Println("ready:", err)

	conn, err := grpc.NewClient(probed.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer conn.Close()
	updates, err := healthpb.NewHealthClient(conn).Watch(ctx, &healthpb.HealthCheckRequest{Service: "test.Journal"})
	if err != nil {
		fmt.Println(err)
		return
	}
	next := func(want healthpb.HealthCheckResponse_ServingStatus) {
		for {
			switch update, err := updates.Recv(); {
			case err != nil:
				fmt.Println(err)
				return
			case update.GetStatus() == want:
				fmt.Println(want)
				return
			}
		}
	}
	next(healthpb.HealthCheckResponse_SERVING)
	_ = r.Stop(ctx)
	next(healthpb.HealthCheckResponse_NOT_SERVING)
	fmt.Println("served:", <-served)
	// Output:
	// ready: <nil>
	// SERVING
	// NOT_SERVING
	// served: <nil>
}

func listen() net.Listener {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	return lis
}
