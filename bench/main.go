// Command bench measures what replication costs a call, as ratios to plain gRPC in adjacent
// windows.
//
//	go -C bench run .
//
// starts an etcd in this process, and for each system servers and a client as processes of their
// own: this program again, with the subcommands server and client. Callers call in a closed loop;
// windows of plain gRPC and of the systems alternate. What is counted is in meter.go and usage.go,
// how windows become figures in figures.go, and what the figures say in README.md.
//
// The subcommands quick, peers, scale and failover measure what README.md says, and write
// name=value lines or RESULTS.md; revisions compares the working tree with a commit, and fails when
// it costs more.
//
// With -profile folder it also writes profiles; "go -C bench run . breakdown folder" says where the
// CPU goes.
//
// To add a system is to add a row to systems (system.go).
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
)

func main() { os.Exit(dispatch(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }

// dispatch runs the subcommand that args begin with, and returns the exit code: 2 when args can't
// be understood.
func dispatch(args []string, in io.Reader, out, errOut io.Writer) int {
	name := ""
	if len(args) > 0 {
		name = args[0]
	}
	var err error
	switch name {
	case "server":
		var cfg serverConfig
		if cfg, err = parseServer(args[1:], errOut); err == nil {
			err = serverMain(cfg, in, out, errOut)
		}
	case "client":
		var cfg clientConfig
		if cfg, err = parseClient(args[1:], errOut); err == nil {
			err = clientMain(cfg, in, out)
		}
	case "breakdown":
		var cfg breakdownConfig
		if cfg, err = parseBreakdown(args[1:], errOut); err == nil {
			err = breakdownMain(cfg, out)
		}
	case "quick":
		err = quickMain(args[1:], out, errOut)
	case "peers":
		err = peersMain(args[1:], errOut)
	case "scale":
		err = scaleMain(args[1:], errOut)
	case "revisions":
		err = revisionsMain(args[1:], out, errOut)
	case "failover":
		err = failoverMain(args[1:], errOut)
	default:
		var cfg config
		if cfg, err = parseBench(args, errOut); err == nil {
			err = benchMain(cfg, out, errOut)
		}
	}
	var bad *usageError
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return 0
	case errors.As(err, &bad): // it was told
		return 2
	}
	fmt.Fprintln(errOut, err)
	return 1
}

// benchMain measures, and reports.
func benchMain(cfg config, out, errOut io.Writer) error {
	ctx, cancel := interruptible(cfg.limit())
	defer cancel()
	r, err := measure(ctx, cfg, errOut)
	if err != nil {
		return err
	}
	if cfg.JSON {
		return r.writeJSON(out)
	}
	return r.writeText(out)
}

// interruptible ends when somebody interrupts this process, or after limit.
func interruptible(limit time.Duration) (context.Context, context.CancelFunc) {
	ctx, restore := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errors.New("it takes far longer than what it measures"))
	return ctx, func() {
		cancel()
		restore()
	}
}

// measure runs one bench.
func measure(ctx context.Context, cfg config, progress io.Writer) (*report, error) {
	b := &bench{cfg: cfg, progress: progress, report: report{Config: cfg, Machine: thisMachine()}}
	err := b.run(ctx)
	if err != nil && ctx.Err() != nil {
		err = errors.Join(context.Cause(ctx), err)
	}
	return &b.report, err
}
