package replica

import (
	"fmt"
	"reflect"

	"google.golang.org/grpc"
)

// least is the least that a server's limits of a message's size may be: our own streams, on which
// it serves sources, carry messages of nearly this size.
const least = 1 << 20

// checkLimits refuses a server whose limits would cut the sources' streams again and again, and
// says how many bytes of a request it takes; 0: that isn't known.
func checkLimits(s *grpc.Server) (maxRequest int, err error) {
	if n, ok := serverOption(s, "maxConcurrentStreams"); ok && n < 2 {
		return 0, fmt.Errorf(
			"replica: the server was made with grpc.MaxConcurrentStreams(%d): a client's session is a stream, and "+
				"leaves none for its calls: give at least 2", n,
		)
	}
	if n, ok := serverOption(s, "maxSendMessageSize"); ok && n < least {
		return 0, fmt.Errorf(
			"replica: the server was made with grpc.MaxSendMsgSize(%d): the streams of clients' sessions need at "+
				"least %d", n, least,
		)
	}
	n, ok := serverOption(s, "maxReceiveMessageSize")
	if ok && n < least {
		return 0, fmt.Errorf(
			"replica: the server was made with grpc.MaxRecvMsgSize(%d): the streams of clients' sessions need at "+
				"least %d", n, least,
		)
	}
	return int(n), nil
}

// serverOption reads what a server was made with, which gRPC tells nobody. ok is false if this gRPC
// calls it otherwise: then nothing is known.
func serverOption(s *grpc.Server, name string) (n int64, ok bool) {
	opts := reflect.ValueOf(s).Elem().FieldByName("opts")
	if opts.Kind() != reflect.Struct {
		return 0, false
	}
	switch v := opts.FieldByName(name); {
	case v.CanInt():
		return v.Int(), true
	case v.CanUint():
		return int64(v.Uint()), true
	}
	return 0, false
}
