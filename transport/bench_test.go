package transport_test

import (
	"context"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/understudy-rpc/understudy/transport"
)

// BenchmarkCall compares a call through this package, to a fake group of three, with the same call
// to the same server without it: what is between is the client's cost, and the header's.
func BenchmarkCall(b *testing.B) {
	for _, callers := range []int{1, 64} {
		for name, opts := range map[string][]transport.Option{"plain": {transport.WithUnreplicated("test.Echo")},
			"replicated": nil} {
			b.Run(name+"/"+map[int]string{1: "1 caller", 64: "64 callers"}[callers], func(b *testing.B) {
				c := newCluster(b, "a", "b", "c")
				c.forgetful = true
				if name == "plain" {
					c.answer = func(*request) *answer { return &answer{} }
				}
				conn, err := grpc.NewClient(target,
					append(transport.DialOptions(c.options(opts...)...), c.dialer(),
						grpc.WithTransportCredentials(insecure.NewCredentials()))...)
				if err != nil {
					b.Fatal(err)
				}
				defer c.stop()
				defer func() { _ = conn.Close() }()
				if _, err := say(context.Background(), conn, "hello"); err != nil {
					b.Fatal(err)
				}
				b.SetParallelism(callers)
				b.ReportAllocs()
				b.ResetTimer()
				b.RunParallel(func(next *testing.PB) {
					for next.Next() {
						if _, err := say(context.Background(), conn, "hello"); err != nil {
							b.Error(err)
							return
						}
					}
				})
			})
		}
	}
}
