package replica

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/internal/clock"
	"github.com/understudy-rpc/understudy/internal/logs"
	"github.com/understudy-rpc/understudy/internal/trust"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
	"github.com/understudy-rpc/understudy/replica/internal/machine"
)

// Replica is one process's part in a group. Its methods may be called concurrently, after the
// services were registered.
type Replica struct {
	env
	served served
	etcd   *clientv3.Client // closed by Stop; nil when the store was given

	mu       sync.Mutex // guards what follows
	serving  bool
	over     bool // Stop came before Serve
	stop     context.CancelCauseFunc
	stopped  chan struct{}
	life     atomic.Pointer[incarnation] // the present one, which may be read without mu
	lifeMade chan struct{}               // closed, and made anew, when life changes
}

// Join prepares a replica of the group that target names: etcd://host:port[,host:port]/group.
// Nothing is published before Serve.
//
// Join sends nothing, and doesn't wait. When ctx has ended, it does nothing, and its error wraps
// ctx's cause. Any other error means that the target or an option is wrong. An etcd that doesn't
// answer is noticed in Serve.
func Join(ctx context.Context, target string, kind Kind, opts ...Option) (*Replica, error) {
	if ctx.Err() != nil {
		return nil, fmt.Errorf("replica: Join was called with a context that has ended: %w", context.Cause(ctx))
	}
	if kind.state == nil {
		return nil, errors.New("replica: Join needs State or Stateless")
	}
	r := &Replica{
		env:     env{wall: clock.Wall(ctx)},
		served:  served{services: map[string]bool{}},
		stopped: make(chan struct{}), lifeMade: make(chan struct{}),
	}
	r.config.minInSync = 1
	r.config.unreplicated = map[string]bool{
		pb.Connection_ServiceDesc.ServiceName: true, "grpc.health.v1.Health": true,
		"grpc.reflection.v1.ServerReflection": true, "grpc.reflection.v1alpha.ServerReflection": true,
	}
	for i, o := range opts {
		if o == nil {
			return nil, fmt.Errorf("replica: option %d of Join is nil", i)
		}
		o(&r.config)
	}
	if err := errors.Join(r.config.wrong...); err != nil {
		return nil, err
	}
	if err := r.complete(target); err != nil {
		return nil, err
	}
	r.app = machine.NewApp(kind.state, r.log, r.clock)
	return r, nil
}

// complete fills in the defaults, and checks.
func (r *Replica) complete(target string) error {
	c := &r.config
	endpoints, group, err := parseTarget(target)
	if err != nil {
		return err
	}
	r.group = group
	if c.name == "" {
		if c.name, err = os.Hostname(); err != nil {
			return fmt.Errorf("replica: no name was given, and the host has none: %w", err)
		}
	}
	if err := election.ValidName(c.name); err != nil {
		return fmt.Errorf("replica: the host's name can't be the replica's, give one with replica.Name: %w", err)
	}
	if c.replace != "" {
		if c.replaces, err = strconv.ParseUint(c.replace, 16, 64); err != nil || c.replaces == 0 {
			return fmt.Errorf("replica: ReplaceGroup: %q is no group's id in hexadecimal", c.replace)
		}
	}
	if r.log = c.log; r.log == nil {
		r.log = logs.New(nil)
	}
	r.log = r.log.With("group", group)
	if r.clock = c.clock; r.clock == nil {
		r.clock = clock.System()
	}
	if c.store != nil && c.etcd != nil {
		return errors.New("replica: Etcd says how etcd is entered, and Store replaces it: give one of them")
	}
	if c.store == nil {
		if len(endpoints) == 0 {
			return fmt.Errorf("replica: target %q names no etcd: it is etcd://host:port[,host:port]/group", target)
		}
		access := cmp.Or(c.etcd, &etcdAccess{})
		if r.etcd, err = election.DialAs(endpoints, access.tls, access.username, access.password); err != nil {
			return err
		}
		c.store = election.NewEtcd(r.etcd, group)
	}
	if c.health != nil {
		c.health.SetServingStatus("", healthpb.HealthCheckResponse_NOT_SERVING)
	}
	r.store = trust.New(c.store)
	return nil
}

// parseTarget takes etcd://host:port[,host:port]/group apart.
func parseTarget(target string) (endpoints []string, group string, err error) {
	rest, ok := strings.CutPrefix(target, "etcd://")
	if !ok {
		return nil, "", fmt.Errorf("replica: target %q isn't of the form etcd://host:port[,host:port]/group", target)
	}
	hosts, group, _ := strings.Cut(rest, "/")
	if err := election.ValidName(group); err != nil {
		return nil, "", fmt.Errorf("replica: target %q names no group (%w): it is etcd://host:port[,host:port]/group",
			target, err)
	}
	if hosts == "" {
		return nil, group, nil
	}
	endpoints = strings.Split(hosts, ",")
	for _, e := range endpoints {
		if _, port, err := net.SplitHostPort(e); err != nil || port == "" {
			return nil, "", fmt.Errorf("replica: target %q: %q isn't host:port", target, e)
		}
	}
	return endpoints, group, nil
}

func (r *Replica) current() *incarnation {
	return r.life.Load()
}

// awaitState waits until this replica has a state: a source's stream is of no use before.
func (r *Replica) awaitState(ctx context.Context) (*incarnation, error) {
	for {
		r.mu.Lock()
		in, made := r.life.Load(), r.lifeMade
		r.mu.Unlock()
		if in != nil {
			in.m.mu.Lock()
			err := in.m.await(ctx, func() bool { return in.m.role != joining{} })
			in.m.mu.Unlock()
			if err == nil && in.ctx.Err() == nil {
				return in, nil
			}
		}
		if ctx.Err() != nil {
			return nil, status.FromContextError(ctx.Err()).Err()
		}
		select {
		case <-made:
		case <-ctx.Done():
		case <-r.stopped:
			return nil, status.Error(codes.Unavailable, errStopped.Error())
		}
	}
}

// joinFailure is why the last attempt to join has failed, while this replica isn't in-sync.
func (r *Replica) joinFailure() string {
	if in := r.current(); in != nil && in.m.isMember() {
		return ""
	}
	return r.joins.failure()
}

// Status says what this replica knows of itself; it may be called at any time.
func (r *Replica) Status() Status {
	s := Status{
		Role: Joining, Name: r.config.name,
		Turns: r.stats.turns.Load(), Duplicates: r.stats.duplicates.Load(), Refused: r.stats.refused.Load(),
		Forged: r.stats.forged.Load(), Dropped: r.stats.dropped.Load(),
	}
	s.JoinFailure = r.joinFailure()
	in := r.current()
	if in == nil {
		return s
	}
	in.m.mu.Lock()
	defer in.m.mu.Unlock()
	s.Role, s.Primary, s.Epoch = in.m.role.public(), in.m.leader.Name, uint64(in.m.epoch())
	s.Executed = uint64(in.machine.Executed())
	s.Stable = uint64(in.m.role.stable())
	if l := in.m.leading(); l != nil {
		for _, n := range l.primary.History().Sessions() {
			s.Detached += len(l.primary.DetachedAt(n))
		}
	}
	if in.m.suspect != nil {
		s.Suspect = in.m.suspect.Error()
	}
	for _, m := range in.m.view.InSync {
		s.InSync = append(s.InSync, m.Name)
	}
	return s
}
