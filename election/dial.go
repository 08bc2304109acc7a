package election

import (
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
)

// Dial returns an etcd client for NewEtcd: host:port endpoints, in plain text. It doesn't wait for a connection, and
// fails only if endpoints can't be used at all. The client
//
//   - logs nothing,
//   - doesn't follow the proxy environment variables,
//   - never goes idle, and after an outage of any length tries to connect again at least once a second,
//   - finds a connection dead when a ping after 10 s of silence isn't answered within 3 s,
//   - refuses answers above 8 MiB.
//
// A client made elsewhere (TLS, users) works as well; it should be given the same settings.
func Dial(endpoints []string) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{
		Endpoints:            endpoints,
		DialTimeout:          time.Second,
		DialKeepAliveTime:    10 * time.Second,
		DialKeepAliveTimeout: 3 * time.Second,
		MaxCallRecvMsgSize:   8 << 20,
		Logger:               zap.NewNop(),
		DialOptions: []grpc.DialOption{
			grpc.WithIdleTimeout(0),
			grpc.WithNoProxy(),
			grpc.WithConnectParams(grpc.ConnectParams{
				Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
				MinConnectTimeout: time.Second,
			}),
		},
	})
}
