package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"sync"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/understudy-rpc/understudy/bench/counter"
)

// raftNode drives etcd's raft package, which is a pure core: one goroutine owns the node, takes all
// that waits for it, requests as one proposal, and then does what the core wants done: entries into
// memory, messages to the other nodes (wires), and what is committed into the adder. Settings are
// those that etcd gives it.
type raftNode struct {
	*adder
	core    *raft.RawNode
	storage *raft.MemoryStorage
	wires   *wires
	self    uint64
	nodes   int
	tick    time.Duration

	proposals chan proposal
	stopping  chan struct{}
	running   sync.WaitGroup

	// The goroutine's own.
	waiting map[uint64]chan<- proposed // for what this node has proposed
	lastID  uint64
	members *raftpb.ConfState
	applied uint64
	kept    uint64 // the index of the last snapshot

	mu  sync.Mutex // guards now
	now standing
}

// A proposal is a request, and where its value goes; done has room for it.
type proposal struct {
	request []byte
	done    chan<- proposed
}

// proposed is what has become of a proposal.
type proposed struct {
	value int64
	err   error
}

const (
	raftTick          = 100 * time.Millisecond
	raftElectionTicks = 10
	raftSnapshots     = 50_000 // entries from one to the next
	raftKept          = 10_000 // entries that a snapshot leaves
	raftQueue         = 4096
	raftMessage       = 1 << 20 // bytes of entries, as in etcd
	raftInflight      = 512     // messages, as in etcd
)

var errDeposed = errors.New("etcdraft: this node leads no more; nobody knows what has become of the request")

func startEtcdraft(cfg serverConfig, app *adder, m *meter) (string, startNode, error) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	n := &raftNode{
		adder: app, storage: raft.NewMemoryStorage(), tick: raftTick, proposals: make(chan proposal, raftQueue),
		stopping: make(chan struct{}),
		waiting:  map[uint64]chan<- proposed{},
	}
	if cfg.tight {
		n.tick = tightElection / raftElectionTicks
	}
	return lis.Addr().String(), func(_ context.Context, self peer, all []peer) (consensus, error) {
		n.self, n.nodes = self.ID, len(all)
		core, err := raft.NewRawNode(&raft.Config{
			ID: self.ID, ElectionTick: raftElectionTicks, HeartbeatTick: 1, Storage: n.storage,
			MaxSizePerMsg: raftMessage, MaxInflightMsgs: raftInflight,
			CheckQuorum: true, PreVote: true, DisableProposalForwarding: true,
			Logger: raftSilence{&raft.DefaultLogger{}},
		})
		if err != nil {
			return nil, err
		}
		var members []raft.Peer
		for _, p := range all {
			members = append(members, raft.Peer{ID: p.ID})
		}
		if err := core.Bootstrap(members); err != nil {
			return nil, err
		}
		n.core, n.wires = core, openWires(m, m.listenPeers(lis), self, all)
		n.running.Go(n.run)
		return n, nil
	}, nil
}

func (n *raftNode) add(ctx context.Context, r *counter.AddRequest) (int64, error) {
	if !n.standing().Leads {
		return 0, errNotLeading
	}
	b := make([]byte, idSize, idSize+proto.Size(r))
	b, err := proto.MarshalOptions{}.MarshalAppend(b, r)
	if err != nil {
		return 0, err
	}
	done := make(chan proposed, 1)
	select {
	case n.proposals <- proposal{b, done}:
	case <-ctx.Done():
		return 0, errNotLeading
	case <-n.stopping:
		return 0, errNotLeading
	}
	select {
	case p := <-done:
		return p.value, p.err
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	case <-n.stopping:
		return 0, errDeposed
	}
}

// idSize is what a proposal's ID, unique among those of its node, takes before the request. IDs of
// another node aren't waited for: the top byte is the node.
const idSize = 8

func (n *raftNode) run() {
	ticks := time.NewTicker(n.tick)
	defer ticks.Stop()
	for {
		select {
		case <-n.stopping:
			return
		case <-ticks.C:
			n.core.Tick()
		case m := <-n.wires.received:
			n.receive(m)
		case p := <-n.proposals:
			n.propose(p)
		}
		for n.core.HasReady() {
			if err := n.ready(n.core.Ready()); err != nil {
				panic(err) // of a store in memory: it is a bug, and the process is only this node
			}
		}
	}
}

// receive steps a message, and all that wait behind it.
func (n *raftNode) receive(m *raftpb.Message) {
	for range raftQueue {
		_ = n.core.Step(m) // a message of an old term is no error of ours
		select {
		case m = <-n.wires.received:
		default:
			return
		}
	}
}

// propose makes one proposal of a request and all that wait behind it.
func (n *raftNode) propose(p proposal) {
	var entries []*raftpb.Entry
	var ids []uint64
	for range raftQueue {
		n.lastID++
		id := n.self<<56 | n.lastID
		binary.BigEndian.PutUint64(p.request, id)
		n.waiting[id] = p.done
		entries, ids = append(entries, &raftpb.Entry{Data: p.request}), append(ids, id)
		select {
		case p = <-n.proposals:
			continue
		default:
		}
		break
	}
	err := n.core.Step(&raftpb.Message{Type: raftpb.MsgProp.Enum(), From: proto.Uint64(n.self), Entries: entries})
	if err == nil {
		return
	}
	for _, id := range ids { // it was dropped
		n.answer(id, proposed{err: errNotLeading})
	}
}

func (n *raftNode) answer(id uint64, p proposed) {
	if done, ok := n.waiting[id]; ok {
		delete(n.waiting, id)
		done <- p
	}
}

// ready does what the core wants done, in the order that it demands.
func (n *raftNode) ready(rd raft.Ready) error {
	if rd.SoftState != nil && rd.SoftState.RaftState != raft.StateLeader {
		for id := range n.waiting {
			n.answer(id, proposed{err: errDeposed})
		}
	}
	if !raft.IsEmptySnap(rd.Snapshot) {
		if err := n.restore(rd.Snapshot); err != nil {
			return err
		}
	}
	if rd.HardState != nil && !raft.IsEmptyHardState(rd.HardState) {
		if err := n.storage.SetHardState(rd.HardState); err != nil {
			return err
		}
	}
	if err := n.storage.Append(rd.Entries); err != nil {
		return err
	}
	for _, m := range rd.Messages {
		sent := n.wires.send(m)
		switch {
		case m.GetType() == raftpb.MsgSnap && sent:
			n.core.ReportSnapshot(m.GetTo(), raft.SnapshotFinish)
		case m.GetType() == raftpb.MsgSnap:
			n.core.ReportSnapshot(m.GetTo(), raft.SnapshotFailure)
		case !sent:
			n.core.ReportUnreachable(m.GetTo())
		}
	}
	for _, e := range rd.CommittedEntries {
		if err := n.apply(e); err != nil {
			return err
		}
	}
	n.core.Advance(rd)
	n.tell()
	return n.snapshot()
}

func (n *raftNode) apply(e *raftpb.Entry) error {
	n.applied = e.GetIndex()
	switch {
	case e.GetType() == raftpb.EntryConfChange:
		var c raftpb.ConfChange
		if err := proto.Unmarshal(e.GetData(), &c); err != nil {
			return err
		}
		n.members = n.core.ApplyConfChange(&c)
	case len(e.GetData()) > 0: // a new leader's first entry is empty
		var r counter.AddRequest
		if err := proto.Unmarshal(e.GetData()[idSize:], &r); err != nil {
			return err
		}
		n.answer(binary.BigEndian.Uint64(e.GetData()), proposed{value: n.adder.add(&r)})
	}
	return nil
}

// tell lets others see what has become of the node.
func (n *raftNode) tell() {
	s := n.core.BasicStatus()
	now := standing{Leads: s.RaftState == raft.StateLeader, Epoch: s.HardState.GetTerm()}
	if now.Leads {
		now.Members = n.nodes
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.now = now
}

func (n *raftNode) standing() standing {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.now
}

// snapshot lets the log begin later, now and then.
func (n *raftNode) snapshot() error {
	if n.applied < n.kept+raftSnapshots {
		return nil
	}
	write, err := n.adder.Snapshot()
	if err != nil {
		return err
	}
	var b bytes.Buffer
	if err := write(&b); err != nil {
		return err
	}
	if _, err := n.storage.CreateSnapshot(n.applied, n.members, b.Bytes()); err != nil {
		return err
	}
	n.kept = n.applied
	return n.storage.Compact(n.applied - raftKept)
}

func (n *raftNode) restore(s *raftpb.Snapshot) error {
	n.applied, n.members = s.GetMetadata().GetIndex(), s.GetMetadata().GetConfState()
	n.kept = n.applied
	return errors.Join(n.storage.ApplySnapshot(s), n.adder.Restore(bytes.NewReader(s.GetData())))
}

func (n *raftNode) close() {
	close(n.stopping)
	n.wires.close()
	n.running.Wait()
}

// raftSilence logs nothing but what ends the process.
type raftSilence struct{ *raft.DefaultLogger }

func (raftSilence) Debug(...any)            {}
func (raftSilence) Debugf(string, ...any)   {}
func (raftSilence) Info(...any)             {}
func (raftSilence) Infof(string, ...any)    {}
func (raftSilence) Warning(...any)          {}
func (raftSilence) Warningf(string, ...any) {}
func (raftSilence) Error(...any)            {}
func (raftSilence) Errorf(string, ...any)   {}
