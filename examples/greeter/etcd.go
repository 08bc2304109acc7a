package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

// embedded is an etcd of one node in this process, with etcd's own default timings: what a user's
// would do.
type embedded struct {
	addr   string // host:port that it serves clients on
	server *embed.Etcd
	dir    string
}

// startEtcd starts an etcd that says nothing, serves clients on listen (host:port, port 0 for a
// free one), and keeps its data in a folder that stop removes; with a certificate it takes none but
// clients that have one. It returns when the etcd can be used; ctx bounds the wait.
func startEtcd(ctx context.Context, listen string, i identity) (*embedded, error) {
	dir, err := os.MkdirTemp("", "greeter-etcd-")
	if err != nil {
		return nil, err
	}
	cfg := embed.NewConfig()
	cfg.Dir = dir
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	clients, peers := url.URL{Scheme: "http", Host: listen}, url.URL{Scheme: "http", Host: "127.0.0.1:0"}
	if i != "" {
		clients.Scheme, cfg.ClientTLSInfo = "https", i.etcd()
	}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{clients}, []url.URL{clients}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{peers}, []url.URL{peers}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)

	server, err := embed.StartEtcd(cfg)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("embedded etcd: %w", err), os.RemoveAll(dir))
	}
	e := &embedded{addr: server.Clients[0].Addr().String(), server: server, dir: dir}
	select {
	case <-server.Server.ReadyNotify():
		return e, nil
	case err = <-server.Err():
	case <-server.Server.StopNotify():
		err = errors.New("it stopped")
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	return nil, errors.Join(fmt.Errorf("embedded etcd: not ready: %w", err), e.stop())
}

// stop ends the etcd and removes its data.
func (e *embedded) stop() error {
	closed := make(chan struct{})
	go func() {
		e.server.Close()
		close(closed)
	}()
	select {
	case <-closed:
	case <-time.After(5 * time.Second): // it would wait for its clients' streams to end
	}
	return os.RemoveAll(e.dir)
}
