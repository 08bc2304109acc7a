// Command etcd is one etcd node on a data directory, alone or one of several, for tests that kill,
// stop and restart a real process.
//
// It prints "ready <host:port>" when it serves, then nothing. It ends when its standard input does,
// so that it never outlives the test that started it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"

	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/storage/wal"

	"github.com/understudy-rpc/understudy/internal/etcdnode"
)

func main() {
	dir := flag.String("dir", "", "data directory")
	addr := flag.String("addr", "127.0.0.1:0", "host:port for clients")
	name := flag.String("name", embed.DefaultName, "of this node among others")
	peer := flag.String("peer", "127.0.0.1:0", "host:port for the other nodes")
	nodes := flag.String("nodes", "",
		"name=http://host:port of every node, separated by commas; this one alone without it")
	tick := flag.Uint("tick", 10, "milliseconds between heartbeats")
	elect := flag.Uint("election", 100, "milliseconds of the election timeout")
	fsync := flag.Bool("fsync", false, "fsync before answering")
	flag.Parse()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(3)
	}()
	if err := serve(*dir, *addr, *name, *peer, *nodes, *tick, *elect, *fsync); err != nil {
		fmt.Fprintln(os.Stderr, "etcd:", err)
		os.Exit(1)
	}
}

func serve(dir, addr, name, peer, nodes string, tick, elect uint, fsync bool) error {
	if dir == "" {
		return errors.New("-dir is required")
	}
	wal.SegmentSizeBytes = 1 << 20 // not 64 MiB, which are allocated ahead: tests copy the data
	etcd, err := etcdnode.Start(context.Background(), etcdnode.Config{
		Listen: addr, Peers: peer, Dir: dir,
		Change: func(cfg *embed.Config) {
			cfg.Name, cfg.TickMs, cfg.ElectionMs, cfg.UnsafeNoFsync = name, tick, elect, !fsync
			if cfg.InitialCluster = nodes; nodes == "" {
				cfg.InitialCluster = cfg.InitialClusterFromName(name)
			}
		},
	})
	if err != nil {
		return err
	}
	fmt.Println("ready", etcd.Addr)
	return errors.Join(<-etcd.Server.Err(), etcd.Stop())
}
