// Command journal is a process of an end-to-end test: a replica of the journal service, or a client
// of it.
//
//	journal replica -etcd 127.0.0.1:2379 -name a -level Stable
//	journal client -etcd 127.0.0.1:2379 -name x
//
// Package journal says how the test speaks with it. It logs to its standard error, and ends when
// its standard input does; a replica also in order, when it is terminated (SIGTERM), as a stock
// gRPC server would.
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"

	"github.com/understudy-rpc/understudy"
	"github.com/understudy-rpc/understudy/e2e/journal"
	"github.com/understudy-rpc/understudy/internal/process"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "journal:", err)
		os.Exit(1)
	}
}

func run() error {
	if len(os.Args) < 2 {
		return fmt.Errorf("want replica or client")
	}
	flags := flag.NewFlagSet(os.Args[1], flag.ExitOnError)
	etcd := flags.String("etcd", "", "host:port of etcd, or several separated by commas")
	name := flags.String("name", "", "of the replica or client")
	group := flags.String("group", "journal", "to be part of, or to call")
	relay := flags.String("via", "", "host:port of a relay that everything is dialled through")
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	link := process.NewLink[journal.Command, journal.Event](os.Stdout)
	link.Tell(journal.Event{}) // it has begun
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	switch os.Args[1] {
	case "replica":
		levelName := flags.String("level", "Reflected", "of the group")
		minInSync := flags.Int("min", 1, "replicas in-sync, else calls are refused")
		host := flags.String("host", "127.0.0.1", "to listen on; off loopback, replicas trust whoever reaches them")
		port := flags.Int("port", 0, "on which clients are served; 0 for a free one")
		peerPort := flags.Int("peer-port", 0, "on which the other replicas are; 0 for a free one")
		ballast := flags.Int("ballast", 0, "bytes of a state that begins here")
		tlsDir := flags.String("peer-tls", "",
			"folder of the certificate by which replicas know each other, see WriteTLS")
		replaced := flags.String("replace-group", "", "the id of a group that is given up, and begun anew")
		_ = flags.Parse(os.Args[2:])
		level, err := understudy.ParseLevel(*levelName)
		if err != nil {
			return err
		}
		r := &member{
			journal: journal.New(*ballast), link: link, group: *group,
			host: *host, port: *port, peerPort: *peerPort, relay: *relay, tlsDir: *tlsDir,
			replaced: *replaced,
		}
		go func() {
			defer cancel()
			if err := link.Serve(ctx, os.Stdin, r.answer); err != nil {
				log.Error("control", "error", err)
			}
		}()
		return r.serve(ctx, *etcd, *name, level, *minInSync, log)
	case "client":
		_ = flags.Parse(os.Args[2:])
		c, err := newClient(*etcd, *group, *name, *relay, link, log)
		if err != nil {
			return err
		}
		defer c.conn.Close()
		return link.Serve(ctx, os.Stdin, c.answer)
	default:
		return fmt.Errorf("%q is neither replica nor client", os.Args[1])
	}
}
