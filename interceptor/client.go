package interceptor

import (
	"google.golang.org/grpc"

	"github.com/understudy-rpc/understudy/transport"
)

// DialOptions are the options of grpc.NewClient for a target of the form
// replicated://host:port[,host:port]/group. They serve one ClientConn: a second one makes the calls
// of both fail with FailedPrecondition.
//
// Interceptors given before them see a call once, those given after them each attempt. See package
// transport for what a caller can rely on.
func DialOptions(opts ...transport.Option) []grpc.DialOption {
	return transport.DialOptions(opts...)
}
