package replica

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"google.golang.org/grpc"

	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/internal/trust"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// This file has how a replica serves, and how it ends: by Stop, by the end of Serve's context, or
// by its server's own GracefulStop or Stop.

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

// ErrLastInSync is Stop's error when the replica was the last one in-sync: the group's state, which
// is in memory, is gone with it, and the group is down.
var ErrLastInSync = errors.New("replica: the last in-sync replica has stopped, and with it goes the group's state")

// Stop ends Serve: the replica withdraws, its streams are cut, replies on their way leave, and
// Serve returns. If it led, it orders nothing more, and waits until its backups hold all that it
// has ordered, for half a second at most; then another in-sync replica takes over, and nothing that
// anyone has seen is lost. Stop waits for the end of Serve within ctx; calling it again is
// harmless. Before Serve, it releases what Join has made, and Serve then returns nil at once.
//
// The last in-sync replica of a group has nobody who takes over. As long as another one is joining,
// Stop waits for that, within ctx; then it stops all the same, and its error is ErrLastInSync.
func (r *Replica) Stop(ctx context.Context) error {
	r.mu.Lock()
	stop, serving, over := r.stop, r.serving, r.over
	r.over = r.over || !serving
	r.mu.Unlock()
	if !serving {
		if !over {
			r.release()
			close(r.stopped)
		}
		return nil
	}
	last := r.awaitHeir(ctx)
	stop(errStopped)
	select {
	case <-r.stopped:
		return last
	case <-ctx.Done():
		if last != nil {
			return fmt.Errorf("%w (%w)", last, ctx.Err())
		}
		return ctx.Err()
	}
}

// awaitHeir waits for a joiner that is there, if nobody else is in-sync.
func (r *Replica) awaitHeir(ctx context.Context) error {
	in := r.current()
	if in == nil {
		return nil
	}
	in.m.mu.Lock()
	defer in.m.mu.Unlock()
	l := in.m.leading()
	if l == nil {
		return nil
	}
	for l.roster.isLast() {
		if !l.roster.hasJoiner() || ctx.Err() != nil {
			return ErrLastInSync
		}
		wait, cancel := context.WithTimeout(ctx, heartbeat)
		_ = in.m.await(wait, func() bool { return !l.roster.isLast() })
		cancel()
	}
	return nil
}

// errHangs is Serve's error when it has ended without user code that doesn't return.
func (r *Replica) errHangs(drained bool) error {
	switch m := r.app.Executes(); {
	case m != "":
		return fmt.Errorf("replica: Serve has ended while %s didn't return", m)
	case !drained:
		return errors.New("replica: Serve has ended while a handler of the server's didn't return")
	}
	return nil
}

// lifeEnded notes how an incarnation has ended that another one will follow, and says when that
// begins: soon if this one was a member; who fails to join waits twice as long each time.
func (r *Replica) lifeEnded(in *incarnation, because error) (pause time.Duration) {
	member := in.m.isMember()
	failed := r.joins.ended(member, because)
	if member {
		in.log.Info("beginning again as a new incarnation", "because", because)
		return reconnect
	}
	pause = reconnect << min(failed-1, joinDoublings)
	level := slog.LevelWarn
	if failed >= joinTroubles {
		level = slog.LevelError
	}
	in.log.Log(in.ctx, level, "can't join the group, beginning again as a new incarnation", "because", because,
		"failures", failed, "in", pause)
	return pause
}
