package replica

import (
	"context"
	"fmt"
	"sync"
	"time"

	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// Ready waits until this replica is ready: until it is in-sync and hears its primary, or leads,
// with its gate open and etcd's word for it, and believes the store. So it holds all that any
// caller has seen, as far as it knows, and the next replica may be restarted. MinInSync doesn't
// count: the first replica of a new group is ready alone.
//
// It may be called before Serve, and again at any time; a replica that was ready may be so no
// longer. When ctx ends first, the error says what the replica waits for, and wraps ctx's cause:
// with a ctx that has ended, Ready says how it is now. When Serve has ended, the error says so.
func (r *Replica) Ready(ctx context.Context) error {
	t := time.NewTicker(reconnect)
	defer t.Stop()
	for {
		waitsFor := r.unready()
		if waitsFor == "" {
			return nil
		}
		select {
		case <-r.stopped:
			return fmt.Errorf("replica: %s isn't ready: Serve has ended, and its error says why", r.config.name)
		default:
		}
		select {
		case <-t.C:
		case <-r.stopped:
		case <-ctx.Done():
			return fmt.Errorf("replica: %s isn't ready: %s: %w", r.config.name, waitsFor, context.Cause(ctx))
		}
	}
}

// unready says what this replica waits for; it is empty when it is ready.
func (r *Replica) unready() string {
	in, why := r.current(), r.joinFailure()
	if in == nil {
		return "it isn't served yet"
	}
	if why != "" {
		why = " (the last attempt to join failed: " + why + ")"
	}
	in.m.mu.Lock()
	defer in.m.mu.Unlock()
	switch {
	case in.m.suspect != nil: // whoever is restarted now can't join
		return in.m.suspect.Error()
	case in.ctx.Err() != nil:
		return "it begins again as a new incarnation, or ends" + why
	}
	switch role := in.m.role.(type) {
	case ended:
		return "it begins again as a new incarnation, or ends" + why
	case joining:
		return "it waits for a primary and its state" + why
	case *following:
		switch {
		case !role.inSync:
			return "it has a state, and isn't in-sync yet"
		case !in.m.upstream.hears(in.r.clock()):
			return "it doesn't hear its primary"
		}
	case *takingOver:
		return "it leads, and executes no calls yet, or no more"
	case *leading:
		switch {
		case !role.gate:
			return "it leads, and executes no calls yet, or no more"
		case role.authority <= in.r.clock():
			return "it leads, and etcd hasn't said so for too long"
		}
	}
	return ""
}

// reporter keeps a health server's statuses as this replica's readiness is. It looks at each
// heartbeat: what makes ready is spread over role, stream and clock, and no probe asks more often.
type reporter struct {
	r     *Replica
	stop  context.CancelFunc
	ended chan struct{}
	once  sync.Once
}

// reportHealth begins to report, if there is a health server.
func (r *Replica) reportHealth() *reporter {
	ctx, stop := context.WithCancel(context.Background())
	p := &reporter{r: r, stop: stop, ended: make(chan struct{})}
	if r.config.health == nil {
		close(p.ended)
		return p
	}
	p.set(false)
	go func() {
		defer close(p.ended)
		t := time.NewTicker(heartbeat)
		defer t.Stop()
		for was := false; ; {
			if ready := r.unready() == ""; ready != was {
				p.set(ready)
				was = ready
			}
			select {
			case <-t.C:
			case <-ctx.Done():
				return
			}
		}
	}()
	return p
}

// end reports that the replica isn't ready, and nothing after. It may be called again.
func (p *reporter) end() {
	p.once.Do(func() {
		p.stop()
		<-p.ended
		p.set(false)
	})
}

// set sets the status of the whole server, and of each replicated service.
func (p *reporter) set(ready bool) {
	h := p.r.config.health
	if h == nil {
		return
	}
	s := healthpb.HealthCheckResponse_NOT_SERVING
	if ready {
		s = healthpb.HealthCheckResponse_SERVING
	}
	h.SetServingStatus("", s)
	for name := range p.r.served.services {
		h.SetServingStatus(name, s)
	}
}
