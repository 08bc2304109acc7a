// Package replica makes one process a replica of a group. When the primary dies, a backup goes on:
// it holds every call whose reply a caller has seen, or is told of it by the callers' processes. It
// executes these calls in the same order, and takes new ones.
//
// What the user writes:
//
//	r, err := replica.Join(ctx, "etcd://127.0.0.1:2379/greeter", replica.State(greeter))
//	s := grpc.NewServer(interceptor.ServerOptions(r)...)
//	greeterpb.RegisterGreeterServer(r.Registrar(s), greeter)
//	err = r.Serve(ctx, s, lis)
//
// where greeter's handlers keep the determinism contract of package understudy, and greeter can
// write and read its state.
//
// Streams of a replicated service aren't supported yet; docs/guarantees.md says what is promised,
// and what isn't.
package replica

// How a request goes through it, at the primary:
//
//	interceptUnary       the header                intercept.go
//	handle (front door)  FIG. 9, duplicates        front.go
//	turn                 FIG. 7, the handler       turn.go
//	handle               FIG. 8, the reply         front.go
//
// (read-only methods, too), and at a backup:
//
//	Attach               frames to the log         connection.go, attach.go
//	                     FIG. 10                   following.go, fetch.go
//	replay               the handler               internal/machine, turn.go
//
// What one lock guards is a member (member.go), in one role at a time: following.go, takingover.go,
// leading.go, whose roster (roster.go) has the other replicas. Whoever changes something says what
// has moved, and member.after alone knows who waits for that. Sessions are opened, parted from and
// expired in session.go, on the streams of sources.go and attach.go.
//
// The application and its turns are package internal/machine.
//
// A replica's life is a sequence of incarnations (life.go), which drive it: each joins its
// group with a state transfer (join.go), follows the primary (follow.go), and may stand for
// election (stand.go), take over (takeover.go) and reign (lead.go) until it is deposed. Replicas
// speak to each other on a listener of their own (peer.go).
