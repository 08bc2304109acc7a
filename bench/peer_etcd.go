package main

import (
	"context"
	"encoding/binary"
	"errors"
	"net/url"
	"path/filepath"
	"strings"
	"sync"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.uber.org/zap"

	"github.com/understudy-rpc/understudy/bench/counter"
)

// member is a member of a cluster of etcd, embedded, without fsync, at its default settings. The
// Counter of the leader is a client of its own member, in the same process, without gRPC between
// them.
//
// An Add is one transaction, which puts the key's new value (8 bytes, and the request's padding, so
// that as much is replicated as elsewhere) if the key is still at the revision that this server
// knows, and else reads it; then the server tries again. So it is safe with several servers, and
// costs one round of consensus as long as one of them writes. Adds to one key wait for each other
// in the server.
//
// Its transport takes no dialer: what goes between its servers is counted only where it is delayed,
// by a relay.
type member struct {
	etcd   *embed.Etcd
	client *clientv3.Client
	relay  *relay // nil: there is no delay
	nodes  int

	mu   sync.Mutex // guards keys
	keys map[string]*knownKey
}

// knownKey is what the server knows of a key.
type knownKey struct {
	mu       sync.Mutex // held during an Add; guards what follows
	value    int64
	revision int64 // of its last modification; 0: it isn't there, as far as is known
}

const memberPrefix = "counter/"

func startEtcdMember(cfg serverConfig, _ *adder, m *meter) (string, startNode, error) {
	listen, err := freeAddr()
	if err != nil {
		return "", nil, err
	}
	addr := listen
	n := &member{keys: map[string]*knownKey{}}
	if m.delay > 0 {
		if n.relay, err = startRelay(m, listen); err != nil {
			return "", nil, err
		}
		addr = n.relay.addr()
	}
	return addr, func(ctx context.Context, self peer, all []peer) (_ consensus, err error) {
		n.nodes = len(all)
		c := embed.NewConfig()
		c.Name, c.Dir, c.UnsafeNoFsync = self.Name, filepath.Join(cfg.folder, self.Name), true
		c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
		at := func(addr string) []url.URL { return []url.URL{{Scheme: "http", Host: addr}} }
		c.ListenClientUrls, c.AdvertiseClientUrls = at("127.0.0.1:0"), at("127.0.0.1:0")
		c.ListenPeerUrls, c.AdvertisePeerUrls = at(listen), at(addr)
		if cfg.tight {
			c.ElectionMs = uint(tightElection.Milliseconds())
			c.TickMs = c.ElectionMs / 10
		}
		var cluster []string
		for _, p := range all {
			cluster = append(cluster, p.Name+"=http://"+p.Addr)
		}
		c.InitialCluster = strings.Join(cluster, ",")
		if n.etcd, err = embed.StartEtcd(c); err != nil {
			return nil, err
		}
		select {
		case <-n.etcd.Server.ReadyNotify():
			n.client = v3client.New(n.etcd.Server)
			return n, nil
		case err = <-n.etcd.Err():
		case <-n.etcd.Server.StopNotify():
			err = errors.New("etcd: it stopped")
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
		n.etcd.Close()
		return nil, err
	}, nil
}

func (n *member) key(name string) *knownKey {
	n.mu.Lock()
	defer n.mu.Unlock()
	k := n.keys[name]
	if k == nil {
		k = new(knownKey)
		n.keys[name] = k
	}
	return k
}

func (n *member) add(ctx context.Context, r *counter.AddRequest) (int64, error) {
	if n.etcd.Server.Leader() != n.etcd.Server.MemberID() {
		return 0, errNotLeading // it would forward the transaction
	}
	name := memberPrefix + r.GetKey()
	k := n.key(name)
	k.mu.Lock()
	defer k.mu.Unlock()
	for {
		value := k.value + r.GetDelta()
		put := append(binary.BigEndian.AppendUint64(make([]byte, 0, valueSize+len(r.GetPadding())), uint64(value)),
			r.GetPadding()...)
		t, err := n.client.Txn(ctx).
			If(clientv3.Compare(clientv3.ModRevision(name), "=", k.revision)).
			Then(clientv3.OpPut(name, string(put))).
			Else(clientv3.OpGet(name)).
			Commit()
		switch {
		case err != nil:
			return 0, err
		case t.Succeeded:
			k.value, k.revision = value, t.Header.GetRevision()
			return value, nil
		}
		k.value, k.revision = 0, 0
		for _, kv := range t.Responses[0].GetResponseRange().GetKvs() {
			k.value, k.revision = valueOf(kv.GetValue()), kv.GetModRevision()
		}
	}
}

func valueOf(b []byte) int64 { return int64(binary.BigEndian.Uint64(b[:valueSize])) }

func (n *member) standing() standing {
	s := standing{Leads: n.etcd.Server.Leader() == n.etcd.Server.MemberID(), Epoch: n.etcd.Server.Term()}
	if s.Leads {
		s.Members = n.nodes
	}
	return s
}

// state is made of what this member has in its store, read without asking the others: Adds of the
// keys' versions, which count their puts; and History of each key's value and of when it was put
// last.
func (n *member) state() state {
	all, err := n.client.Get(context.Background(), memberPrefix, clientv3.WithPrefix(), clientv3.WithSerializable())
	if err != nil {
		return state{}
	}
	s := state{History: fnvOffset}
	for _, kv := range all.Kvs { // in the order of their keys
		s.Adds += uint64(kv.GetVersion())
		s.Sum += valueOf(kv.GetValue())
		for _, v := range []int64{kv.GetVersion(), valueOf(kv.GetValue()), kv.GetModRevision()} {
			s.History = fold(s.History, uint64(v))
		}
	}
	return s
}

// close doesn't hand over the leadership, which would take seconds: all members stop at once.
func (n *member) close() {
	n.client.Close()
	n.etcd.Server.HardStop()
	if n.relay != nil {
		n.relay.close()
	}
}
