package interceptor

import (
	"google.golang.org/grpc"

	"github.com/understudy-rpc/understudy/replica"
)

// ServerOptions returns the options for the grpc.NewServer whose replicated services are registered
// with r.Registrar: ChainUnaryInterceptor and ChainStreamInterceptor, and windows of flow control
// of a fixed size, 1 MiB for a stream and 4 MiB for a connection, which options that come after
// these can change.
//
// List them before the options of other interceptors; the package's documentation draws where each
// is. An interceptor after these sees each request once, however often its source issues it again.
// One before these sees every copy, and replies as their bytes only (a proto.Message of no
// particular type). Neither runs on the backups; r.Registrar takes interceptors that do.
//
// No interceptor may change the request. One that hands down another is refused. One that changes
// it in place lets replicas differ.
func ServerOptions(r *replica.Replica) []grpc.ServerOption {
	return r.ServerOptions()
}
