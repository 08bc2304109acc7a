package main

import (
	"context"
	"errors"
	"net"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/understudy-rpc/understudy/bench/counter"
)

// The peers: systems by others, which replicate the same adder by consensus. The callers call the
// leader's Counter by ordinary gRPC; its handler proposes the request, and replies with what
// executing it has returned. Nothing is made durable, as nothing is here.

// A joiner is a server that must know all servers before it can begin. join is called once.
type joiner interface {
	// peerAddr is where the others reach it.
	peerAddr() string
	join(ctx context.Context, all []peer) error
}

// A peer is one of a system's servers, as they know each other.
type peer struct {
	ID   uint64 `json:"id"` // from 1
	Name string `json:"name"`
	Addr string `json:"addr"` // its peerAddr
}

// A consensus is one node of such a system. Its methods may run concurrently.
type consensus interface {
	// add executes a request on all nodes, and returns what it did here. It returns errNotLeading
	// if this node doesn't lead and hasn't begun; after any other error nobody knows whether the
	// request is executed.
	add(context.Context, *counter.AddRequest) (int64, error)
	standing() standing
	state() state
	close()
}

// errNotLeading has the status by which a caller knows that it may ask another server: the request
// isn't executed.
var errNotLeading = status.Error(codes.FailedPrecondition, "this server doesn't lead")

// A starter makes a system's node in two steps, as each must be reachable before any begins.
type nodeStarter func(cfg serverConfig, app *adder, m *meter) (addr string, start startNode, err error)

type startNode func(ctx context.Context, self peer, all []peer) (consensus, error)

// consensusOf is such a system.
func consensusOf(name string, starter nodeStarter) system {
	return system{
		name: name, replicated: true, joins: true, dial: dialPlain,
		server: func(cfg serverConfig, app *adder, m *meter) (server, error) {
			addr, start, err := starter(cfg, app, m)
			if err != nil {
				return nil, err
			}
			s := &consensusServer{adder: app, server: grpc.NewServer(), name: cfg.name, addr: addr, start: start}
			counter.RegisterCounterServer(s.server, s)
			return s, nil
		},
	}
}

// consensusServer is the Counter in front of a node.
type consensusServer struct {
	*adder     // for what it embeds
	server     *grpc.Server
	name, addr string
	start      startNode
	node       atomic.Pointer[consensus] // nil until it has joined
}

func (s *consensusServer) peerAddr() string { return s.addr }

func (s *consensusServer) join(ctx context.Context, all []peer) error {
	for _, self := range all {
		if self.Name == s.name {
			node, err := s.start(ctx, self, all)
			if err == nil {
				s.node.Store(&node)
			}
			return err
		}
	}
	return errors.New("join: this server isn't among them")
}

// Add implements counter.CounterServer.
func (s *consensusServer) Add(ctx context.Context, r *counter.AddRequest) (*counter.AddReply, error) {
	node := s.node.Load()
	if node == nil {
		return nil, errNotLeading
	}
	value, err := (*node).add(ctx, r)
	if err != nil {
		return nil, asStatus(err)
	}
	return &counter.AddReply{Value: value}, nil
}

// asStatus makes Aborted of what has no status: the outcome isn't known.
func asStatus(err error) error {
	if _, ok := status.FromError(err); ok {
		return err
	}
	return status.Error(codes.Aborted, err.Error())
}

func (s *consensusServer) serve(ctx context.Context, lis net.Listener) error {
	stop := context.AfterFunc(ctx, s.server.Stop)
	defer stop()
	err := s.server.Serve(lis)
	if node := s.node.Load(); node != nil {
		(*node).close()
	}
	return err
}

func (s *consensusServer) standing() standing {
	if node := s.node.Load(); node != nil {
		return (*node).standing()
	}
	return standing{}
}

func (s *consensusServer) state() state {
	if node := s.node.Load(); node != nil {
		return (*node).state()
	}
	return s.adder.state()
}

// freeAddr is one that was free a moment ago: for who can't be given a listener.
func freeAddr() (string, error) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer lis.Close()
	return lis.Addr().String(), nil
}
