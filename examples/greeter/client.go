package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"google.golang.org/grpc"

	"github.com/understudy-rpc/understudy/examples/greeter/helloworld"
	"github.com/understudy-rpc/understudy/interceptor"
	"github.com/understudy-rpc/understudy/internal/process"
	"github.com/understudy-rpc/understudy/transport"
)

// clientMain is the subcommand client: an ordinary gRPC client with another target, and callers
// that greet.
func clientMain(cfg clientConfig, in io.Reader, out, errOut io.Writer) int {
	// The callers' context: it ends with the process only, since a call that is cut off has an
	// unknown outcome.
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()

	creds, err := cfg.tls.dial()
	if err != nil {
		fmt.Fprintln(errOut, err)
		return 1
	}
	ours := []transport.Option{transport.WithLogger(logger(errOut, cfg.verbose))}
	if cfg.etcdTLS != "" {
		etcd, err := cfg.etcdTLS.client()
		if err != nil {
			fmt.Fprintln(errOut, err)
			return 1
		}
		ours = append(ours, transport.WithEtcd(etcd, "", ""))
	}
	options := append(interceptor.DialOptions(ours...), grpc.WithTransportCredentials(creds))
	conn, err := grpc.NewClient("replicated://"+cfg.etcd+"/"+cfg.group, options...)
	if err != nil {
		fmt.Fprintln(errOut, err)
		return 1
	}
	defer conn.Close()

	l := newLoad(ctx, helloworld.NewGreeterClient(conn), cfg.callers)
	if cfg.control {
		signal.Ignore(os.Interrupt) // it is meant for the parent, whose terminal this is
		err = process.NewLink[command, event](out).Serve(ctx, in, l.answer)
		if err != nil {
			fmt.Fprintln(errOut, err)
			return 1
		}
		return 0
	}
	return playClient(cfg, l, out)
}

// playClient is for a person at a terminal: it shows a line a second, until the duration or Ctrl-C
// ends it.
func playClient(cfg clientConfig, l *load, out io.Writer) int {
	ctx, restore := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer restore()
	if cfg.duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, cfg.duration)
		defer cancel()
	}
	l.start()
	began, last := time.Now(), stats{At: time.Now()}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for running := true; running; {
		select {
		case <-tick.C:
			longest := l.holdups.since(last.At)
			now := l.stats()
			fmt.Fprintf(out, "%s   longest %d ms\n", statsLine(began, last, now), milliseconds(longest))
			last = now
		case <-ctx.Done():
			running = false
		}
	}
	restore() // a second Ctrl-C doesn't wait for the last calls
	l.stop()
	t := l.tally()
	t.print(out)
	// no state to compare with: numbers below the highest given can be missing, or twice
	v := judge(t.Accounts, nil, "")
	v.print(out)
	fmt.Fprintf(out, "calls=%d failed=%d lost=%d duplicated=%d\n", t.Calls, t.Failed, v.Lost, v.Duplicated)
	if t.Failed+v.Lost+v.Duplicated > 0 {
		return 1
	}
	return 0
}
