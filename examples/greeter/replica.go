package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"

	"github.com/understudy-rpc/understudy/examples/greeter/helloworld"
	"github.com/understudy-rpc/understudy/interceptor"
	"github.com/understudy-rpc/understudy/internal/process"
	"github.com/understudy-rpc/understudy/replica"
)

// replicaMain is the subcommand replica: an ordinary gRPC server and four lines.
func replicaMain(cfg replicaConfig, in io.Reader, out, errOut io.Writer) int {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	s := &served{greeter: newGreeter()}
	var told func(replica.Failover)
	if cfg.control {
		signal.Ignore(os.Interrupt) // it is meant for the parent, whose terminal this is
		parent := process.NewLink[command, event](out)
		told = func(f replica.Failover) { parent.Tell(event{Failover: toFailover(f)}) }
		go func() {
			if err := parent.Serve(ctx, in, s.answer); err != nil {
				fmt.Fprintln(errOut, err)
			}
			cancel()
		}()
	} else {
		var restore context.CancelFunc
		ctx, restore = signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
		defer restore()
		told = func(f replica.Failover) { fmt.Fprintln(out, failoverLine(*toFailover(f))) }
		fmt.Fprintf(out, "replica %s, process %d\n", cfg.name, os.Getpid())
		go s.show(ctx, out)
	}
	if err := s.serve(ctx, cfg, logger(errOut, cfg.verbose), told); err != nil && ctx.Err() == nil {
		fmt.Fprintln(errOut, err)
		return 1
	}
	return 0
}

// served is what this process serves.
type served struct {
	greeter *greeter
	replica atomic.Pointer[replica.Replica] // nil until it has joined
}

// serve serves the greeter until ctx ends: this is what replication asks of a server's author.
func (s *served) serve(ctx context.Context, cfg replicaConfig, log *slog.Logger, told func(replica.Failover)) error {
	lis, err := net.Listen("tcp", cfg.listen)
	if err != nil {
		return err
	}
	defer lis.Close()
	peers, err := net.Listen("tcp", cfg.peers)
	if err != nil {
		return err
	}
	defer peers.Close()
	creds, reachable, err := cfg.tls.serve(peers)
	if err != nil {
		return err
	}
	statuses := health.NewServer()
	options := []replica.Option{
		reachable, replica.Health(statuses), replica.Name(cfg.name), replica.Level(cfg.level), replica.Logger(log),
		replica.OnFailover(told),
	}
	if cfg.advertise != "" {
		options = append(options, replica.Advertise(cfg.advertise))
	}
	if cfg.replace != "" {
		options = append(options, replica.ReplaceGroup(cfg.replace))
	}
	if cfg.etcdTLS != "" {
		etcd, err := cfg.etcdTLS.client()
		if err != nil {
			return err
		}
		options = append(options, replica.Etcd(etcd, "", "")) // it knows users by their certificates
	}
	r, err := replica.Join(ctx, "etcd://"+cfg.etcd+"/"+cfg.group, replica.State(s.greeter), options...)
	if err != nil {
		return err
	}
	s.replica.Store(r)
	stopProbes, err := answerProbes(cfg.health, statuses)
	if err != nil {
		return err
	}
	defer stopProbes()
	server := grpc.NewServer(append(interceptor.ServerOptions(r), creds)...)
	helloworld.RegisterGreeterServer(r.Registrar(server), s.greeter)
	return r.Serve(ctx, server, lis)
}

// status is what this replica says of itself now.
func (s *served) status() replicaStatus {
	r := s.replica.Load()
	if r == nil {
		return replicaStatus{Role: replica.Joining}
	}
	now := r.Status()
	return replicaStatus{Role: now.Role, Primary: now.Primary, Epoch: now.Epoch, InSync: now.InSync,
		Executed: now.Executed, Stable: now.Stable}
}

// answer answers the parent's commands.
func (s *served) answer(_ context.Context, c command) (event, error) {
	switch c.Do {
	case doStatus:
		now := s.status()
		return event{Status: &now}, nil
	case doDump:
		return event{Dump: s.greeter.dump()}, nil
	}
	return event{}, process.Unknown(c)
}

// show is for a person at a terminal: it writes a line when the replica's part in the group
// changes, and once a second while it executes.
func (s *served) show(ctx context.Context, out io.Writer) {
	var last string
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		if line := s.status().String(); line != last {
			fmt.Fprintln(out, line)
			last = line
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func toFailover(f replica.Failover) *failover {
	return &failover{From: f.From, To: f.To, Epoch: f.Epoch, Suspected: f.Suspected, Elected: f.Elected,
		Opened: f.Opened}
}

func logger(out io.Writer, verbose bool) *slog.Logger {
	level := slog.LevelWarn
	if verbose {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: level}))
}
