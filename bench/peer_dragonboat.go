package main

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"time"

	"github.com/lni/dragonboat/v4"
	"github.com/lni/dragonboat/v4/client"
	dragonconfig "github.com/lni/dragonboat/v4/config"
	"github.com/lni/dragonboat/v4/logger"
	"github.com/lni/dragonboat/v4/plugin/tan"
	"github.com/lni/dragonboat/v4/statemachine"
	"github.com/lni/vfs"
	"google.golang.org/protobuf/proto"

	"github.com/understudy-rpc/understudy/bench/counter"
)

// boat is a node of dragonboat: its log database tan in a file system in memory, its own transport
// over TCP, and the timings that its examples have: ticks of 200 ms, elections after 10 of them.
//
// Its transport takes no dialer: what goes between its servers is counted only where it is delayed,
// by a relay.
type boat struct {
	*adder
	host    *dragonboat.NodeHost
	session *client.Session
	relay   *relay // nil: there is no delay
	self    uint64
	nodes   int
}

const (
	boatShard         = 1
	boatTick          = 200 // ms
	boatElectionTicks = 10
	boatSnapshots     = 50_000 // entries from one to the next
	boatKept          = 10_000 // entries that a snapshot leaves
	boatTimeout       = 10 * time.Second
)

func startDragonboat(cfg serverConfig, app *adder, m *meter) (string, startNode, error) {
	for _, name := range []string{"config", "dragonboat", "rsm", "server", "settings", "raft", "raft-mt", "raftpb",
		"registry", "logdb", "LogDB", "transport", "tan"} {
		logger.GetLogger(name).SetLevel(logger.ERROR)
	}
	listen, err := freeAddr()
	if err != nil {
		return "", nil, err
	}
	addr := listen
	n := &boat{adder: app}
	if m.delay > 0 {
		if n.relay, err = startRelay(m, listen); err != nil {
			return "", nil, err
		}
		addr = n.relay.addr()
	}
	tick := uint64(boatTick)
	if cfg.tight {
		tick = uint64(tightElection.Milliseconds()) / boatElectionTicks
	}
	return addr, func(_ context.Context, self peer, all []peer) (consensus, error) {
		hostConfig := dragonconfig.NodeHostConfig{NodeHostDir: "/dragonboat", RTTMillisecond: tick, RaftAddress: addr,
			ListenAddress: listen}
		hostConfig.Expert.FS, hostConfig.Expert.LogDBFactory = vfs.NewMem(), tan.Factory
		host, err := dragonboat.NewNodeHost(hostConfig)
		if err != nil {
			return nil, err
		}
		members := map[uint64]dragonboat.Target{}
		for _, p := range all {
			members[p.ID] = p.Addr
		}
		n.host, n.session, n.self, n.nodes = host, host.GetNoOPSession(boatShard), self.ID, len(all)
		return n, host.StartReplica(members, false, func(uint64, uint64) statemachine.IStateMachine {
			return boatFSM{app}
		}, dragonconfig.Config{
			ReplicaID: self.ID, ShardID: boatShard, ElectionRTT: boatElectionTicks, HeartbeatRTT: 1, CheckQuorum: true,
			SnapshotEntries: boatSnapshots, CompactionOverhead: boatKept,
		})
	}, nil
}

func (n *boat) add(ctx context.Context, r *counter.AddRequest) (int64, error) {
	if leader, _, known, err := n.host.GetLeaderID(boatShard); err != nil || !known || leader != n.self {
		return 0, errNotLeading // it would forward the request
	}
	b, err := proto.Marshal(r)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, boatTimeout) // it demands a deadline
	defer cancel()
	result, err := n.host.SyncPropose(ctx, n.session, b)
	if err == nil && len(result.Data) != valueSize {
		err = errors.New("dragonboat: a result without a value")
	}
	if err != nil {
		return 0, err
	}
	return int64(binary.BigEndian.Uint64(result.Data)), nil
}

func (n *boat) standing() standing {
	leader, term, known, err := n.host.GetLeaderID(boatShard)
	s := standing{Leads: err == nil && known && leader == n.self, Epoch: term}
	if s.Leads {
		s.Members = n.nodes
	}
	return s
}

func (n *boat) close() {
	n.host.Close()
	if n.relay != nil {
		n.relay.close()
	}
}

// boatFSM is the adder, for dragonboat.
type boatFSM struct{ app *adder }

// valueSize is a value's in bytes: some systems know no integers.
const valueSize = 8

// Update implements statemachine.IStateMachine.
func (f boatFSM) Update(e statemachine.Entry) (statemachine.Result, error) {
	var r counter.AddRequest
	if err := proto.Unmarshal(e.Cmd, &r); err != nil {
		return statemachine.Result{}, err
	}
	return statemachine.Result{Data: binary.BigEndian.AppendUint64(nil, uint64(f.app.add(&r)))}, nil
}

// Lookup implements statemachine.IStateMachine: nobody asks.
func (f boatFSM) Lookup(any) (any, error) { return f.app.state(), nil }

// SaveSnapshot implements statemachine.IStateMachine.
func (f boatFSM) SaveSnapshot(out io.Writer, _ statemachine.ISnapshotFileCollection, _ <-chan struct{}) error {
	write, err := f.app.Snapshot()
	if err != nil {
		return err
	}
	return write(out)
}

// RecoverFromSnapshot implements statemachine.IStateMachine.
func (f boatFSM) RecoverFromSnapshot(in io.Reader, _ []statemachine.SnapshotFile, _ <-chan struct{}) error {
	return f.app.Restore(in)
}

// Close implements statemachine.IStateMachine.
func (boatFSM) Close() error { return nil }
