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
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
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

// Serve publishes the replica, joins the group (or makes it), and serves s on lis until ctx ends,
// or Stop is called, or GracefulStop or Stop of s, which end as Stop does; then it returns nil. A
// handler, or Restore, that doesn't return within a second of that is left behind, and Serve's
// error names it. It returns an error, too, when the replica can't be a member: a service of s that
// is neither registered through Registrar nor declared unreplicated, a server made without
// interceptor.ServerOptions, a name that a live replica has, another level than the group's, no
// etcd within 10 s. s may serve other listeners besides. When Serve returns, lis and the listener
// of Peers are closed. A replica that is deposed or evicted joins again by itself.
func (r *Replica) Serve(ctx context.Context, s *grpc.Server, lis net.Listener) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(errStopped)
	r.mu.Lock()
	before, over := r.serving, r.over
	if !before && !over {
		r.serving, r.stop = true, stop
	}
	r.mu.Unlock()
	switch {
	case before:
		return errors.New("replica: Serve was called before")
	case over:
		_ = lis.Close()
		return nil
	}
	defer close(r.stopped)
	defer r.log.Flush(heartbeat)
	defer r.release()
	defer lis.Close()

	if err := r.check(s); err != nil {
		return err
	}
	peerLis, err := r.listenPeers(lis)
	if err != nil {
		return err
	}
	defer peerLis.Close()
	if err := r.publish(lis.Addr(), peerLis.Addr()); err != nil {
		return err
	}
	if err := r.reach(ctx); err != nil {
		return err
	}
	peerServer := newPeerServer(r, r.config.peerServerCreds)
	health := r.reportHealth()
	defer health.end()
	peersServed, served := make(chan error, 1), make(chan error, 1)
	own := newNoted(lis)
	go func() { peersServed <- peerServer.Serve(peerLis) }()
	go func() { served <- s.Serve(own) }()
	life, end := context.WithCancelCause(context.WithoutCancel(ctx))
	defer end(errStopped)
	go func() {
		why := errStopped
		select {
		case err := <-peersServed:
			why = err
		case <-own.closed: // the server stops, and lets us know no other way; or its listener has failed
		case <-ctx.Done():
			why = context.Cause(ctx)
		case <-life.Done():
		}
		health.end()
		if in := r.current(); in != nil {
			in.settle()
		}
		end(why)
	}()
	err = r.lives(life)
	end(errStopped)
	if err == nil && own.isClosed() { // a GracefulStop waits for the RPCs in flight, as long as they take
		select {
		case err = <-served:
		case <-ctx.Done():
		}
	}
	drained := drainServer(s)
	peerServer.Stop()
	if err == nil {
		err = r.errHangs(drained)
	}
	return err
}

// release closes what was given to Join, and what that has made, however Serve ends, or without it.
func (r *Replica) release() {
	if r.config.peers != nil {
		_ = r.config.peers.Close()
	}
	if r.etcd != nil {
		_ = r.etcd.Close()
	}
}

// lives runs one incarnation after the other.
func (r *Replica) lives(ctx context.Context) error {
	for {
		in := newIncarnation(ctx, &r.env)
		r.mu.Lock()
		r.life.Store(in)
		close(r.lifeMade)
		r.lifeMade = make(chan struct{})
		r.mu.Unlock()
		err := in.run()
		pause := reconnect
		var mismatch *MismatchError
		var taken *election.NameTakenError
		final := ctx.Err() != nil || errors.As(err, &mismatch) || errors.As(err, &taken) ||
			errors.As(err, new(startError))
		if !final { // before it is closed, which waits for a Restore that hangs
			pause = r.lifeEnded(in, err)
		}
		in.close()
		switch {
		case ctx.Err() != nil:
			if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, errStopped) &&
				!errors.Is(cause, context.Canceled) && !errors.Is(cause, context.DeadlineExceeded) {
				return cause
			}
			return nil
		case final:
			return err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}

// reach notices early that there is no etcd.
func (r *Replica) reach(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	_, err := r.store.Read(ctx)
	if err == nil || trust.IsSuspect(err) { // what is suspect may make sense again
		return nil
	}
	if p, ok := r.config.store.(interface{ Problem(context.Context) error }); ok {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if why := p.Problem(ctx); why != nil {
			return fmt.Errorf("replica: the election store doesn't answer: %w: %w", err, why)
		}
	}
	return fmt.Errorf("replica: the election store doesn't answer: %w", err)
}

// check refuses services that would be executed by one replica only.
func (r *Replica) check(s *grpc.Server) error {
	maxRequest, err := checkLimits(s)
	if err != nil {
		return err
	}
	r.maxRequest = maxRequest
	services := s.GetServiceInfo()
	_, connected := services[pb.Connection_ServiceDesc.ServiceName]
	switch {
	case r.served.unfit != nil:
		return r.served.unfit
	case len(r.served.services) > 0 && !connected:
		return errors.New(
			"replica: the services are registered on another server: Serve takes the one that was given to Registrar",
		)
	case len(r.served.services) > 0 && !r.served.optioned.Load():
		return errors.New(
			"replica: the server was made without interceptor.ServerOptions: give what that returns for this " +
				"replica to grpc.NewServer",
		)
	}
	for name := range services {
		if !r.served.services[name] && !r.config.unreplicated[name] {
			return fmt.Errorf(
				"replica: service %s is neither registered through Replica.Registrar nor declared with "+
					"replica.Unreplicated", name,
			)
		}
	}
	return nil
}

// listenPeers returns the replicas' own listener. In plaintext it must not be reachable from
// elsewhere, unless the user says so.
func (r *Replica) listenPeers(lis net.Listener) (net.Listener, error) {
	peers := r.config.peers
	if peers == nil {
		host, _, err := net.SplitHostPort(lis.Addr().String())
		if err != nil {
			return nil, fmt.Errorf(
				"replica: no listener for the replicas can be derived from %s: give one with replica.Peers", lis.Addr(),
			)
		}
		if peers, err = net.Listen("tcp", net.JoinHostPort(host, "0")); err != nil {
			return nil, fmt.Errorf("replica: the replicas' own listener: %w", err)
		}
	}
	if r.config.peerServerCreds == nil && !r.config.insecurePeers && !loopback(peers.Addr()) {
		_ = peers.Close()
		return nil, fmt.Errorf(
			"replica: the replicas' own listener %s can be reached from elsewhere: give mutual TLS with "+
				"replica.Peers, or accept plaintext with replica.InsecurePeers", peers.Addr(),
		)
	}
	return peers, nil
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
