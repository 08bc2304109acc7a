// Package interceptor has the options that make a stock grpc-go server a replica, and a stock
// client a source: nothing of a call is lost or done twice when the replica that executes it dies.
//
//	s := grpc.NewServer(interceptor.ServerOptions(r)...)                                          // server
//	conn, err := grpc.NewClient("replicated://127.0.0.1:2379/greeter", interceptor.DialOptions()...)  // client
//
// # Where other interceptors go
//
// gRPC calls interceptors in the order in which their options are listed. So it matters whether
// they come before ours or after:
//
//	the client
//	  before DialOptions      sees a call once
//	    DialOptions
//	      after DialOptions   sees each attempt, and the stream to each replica
//	the server
//	  before ServerOptions    sees every copy of a request, and replies as bytes only
//	    ServerOptions         copies end here
//	      after ServerOptions sees a request once, where it arrives
//	        Registrar's       sees it in its turn, on every replica
//	          the handler
//
// Authentication, limits and logging of a server belong after ServerOptions. None of them may
// change the request: the other replicas execute what the client has sent.
package interceptor
