// Command greeter shows the stock gRPC greeter, replicated: clients see no error when the primary
// is killed, and no greeting is lost or counted twice.
//
//	go -C examples/greeter run .
//
// starts an etcd, three replicas and a client, kills the primary every three seconds, and reports.
// The subcommands replica, client and etcd are its parts, for a person with some terminals: see
// README.md.
//
// What replication asks of a server's author is in replica.go and greeter.go, what of a client's in
// client.go.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/understudy-rpc/understudy/internal/etcdnode"
)

func main() { os.Exit(dispatch(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }

// dispatch runs the subcommand that args begin with, and returns the exit code: 2 when args can't
// be understood.
func dispatch(args []string, in io.Reader, out, errOut io.Writer) int {
	name := ""
	if len(args) > 0 {
		name = args[0]
	}
	switch name {
	case "replica":
		cfg, err := parseReplica(args[1:], errOut)
		return usage(err, func() int { return replicaMain(cfg, in, out, errOut) })
	case "client":
		cfg, err := parseClient(args[1:], errOut)
		return usage(err, func() int { return clientMain(cfg, in, out, errOut) })
	case "etcd":
		cfg, err := parseEtcd(args[1:], errOut)
		return usage(err, func() int { return etcdMain(cfg, out, errOut) })
	default:
		cfg, err := parseRun(args, errOut)
		return usage(err, func() int { return runMain(cfg, out, errOut) })
	}
}

func usage(err error, run func() int) int {
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	}
	return run()
}

// runMain plays the whole. The first Ctrl-C ends it in order, the second at once.
func runMain(cfg runConfig, out, errOut io.Writer) int {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	early, endEarly := context.WithCancel(ctx)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-signals
		first := time.Now()
		endEarly()
		for range signals {
			if time.Since(first) > 300*time.Millisecond { // timeout(1) sends its signal to the process and to its group
				cancel(errors.New("interrupted"))
			}
		}
	}()
	p := &play{cfg: cfg, early: early, out: out}
	ok, err := p.run(ctx)
	if err != nil {
		fmt.Fprintln(errOut, err)
	}
	if !ok || err != nil {
		return 1
	}
	return 0
}

// etcdMain is the subcommand etcd: the embedded one, for those who have no other.
func etcdMain(cfg etcdConfig, out, errOut io.Writer) int {
	ctx, restore := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer restore()
	e, err := etcdnode.Start(ctx, etcdnode.Config{Listen: cfg.listen})
	if err != nil {
		fmt.Fprintln(errOut, err)
		return 1
	}
	fmt.Fprintf(out, "etcd serves on %s\n", e.Addr)
	select {
	case <-ctx.Done():
		err = e.Stop()
	case err = <-e.Server.Err():
		err = errors.Join(err, e.Stop())
	}
	if err != nil {
		fmt.Fprintln(errOut, err)
		return 1
	}
	return 0
}
