// Package etcdnode runs a node of etcd inside a process: for the greeter, for measurements and for
// end-to-end tests. It is a module of its own, so that the library's users don't inherit what
// etcd's server requires.
//
//	n, err := etcdnode.Start(ctx, etcdnode.Config{})
//	defer n.Stop()
//	… "etcd://" + n.Addr + "/group"
package etcdnode

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

// Config says where an etcd serves, and on which data. Its timings are etcd's own defaults, what a
// user's would do, unless Change says otherwise.
type Config struct {
	Listen string              // host:port of clients; empty: a free port of the loopback
	Peers  string              // host:port of other nodes, likewise
	TLS    transport.TLSInfo   // of clients; with a certificate they need TLS
	Dir    string              // of the data; empty: a folder that Stop removes
	Change func(*embed.Config) // changes what else there is, if it isn't nil
}

// anyPort is a free one of the loopback.
const anyPort = "127.0.0.1:0"

// A Node serves, until Stop: an etcd of its own, or one of several nodes.
type Node struct {
	Addr   string // host:port that it serves clients on
	Server *embed.Etcd
	dir    string // to be removed; empty for none
}

// Start starts a node that logs nothing, and returns when it can be used; ctx bounds the wait.
func Start(ctx context.Context, c Config) (*Node, error) {
	n := &Node{}
	if c.Dir == "" {
		var err error
		if n.dir, err = os.MkdirTemp("", "etcd-"); err != nil {
			return nil, err
		}
		c.Dir = n.dir
	}
	cfg := embed.NewConfig()
	cfg.Dir = c.Dir
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	clients := url.URL{Scheme: "http", Host: cmp.Or(c.Listen, anyPort)}
	if c.TLS.CertFile != "" {
		clients.Scheme, cfg.ClientTLSInfo = "https", c.TLS
	}
	peers := url.URL{Scheme: "http", Host: cmp.Or(c.Peers, anyPort)}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{clients}, []url.URL{clients}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{peers}, []url.URL{peers}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	if c.Change != nil {
		c.Change(cfg)
	}

	var err error
	if n.Server, err = embed.StartEtcd(cfg); err != nil {
		return nil, errors.Join(fmt.Errorf("embedded etcd: %w", err), os.RemoveAll(n.dir))
	}
	n.Addr = n.Server.Clients[0].Addr().String()
	select {
	case <-n.Server.Server.ReadyNotify():
		return n, nil
	case err = <-n.Server.Err():
	case <-n.Server.Server.StopNotify():
		err = errors.New("it stopped")
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	return nil, errors.Join(fmt.Errorf("embedded etcd: not ready: %w", err), n.Stop())
}

// Stop ends the etcd, and removes the folder of its data if it was given none.
func (n *Node) Stop() error {
	closed := make(chan struct{})
	go func() {
		n.Server.Close()
		close(closed)
	}()
	select {
	case <-closed:
	case <-time.After(5 * time.Second): // it would wait for its clients' streams to end
	}
	if n.dir == "" {
		return nil
	}
	return os.RemoveAll(n.dir)
}
