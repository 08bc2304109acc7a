// Package interceptor has the options that make a stock grpc-go server a replica, and a stock
// client a source: nothing of a call is lost or done twice when the replica that executes it dies.
//
//	s := grpc.NewServer(interceptor.ServerOptions(r)...)                                          // server
//	conn, err := grpc.NewClient("replicated://127.0.0.1:2379/greeter", interceptor.DialOptions()...)  // client
//
// The interceptors are thin: they carry the header between gRPC's messages or metadata and the
// runtime, in packages replica and transport.
package interceptor
