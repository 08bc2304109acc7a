package replica_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/recovery"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/testing/testpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	"github.com/understudy-rpc/understudy/interceptor"
	"github.com/understudy-rpc/understudy/internal/turn"
	"github.com/understudy-rpc/understudy/internal/wire"
	understudyv1 "github.com/understudy-rpc/understudy/proto/understudy/v1"
	"github.com/understudy-rpc/understudy/replica"
)

// TestServeRefusesServicesByName: services that one replica alone would execute, and methods
// whose option promises what isn't there, are refused by name before anything is served.
func TestServeRefusesServicesByName(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		register func(*replica.Replica, *grpc.Server)
		words    []string
	}{
		"a service past the Registrar": {
			func(_ *replica.Replica, s *grpc.Server) { testpb.RegisterTestServiceServer(s, &ping{}) },
			[]string{"service testing.testpb.v1.TestService", "Replica.Registrar", "replica.Unreplicated"},
		},
		"one of two past the Registrar": {
			func(r *replica.Replica, s *grpc.Server) {
				testpb.RegisterTestServiceServer(r.Registrar(s), &ping{})
				s.RegisterService(optional("test.Past", nil), nil)
			},
			[]string{"service test.Past", "Replica.Registrar", "replica.Unreplicated"},
		},
		"key": {
			func(r *replica.Replica, s *grpc.Server) {
				r.Registrar(s).RegisterService(optional("test.Keyed", func(o *descriptorpb.MethodOptions) {
					proto.SetExtension(o, understudyv1.E_Key, "name")
				}), nil)
			},
			[]string{"test.Keyed.Do", "understudy.v1.key", "isn't supported yet"},
		},
		"one_way": {
			func(r *replica.Replica, s *grpc.Server) {
				r.Registrar(s).RegisterService(optional("test.OneWay", func(o *descriptorpb.MethodOptions) {
					proto.SetExtension(o, understudyv1.E_OneWay, true)
				}), nil)
			},
			[]string{"test.OneWay.Do", "understudy.v1.one_way", "isn't supported yet"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t)
				r, lis := l.join("replica0", &ping{})
				s := grpc.NewServer(interceptor.ServerOptions(r)...)
				tt.register(r, s)
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				err := r.Serve(ctx, s, lis)
				mentions(t, "Serve", err, tt.words...)
				if err := r.Stop(t.Context()); err != nil {
					t.Errorf("Stop: %v", err)
				}
				if view, err := l.store.Client("lab").Read(t.Context()); err != nil || len(view.Replicas) > 0 {
					t.Errorf("it was published: %v, %v", view.Replicas, err)
				}
			})
		})
	}
}

// optional describes, and registers with protobuf, a service with one method that has options.
func optional(name string, set func(*descriptorpb.MethodOptions)) *grpc.ServiceDesc {
	options := &descriptorpb.MethodOptions{}
	if set != nil {
		set(options)
	}
	last := name[strings.LastIndex(name, ".")+1:]
	file, err := protodesc.NewFile(&descriptorpb.FileDescriptorProto{
		Name: proto.String(name + ".proto"), Package: proto.String("test"), Syntax: proto.String("proto3"),
		Dependency: []string{"google/protobuf/empty.proto"},
		Service: []*descriptorpb.ServiceDescriptorProto{{Name: proto.String(last),
			Method: []*descriptorpb.MethodDescriptorProto{
				{Name: proto.String("Do"), InputType: proto.String(".google.protobuf.Empty"),
					OutputType: proto.String(".google.protobuf.Empty"), Options: options},
			}}},
	}, protoregistry.GlobalFiles)
	if err == nil {
		err = protoregistry.GlobalFiles.RegisterFile(file)
	}
	if err != nil {
		panic(err)
	}
	return &grpc.ServiceDesc{ServiceName: name, HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Do"}}}
}

// TestUnreplicatedServicesAreServedByEachReplica: health, reflection, and what is declared with
// Unreplicated are served by each replica for itself, backups too, and by the group's client.
func TestUnreplicatedServicesAreServedByEachReplica(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		var states []*ping
		for n := range 3 {
			p := &ping{}
			r, lis := l.join(fmt.Sprint("replica", n), p, replica.Unreplicated("test.Declared"))
			s := grpc.NewServer(interceptor.ServerOptions(r)...)
			testpb.RegisterTestServiceServer(r.Registrar(s), p)
			h := health.NewServer()
			h.SetServingStatus("ping", healthpb.HealthCheckResponse_SERVING)
			healthpb.RegisterHealthServer(s, h)
			reflection.Register(s)
			s.RegisterService(&grpc.ServiceDesc{ServiceName: "test.Declared", HandlerType: (*any)(nil)}, nil)
			l.serve(r, s, lis)
			states = append(states, p)
		}
		client := l.dial("client")
		mustSend(t, client, "first")
		conns := map[string]*grpc.ClientConn{"the group": client}
		for i := range 3 {
			conns[fmt.Sprint("replica ", i)] = plain(t, l.net, fmt.Sprintf("replica%d:1", i))
		}
		for who, conn := range conns {
			resp, err := healthpb.NewHealthClient(conn).Check(t.Context(),
				&healthpb.HealthCheckRequest{Service: "ping"})
			if err != nil || resp.Status != healthpb.HealthCheckResponse_SERVING {
				t.Errorf("%s: health: %v, %v", who, resp, err)
			}
			stream, err := reflectionpb.NewServerReflectionClient(conn).ServerReflectionInfo(t.Context())
			if err != nil {
				t.Fatalf("%s: reflection: %v", who, err)
			}
			if err := stream.Send(
				&reflectionpb.ServerReflectionRequest{
					MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}},
			); err != nil {
				t.Errorf("%s: reflection: %v", who, err)
			}
			list, err := stream.Recv()
			if err != nil {
				t.Fatalf("%s: reflection: %v", who, err)
			}
			var names []string
			for _, s := range list.GetListServicesResponse().GetService() {
				names = append(names, s.Name)
			}
			if !slices.Contains(names, testpb.TestServiceFullName) || !slices.Contains(names, "test.Declared") {
				t.Errorf("%s: reflection lists %v", who, names)
			}
			_ = stream.CloseSend()
			if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
				t.Errorf("%s: reflection ends with %v", who, err)
			}
		}
		for _, p := range states {
			once(t, p.took(), "first")
		}
	})
}

// TestStreamingMethodsAreUnimplemented: a streaming method is Unimplemented, to our client and
// to a plain one.
func TestStreamingMethodsAreUnimplemented(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := group(t, nil)
		client := c.Dial("client")
		mustSend(t, client, "first")
		for who, conn := range map[string]*grpc.ClientConn{"ours": client, "plain": plain(t, c.Network(), "replica0:1"),
			"plain at a backup": plain(t, c.Network(), "replica1:1")} {
			ping := testpb.NewTestServiceClient(conn)
			list, err := ping.PingList(t.Context(), &testpb.PingListRequest{Value: who})
			if err == nil {
				_, err = list.Recv()
			}
			wants(t, "the call", err, codes.Unimplemented, "PingList", "streaming method")
			both, err := ping.PingStream(t.Context())
			if err == nil {
				_, err = both.Recv()
			}
			wants(t, "the call", err, codes.Unimplemented, "PingStream", "streaming method")
		}
		once(t, agreed(t, c, 0, 1, 2), "first")
	})
}

// TestPlainClientsAreToldHowToDial: who calls a replicated method without the middleware is told
// how to, and nothing is executed, whatever else its metadata has.
func TestPlainClientsAreToldHowToDial(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := group(t, nil)
		for i := range 3 {
			conn := plain(t, c.Network(), fmt.Sprintf("replica%d:1", i))
			_, err := send(t.Context(), conn, "plain")
			wants(t, "the call", err, codes.FailedPrecondition, "/testing.testpb.v1.TestService/Ping is replicated",
				"replicated://", "interceptor.DialOptions()")
			_, err = send(metadata.AppendToOutgoingContext(t.Context(), "understudy", "x"), conn, "plain")
			wants(t, "the call", err, codes.FailedPrecondition, "interceptor.DialOptions()")
			_, err = send(metadata.AppendToOutgoingContext(t.Context(), wire.HeaderKey, "\xff"), conn, "plain")
			wants(t, "the call", err, codes.InvalidArgument, "understudy", "header")
		}
		mustSend(t, c.Dial("client"), "ours")
		once(t, agreed(t, c, 0, 1, 2), "ours")
	})
}

// TestServeMissesForgottenServerOptions: Serve says what is missing.
func TestServeMissesForgottenServerOptions(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		p := &ping{}
		r, lis := l.join("replica0", p)
		s := grpc.NewServer()
		testpb.RegisterTestServiceServer(r.Registrar(s), p)
		mentions(t, "Serve", r.Serve(t.Context(), s, lis), "interceptor.ServerOptions")
	})
}

// TestServerWithoutOptionsServesNothing: a server made without ServerOptions, which were given
// to another one, serves nothing that is replicated, and says what is missing; with another
// interceptor or none.
func TestServerWithoutOptionsServesNothing(t *testing.T) {
	t.Parallel()
	for name, options := range map[string][]grpc.ServerOption{"no interceptor": nil,
		"another's": {grpc.ChainUnaryInterceptor(recovery.UnaryServerInterceptor())}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t)
				p := &ping{}
				r, lis := l.join("replica0", p)
				_ = grpc.NewServer(interceptor.ServerOptions(r)...)
				s := grpc.NewServer(options...)
				testpb.RegisterTestServiceServer(r.Registrar(s), p)
				l.serve(r, s, lis)
				_, err := send(t.Context(), plain(t, l.net, "replica0:1"), "plain")
				wants(t, "the call", err, codes.Internal, "interceptor.ServerOptions")
				_, err = send(t.Context(), l.dial("client"), "ours")
				wants(t, "the call", err, codes.Internal, "interceptor.ServerOptions")
				once(t, p.took())
			})
		})
	}
}

// TestInterceptorsOfTheRegistrar: they run in every replica's turn, the first outermost.
func TestInterceptorsOfTheRegistrar(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		var mu sync.Mutex
		ran := map[string][]string{}
		var states []*ping
		for n := range 3 {
			host := fmt.Sprint("replica", n)
			p := &ping{}
			r, lis := l.join(host, p)
			s := grpc.NewServer(interceptor.ServerOptions(r)...)
			inTurn := func(what string) grpc.UnaryServerInterceptor {
				return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any,
					error) {
					k := turn.FromContext(ctx)
					if k == nil || info.Server != p || info.FullMethod != testpb.TestService_Ping_FullMethodName {
						t.Errorf("%s: turn %v of %s", host, k, info.FullMethod)
						return handler(ctx, req)
					}
					resp, err := handler(ctx, req)
					mu.Lock()
					defer mu.Unlock()
					ran[host] = append(ran[host],
						fmt.Sprintf("%s %d %s", what, k.OrderNum(), req.(*testpb.PingRequest).Value))
					return resp, err
				}
			}
			testpb.RegisterTestServiceServer(r.Registrar(s, inTurn("outer"), inTurn("inner")), p)
			l.serve(r, s, lis)
			states = append(states, p)
		}
		conn := l.dial("client")
		mustSend(t, conn, "a")
		mustSend(t, conn, "b")
		time.Sleep(time.Second) // fake: until the backups have executed
		mu.Lock()
		defer mu.Unlock()
		for n, p := range states {
			once(t, p.took(), "a", "b")
			got := ran[fmt.Sprint("replica", n)]
			k := p.took()[0].OrderNum
			want := []string{fmt.Sprintf("inner %d a", k), fmt.Sprintf("outer %d a", k), fmt.Sprintf("inner %d b", k+1),
				fmt.Sprintf("outer %d b", k+1)}
			if !slices.Equal(got, want) {
				t.Errorf("replica %d ran %q, want %q", n, got, want)
			}
		}
	})
}

// TestServeLeavesNothing: a Serve that refuses closes the etcd client that Join has made (TestMain
// looks for its goroutines), and both listeners.
func TestServeLeavesNothing(t *testing.T) {
	t.Parallel()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	peers, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r, err := replica.Join(t.Context(), "etcd://127.0.0.1:1/lab", replica.Stateless(), replica.Name("replica0"),
		replica.Peers(peers, nil, nil))
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(interceptor.ServerOptions(r)...)
	testpb.RegisterTestServiceServer(s, &ping{})
	mentions(t, "Serve", r.Serve(t.Context(), s, lis), "Replica.Registrar")
	for name, l := range map[string]net.Listener{"server": lis, "peers": peers} {
		if err := l.Close(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("the listener of the %s was left open", name)
		}
	}
}
