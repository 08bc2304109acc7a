package main

import (
	"context"
	"errors"
	"io"
	"net"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	"github.com/understudy-rpc/understudy/bench/counter"
)

// hashicorp is a node of hashicorp/raft with its default settings: log, votes and snapshots in
// memory, its own transport over TCP.
type hashicorp struct {
	*adder
	raft      *raft.Raft
	transport *raft.NetworkTransport
	logged    *eventLog
	nodes     int
}

const (
	hashicorpPool    = 3 // connections to each, as its examples have
	hashicorpTimeout = 10 * time.Second
)

func startHashicorp(cfg serverConfig, app *adder, m *meter) (string, startNode, error) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	n := &hashicorp{adder: app, logged: &eventLog{}}
	log := hclog.New(&hclog.LoggerOptions{Level: hclog.Error, Output: n.logged})
	n.transport = raft.NewNetworkTransportWithLogger(hashicorpStream{m.listenPeers(lis), m}, hashicorpPool,
		hashicorpTimeout, log)
	return lis.Addr().String(), func(_ context.Context, self peer, all []peer) (consensus, error) {
		c := raft.DefaultConfig()
		c.LocalID, c.Logger = raft.ServerID(self.Name), log
		if cfg.tight {
			c.HeartbeatTimeout, c.ElectionTimeout, c.LeaderLeaseTimeout = tightElection, tightElection, tightElection
			c.CommitTimeout = tightElection / 10
		}
		store, snapshots := raft.NewInmemStore(), raft.NewInmemSnapshotStore()
		var members raft.Configuration
		for _, p := range all {
			members.Servers = append(members.Servers,
				raft.Server{ID: raft.ServerID(p.Name), Address: raft.ServerAddress(p.Addr)})
		}
		err := raft.BootstrapCluster(c, store, store, snapshots, n.transport, members)
		if err != nil {
			return nil, err
		}
		n.nodes = len(all)
		n.raft, err = raft.NewRaft(c, hashicorpFSM{app}, store, store, snapshots, n.transport)
		return n, err
	}, nil
}

// tightElection is what tight timings make of election time-outs.
const tightElection = 100 * time.Millisecond

func (n *hashicorp) add(_ context.Context, r *counter.AddRequest) (int64, error) {
	b, err := proto.Marshal(r)
	if err != nil {
		return 0, err
	}
	f := n.raft.Apply(b, hashicorpTimeout)
	switch err := f.Error(); {
	case errors.Is(err, raft.ErrNotLeader):
		return 0, errNotLeading
	case err != nil:
		return 0, err
	}
	value, ok := f.Response().(int64)
	if !ok {
		return 0, f.Response().(error)
	}
	return value, nil
}

func (n *hashicorp) standing() standing {
	s := standing{Leads: n.raft.State() == raft.Leader, Epoch: n.raft.CurrentTerm(), Events: n.logged.events.Load()}
	if s.Leads {
		s.Members = n.nodes
	}
	return s
}

func (n *hashicorp) close() {
	_ = n.raft.Shutdown().Error()
	n.transport.Close()
}

// hashicorpFSM is the adder, for hashicorp/raft.
type hashicorpFSM struct{ app *adder }

// Apply implements raft.FSM: it returns an int64, or an error.
func (f hashicorpFSM) Apply(l *raft.Log) any {
	var r counter.AddRequest
	if err := proto.Unmarshal(l.Data, &r); err != nil {
		return err
	}
	return f.app.add(&r)
}

// Snapshot implements raft.FSM.
func (f hashicorpFSM) Snapshot() (raft.FSMSnapshot, error) {
	write, err := f.app.Snapshot()
	return hashicorpSnapshot(write), err
}

// Restore implements raft.FSM.
func (f hashicorpFSM) Restore(in io.ReadCloser) error {
	defer in.Close()
	return f.app.Restore(in)
}

type hashicorpSnapshot func(io.Writer) error

// Persist implements raft.FSMSnapshot.
func (write hashicorpSnapshot) Persist(sink raft.SnapshotSink) error {
	if err := write(sink); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

// Release implements raft.FSMSnapshot.
func (hashicorpSnapshot) Release() {}

// hashicorpStream is hashicorp/raft's stream layer over the bench's connections.
type hashicorpStream struct {
	net.Listener
	meter *meter
}

// Dial implements raft.StreamLayer.
func (s hashicorpStream) Dial(addr raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return s.meter.dialPeer(ctx, string(addr))
}
