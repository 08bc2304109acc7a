package main

import (
	"context"
	"fmt"
	"net"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
)

type dialer func(ctx context.Context, addr string) (net.Conn, error)

func dialTCP(ctx context.Context, addr string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "tcp", addr)
}

// via dials everything through a relay, which is told where to in the first line.
func via(relay string) dialer {
	return func(ctx context.Context, addr string) (net.Conn, error) {
		conn, err := dialTCP(ctx, relay)
		if err != nil {
			return nil, err
		}
		if _, err := fmt.Fprintln(conn, addr); err != nil {
			conn.Close()
			return nil, err
		}
		return conn, nil
	}
}

// etcd is election.Dial but for how it dials.
func (d dialer) etcd(endpoints []string) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{
		Endpoints:            endpoints,
		DialTimeout:          time.Second,
		DialKeepAliveTime:    10 * time.Second,
		DialKeepAliveTimeout: 3 * time.Second,
		Logger:               zap.NewNop(),
		DialOptions:          []grpc.DialOption{grpc.WithIdleTimeout(0), grpc.WithContextDialer(d)},
	})
}
