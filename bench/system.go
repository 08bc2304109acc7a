package main

import (
	"context"
	"log/slog"
	"net"
	"os"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/understudy-rpc/understudy"
	"github.com/understudy-rpc/understudy/bench/counter"
	"github.com/understudy-rpc/understudy/interceptor"
	"github.com/understudy-rpc/understudy/internal/wire"
	"github.com/understudy-rpc/understudy/replica"
	"github.com/understudy-rpc/understudy/transport"
)

// A system is a way to serve the counter. All else is the same for all of them: the service and its
// handler, the callers, the windows, and what is counted.
type system struct {
	name       string
	replicated bool // else it has one server
	joins      bool // its servers are joiners
	// server makes one server process's part; it serves app, and dials other servers through the
	// meter.
	server func(cfg serverConfig, app *adder, m *meter) (server, error)
	// dial makes the client's connection, through the meter.
	dial func(cfg clientConfig, m *meter) (*grpc.ClientConn, error)
}

// A server is one process's part in a system.
type server interface {
	// serve serves on lis until ctx ends. It is called once.
	serve(ctx context.Context, lis net.Listener) error
	// standing may be called at any time, concurrently: what the server knows of its system.
	standing() standing
	// state may be called at any time, concurrently: what this server's replica of the state is
	// like.
	state() state
}

// standing is what a server says of its system.
type standing struct {
	Leads bool `json:"leads"`
	// Epoch, or term, or what else changes when the leader does.
	Epoch uint64 `json:"epoch"`
	// Members that a death wouldn't leave without a server, as who leads knows them.
	Members int `json:"members"`
	// Events counts what has happened that spoils a window: anything but calls.
	Events uint64 `json:"events"`
}

// systems has plain first: what the others are compared with.
var systems = []system{
	{name: "plain", server: newPlain, dial: dialPlain},
	{name: "windows", server: newWindows, dial: dialWindows},
	understudyAt(understudy.Reflected, "reflected"),
	understudyAt(understudy.Direct, "direct"),
	understudyAt(understudy.Stable, "stable"),
	understudyAt(understudy.Reflected, "metadata", transport.WithHeaderInMetadata()),
	consensusOf("hashicorp", startHashicorp),
	consensusOf("etcdraft", startEtcdraft),
	consensusOf("dragonboat", startDragonboat),
	consensusOf("etcd", startEtcdMember),
}

func findSystem(name string) (system, bool) {
	for _, s := range systems {
		if s.name == name {
			return s, true
		}
	}
	return system{}, false
}

// levelNames are those of this library's systems.
func levelNames() []string { return []string{"reflected", "direct", "stable"} }

// comparedNames are those of the systems but plain.
func comparedNames() (names []string) {
	for _, s := range systems[1:] {
		names = append(names, s.name)
	}
	return names
}

// plain is gRPC alone.
type plain struct {
	*adder
	server *grpc.Server
}

func newPlain(_ serverConfig, app *adder, _ *meter) (server, error) { return servePlain(app) }

// newWindows is plain gRPC with the fixed windows of flow control that this library sets.
func newWindows(_ serverConfig, app *adder, _ *meter) (server, error) {
	return servePlain(app, grpc.StaticStreamWindowSize(wire.StreamWindow), grpc.StaticConnWindowSize(wire.ConnWindow))
}

func servePlain(app *adder, opts ...grpc.ServerOption) (server, error) {
	s := grpc.NewServer(opts...)
	counter.RegisterCounterServer(s, app)
	return plain{app, s}, nil
}

func (p plain) serve(ctx context.Context, lis net.Listener) error {
	defer context.AfterFunc(ctx, p.server.Stop)()
	return p.server.Serve(lis)
}

func (p plain) standing() standing { return standing{Leads: true, Members: 1} }

func dialPlain(cfg clientConfig, m *meter) (*grpc.ClientConn, error) { return dialServer(cfg, m) }

func dialWindows(cfg clientConfig, m *meter) (*grpc.ClientConn, error) {
	return dialServer(cfg, m, grpc.WithStaticStreamWindowSize(wire.StreamWindow),
		grpc.WithStaticConnWindowSize(wire.ConnWindow))
}

func dialServer(cfg clientConfig, m *meter, opts ...grpc.DialOption) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+cfg.servers[0],
		append(opts, grpc.WithContextDialer(m.dial), insecureCredentials)...)
}

var insecureCredentials = grpc.WithTransportCredentials(insecure.NewCredentials())

// understudyAt is this library, with a group of one level.
func understudyAt(level understudy.Level, name string, opts ...transport.Option) system {
	return system{
		name: name, replicated: true,
		server: func(cfg serverConfig, app *adder, m *meter) (server, error) { return newReplicas(cfg, level, app, m) },
		dial: func(cfg clientConfig, m *meter) (*grpc.ClientConn, error) {
			options := append(interceptor.DialOptions(opts...), grpc.WithContextDialer(m.dial), insecureCredentials)
			return grpc.NewClient("replicated://"+cfg.etcd+"/"+cfg.group, options...)
		},
	}
}

type replicaServer struct {
	*adder
	replica *replica.Replica
	server  *grpc.Server
	logged  *eventLog
	took    *atomic.Pointer[failover]
}

func newReplica(cfg serverConfig, level understudy.Level, app *adder, m *meter) (server, error) {
	logged, took := &eventLog{}, &atomic.Pointer[failover]{}
	tookOver := func(f replica.Failover) {
		took.Store(&failover{Epoch: f.Epoch, Suspected: f.Suspected, Elected: f.Elected, Opened: f.Opened})
	}
	peers, err := net.Listen("tcp", cfg.peers)
	if err != nil {
		return nil, err
	}
	r, err := replica.Join(context.Background(), "etcd://"+cfg.etcd+"/"+cfg.group, replica.State(app),
		replica.Name(cfg.name), replica.Level(level), replica.Peers(m.listenPeers(peers), nil, nil),
		replica.PeerDialer(m.dialPeer),
		replica.Logger(slog.New(slog.NewTextHandler(logged, nil))), replica.OnFailover(tookOver))
	if err != nil {
		return nil, err
	}
	s := grpc.NewServer(interceptor.ServerOptions(r)...)
	counter.RegisterCounterServer(r.Registrar(s), app)
	return &replicaServer{app, r, s, logged, took}, nil
}

func (s *replicaServer) serve(ctx context.Context, lis net.Listener) error {
	return s.replica.Serve(ctx, s.server, lis)
}

func (s *replicaServer) lastFailover() *failover { return s.took.Load() }

func (s *replicaServer) standing() standing {
	now := s.replica.Status()
	st := standing{Leads: now.Role == replica.Leading, Epoch: now.Epoch,
		Events: s.logged.events.Load() + now.Dropped + now.Forged + now.Refused}
	if st.Leads {
		st.Members = len(now.InSync)
	}
	return st
}

// eventLog counts what is logged: a replica that only serves calls logs nothing. It passes it on.
type eventLog struct{ events atomic.Uint64 }

func (l *eventLog) Write(b []byte) (int, error) {
	l.events.Add(1)
	return os.Stderr.Write(b)
}
