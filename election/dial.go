package election

import (
	"crypto/tls"
	"errors"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
)

// Dial returns an etcd client for NewEtcd: host:port endpoints, in plain text. It doesn't wait for
// a connection, and fails only if endpoints can't be used at all. The client
//
//   - logs nothing,
//   - doesn't follow the proxy environment variables,
//   - never goes idle, and after an outage of any length tries to connect again at least once a second,
//   - finds a connection dead when a ping after 10 s of silence isn't answered within 2 s, or, on Linux, when what was
//     sent on it isn't acknowledged by the other host within 2 s,
//   - refuses answers above 8 MiB.
//
// A client made elsewhere works as well; it should be given the same settings.
func Dial(endpoints []string) (*clientv3.Client, error) { return DialAs(endpoints, nil, "", "") }

// DialAs is Dial with TLS, unless that is nil, and as a user of etcd, unless username is empty.
//
// A replica's user needs the right to read and write the keys under /understudy/<group>/, as a
// prefix, and no other; that of a client the right to read them. Leases need no right of their own.
// Unlike clientv3.New, which asks for a token at once, DialAs doesn't fail while etcd is away.
func DialAs(endpoints []string, tls *tls.Config, username, password string) (*clientv3.Client, error) {
	if (username == "") != (password == "") {
		return nil, errors.New("election: a user of etcd has a name and a password: one of them is empty")
	}
	token := ""
	if username != "" {
		token = "none yet" // New doesn't ask for one then; the first request does, since etcd doesn't take this one
	}
	client, err := clientv3.New(clientv3.Config{
		TLS:                  tls,
		Token:                token,
		Endpoints:            endpoints,
		DialTimeout:          time.Second,
		DialKeepAliveTime:    10 * time.Second,
		DialKeepAliveTimeout: 2 * time.Second,
		MaxCallRecvMsgSize:   8 << 20,
		Logger:               zap.NewNop(),
		DialOptions: []grpc.DialOption{
			grpc.WithIdleTimeout(0),
			grpc.WithNoProxy(),
			grpc.WithConnectParams(grpc.ConnectParams{
				Backoff: backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2,
					MaxDelay: time.Second},
				MinConnectTimeout: time.Second,
			}),
		},
	})
	if err != nil {
		return nil, err
	}
	client.Token, client.Username, client.Password = "", username, password
	return client, nil
}
