package transport

import (
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"github.com/understudy-rpc/understudy/internal/wire"
	"github.com/understudy-rpc/understudy/transport/internal/route"
)

// DialOptions are what interceptor.DialOptions returns, which says what they do. They serve one
// ClientConn: the replicated: scheme, the load-balancing policy, connections that never go idle and
// come back within a second, windows of flow control of a fixed size (1 MiB for a stream, 4 MiB for
// a connection), and the interceptors. Options of the same kind that come after these take their
// place. Nothing happens before a ClientConn uses them.
func DialOptions(opts ...Option) []grpc.DialOption {
	c := newClient(opts...)
	return append(c.dialOptions(), grpc.WithChainUnaryInterceptor(c.unary), grpc.WithChainStreamInterceptor(c.stream))
}

// dialOptions are those of DialOptions besides the interceptors.
func (c *client) dialOptions() []grpc.DialOption {
	opts := []grpc.DialOption{
		grpc.WithResolvers(route.Resolvers(c.routes())...),
		grpc.WithNoProxy(),
		grpc.WithIdleTimeout(0),
		grpc.WithStaticStreamWindowSize(wire.StreamWindow), grpc.WithStaticConnWindowSize(wire.ConnWindow),
		grpc.WithConnectParams(grpc.ConnectParams{
			// The first attempt is at once. A process that has died isn't back soon after it, and
			// to dial it would only compete with the failover.
			Backoff: backoff.Config{BaseDelay: 200 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2,
				MaxDelay: time.Second},
			MinConnectTimeout: time.Second,
		}),
	}
	json, err := route.ServiceConfig(c.cfg.serviceConfig)
	if err != nil {
		c.life.fail(err)
		return opts
	}
	return append(opts, grpc.WithDefaultServiceConfig(json))
}
