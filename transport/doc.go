// Package transport is the client's side of a replicated group: a call that was in flight when the
// group's primary died completes, once, and nothing that the caller has seen is undone.
//
// Users write a target and two words (package interceptor), and have the options of this package:
//
//	options := append(interceptor.DialOptions(), grpc.WithTransportCredentials(creds))
//	conn, err := grpc.NewClient("replicated://127.0.0.1:2379/greeter", options...)
//	reply, err := greeterpb.NewGreeterClient(conn).SayHello(ctx, req)
//
// A ClientConn sends each call to the primary as the RPC that it is, and the same bytes, in
// batches, on a stream to each other replica, which has the call should the primary die:
//
//	caller ── call ──┬── the RPC, with a header ──────────▶ primary
//	                 └── frame, in batches, on a stream ──▶ each other replica
//
// # What a caller can rely on
//
// A call is executed at most once, whatever dies. Unless a handler has returned the code itself:
//
//	the call ends as                was it executed?
//	Unavailable, ResourceExhausted  no, and it never will be: it may be made again
//	Canceled, DeadlineExceeded      perhaps; the text says whether it was sent
//	Unknown                         perhaps; a call without a deadline ends so after WithGiveUp
//	DataLoss                        perhaps; and something that this process was told is lost
//
// A reply that is too large to be sent is ResourceExhausted, too, and its text says that the call
// was executed. DataLoss takes two faults at once. Every call in flight ends with it, and the next
// one.
//
// Calls are never refused because no replica, or no etcd, can be reached: they wait, as if every
// call had grpc.WaitForReady.
//
// # How it fits with other options of grpc.NewClient
//
// Interceptors that come before ours see a call once. Those behind ours see each attempt, and the
// stream to each replica; they must not change the request. The proxy environment variables aren't
// followed (grpc.WithNoProxy). The authority of the connection, which TLS verifies, is the group's
// name unless grpc.WithAuthority or the credentials say otherwise. Timeouts of the service config
// hold for a call, not for each attempt. The header of the protocol, up to 2 KiB, is a field in
// front of the request's and the reply's own bytes; beyond 64 KiB, where the caller's limit of a
// message's size is near that, or with WithHeaderInMetadata, it is in gRPC metadata under
// understudy-bin.
package transport

// A ClientConn has one client, which drives the source of one session on the multicast connection
// (internal/source). What the source knows, and decides, speaks no gRPC; here is what does:
//
//	call.go, attempt.go   one call, and one RPC of it: the bytes, and the header's two carriers
//	stream.go             one stream to one replica (Connection.Attach)
//	replicas.go           who the replicas are, from the group's election
//	client.go, life.go    from the first call of a ClientConn to its end
//	status.go             every gRPC status that a caller can have from this package
//	internal/route        the experimental part of gRPC: choosing a connection by the replica's name
