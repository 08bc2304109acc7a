package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"

	"github.com/understudy-rpc/understudy"
)

// groupName is the name of the nth group of those of one name.
func groupName(name string, n int) string {
	if n == 0 {
		return name
	}
	return fmt.Sprintf("%s-%d", name, n)
}

// groups is a server with a replica of each of several groups: each has its state, a gRPC server
// and a listener of its own, as a process that serves several replicated services has.
type groups struct {
	replicas []server
	meter    *meter
}

// newReplicas makes a replica of each group; the first one's state is app.
func newReplicas(cfg serverConfig, level understudy.Level, app *adder, m *meter) (server, error) {
	all := &groups{meter: m}
	for i := range cfg.groups {
		of := cfg
		of.group = groupName(cfg.group, i)
		if i > 0 {
			of.peers = anyPort
			app = newAdder()
			app.fill(cfg.filled)
		}
		r, err := newReplica(of, level, app, m)
		if err != nil {
			return nil, err
		}
		all.replicas = append(all.replicas, r)
	}
	if len(all.replicas) == 1 {
		return all.replicas[0], nil
	}
	return all, nil
}

// serve serves the first on lis, and the others, which clients find in etcd, on ports of their own.
func (g *groups) serve(ctx context.Context, lis net.Listener) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var serving sync.WaitGroup
	defer serving.Wait()
	for i, r := range g.replicas {
		on := lis
		if i > 0 {
			other, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				cancel(err)
				break
			}
			on = g.meter.listen(other)
		}
		serving.Go(func() {
			if err := r.serve(ctx, on); err != nil && ctx.Err() == nil {
				cancel(err)
			}
		})
	}
	<-ctx.Done()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// standing is the first group's, with what has happened in all of them.
func (g *groups) standing() standing {
	s := g.replicas[0].standing()
	for _, r := range g.replicas[1:] {
		other := r.standing()
		s.Events += other.Events + other.Epoch
	}
	return s
}

func (g *groups) state() state {
	all := state{History: fnvOffset}
	for _, r := range g.replicas {
		s := r.state()
		all.Adds += s.Adds
		all.Sum += s.Sum
		all.History = fold(all.History, s.History)
	}
	return all
}
